using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Plain multi-head self-attention of vision models, with timm's parameter names <c>qkv</c> and <c>proj</c>: the baseline that mixers are compared with.</summary>
public sealed class SelfAttention : nn.Module<Tensor, Tensor>
{
    private readonly Linear qkv;
    private readonly Linear proj;
    private readonly int _width;
    private readonly int _heads;

    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C of a token, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="hasBias">Whether the projection to queries, keys and values has a bias.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width.</exception>
    public SelfAttention(int width, int heads, bool hasBias = true)
        : base(nameof(SelfAttention))
    {
        BiasedProjections.HeadWidth(width, heads, 0);
        (_width, _heads) = (width, heads);
        qkv = nn.Linear(width, 3 * width, hasBias);
        proj = nn.Linear(width, width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Where the layer stands in its model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; init; }

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        BiasedProjections.Check(input, _width);
        using var scope = NewDisposeScope();
        var parts = qkv.forward(input).chunk(3, -1);
        var mixed = Attention.Compute(
            BiasedProjections.Split(parts[0], _heads), BiasedProjections.Split(parts[1], _heads), BiasedProjections.Split(parts[2], _heads), site: Site, hooks: Hooks);
        return proj.forward(mixed.transpose(1, 2).reshape(input.shape)).MoveToOuterDisposeScope();
    }
}
