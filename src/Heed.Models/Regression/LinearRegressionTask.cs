using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.Regression;

/// <summary>Linear regression in context (arXiv 2503.12734, section 2): every context has its own <c>β ~ N(0, I / d)</c>, pairs <c>(x, β·x + ε)</c> and a query. Tokens are <c>(x, y)</c>, the query is <c>(x, 0)</c>.</summary>
/// <param name="Dimensions">Number d of covariates, from 1.</param>
/// <param name="ContextLength">Number L of pairs, from 1.</param>
/// <param name="NoiseStd">Standard deviation σ of the noise, from 0; the authors' variance is 0.1.</param>
public sealed record LinearRegressionTask(int Dimensions = 5, int ContextLength = 40, double NoiseStd = LinearRegressionTask.UsualNoiseStd)
{
    /// <summary>The root of 0.1.</summary>
    public const double UsualNoiseStd = 0.31622776601683794;

    /// <summary>ρ: covariates i and j have the covariance <c>ρ^|i - j|</c>, above -1 and below 1; 0: they are independent.</summary>
    public double Correlation { get; init; }

    /// <summary>The mean of every covariate.</summary>
    public double Mean { get; init; }

    /// <summary>Covariance of the covariates, float64 <c>[d, d]</c>.</summary>
    public Tensor Covariance()
    {
        Validate();
        var entries = new double[Dimensions, Dimensions];
        for (var row = 0; row < Dimensions; row++)
        {
            for (var column = 0; column < Dimensions; column++)
            {
                entries[row, column] = Math.Pow(Correlation, Math.Abs(row - column));
            }
        }

        return tensor(entries);
    }

    /// <summary>Contexts with their queries.</summary>
    /// <param name="batch">How many, from 1.</param>
    /// <param name="generator">Where they are drawn from; null: libtorch's own generator.</param>
    /// <returns>Queries <c>[B, 1, d + 1]</c>, contexts <c>[B, L, d + 1]</c> and what the queries' y is <c>[B, 1, 1]</c>.</returns>
    /// <exception cref="ArgumentException">A setting is out of its range.</exception>
    public (Tensor ZQuery, Tensor Z, Tensor Target) Sample(int batch, Generator? generator = null)
    {
        Validate();
        ArgumentOutOfRangeException.ThrowIfLessThan(batch, 1);
        using var scope = NewDisposeScope();
        Tensor Normal(params long[] shape) => randn(shape, dtype: float32, generator: generator);
        var (zQuery, z, target) = Assemble(
            Covariates(Normal(batch, ContextLength, Dimensions)), Covariates(Normal(batch, 1, Dimensions)), Normal(batch, Dimensions, 1), Normal(batch, ContextLength, 1), Normal(batch, 1, 1));
        return (zQuery.MoveToOuterDisposeScope(), z.MoveToOuterDisposeScope(), target.MoveToOuterDisposeScope());
    }

    /// <summary>Contexts from what was drawn.</summary>
    /// <param name="x">Covariates, <c>[B, L, d]</c>.</param>
    /// <param name="xQuery">Those of the queries, <c>[B, 1, d]</c>.</param>
    /// <param name="betaNormal">Standard normal draws <c>[B, d, 1]</c>; β is these over the root of d.</param>
    /// <param name="noise">Noise of variance 1, <c>[B, L, 1]</c>.</param>
    /// <param name="noiseQuery">That of the queries, <c>[B, 1, 1]</c>.</param>
    /// <returns>As <see cref="Sample"/>.</returns>
    public (Tensor ZQuery, Tensor Z, Tensor Target) Assemble(Tensor x, Tensor xQuery, Tensor betaNormal, Tensor noise, Tensor noiseQuery)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(xQuery);
        ArgumentNullException.ThrowIfNull(betaNormal);
        ArgumentNullException.ThrowIfNull(noise);
        ArgumentNullException.ThrowIfNull(noiseQuery);
        using var scope = NewDisposeScope();
        using Scalar root = Math.Sqrt(Dimensions), deviation = NoiseStd;
        var beta = betaNormal.div(root);
        var y = matmul(x, beta) + noise.mul(deviation);
        var target = matmul(xQuery, beta) + noiseQuery.mul(deviation);
        return (cat([xQuery, zeros_like(target)], -1).MoveToOuterDisposeScope(), cat([x, y], -1).MoveToOuterDisposeScope(), target.MoveToOuterDisposeScope());
    }

    private Tensor Covariates(Tensor normal)
    {
        using Scalar mean = Mean;
        return (Correlation == 0 ? normal : matmul(normal, linalg.cholesky(Covariance()).to(normal.dtype).t())).add(mean);
    }

    private void Validate()
    {
        if (Dimensions < 1 || ContextLength < 1 || !(NoiseStd >= 0) || !(Math.Abs(Correlation) < 1) || !double.IsFinite(Mean))
        {
            throw new ArgumentException(
                $"Linear regression needs at least 1 covariate and 1 pair, noise from 0 and a correlation between -1 and 1; {Dimensions}, {ContextLength}, {NoiseStd} and {Correlation} (mean {Mean}) were given.");
        }
    }
}

/// <summary>Two linear regressions in one context (arXiv 2503.12734, section 6): tokens <c>(x, y1, y2)</c>, y1 a function of the first <paramref name="FirstWidth"/> covariates, y2 of the last <paramref name="SecondWidth"/>. Unlike in
/// <see cref="LinearRegressionTask"/> β is not scaled, the noise grows with the root of the task's covariates, and the queries' values have none.</summary>
/// <param name="Dimensions">Number d of covariates, from 1.</param>
/// <param name="FirstWidth">Covariates of the first task, 1 to d.</param>
/// <param name="SecondWidth">Covariates of the second, 1 to d; where both together are more than d, the tasks share some.</param>
/// <param name="ContextLength">Number L of pairs, from 1.</param>
/// <param name="NoiseStd">Standard deviation σ of the noise per covariate, from 0.</param>
public sealed record MultiTaskLinearRegression(int Dimensions = 6, int FirstWidth = 4, int SecondWidth = 4, int ContextLength = 40, double NoiseStd = LinearRegressionTask.UsualNoiseStd)
{
    /// <summary>Contexts with their queries.</summary>
    /// <param name="batch">How many, from 1.</param>
    /// <param name="generator">Where they are drawn from; null: libtorch's own generator.</param>
    /// <returns>Queries <c>[B, 1, d + 2]</c>, contexts <c>[B, L, d + 2]</c> and what the queries' values are <c>[B, 1, 2]</c>.</returns>
    /// <exception cref="ArgumentException">A setting is out of its range.</exception>
    public (Tensor ZQuery, Tensor Z, Tensor Target) Sample(int batch, Generator? generator = null)
    {
        Validate();
        ArgumentOutOfRangeException.ThrowIfLessThan(batch, 1);
        using var scope = NewDisposeScope();
        Tensor Normal(params long[] shape) => randn(shape, dtype: float32, generator: generator);
        var (zQuery, z, target) = Assemble(
            Normal(batch, ContextLength, Dimensions), Normal(batch, 1, Dimensions), Normal(batch, FirstWidth, 1), Normal(batch, SecondWidth, 1), Normal(batch, ContextLength, 1), Normal(batch, ContextLength, 1));
        return (zQuery.MoveToOuterDisposeScope(), z.MoveToOuterDisposeScope(), target.MoveToOuterDisposeScope());
    }

    /// <summary>Contexts from what was drawn.</summary>
    /// <param name="x">Covariates, <c>[B, L, d]</c>.</param>
    /// <param name="xQuery">Those of the queries, <c>[B, 1, d]</c>.</param>
    /// <param name="beta1">β of the first task, <c>[B, d1, 1]</c>.</param>
    /// <param name="beta2">β of the second, <c>[B, d2, 1]</c>.</param>
    /// <param name="noise1">Noise of variance 1, <c>[B, L, 1]</c>.</param>
    /// <param name="noise2">That of the second task.</param>
    /// <returns>As <see cref="Sample"/>.</returns>
    /// <exception cref="ArgumentException">A setting is out of its range.</exception>
    public (Tensor ZQuery, Tensor Z, Tensor Target) Assemble(Tensor x, Tensor xQuery, Tensor beta1, Tensor beta2, Tensor noise1, Tensor noise2)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(xQuery);
        ArgumentNullException.ThrowIfNull(noise1);
        ArgumentNullException.ThrowIfNull(noise2);
        Validate();
        using var scope = NewDisposeScope();
        using Scalar first = NoiseStd * Math.Sqrt(FirstWidth), second = NoiseStd * Math.Sqrt(SecondWidth);
        Tensor First(Tensor covariates) => matmul(covariates.narrow(-1, 0, FirstWidth), beta1);
        Tensor Second(Tensor covariates) => matmul(covariates.narrow(-1, Dimensions - SecondWidth, SecondWidth), beta2);
        var target = cat([First(xQuery), Second(xQuery)], -1);
        var z = cat([x, First(x) + noise1.mul(first), Second(x) + noise2.mul(second)], -1);
        return (cat([xQuery, zeros_like(target)], -1).MoveToOuterDisposeScope(), z.MoveToOuterDisposeScope(), target.MoveToOuterDisposeScope());
    }

    private void Validate()
    {
        if (Dimensions < 1 || FirstWidth < 1 || FirstWidth > Dimensions || SecondWidth < 1 || SecondWidth > Dimensions || ContextLength < 1 || !(NoiseStd >= 0))
        {
            throw new ArgumentException(
                $"Two tasks need 1 to {Dimensions} covariates each, at least 1 pair and noise from 0; {FirstWidth} and {SecondWidth} covariates, {ContextLength} pairs and {NoiseStd} were given.");
        }
    }
}
