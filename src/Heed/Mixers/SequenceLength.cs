namespace Heed.Mixers;

/// <summary>When a sequence is long (arXiv 2405.07992, section 3.2): when the part of a transformer block's cost that is quadratic in the tokens exceeds the linear part. A block of width D on L tokens takes
/// <c>(8 + 4 r) D^2 L + 4 D L^2</c> operations with a perceptron of ratio r, so the border is <c>L = (2 + r) D</c>: 6 D for the usual ratio of 4.</summary>
public static class SequenceLength
{
    /// <summary>The perceptron's hidden width over D where nothing else is said.</summary>
    public const double UsualFeedForwardRatio = 4;

    /// <summary>Whether a sequence is long.</summary>
    /// <param name="tokens">Its tokens.</param>
    /// <param name="width">Width D of a token, at least 1.</param>
    /// <param name="feedForwardRatio">Hidden width of the perceptron over D, not negative.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static bool IsLong(long tokens, long width, double feedForwardRatio = UsualFeedForwardRatio)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(tokens);
        return tokens > Threshold(width, feedForwardRatio);
    }

    /// <summary>The number of tokens above which a sequence is long.</summary>
    /// <inheritdoc cref="IsLong"/>
    public static double Threshold(long width, double feedForwardRatio = UsualFeedForwardRatio)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfNegative(feedForwardRatio);
        return (2 + feedForwardRatio) * width;
    }

    /// <summary>Operations (two for a multiplication with an addition) of the matrix products of a transformer block: the part linear in the tokens and the quadratic one.</summary>
    /// <inheritdoc cref="IsLong"/>
    public static (double Linear, double Quadratic) BlockOperations(long tokens, long width, double feedForwardRatio = UsualFeedForwardRatio)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(tokens);
        return (4 * Threshold(width, feedForwardRatio) * width * tokens, 4.0 * width * tokens * tokens);
    }
}
