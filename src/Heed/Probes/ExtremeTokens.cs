using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The three extreme-token phenomena of a sink at position 0 (arXiv 2410.13835), as functions of what a forward pass leaves: attention and logits that point at it, its drained value, and (see <see cref="ResidualPeak"/>)
/// its residual peak. <see cref="ExtremeTokenProbe"/> measures them on a model.</summary>
public static class ExtremeTokens
{
    /// <summary>Mean mass on the sink over the batch and some queries. A head is active-dormant where this is large over the queries it has no task at and small over the others.</summary>
    /// <param name="mass">Mass of every row on the sink, <c>[B, H, Nq]</c>: a column of the map, or <see cref="AttentionStatistics.SetMass"/>.</param>
    /// <param name="queries">The queries that count, boolean <c>[B, Nq]</c> or <c>[Nq]</c>; null: all.</param>
    /// <returns><c>[H]</c>, 0 to 1; NaN where no query counts.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public static Tensor SinkAttention(Tensor mass, Tensor? queries = null)
    {
        CheckRows(mass, nameof(mass));
        using var scope = NewDisposeScope();
        return MeanOver(mass, Weights(mass, queries)).MoveToOuterDisposeScope();
    }

    /// <summary>The sink logit gap of every query: its score on the sink less the mean of its scores on the tokens between the sink and itself, s_i0 - mean over 1 &lt;= j &lt; i of s_ij.</summary>
    /// <param name="scores">Scores before the normaliser <c>[B, H, N, N]</c>; later keys are not looked at.</param>
    /// <returns><c>[B, H, N]</c>; 0 for the first two queries, which have none.</returns>
    /// <exception cref="ArgumentException">The scores are not square maps.</exception>
    public static Tensor SinkLogitGap(Tensor scores)
    {
        ArgumentNullException.ThrowIfNull(scores);
        if (scores.dim() != 4 || scores.shape[2] != scores.shape[3])
        {
            throw new ArgumentException($"Scores must be square maps [batch, heads, N, N], not [{string.Join(", ", scores.shape)}].", nameof(scores));
        }

        using var scope = NewDisposeScope();
        using Scalar zero = 0;
        var tokens = scores.shape[2];
        var between = ones(tokens, tokens, dtype: ScalarType.Bool, device: scores.device).tril(-1);
        between.select(1, 0).fill_(false);
        var (counts, firstTwo) = Counts(tokens, scores);
        var mean = scores.masked_fill(between.logical_not(), zero).sum(-1) / counts;
        return (scores.select(-1, 0) - mean).masked_fill(firstTwo, zero).MoveToOuterDisposeScope();
    }

    /// <summary>The sink logit gap from queries and keys, in O(N D): the mean of scores is the score of the mean key. For calls whose scores are nothing but scaled products.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>.</param>
    /// <param name="scale">Factor of the product; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, N]</c>; 0 for the first two queries.</returns>
    /// <exception cref="ArgumentException">There are not as many queries as keys, or the heads do not fit.</exception>
    public static Tensor SinkLogitGap(Tensor query, Tensor key, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        if (query.dim() != 4 || key.dim() != 4 || query.shape[2] != key.shape[2] || query.shape[3] != key.shape[3] || key.shape[1] == 0 || query.shape[1] % key.shape[1] != 0)
        {
            throw new ArgumentException($"Queries [B, H, N, D] and keys [B, Hkv, N, D] of as many tokens were expected, not [{string.Join(", ", query.shape)}] and [{string.Join(", ", key.shape)}].", nameof(key));
        }

        using var scope = NewDisposeScope();
        using Scalar zero = 0, factor = scale ?? (1 / Math.Sqrt(query.shape[3]));
        var (q, k) = (Wide(query), Wide(key));
        if (k.shape[1] != q.shape[1])
        {
            k = k.repeat_interleave(q.shape[1] / k.shape[1], dim: 1);
        }

        var (counts, firstTwo) = Counts(q.shape[2], q);
        var sink = k.narrow(2, 0, 1);
        // Keys 1 to i - 1: all up to i, less i itself and the sink.
        var mean = (k.cumsum(2) - k - sink) / counts.unsqueeze(-1);
        return (q * (sink - mean)).sum(-1).mul(factor).masked_fill(firstTwo, zero).MoveToOuterDisposeScope();
    }

    /// <summary>Norms of the values, per head, before or behind the output projection.</summary>
    /// <param name="value"><c>[B, H, N, D]</c>.</param>
    /// <param name="outputWeight">The output projection's weight <c>[C, H D]</c>: each head's value then passes its own columns; null: the values themselves.</param>
    /// <returns><c>[B, H, N]</c>.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public static Tensor ValueNorm(Tensor value, Tensor? outputWeight = null)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (value.dim() != 4 || (outputWeight is not null && (outputWeight.dim() != 2 || outputWeight.shape[1] != value.shape[1] * value.shape[3])))
        {
            throw new ArgumentException(
                $"Values [batch, heads, tokens, width] and an output weight [C, heads * width] were expected, not [{string.Join(", ", value.shape)}]{(outputWeight is null ? "" : $" and [{string.Join(", ", outputWeight.shape)}]")}.", nameof(value));
        }

        using var scope = NewDisposeScope();
        var projected = outputWeight is null ? value : matmul(value, outputWeight.view(outputWeight.shape[0], value.shape[1], value.shape[3]).permute(1, 2, 0));
        return SinkMask.Norm(projected).MoveToOuterDisposeScope();
    }

    /// <summary>The value-state drain: the sink's value norm over the mean of the others'.</summary>
    /// <param name="norms">Norms <c>[B, H, N]</c> of <see cref="ValueNorm"/>, at least two tokens.</param>
    /// <param name="sink">The sink's position.</param>
    /// <returns><c>[H]</c>, from means over the batch: below 1 where the sink is drained.</returns>
    /// <exception cref="ArgumentException">The shape is another, or there is no such token or no other.</exception>
    public static Tensor ValueDrain(Tensor norms, long sink = 0)
    {
        CheckRows(norms, nameof(norms));
        var tokens = norms.shape[2];
        if (tokens < 2 || sink < 0 || sink >= tokens)
        {
            throw new ArgumentException($"A sink is compared with others: token {sink} of {tokens} cannot be.", nameof(sink));
        }

        using var scope = NewDisposeScope();
        using Scalar others = tokens - 1;
        var at = norms.select(2, sink).mean([0L]);
        return (at / (norms.sum(2).mean([0L]) - at).div(others)).MoveToOuterDisposeScope();
    }

    /// <summary>Mean over the batch and the queries that count, <c>[H]</c>.</summary>
    internal static Tensor MeanOver(Tensor rows, Tensor weights) => (rows * weights).sum([0L, 2L]) / weights.expand(rows.shape[0], 1, rows.shape[2]).sum();

    /// <summary>One for every query that counts, <c>[B or 1, 1, Nq]</c>.</summary>
    internal static Tensor Weights(Tensor rows, Tensor? queries)
    {
        if (queries is null)
        {
            return ones([1, 1, rows.shape[2]], rows.dtype, rows.device);
        }

        return queries.dtype == ScalarType.Bool && queries.dim() is 1 or 2 && queries.shape[^1] == rows.shape[2] && (queries.dim() == 1 || queries.shape[0] == rows.shape[0])
            ? queries.to(rows.dtype).to(rows.device).view(-1, 1, rows.shape[2])
            : throw new ArgumentException($"The queries that count are boolean [{rows.shape[0]}, {rows.shape[2]}] or [{rows.shape[2]}], not {queries.dtype} [{string.Join(", ", queries.shape)}].", nameof(queries));
    }

    private static Tensor Wide(Tensor states) => states.dtype is ScalarType.BFloat16 or ScalarType.Float16 ? states.to(float32) : states;

    private static (Tensor Counts, Tensor FirstTwo) Counts(long tokens, Tensor like)
    {
        var counts = Enumerable.Range(0, (int)tokens).Select(query => Math.Max(1.0, query - 1)).ToArray();
        var without = Enumerable.Range(0, (int)tokens).Select(query => query < 2).ToArray();
        return (tensor(counts, like.dtype, like.device), tensor(without, device: like.device));
    }

    private static void CheckRows(Tensor rows, string name)
    {
        ArgumentNullException.ThrowIfNull(rows);
        if (rows.dim() != 3)
        {
            throw new ArgumentException($"One number per batch item, head and token was expected, [B, H, N], not [{string.Join(", ", rows.shape)}].", name);
        }
    }
}
