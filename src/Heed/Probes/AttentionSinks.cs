using TorchSharp;

namespace Heed.Probes;

/// <summary>How much attention is parked on the first token, the "attention sink" (arXiv 2309.17453; measured as in arXiv 2505.06708, section 4.3).</summary>
public static class AttentionSinks
{
    /// <summary>Attention mass on key 0, averaged over batch, heads and queries, from maps.</summary>
    /// <param name="weights"><c>[..., B, H, Nq, Nk]</c>; dimensions before the last four (layers, for instance) are kept.</param>
    /// <param name="skipQueries">How many of the first queries are left out: under a causal mask query 0 can only look at key 0, which alone contributes 1 / Nq.</param>
    /// <returns>The share, 0 to 1, of shape <c>[...]</c>.</returns>
    /// <exception cref="ArgumentException">The maps have fewer than four dimensions or no key, or no query is left.</exception>
    public static torch.Tensor FirstTokenShare(torch.Tensor weights, long skipQueries = 0)
    {
        ArgumentNullException.ThrowIfNull(weights);
        if (weights.dim() < 4 || weights.shape[^1] < 1)
        {
            throw new ArgumentException($"Maps must be [..., batch, heads, queries, keys] with at least one key, not [{string.Join(", ", weights.shape)}].", nameof(weights));
        }

        if (skipQueries < 0 || skipQueries >= weights.shape[^2])
        {
            throw new ArgumentException($"Of {weights.shape[^2]} queries {skipQueries} cannot be skipped.", nameof(skipQueries));
        }

        using var scope = torch.NewDisposeScope();
        return weights.select(-1, 0).narrow(-1, skipQueries, weights.shape[^2] - skipQueries).mean([-3L, -2L, -1L]).MoveToOuterDisposeScope();
    }

    /// <summary>Attention mass on key 0, averaged over batch, heads and queries, from streamed statistics whose key set is the first key.</summary>
    /// <param name="statistics">Statistics with <see cref="AttentionStatistics.SetMass"/>.</param>
    /// <param name="skipQueries">How many of the first queries are left out.</param>
    /// <exception cref="ArgumentException">The mass was not asked for, or no query is left.</exception>
    public static double FirstTokenShare(AttentionStatistics statistics, long skipQueries = 0)
    {
        ArgumentNullException.ThrowIfNull(statistics);
        var mass = statistics.SetMass ?? throw new ArgumentException("The statistics lack SetMass: ask for a KeySet that holds the first key.", nameof(statistics));
        if (skipQueries < 0 || skipQueries >= mass.shape[2])
        {
            throw new ArgumentException($"Of {mass.shape[2]} queries {skipQueries} cannot be skipped.", nameof(skipQueries));
        }

        using var scope = torch.NewDisposeScope();
        return mass.narrow(2, skipQueries, mass.shape[2] - skipQueries).to(torch.float64).mean().item<double>();
    }
}
