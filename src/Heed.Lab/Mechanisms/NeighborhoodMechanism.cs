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

    /// <summary>The block mask to draw: as the kernel computes it, or over tokens in raster order.</summary>
    public static BlockMask Draw(Specification specification, int tokens)
    {
        var grid = specification.Lengths("grid", 1);
        var window = specification.Lengths("w", 1, allowsWhole: true);
        var (stride, dilation) = (specification.Lengths("stride", 1) ?? [1], specification.Lengths("dilation", 1) ?? [1]);
        var causal = specification.Lengths("causal", 0);
        var order = specification.Text("order") ?? "tiles";
        if (order is not "tiles" and not "raster")
        {
            throw new ArgumentException($"order of 'gna' is tiles (as it is computed) or raster, not '{order}'.");
        }

        var neighborhood = grid is null
            ? Neighborhood.Of([tokens], window ?? [Math.Min(DefaultWindow, tokens)], stride, dilation, [causal is null || causal[0] != 0])
            : Neighborhood.Of(grid, window ?? [.. grid.Select(length => Math.Min(length, 5))], stride, dilation, causal?.Select(flag => flag != 0).ToArray());
        return order == "raster" ? neighborhood.ToBlockMask() : NeighborhoodPlan.Of(neighborhood).Mask(1);
    }
}
