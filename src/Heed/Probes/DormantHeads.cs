using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>Which heads are dormant (arXiv 2410.13835): their rows are nearly one-hot, and some column takes its attention from nearly every row alike.</summary>
/// <param name="RowEntropy">Mean over the rows of each row's entropy over the most it could be, <c>[B, H]</c>, 0 to 1.</param>
/// <param name="ColumnEntropy">The largest of the columns' entropies over the most they could be, <c>[B, H]</c>, 0 to 1.</param>
/// <param name="IsDormant">Boolean <c>[B, H]</c>: row entropy below, column entropy above the thresholds (both strict).</param>
public readonly record struct DormantHeads(Tensor RowEntropy, Tensor ColumnEntropy, Tensor IsDormant)
{
    /// <summary>The default threshold of the row entropy: this project's choice.</summary>
    public const double RowThreshold = 0.5;

    /// <summary>The default threshold of the column entropy: this project's choice.</summary>
    public const double ColumnThreshold = 0.9;

    /// <summary>Tests all heads, from maps.</summary>
    /// <param name="attention">Weights <c>[B, H, N, N]</c>; rows are taken as shares of their sum.</param>
    /// <param name="rowThreshold">A dormant head's row entropy is smaller.</param>
    /// <param name="columnThreshold">A dormant head's column entropy is larger.</param>
    /// <param name="causal">Whether a query sees no later key: what a row or column could be at most counts those that exist. The first row and the last column have one entry, and count as 0.</param>
    /// <param name="leastRows">Columns that fewer rows see do not count. The published test counts all; under a causal mask the last columns, seen by a few rows, then pass in almost every head.</param>
    /// <param name="leastScore">Columns that receive no more than this (<see cref="SinkScore"/>) do not count. The published test counts all, those with next to no attention included.</param>
    /// <exception cref="ArgumentException">The maps are not square, or not <c>[B, H, N, N]</c>.</exception>
    public static DormantHeads Detect(
        Tensor attention, double rowThreshold = RowThreshold, double columnThreshold = ColumnThreshold, bool causal = true, long leastRows = 1, double leastScore = -1)
    {
        ArgumentNullException.ThrowIfNull(attention);
        if (attention.dim() != 4 || attention.shape[2] != attention.shape[3] || attention.shape[2] == 0)
        {
            throw new ArgumentException($"Dormant heads are told from square maps [batch, heads, N, N], not [{string.Join(", ", attention.shape)}]: with a cache, look at the prompt.", nameof(attention));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var rows = Entropy(attention, -1);
        var columns = Entropy(attention, -2);
        return Of(rows, columns, SinkScore.Compute(attention, causal), rowThreshold, columnThreshold, causal, leastRows, leastScore).MoveToOuterDisposeScope();
    }

    /// <summary>Tests all heads, from streamed statistics: no map is needed.</summary>
    /// <param name="statistics">Statistics of a call with as many queries as keys, with <see cref="AttentionStatistics.Entropy"/> and <see cref="AttentionStatistics.KeyEntropy"/>.</param>
    /// <param name="rowThreshold">A dormant head's row entropy is smaller.</param>
    /// <param name="columnThreshold">A dormant head's column entropy is larger.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <param name="leastRows">Columns that fewer rows see do not count.</param>
    /// <param name="leastScore">Columns that receive no more than this do not count.</param>
    /// <exception cref="ArgumentException">A statistic was not asked for, or there are not as many queries as keys.</exception>
    public static DormantHeads Detect(
        AttentionStatistics statistics, double rowThreshold = RowThreshold, double columnThreshold = ColumnThreshold, bool causal = true, long leastRows = 1, double leastScore = -1)
    {
        ArgumentNullException.ThrowIfNull(statistics);
        if (statistics.Entropy is not { } rows || statistics.KeyEntropy is not { } columns)
        {
            throw new ArgumentException("The statistics lack Entropy or KeyEntropy: ask for both in the request.", nameof(statistics));
        }

        if (rows.shape[2] != columns.shape[2])
        {
            throw new ArgumentException($"Dormant heads are told from as many queries as keys, not {rows.shape[2]} and {columns.shape[2]}: with a cache, look at the prompt.", nameof(statistics));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        return Of(rows, columns, SinkScore.Compute(statistics, causal), rowThreshold, columnThreshold, causal, leastRows, leastScore).MoveToOuterDisposeScope();
    }

    private static DormantHeads Of(
        Tensor rows, Tensor columns, Tensor score, double rowThreshold, double columnThreshold, bool causal, long leastRows, double leastScore)
    {
        using Scalar least = rowThreshold, most = columnThreshold, lowest = leastScore, zero = 0;
        var count = rows.shape[^1];
        // One over the largest possible entropy; 0 where there is no choice.
        var inverse = Enumerable.Range(1, (int)count).Select(entries => causal ? entries : count).Select(entries => entries > 1 ? 1 / Math.Log(entries) : 0).ToArray();
        var scale = tensor(inverse, rows.dtype, rows.device);
        var row = (rows * scale).mean([-1L]);
        var few = tensor(SinkScore.RowsThatSee(count, count, causal).Select(seen => seen < leastRows).ToArray(), device: rows.device);
        var column = (columns * scale.flip(0)).masked_fill(score.gt(lowest).logical_not().logical_or(few), zero).amax([-1L]);
        return new(row, column, row.lt(least).logical_and(column.gt(most)));
    }

    private static Tensor Entropy(Tensor attention, long dimension)
    {
        using Scalar zero = 0, one = 1;
        var sum = attention.sum(dimension, keepdim: true);
        var shares = attention / sum.masked_fill(sum.eq(zero), one);
        return xlogy(shares, shares).sum(dimension).neg();
    }

    private DormantHeads MoveToOuterDisposeScope() => new(RowEntropy.MoveToOuterDisposeScope(), ColumnEntropy.MoveToOuterDisposeScope(), IsDormant.MoveToOuterDisposeScope());
}
