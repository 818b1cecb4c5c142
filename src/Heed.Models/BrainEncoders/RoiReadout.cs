using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>Puts what regions of interest predict together to what vertices are predicted (arXiv 2505.17329).</summary>
public static class RoiReadout
{
    /// <summary>Sums, for every vertex, what the regions predict that it belongs to. Regions may overlap: a vertex of two gets both predictions added.</summary>
    /// <param name="perRoi">What every region's token predicts for every vertex, <c>[B, V, R]</c>.</param>
    /// <param name="mask">Which vertices belong to which region, <c>[R, V]</c>: 0 or 1, any type.</param>
    /// <returns><c>[B, V]</c>.</returns>
    /// <exception cref="ArgumentException">There are not as many rows as regions or as many columns as vertices.</exception>
    public static Tensor Combine(Tensor perRoi, Tensor mask)
    {
        ArgumentNullException.ThrowIfNull(perRoi);
        ArgumentNullException.ThrowIfNull(mask);
        if (perRoi.dim() != 3 || mask.dim() != 2 || mask.shape[0] != perRoi.shape[2] || mask.shape[1] != perRoi.shape[1])
        {
            throw new ArgumentException(
                $"A mask of regions has a row per region of the hemisphere and a column per vertex, [{(perRoi.dim() == 3 ? $"{perRoi.shape[2]}, {perRoi.shape[1]}" : "R, V")}] for predictions [{string.Join(", ", perRoi.shape)}], not [{string.Join(", ", mask.shape)}].", nameof(mask));
        }

        using var scope = NewDisposeScope();
        return (perRoi * mask.t().to(perRoi.dtype)).sum(-1).MoveToOuterDisposeScope();
    }

    /// <summary>Adds a last region of the vertices that belong to none, as is the convention: every vertex then has at least one.</summary>
    /// <param name="mask"><c>[R, V]</c>.</param>
    /// <returns><c>[R + 1, V]</c>.</returns>
    /// <exception cref="ArgumentException">The mask has another number of dimensions.</exception>
    public static Tensor WithRemainder(Tensor mask)
    {
        Check(mask);
        using var scope = NewDisposeScope();
        return cat([mask, Without(mask).unsqueeze(0).to(mask.dtype)], 0).MoveToOuterDisposeScope();
    }

    /// <summary>Number of vertices that belong to no region: their prediction is 0, which a caller should say.</summary>
    /// <param name="mask"><c>[R, V]</c>.</param>
    /// <exception cref="ArgumentException">The mask has another number of dimensions.</exception>
    public static long Uncovered(Tensor mask)
    {
        Check(mask);
        using var scope = NewDisposeScope();
        return Without(mask).sum().item<long>();
    }

    private static Tensor Without(Tensor mask) => mask.to(ScalarType.Bool).any(0, keepdim: false).logical_not();

    private static void Check(Tensor mask)
    {
        ArgumentNullException.ThrowIfNull(mask);
        if (mask.dim() != 2)
        {
            throw new ArgumentException($"A mask of regions is [regions, vertices], not [{string.Join(", ", mask.shape)}].", nameof(mask));
        }
    }
}
