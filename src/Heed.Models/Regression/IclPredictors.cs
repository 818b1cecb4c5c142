using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.Regression;

/// <summary>What can be predicted from a context without training: the emergent attention with given (ω, μ), one gradient step, plain and debiased, and the Bayes predictor (arXiv 2503.12734, sections 3 and 4). All take covariates
/// <c>x</c> <c>[B, L, d]</c>, values <c>y</c> <c>[B, L]</c> and a query <c>[B, d]</c>, and give <c>[B]</c>.</summary>
public static class IclPredictors
{
    /// <summary>Heads that hold nothing but ω and μ: <c>Σ_h μ_h Σ_l y_l softmax_l(ω_h x_l·x_q)</c>.</summary>
    /// <param name="x"><c>[B, L, d]</c>.</param>
    /// <param name="y"><c>[B, L]</c>.</param>
    /// <param name="xQuery"><c>[B, d]</c>.</param>
    /// <param name="omega">ω of every head.</param>
    /// <param name="mu">μ of every head.</param>
    /// <returns><c>[B]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, the context is empty, or there are not as many ω as μ.</exception>
    public static Tensor Softmax(Tensor x, Tensor y, Tensor xQuery, IReadOnlyList<double> omega, IReadOnlyList<double> mu)
    {
        Check(x, y, xQuery);
        IclTheory.Check(omega, mu);
        using var scope = NewDisposeScope();
        Tensor Column(IReadOnlyList<double> values) => tensor(values.ToArray(), dtype: x.dtype, device: x.device).view(1, -1, 1, 1);
        var heads = Attention.Compute(xQuery.view(-1, 1, 1, x.shape[2]) * Column(omega), x.unsqueeze(1), y.unsqueeze(1).unsqueeze(-1), new() { Scale = 1 });
        return (heads * Column(mu)).sum([1L, 2L, 3L]).MoveToOuterDisposeScope();
    }

    /// <summary>One step from zero: <c>2γμ / L Σ_l y_l x_l·x_q</c>.</summary>
    /// <param name="x"><c>[B, L, d]</c>.</param>
    /// <param name="y"><c>[B, L]</c>.</param>
    /// <param name="xQuery"><c>[B, d]</c>.</param>
    /// <param name="step">The step 2γμ, where γ = |ω| of a pair of heads.</param>
    /// <returns><c>[B]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, or the context is empty.</exception>
    public static Tensor GradientDescent(Tensor x, Tensor y, Tensor xQuery, double step)
    {
        Check(x, y, xQuery);
        using var scope = NewDisposeScope();
        using Scalar factor = step / x.shape[1];
        return Moment(x, y, xQuery).mul(factor).MoveToOuterDisposeScope();
    }

    /// <summary>One step on covariates whose mean is taken off: <c>2γμ / L [Σ_l y_l x_l·x_q - (Σ_l y_l) mean(x)·x_q]</c>. What two heads (±γ, ±μ) do for small γ.</summary>
    /// <param name="x"><c>[B, L, d]</c>.</param>
    /// <param name="y"><c>[B, L]</c>.</param>
    /// <param name="xQuery"><c>[B, d]</c>.</param>
    /// <param name="step">The step 2γμ.</param>
    /// <returns><c>[B]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, or the context is empty.</exception>
    public static Tensor DebiasedGradientDescent(Tensor x, Tensor y, Tensor xQuery, double step)
    {
        Check(x, y, xQuery);
        using var scope = NewDisposeScope();
        using Scalar factor = step / x.shape[1];
        var bias = y.sum(1) * (x.mean([1L]) * xQuery).sum(1);
        return (Moment(x, y, xQuery) - bias).mul(factor).MoveToOuterDisposeScope();
    }

    /// <summary>Ridge regression, the best there is where <c>β ~ N(0, I / d)</c>: <c>x_q·(X X^T + σ² d I)^-1 X y</c>.</summary>
    /// <param name="x"><c>[B, L, d]</c>.</param>
    /// <param name="y"><c>[B, L]</c>.</param>
    /// <param name="xQuery"><c>[B, d]</c>.</param>
    /// <param name="noiseVariance">σ², from 0.</param>
    /// <returns><c>[B]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, the context is empty, or the variance is negative.</exception>
    public static Tensor Ridge(Tensor x, Tensor y, Tensor xQuery, double noiseVariance)
    {
        Check(x, y, xQuery);
        if (!(noiseVariance >= 0))
        {
            throw new ArgumentException($"The variance of the noise is a number from 0 on, not {noiseVariance}.", nameof(noiseVariance));
        }

        using var scope = NewDisposeScope();
        var d = x.shape[2];
        using Scalar penalty = noiseVariance * d;
        var gram = matmul(x.transpose(1, 2), x) + eye(d, dtype: x.dtype, device: x.device).mul(penalty);
        var coefficients = linalg.solve(gram, matmul(x.transpose(1, 2), y.unsqueeze(-1))).squeeze(-1);
        return (coefficients * xQuery).sum(1).MoveToOuterDisposeScope();
    }

    private static Tensor Moment(Tensor x, Tensor y, Tensor xQuery) => (matmul(x, xQuery.unsqueeze(-1)).squeeze(-1) * y).sum(1);

    private static void Check(Tensor x, Tensor y, Tensor xQuery)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(y);
        ArgumentNullException.ThrowIfNull(xQuery);
        if (x.dim() != 3 || x.shape[1] == 0 || !y.shape.SequenceEqual(x.shape.Take(2)) || !xQuery.shape.SequenceEqual([x.shape[0], x.shape[2]]))
        {
            throw new ArgumentException(
                $"Covariates must be [batch, length, d] with a length of at least 1, values [batch, length] and queries [batch, d], not [{string.Join(", ", x.shape)}], [{string.Join(", ", y.shape)}] and [{string.Join(", ", xQuery.shape)}].", nameof(x));
        }
    }
}
