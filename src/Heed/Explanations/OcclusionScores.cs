using TorchSharp;

namespace Heed.Explanations;

/// <summary>How much a model's answer changed when a part of its input was hidden.</summary>
public enum OcclusionScorer
{
    /// <summary>Kullback-Leibler divergence of the changed distribution from the original one.</summary>
    KullbackLeibler,

    /// <summary>What the chosen token's probability lost.</summary>
    PredictedDifference,
}

/// <summary>Scores of answers to inputs of which a part was hidden.</summary>
public static class OcclusionScores
{
    // The smallest numbers of full precision: what a probability of exactly 0 is taken for.
    private const double SmallestSingle = 1.17549435e-38;
    private const double SmallestDouble = 2.2250738585072014e-308;

    /// <summary>The divergence <c>sum_v P(v) (ln P(v) - ln P'(v))</c> of each token's distribution, original to changed. A probability of exactly 0 counts as the smallest positive number of its type.</summary>
    /// <param name="original">P, float32 or float64 <c>[I, V]</c>.</param>
    /// <param name="perturbed">P', <c>[M, I, V]</c>.</param>
    /// <returns><c>[M, I]</c>, in nats.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public static torch.Tensor KullbackLeibler(torch.Tensor original, torch.Tensor perturbed)
    {
        Check(original, perturbed);
        using var scope = torch.NewDisposeScope();
        using Scalar smallest = original.dtype == torch.ScalarType.Float64 ? SmallestDouble : SmallestSingle;
        var logarithms = original.clamp_min(smallest).log() - perturbed.clamp_min(smallest).log();
        return (original * logarithms).sum(-1).MoveToOuterDisposeScope();
    }

    /// <summary>What the probability of each token lost, <c>P(y) - P'(y)</c>; negative where it gained.</summary>
    /// <param name="original">P, <c>[I, V]</c>.</param>
    /// <param name="perturbed">P', <c>[M, I, V]</c>.</param>
    /// <param name="tokens">The tokens y, int64 <c>[I]</c>.</param>
    /// <returns><c>[M, I]</c>.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public static torch.Tensor PredictedDifference(torch.Tensor original, torch.Tensor perturbed, torch.Tensor tokens)
    {
        Check(original, perturbed);
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 1 || tokens.dtype != torch.ScalarType.Int64 || tokens.shape[0] != original.shape[0])
        {
            throw new ArgumentException($"The tokens must be int64 [{original.shape[0]}], one for each distribution, not {tokens.dtype} {AttentionShape.Text(tokens)}.", nameof(tokens));
        }

        using var scope = torch.NewDisposeScope();
        var chosen = tokens.unsqueeze(-1);
        var before = original.gather(1, chosen).squeeze(-1);
        var after = perturbed.gather(2, chosen.unsqueeze(0).expand(perturbed.shape[0], -1, -1)).squeeze(-1);
        return (before - after).MoveToOuterDisposeScope();
    }

    private static void Check(torch.Tensor original, torch.Tensor perturbed)
    {
        ArgumentNullException.ThrowIfNull(original);
        ArgumentNullException.ThrowIfNull(perturbed);
        if (original.dim() != 2 || perturbed.dim() != 3 || perturbed.shape[1] != original.shape[0] || perturbed.shape[2] != original.shape[1])
        {
            throw new ArgumentException(
                $"Distributions must be [tokens, vocabulary] and, of changed inputs, [masks, tokens, vocabulary] of the same sizes, not {AttentionShape.Text(original)} and {AttentionShape.Text(perturbed)}.", nameof(perturbed));
        }
    }
}
