using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>A normaliser as the backward pass needs it: the weight of a pair again, and the derivative of the loss with respect to its
/// score, from two numbers kept for each row.</summary>
internal interface INormalizerGradient
{
    /// <summary>The weights of some pairs of a row.</summary>
    /// <param name="score">The final scores.</param>
    /// <param name="product">The output's gradient times the values: the gradient of the weights.</param>
    /// <param name="first">The first number of the row.</param>
    /// <param name="second">The second number of the row.</param>
    /// <param name="gradient">The gradient of the scores.</param>
    static abstract TVector Weigh<TVector, TOps>(TVector score, TVector product, TVector first, TVector second, out TVector gradient)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>;
}

/// <summary>Softmax: weights from the row's log-sum-exp; the gradient p (dp - delta) needs delta, the row's product of output and output
/// gradient less the gradient of the log-sum-exp (arXiv 2307.08691, algorithm 2).</summary>
internal readonly struct SoftmaxGradient : INormalizerGradient
{
    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Weigh<TVector, TOps>(TVector score, TVector product, TVector logSumExp, TVector delta, out TVector gradient)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var weight = VectorMath.Exp<TVector, TOps>(TOps.Subtract(score, logSumExp));
        gradient = TOps.Multiply(weight, TOps.Subtract(product, delta));
        return weight;
    }
}

/// <summary>max(s, 0) / n with 1 / n kept for each row.</summary>
internal readonly struct ReluGradient : INormalizerGradient
{
    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Weigh<TVector, TOps>(TVector score, TVector product, TVector inverseCount, TVector unused, out TVector gradient)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        gradient = TOps.Select(TOps.GreaterThan(score, TOps.Zero), TOps.Multiply(product, inverseCount), TOps.Zero);

        // The sum is never minus zero, and NaN stays NaN.
        return TOps.Add(TOps.Multiply(TOps.Max(TOps.Zero, score), inverseCount), TOps.Zero);
    }
}

/// <summary>1 / (1 + exp(-s)).</summary>
internal readonly struct SigmoidGradient : INormalizerGradient
{
    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Weigh<TVector, TOps>(TVector score, TVector product, TVector unused, TVector alsoUnused, out TVector gradient)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var weight = VectorMath.Sigmoid<TVector, TOps>(score);
        gradient = TOps.Multiply(product, TOps.Multiply(weight, TOps.Subtract(TOps.Create(1), weight)));
        return weight;
    }
}
