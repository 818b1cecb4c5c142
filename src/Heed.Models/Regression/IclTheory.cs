using static TorchSharp.torch;

namespace Heed.Models.Regression;

/// <summary>A state of the gradient flow.</summary>
/// <param name="Step">Steps taken.</param>
/// <param name="Omega">ω of every head.</param>
/// <param name="Mu">μ of every head.</param>
/// <param name="Loss">What the flow descends: half the approximate loss.</param>
public sealed record FlowPoint(int Step, IReadOnlyList<double> Omega, IReadOnlyList<double> Mu, double Loss);

/// <summary>What is known in closed form of attention that consists of ω and μ (arXiv 2503.12734, section 4): d independent covariates, L pairs, noise of variance σ².</summary>
/// <remarks>The approximation replaces the softmax's denominator by its mean; it is loose at large ω (one head: 0.372 where 0.405 is measured) and good at small.</remarks>
/// <param name="Dimensions">Number d of covariates, from 1.</param>
/// <param name="ContextLength">Number L of pairs, from 1.</param>
/// <param name="NoiseVariance">σ², from 0.</param>
public sealed record IclTheory(int Dimensions = 5, int ContextLength = 40, double NoiseVariance = 0.1)
{
    // A few units of rounding for every head: below it a solution would be noise.
    private const double Singular = 1e-15;

    /// <summary>Number d of covariates.</summary>
    public int Dimensions { get; } = Dimensions > 0 ? Dimensions : throw new ArgumentException($"There must be at least 1 covariate, not {Dimensions}.", nameof(Dimensions));

    /// <summary>Number L of pairs.</summary>
    public int ContextLength { get; } = ContextLength > 0 ? ContextLength : throw new ArgumentException($"There must be at least 1 pair, not {ContextLength}.", nameof(ContextLength));

    /// <summary>σ².</summary>
    public double NoiseVariance { get; } = NoiseVariance >= 0 ? NoiseVariance : throw new ArgumentException($"The variance of the noise is a number from 0 on, not {NoiseVariance}.", nameof(NoiseVariance));

    private double Share => (1 + NoiseVariance) / ContextLength;

    /// <summary>The approximate loss <c>1 + σ² - 2 μ·ω + μ^T [ω ω^T + (1 + σ²) / L exp(d ω ω^T)] μ</c>.</summary>
    /// <param name="omega">ω of every head.</param>
    /// <param name="mu">μ of every head.</param>
    /// <exception cref="ArgumentException">There are not as many ω as μ, or none.</exception>
    public double ApproxLoss(IReadOnlyList<double> omega, IReadOnlyList<double> mu)
    {
        Check(omega, mu);
        var loss = 1 + NoiseVariance;
        for (var i = 0; i < omega.Count; i++)
        {
            loss -= 2 * mu[i] * omega[i];
            for (var j = 0; j < omega.Count; j++)
            {
                loss += mu[i] * mu[j] * Entry(omega[i], omega[j]);
            }
        }

        return loss;
    }

    /// <summary>The best μ for given ω: <c>[ω ω^T + (1 + σ²) / L exp(d ω ω^T)]^-1 ω</c>.</summary>
    /// <param name="omega">ω of every head.</param>
    /// <returns>μ of every head.</returns>
    /// <exception cref="ArgumentException">There is no head, or the matrix is singular: heads have the same ω, and only the sum of their μ is determined.</exception>
    public double[] MuStar(IReadOnlyList<double> omega)
    {
        Check(omega, omega);
        var heads = omega.Count;
        var matrix = new double[heads, heads];
        for (var i = 0; i < heads; i++)
        {
            for (var j = 0; j < heads; j++)
            {
                matrix[i, j] = Entry(omega[i], omega[j]);
            }
        }

        using var scope = NewDisposeScope();
        var system = tensor(matrix);
        var values = linalg.eigvalsh(system).data<double>().ToArray();
        if (!(values[0] > Singular * heads * values[^1]))
        {
            throw new ArgumentException(
                $"The best μ is not determined where heads share an ω ({string.Join(", ", omega)}): merge heads of the same ω into one, and share its μ among them as you like.", nameof(omega));
        }

        return linalg.solve(system, tensor(omega.ToArray())).data<double>().ToArray();
    }

    /// <summary>Descends half the approximate loss by steps of a fixed size, μ and ω at once.</summary>
    /// <param name="omega">ω to begin with.</param>
    /// <param name="mu">μ to begin with.</param>
    /// <param name="rate">Size of a step, above 0.</param>
    /// <param name="steps">Number of steps, from 0.</param>
    /// <param name="stride">Steps from one state that is returned to the next, from 1.</param>
    /// <returns>The states after 0, stride, 2 stride ... steps.</returns>
    /// <exception cref="ArgumentException">There are not as many ω as μ, or a number is out of its range.</exception>
    public IReadOnlyList<FlowPoint> GradientFlow(IReadOnlyList<double> omega, IReadOnlyList<double> mu, double rate, int steps, int stride = 1)
    {
        Check(omega, mu);
        if (!(rate > 0) || steps < 0 || stride < 1)
        {
            throw new ArgumentException($"A flow needs a rate above 0, steps from 0 and a stride from 1, not {rate}, {steps} and {stride}.", nameof(steps));
        }

        var (w, m) = (omega.ToArray(), mu.ToArray());
        var states = new List<FlowPoint>();
        for (var step = 0; step <= steps; step++)
        {
            if (step % stride == 0)
            {
                states.Add(new(step, [.. w], [.. m], ApproxLoss(w, m) / 2));
            }

            var (slopesOmega, slopesMu) = (new double[w.Length], new double[w.Length]);
            for (var i = 0; i < w.Length; i++)
            {
                slopesMu[i] = -w[i];
                slopesOmega[i] = -m[i];
                for (var j = 0; j < w.Length; j++)
                {
                    slopesMu[i] += Entry(w[i], w[j]) * m[j];
                    slopesOmega[i] += (m[i] * m[j] * w[j]) + (Dimensions * Share * Math.Exp(Dimensions * w[i] * w[j]) * m[i] * m[j] * w[j]);
                }
            }

            for (var i = 0; i < w.Length; i++)
            {
                w[i] -= rate * slopesOmega[i];
                m[i] -= rate * slopesMu[i];
            }
        }

        return states;
    }

    /// <summary>The best single head by the approximation: <c>ω = 1 / sqrt(d)</c>, its μ, and the loss.</summary>
    public (double Omega, double Mu, double Loss) OneHead()
    {
        var load = Share * Dimensions * Math.E;
        return (1 / Math.Sqrt(Dimensions), Math.Sqrt(Dimensions) / (1 + load), 1 + NoiseVariance - (1 / (1 + load)));
    }

    /// <summary>The approximate loss of two heads (±γ, ±μ) with the best μ; it falls as γ does.</summary>
    /// <param name="gamma">γ, above 0; 0: the limit, one debiased gradient step.</param>
    public double TwoHeadLoss(double gamma)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(gamma);
        return 1 + NoiseVariance - (1 / (1 + (Share * (gamma == 0 ? Dimensions : Math.Sinh(Dimensions * gamma * gamma) / (gamma * gamma)))));
    }

    /// <summary>The best single gradient step, exactly: its size <c>2γμ = 1 / (1 + (d + 1 + d σ²) / L)</c> and the mean squared error it leaves.</summary>
    public (double Step, double Loss) BestGradientStep()
    {
        var step = 1 / (1 + ((Dimensions + 1 + (Dimensions * NoiseVariance)) / ContextLength));
        return (step, 1 + NoiseVariance - step);
    }

    internal static void Check(IReadOnlyList<double> omega, IReadOnlyList<double> mu)
    {
        ArgumentNullException.ThrowIfNull(omega);
        ArgumentNullException.ThrowIfNull(mu);
        if (omega.Count == 0 || omega.Count != mu.Count)
        {
            throw new ArgumentException($"There must be as many ω as μ and at least one head; {omega.Count} and {mu.Count} were given.", nameof(omega));
        }
    }

    // An element of ω ω^T + (1 + σ²) / L exp(d ω ω^T).
    private double Entry(double first, double second) => (first * second) + (Share * Math.Exp(Dimensions * first * second));
}
