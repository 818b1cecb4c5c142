using Heed.Layers;
using Heed.Kernels;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.VideoTransformers;

/// <summary>Self- or cross-attention of a Wan block: projections with biases, root-mean-square norms of queries and keys over all heads together, rotary positions, output projection. Parameter names are those of diffusers.</summary>
public sealed class WanAttention : nn.Module
{
    private readonly Projection to_q;
    private readonly Projection to_k;
    private readonly Projection to_v;
    private readonly ModuleList<Projection> to_out;
    private readonly RmsNorm norm_q;
    private readonly RmsNorm norm_k;

    /// <summary>Makes a layer.</summary>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="headWidth">Width of a head, from 1.</param>
    /// <param name="epsilon">Added to mean squares.</param>
    /// <param name="site">Where the layer stands.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <param name="initialize">False leaves the parameters as memory comes, for a checkpoint to fill.</param>
    public WanAttention(int heads, int headWidth, double epsilon = 1e-6, AttentionSite site = default, AttentionHooks? hooks = null, Generator? generator = null, bool initialize = true)
        : base(nameof(WanAttention))
    {
        var width = (long)heads * headWidth;
        (Heads, HeadWidth, Site, Hooks) = (heads, headWidth, site, hooks);
        to_q = new(width, width, true, generator, initialize);
        to_k = new(width, width, true, generator, initialize);
        to_v = new(width, width, true, generator, initialize);
        to_out = new(new Projection(width, width, true, generator, initialize));
        norm_q = new(width, epsilon);
        norm_k = new(width, epsilon);
        RegisterComponents();
    }

    /// <summary>Heads.</summary>
    public int Heads { get; }

    /// <summary>Width of a head.</summary>
    public int HeadWidth { get; }

    /// <summary>Where the layer stands in its model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; }

    /// <summary>What computes the heads in place of plain attention; null: nothing.</summary>
    public WanAttentionPath? Path { get; set; }

    /// <summary>The layer's output.</summary>
    /// <param name="hidden"><c>[B, N, C]</c>.</param>
    /// <param name="encoder">What is attended to, <c>[B or 1, T, C]</c>; null: <paramref name="hidden"/> itself.</param>
    /// <param name="rotary">Positions of the tokens; null: none.</param>
    /// <param name="grid">The grid of the tokens.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    public Tensor forward(Tensor hidden, Tensor? encoder, PairRotaryTables? rotary, VideoGrid grid)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        using var scope = NewDisposeScope();
        var heads = Path?.Compute(this, hidden, encoder, rotary, grid) ?? Plain(hidden, encoder, rotary);
        return to_out[0].forward(heads.flatten(2)).MoveToOuterDisposeScope();
    }

    /// <summary>Plain attention before the output projection.</summary>
    /// <param name="hidden"><c>[B, N, C]</c>.</param>
    /// <param name="encoder">What is attended to; null: <paramref name="hidden"/> itself.</param>
    /// <param name="rotary">Positions of the tokens; null: none.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, N, H, D]</c>.</returns>
    public Tensor Plain(Tensor hidden, Tensor? encoder, PairRotaryTables? rotary, double? scale = null)
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = Project(hidden, encoder, rotary);
        return Attend(query, key, value, scale).MoveToOuterDisposeScope();
    }

    /// <summary>Queries, keys and values as attention takes them: projected, normalised, split into heads and turned.</summary>
    /// <param name="hidden"><c>[B, N, C]</c>.</param>
    /// <param name="encoder">What is attended to, <c>[B or 1, T, C]</c>; null: <paramref name="hidden"/> itself.</param>
    /// <param name="rotary">Positions of the tokens; null: none.</param>
    /// <returns><c>[B, N, H, D]</c>, heads last.</returns>
    public (Tensor Query, Tensor Key, Tensor Value) Project(Tensor hidden, Tensor? encoder, PairRotaryTables? rotary)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        using var scope = NewDisposeScope();
        var source = encoder ?? hidden;
        source = source.shape[0] == 1 && hidden.shape[0] > 1 ? source.expand(hidden.shape[0], -1, -1) : source;
        var (query, key, value) = (Split(norm_q.forward(to_q.forward(hidden))), Split(norm_k.forward(to_k.forward(source))), Split(to_v.forward(source)));
        if (rotary is not null)
        {
            (query, key) = (rotary.Apply(query), rotary.Apply(key));
        }

        return (query.MoveToOuterDisposeScope(), key.MoveToOuterDisposeScope(), value.MoveToOuterDisposeScope());

        Tensor Split(Tensor tensor) => tensor.view(tensor.shape[0], tensor.shape[1], Heads, HeadWidth);
    }

    /// <summary>Attention through the door.</summary>
    /// <param name="query"><c>[B, N, H, D]</c>.</param>
    /// <param name="key"><c>[B, T, H, D]</c>.</param>
    /// <param name="value"><c>[B, T, H, D]</c>.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="mask">Which pairs are computed; null: all.</param>
    /// <returns><c>[B, N, H, D]</c>.</returns>
    public Tensor Attend(Tensor query, Tensor key, Tensor value, double? scale = null, BlockMask? mask = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        using var scope = NewDisposeScope();
        return Attention.Compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), AttentionOptions.Default with { Scale = scale, BlockMask = mask }, Site, Hooks)
            .transpose(1, 2).MoveToOuterDisposeScope();
    }
}

/// <summary>Computes the heads of a <see cref="WanAttention"/> in place of plain attention: what a training-free edit of the model installs.</summary>
public abstract class WanAttentionPath
{
    /// <summary>The heads before the output projection.</summary>
    /// <param name="attention">The layer, for its projections.</param>
    /// <param name="hidden"><c>[B, N, C]</c>.</param>
    /// <param name="encoder">What is attended to, <c>[B or 1, T, C]</c>; null: <paramref name="hidden"/> itself.</param>
    /// <param name="rotary">Positions of the tokens; null: none.</param>
    /// <param name="grid">The grid of the tokens.</param>
    /// <returns><c>[B, N, H, D]</c>.</returns>
    public abstract Tensor Compute(WanAttention attention, Tensor hidden, Tensor? encoder, PairRotaryTables? rotary, VideoGrid grid);
}
