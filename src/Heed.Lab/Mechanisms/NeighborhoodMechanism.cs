using Heed.Kernels;
using Heed.Masks;

namespace Heed.Lab.Mechanisms;

/// <summary>Neighborhood attention on the command line: causal on text, on a grid where one is given.</summary>
internal static class NeighborhoodMechanism
{
    private const int DefaultWindow = 128;

    public static AttentionMechanism Mechanism { get; } = new(
        "gna", "gna:w=128,stride=1,dilation=1", "neighborhood attention: stride queries share a window of w keys, every dilation-th one", "generalized-neighborhood-attention",
        specification =>
        {
            var (window, stride, dilation) = (specification.Integer("w", DefaultWindow, 1), specification.Integer("stride", 1, 1), specification.Integer("dilation", 1, 1));
            // Made once here, so that what does not fit is told before a model runs.
            _ = new NeighborhoodSelector(window, stride, dilation);
            return _ => new NeighborhoodSelector(window, stride, dilation);
        })
    {
        Sparse = "gna:w=9,dilation=2", Everything = "gna:w=128", DecodesAsPrefill = true,
    };

    /// <summary>A neighborhood as options say it: <c>w</c>, <c>stride</c>, <c>dilation</c> and, for each axis 0 or 1, <c>causal</c>.</summary>
    public static Neighborhood Of(Specification specification, IReadOnlyList<long> grid, long[] defaultWindow) => Neighborhood.Of(
        grid, specification.Lengths("w", 1, allowsWhole: true) ?? defaultWindow, specification.Lengths("stride", 1) ?? [1], specification.Lengths("dilation", 1) ?? [1],
        (specification.Lengths("causal", 0) ?? [0]).Select(flag => flag != 0).ToArray());

    /// <summary>The block mask to draw: as the kernel computes it, or over tokens in raster order.</summary>
    public static BlockMask Draw(Specification specification, int tokens)
    {
        var grid = specification.Lengths("grid", 1);
        var order = specification.Text("order") ?? "tiles";
        if (order is not "tiles" and not "raster")
        {
            throw new ArgumentException($"order of 'gna' is tiles (as it is computed) or raster, not '{order}'.");
        }

        var neighborhood = grid is null
            ? Neighborhood.Of(
                [tokens], specification.Lengths("w", 1, allowsWhole: true) ?? [Math.Min(DefaultWindow, tokens)], specification.Lengths("stride", 1), specification.Lengths("dilation", 1),
                [(specification.Lengths("causal", 0) ?? [1])[0] != 0])
            : Of(specification, grid, [.. grid.Select(length => Math.Min(length, 5))]);
        return order == "raster" ? neighborhood.ToBlockMask() : NeighborhoodPlan.Of(neighborhood).Mask(1);
    }
}
