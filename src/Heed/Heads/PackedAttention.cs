using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Multi-head attention of separate queries, keys and values whose three projections lie in one matrix: PyTorch's <c>nn.MultiheadAttention</c>, with its parameter names <c>in_proj_weight</c> <c>[3 C, C]</c>,
/// <c>in_proj_bias</c> <c>[3 C]</c>, <c>out_proj.weight</c> <c>[C, C]</c> and <c>out_proj.bias</c>. For layers whose keys differ from their values, for example by a position code.</summary>
public sealed class PackedAttention : nn.Module<Tensor, Tensor, Tensor, Tensor>
{
    private readonly Parameter in_proj_weight;
    private readonly Parameter in_proj_bias;
    private readonly Projection out_proj;
    private readonly int _width;
    private readonly int _heads;

    /// <summary>Makes a module: weights from Xavier's uniform distribution, biases zero.</summary>
    /// <param name="width">Width C, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="site">Where its calls stand in a model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width.</exception>
    public PackedAttention(int width, int heads, AttentionSite site = default, AttentionHooks? hooks = null)
        : base(nameof(PackedAttention))
    {
        if (width < 1 || heads < 1 || width % heads != 0)
        {
            throw new ArgumentException($"The number of heads divides the width; {heads} heads and width {width} were given.", nameof(heads));
        }

        (_width, _heads, Site, Hooks) = (width, heads, site, hooks);
        in_proj_weight = Parameters.Make([3L * width, width], tensor => Uniform(tensor, 4L * width));
        in_proj_bias = Parameters.Make([3L * width], tensor => tensor.zero_());
        out_proj = new(width, width, hasBias: true);
        using (no_grad())
        {
            Uniform(out_proj.Weight, 2L * width);
        }

        RegisterComponents();

        static void Uniform(Tensor tensor, long fans)
        {
            var bound = Math.Sqrt(6.0 / fans);
            tensor.uniform_(-bound, bound);
        }
    }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor query, Tensor key, Tensor value) => forward(query, key, value, null);

    /// <summary>The module's output.</summary>
    /// <param name="query">What asks, <c>[B, N, C]</c>.</param>
    /// <param name="key">What is compared, <c>[B, M, C]</c>.</param>
    /// <param name="value">What is gathered, <c>[B, M, C]</c>.</param>
    /// <param name="padding">Keys that are not there, boolean <c>[B, M]</c>; null: all are. An item without any key gathers nothing.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public Tensor forward(Tensor query, Tensor key, Tensor value, Tensor? padding)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        if (query.dim() != 3 || query.shape[2] != _width || key.dim() != 3 || key.shape[2] != _width || key.shape[0] != query.shape[0] || !key.shape.SequenceEqual(value.shape))
        {
            throw new ArgumentException(
                $"Queries must be [batch, queries, {_width}], keys and values [batch, keys, {_width}], not {AttentionShape.Text(query)}, {AttentionShape.Text(key)} and {AttentionShape.Text(value)}.", nameof(query));
        }

        if (padding is not null && (padding.dtype != ScalarType.Bool || !padding.shape.SequenceEqual(key.shape.Take(2))))
        {
            throw new ArgumentException($"The padding must be boolean [{key.shape[0]}, {key.shape[1]}], not {padding.dtype} {AttentionShape.Text(padding)}.", nameof(padding));
        }

        using var scope = NewDisposeScope();
        Tensor Project(Tensor tokens, int part) => nn.functional.linear(tokens, in_proj_weight.narrow(0, part * _width, _width), in_proj_bias.narrow(0, part * _width, _width))
            .view(tokens.shape[0], tokens.shape[1], _heads, -1).transpose(1, 2);
        var options = padding is null ? null : new AttentionOptions { Mask = padding.logical_not().view(key.shape[0], 1, 1, key.shape[1]) };
        var mixed = Attention.Compute(Project(query, 0), Project(key, 1), Project(value, 2), options, Site, Hooks);
        return out_proj.forward(mixed.transpose(1, 2).reshape(query.shape[0], query.shape[1], _width)).MoveToOuterDisposeScope();
    }
}
