using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>The image tokens that an encoder finds informative (arXiv 2501.12206), counted from the first image token, ascending. No token is in both sets.</summary>
/// <param name="Local">Patches that the encoder's first layer looks at.</param>
/// <param name="Summary">Outlier patches of a late layer that hold what the picture says as a whole.</param>
public sealed record InformedTokens(IReadOnlyList<long> Local, IReadOnlyList<long> Summary)
{
    /// <summary>The share of local patches that the paper uses.</summary>
    public const double DefaultLocalRatio = 0.25;

    /// <summary>The factor of the box-plot rule.</summary>
    public const double DefaultOutlierFactor = 1.5;

    /// <summary>Chooses the informed tokens of a picture from two maps of its encoder.</summary>
    /// <param name="firstLayerAttention">The map of layer 0, <c>[H, 1 + Nv, 1 + Nv]</c> or with a batch of one before: row and column 0 are the class token's.</param>
    /// <param name="lateLayerAttention">The map of the last layer but one (Le - 2), of the same shape.</param>
    /// <param name="localRatio">The share of patches that are local, 0 to 1.</param>
    /// <param name="spatialRatio">The share of patches that are added to the local ones because they receive most attention in layer 0, 0 to 1. The released code ranks row sums of a softmax here, which are all 1; this
    /// is the attention received, which it seems to mean.</param>
    /// <param name="outlierFactor">Patches whose class-token weight exceeds Q3 + factor (Q3 - Q1) in the late layer count as outliers: so many are summary tokens.</param>
    /// <returns>The sets. A token that is both is a summary token.</returns>
    /// <exception cref="ArgumentException">A map has no class token and patches, they differ in shape, or a ratio is out of range.</exception>
    public static InformedTokens Select(
        Tensor firstLayerAttention, Tensor lateLayerAttention, double localRatio = DefaultLocalRatio, double spatialRatio = 0, double outlierFactor = DefaultOutlierFactor)
    {
        var tokens = CheckMap(firstLayerAttention, nameof(firstLayerAttention));
        if (CheckMap(lateLayerAttention, nameof(lateLayerAttention)) != tokens)
        {
            throw new ArgumentException($"Both maps are of the same {tokens} tokens; the late one is of {lateLayerAttention.shape[^1]}.", nameof(lateLayerAttention));
        }

        CheckRatio(localRatio, nameof(localRatio));
        CheckRatio(spatialRatio, nameof(spatialRatio));
        if (!double.IsFinite(outlierFactor))
        {
            throw new ArgumentException($"The factor of the box-plot rule is a finite number, not {outlierFactor}.", nameof(outlierFactor));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var first = AsHeads(firstLayerAttention, tokens);
        var late = AsHeads(lateLayerAttention, tokens);
        var patches = (int)tokens - 1;
        var local = Largest(Patches(first.select(1, 0).sum(0)), (int)(patches * localRatio));
        var summary = Largest(Patches(late.select(1, 0).sum(0)), SummaryCount(Patches(late.select(1, 0).sum(0)), outlierFactor)).ToHashSet();
        var spatial = Largest(Patches(first.mean([0L]).sum(0)), (int)(patches * spatialRatio));
        return new([.. local.Union(spatial).Where(token => !summary.Contains(token)).Order()], [.. summary.Order()]);
    }

    // The count goes through floating point in the released code, int(N * (n / N)), and may so come out one less.
    private static int SummaryCount(double[] values, double outlierFactor)
    {
        var sorted = values.Order().ToArray();
        var (lower, upper) = (Percentile(sorted, 0.25), Percentile(sorted, 0.75));
        var limit = upper + (outlierFactor * (upper - lower));
        var outliers = values.Count(value => value > limit);
        return (int)(values.Length * ((double)outliers / values.Length));
    }

    private static double Percentile(double[] sorted, double share)
    {
        var place = share * (sorted.Length - 1);
        var below = (int)Math.Floor(place);
        var above = Math.Min(below + 1, sorted.Length - 1);
        return sorted[below] + ((place - below) * (sorted[above] - sorted[below]));
    }

    private static IEnumerable<long> Largest(double[] values, int count) =>
        Enumerable.Range(0, values.Length).OrderByDescending(index => values[index]).ThenBy(index => index).Take(count).Select(index => (long)index);

    private static Tensor AsHeads(Tensor map, long tokens) => map.detach().reshape(-1, tokens, tokens).to(float64);

    private static double[] Patches(Tensor perToken) => perToken.cpu().data<double>().ToArray()[1..];

    private static long CheckMap(Tensor map, string name)
    {
        ArgumentNullException.ThrowIfNull(map, name);
        return map.dim() is 3 or 4 && (map.dim() == 3 || map.shape[0] == 1) && map.shape[^1] == map.shape[^2] && map.shape[^1] >= 2
            ? map.shape[^1]
            : throw new ArgumentException(
                $"The map of an encoder layer is [H, 1 + Nv, 1 + Nv], the class token first (with a batch of one before it at most); [{string.Join(", ", map.shape)}] was given.", name);
    }

    private static void CheckRatio(double ratio, string name)
    {
        if (!(ratio >= 0 && ratio <= 1))
        {
            throw new ArgumentException($"A share of patches is a number from 0 to 1, not {ratio}.", name);
        }
    }
}
