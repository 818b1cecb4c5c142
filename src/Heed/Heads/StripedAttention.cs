using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention within stripes of a grid, a branch of CSWin (arXiv 2107.00652): no projections of its own; a depth-wise convolution <c>get_v</c> of the values inside every stripe tells positions.</summary>
public sealed class StripedAttention : nn.Module<Tensor, Tensor>
{
    private readonly DepthwiseConvolution2d get_v;
    private readonly int _width;
    private readonly int _heads;
    private readonly (int Height, int Width) _grid;
    private readonly (int Height, int Width) _stripe;

    /// <summary>Makes a branch.</summary>
    /// <param name="width">Width C of the branch, a multiple of the heads.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="grid">Rows and columns of the grid of tokens.</param>
    /// <param name="stripe">Rows and columns of a stripe, divisors of the grid's.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width, or the stripe does not divide the grid.</exception>
    public StripedAttention(int width, int heads, (int Height, int Width) grid, (int Height, int Width) stripe)
        : base(nameof(StripedAttention))
    {
        BiasedProjections.HeadWidth(width, heads, 0);
        Stripes.Check(grid, stripe);
        (_width, _heads, _grid, _stripe) = (width, heads, grid, stripe);
        get_v = new(width, 3);
        RegisterComponents();
    }

    /// <summary>Where the branch stands in its model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; init; }

    /// <summary>The branch's output.</summary>
    /// <param name="input">Queries, keys and values <c>[3, B, H W, C]</c>.</param>
    /// <returns><c>[B, H W, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        Stripes.CheckInput(input, _grid, _width);
        using var scope = NewDisposeScope();
        var (query, key, value) = (Stripes.Cut(input[0], _grid, _stripe), Stripes.Cut(input[1], _grid, _stripe), Stripes.Cut(input[2], _grid, _stripe));
        var mixed = Attention.Compute(
            BiasedProjections.Split(query, _heads), BiasedProjections.Split(key, _heads), BiasedProjections.Split(value, _heads), site: Site, hooks: Hooks).transpose(1, 2).reshape(query.shape);
        var local = get_v.forward(value.view(value.shape[0], _stripe.Height, _stripe.Width, _width).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2);
        return Stripes.Join(mixed + local, _grid, _stripe).MoveToOuterDisposeScope();
    }
}
