using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The attention that a key receives, as the mean of its column over the rows that see it: the usual sink score (arXiv 2406.15765; arXiv 2512.22213, where the normalisation is this project's reading).</summary>
/// <remarks>Late keys are seen by few rows: the score of the last key of a causal map is one single weight.</remarks>
public static class SinkScore
{
    /// <summary>The score of every key, from maps.</summary>
    /// <param name="weights">Weights <c>[..., Nq, Nk]</c> after the normaliser, for example <c>[B, H, N, N]</c>.</param>
    /// <param name="causal">Whether a query sees no later key, the last query aligned with the last key; otherwise every row sees every key.</param>
    /// <param name="includeSelf">Whether the weight that a token gives itself counts.</param>
    /// <param name="window">How many keys a row of a causal map sees at most, itself included; null: all up to itself.</param>
    /// <returns><c>[..., Nk]</c>: the column's sum over the number of rows that see it, 0 where none does.</returns>
    /// <exception cref="ArgumentException">There are fewer than two dimensions, or the map's shape does not fit the options.</exception>
    public static Tensor Compute(Tensor weights, bool causal = true, bool includeSelf = true, long? window = null)
    {
        ArgumentNullException.ThrowIfNull(weights);
        if (weights.dim() < 2)
        {
            throw new ArgumentException($"Maps must be [..., queries, keys], not [{string.Join(", ", weights.shape)}].", nameof(weights));
        }

        using var scope = NewDisposeScope();
        var (queries, keys) = (weights.shape[^2], weights.shape[^1]);
        var rows = RowsThatSee(queries, keys, causal, includeSelf, window);
        var received = weights.sum(-2);
        if (!includeSelf)
        {
            received = received - nn.functional.pad(weights.diagonal(keys - queries, -2, -1), [keys - queries, 0]);
        }

        return Over(received, rows).MoveToOuterDisposeScope();
    }

    /// <summary>The score of every key, from streamed statistics: no map is needed.</summary>
    /// <param name="statistics">Statistics with <see cref="AttentionStatistics.MassPerKey"/>.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <param name="window">How many keys a row sees at most, itself included; null: all up to itself.</param>
    /// <returns><c>[B, H, Nk]</c>.</returns>
    /// <exception cref="ArgumentException">The mass was not asked for, or the call's shape does not fit the options.</exception>
    public static Tensor Compute(AttentionStatistics statistics, bool causal = true, long? window = null)
    {
        ArgumentNullException.ThrowIfNull(statistics);
        var mass = statistics.MassPerKey ?? throw new ArgumentException("The statistics lack MassPerKey: ask for it in the request.", nameof(statistics));
        using var scope = NewDisposeScope();
        return Over(mass, RowsThatSee(statistics.LogSumExp!.shape[2], mass.shape[2], causal, true, window)).MoveToOuterDisposeScope();
    }

    /// <summary>How many rows see each key.</summary>
    /// <param name="queries">Number of rows.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="causal">Whether a query sees no later key, the last query aligned with the last key.</param>
    /// <param name="includeSelf">Whether a token's own row counts.</param>
    /// <param name="window">How many keys a row sees at most, itself included; null: all up to itself.</param>
    /// <exception cref="ArgumentException">A causal map has more queries than keys, a window is given without causality or is not positive, or own rows are left out of a map that is not square.</exception>
    public static double[] RowsThatSee(long queries, long keys, bool causal = true, bool includeSelf = true, long? window = null)
    {
        var shift = keys - queries;
        if ((causal ? shift < 0 : window is not null || (!includeSelf && shift != 0)) || window < 1)
        {
            throw new ArgumentException(
                $"A causal map has at most as many queries as keys; without causality there is no window, and own rows can be left out of a square map only: {queries} queries, {keys} keys and the window {window?.ToString() ?? "none"} do not fit.",
                nameof(queries));
        }

        var rows = new double[keys];
        for (long key = 0; key < keys; key++)
        {
            var first = causal ? Math.Max(0, key - shift) : 0;
            var last = window is { } width ? Math.Min(queries - 1, key + width - 1 - shift) : queries - 1;
            var own = !includeSelf && key >= shift ? 1 : 0;
            rows[key] = Math.Max(0, last - first + 1 - own);
        }

        return rows;
    }

    private static Tensor Over(Tensor received, double[] rows)
    {
        var divisors = tensor(Array.ConvertAll(rows, count => Math.Max(1, count)), received.dtype, received.device);
        return received / divisors;
    }
}
