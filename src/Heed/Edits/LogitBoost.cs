using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>The rows of a map that an edit touches.</summary>
public enum EditedRows
{
    /// <summary>The last query only: the token being generated.</summary>
    Last,

    /// <summary>Every query.</summary>
    All,
}

/// <summary>The one edit of attention scores: s becomes s + f |s| on chosen columns, before the softmax (arXiv 2501.12206). One set of all image tokens is uniform boosting of the image; two sets are informed tokens.</summary>
/// <remarks>With a positive factor every score rises: a negative one moves towards zero, a positive one away from it. Multiplying by 1 + f would push negative scores the wrong way.</remarks>
public static class LogitBoost
{
    private static readonly Scalar s_negativeInfinity = double.NegativeInfinity, s_zero = 0;

    /// <summary>Boosts columns by their index.</summary>
    /// <param name="scores">Scores <c>[B, H, Nq, Nk]</c> after scale, bias and mask; minus infinity where there is no pair, which stays.</param>
    /// <param name="columns">The columns, each once.</param>
    /// <param name="factor">The factor f, finite; 0 changes nothing, a negative one lowers every score.</param>
    /// <param name="rows">The rows to edit.</param>
    /// <returns>The edited scores, of the same shape. Differentiable.</returns>
    /// <exception cref="ArgumentException">A column does not exist or is named twice, or the factor is not finite.</exception>
    public static Tensor Apply(Tensor scores, IReadOnlyList<long> columns, double factor, EditedRows rows = EditedRows.Last)
    {
        ArgumentNullException.ThrowIfNull(scores);
        ArgumentNullException.ThrowIfNull(columns);
        var (queries, keys) = (scores.shape[^2], scores.shape[^1]);
        var chosen = new bool[keys];
        foreach (var column in columns)
        {
            if (column < 0 || column >= keys || chosen[column])
            {
                throw new ArgumentException($"Boosted columns are different ones of 0 to {keys - 1}; {column} was given{(column >= 0 && column < keys ? " twice" : "")}.", nameof(columns));
            }

            chosen[column] = true;
        }

        using var scope = NewDisposeScope();
        var set = tensor(chosen, device: scores.device);
        if (rows == EditedRows.Last)
        {
            var last = zeros([queries, 1], dtype: ScalarType.Bool, device: scores.device);
            if (queries > 0)
            {
                last.narrow(0, queries - 1, 1).logical_not_();
            }

            set = set.logical_and(last);
        }

        return Apply(scores, set, full([], factor, scores.dtype, scores.device)).MoveToOuterDisposeScope();
    }

    /// <summary>Boosts chosen pairs, each by its own factor.</summary>
    /// <param name="scores">Scores <c>[B, H, Nq, Nk]</c>; minus infinity where there is no pair, which stays.</param>
    /// <param name="pairs">The pairs, boolean, broadcastable to the scores.</param>
    /// <param name="factors">The factors f, finite, broadcastable to the scores.</param>
    /// <returns>The edited scores, of the same shape. Differentiable in the scores and the factors.</returns>
    /// <exception cref="ArgumentException">A factor is not finite.</exception>
    public static Tensor Apply(Tensor scores, Tensor pairs, Tensor factors)
    {
        ArgumentNullException.ThrowIfNull(scores);
        ArgumentNullException.ThrowIfNull(pairs);
        ArgumentNullException.ThrowIfNull(factors);
        using var scope = NewDisposeScope();
        if (!factors.isfinite().all().item<bool>())
        {
            throw new ArgumentException("The factor of a boost is a finite number.", nameof(factors));
        }

        // Minus infinity plus f times infinity is no number: what is masked takes no part, not even in the gradient.
        var boosted = pairs.logical_and(scores.eq(s_negativeInfinity).logical_not());
        return (scores + (scores.masked_fill(boosted.logical_not(), s_zero).abs() * factors)).MoveToOuterDisposeScope();
    }
}
