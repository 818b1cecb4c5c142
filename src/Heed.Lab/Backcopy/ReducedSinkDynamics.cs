namespace Heed.Lab.Backcopy;

/// <summary>The problem of a <see cref="ReducedSinkDynamics"/>: tokens that are no triggers, each with a logit on the sink, and the sink's value, which all share.</summary>
public sealed record ReducedSinkProblem
{
    /// <summary>What follows each of the K tokens, <c>[K][V]</c>: probabilities above 0.</summary>
    public required IReadOnlyList<double[]> Next { get; init; }

    /// <summary>Share of each token, <c>[K]</c>.</summary>
    public required double[] Shares { get; init; }

    /// <summary>What the other keys add to the value, in logits: a vector <c>[V]</c> for each of the contexts, which are all equally likely. One context is the authors' code.</summary>
    public required IReadOnlyList<double[]> Contexts { get; init; }

    /// <summary>Sum w of the exponentials of the other keys' scores.</summary>
    public required double ContextMass { get; init; }

    /// <summary>Step of the gradient descent.</summary>
    public double LearningRate { get; init; } = 1;

    /// <summary>Whether the logits on the sink stay as they are.</summary>
    public bool FixLogits { get; init; }

    /// <summary>Whether the sink's value stays a vector of ones, to which softmax is blind.</summary>
    public bool FixValue { get; init; }
}

/// <summary>The reduced model of how sinks grow (arXiv 2410.13835): a token v that is no trigger puts the logit alpha_v on the sink, whose value is beta; the prediction is <c>q_v = softmax(log p_v + (e^alpha_v beta + z) / (e^alpha_v + w))</c>
/// and the loss <c>sum_v pi_v KL(p_v || q_v)</c>, averaged over contexts z. Gradient descent moves alpha and beta together.</summary>
/// <remarks>Where nothing can be won from attention, logits grow like half the logarithm of time and the value drains; where one beta can cancel the only z, both stop.</remarks>
public sealed class ReducedSinkDynamics
{
    private readonly ReducedSinkProblem _problem;
    private readonly double[][] _logNext;
    private readonly double[] _alpha;
    private readonly double[] _beta;

    /// <summary>Prepares the descent.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="alpha">Logits on the sink at the start, <c>[K]</c>.</param>
    /// <param name="beta">The sink's value at the start, <c>[V]</c>; not read where the problem fixes it.</param>
    /// <exception cref="ArgumentException">Sizes do not agree, a probability is not above 0, or the mass or the learning rate is not positive.</exception>
    public ReducedSinkDynamics(ReducedSinkProblem problem, double[] alpha, double[] beta)
    {
        ArgumentNullException.ThrowIfNull(problem);
        ArgumentNullException.ThrowIfNull(alpha);
        ArgumentNullException.ThrowIfNull(beta);
        var (tokens, size) = (problem.Next.Count, beta.Length);
        if (tokens < 1 || size < 1 || alpha.Length != tokens || problem.Shares.Length != tokens || problem.Contexts.Count < 1 || problem.Next.Concat(problem.Contexts).Any(row => row.Length != size))
        {
            throw new ArgumentException(
                $"{tokens} tokens over a vocabulary of {size} need as many logits and shares and rows of that size, not {alpha.Length} logits, {problem.Shares.Length} shares, and rows of {string.Join(", ", problem.Next.Concat(problem.Contexts).Select(row => row.Length).Distinct())}.", nameof(problem));
        }

        if (problem.Next.Any(row => row.Any(probability => !(probability > 0))))
        {
            throw new ArgumentException("What follows a token needs a probability above 0 for every token: the loss takes logarithms.", nameof(problem));
        }

        if (!(problem.ContextMass > 0) || !(problem.LearningRate > 0))
        {
            throw new ArgumentException($"The context's mass and the learning rate must be positive, not {problem.ContextMass} and {problem.LearningRate}.", nameof(problem));
        }

        _problem = problem;
        _logNext = [.. problem.Next.Select(row => row.Select(probability => Math.Log(probability)).ToArray())];
        _alpha = [.. alpha];
        _beta = problem.FixValue ? [.. Enumerable.Repeat(1.0, size)] : [.. beta];
    }

    /// <summary>Logits on the sink, <c>[K]</c>.</summary>
    public IReadOnlyList<double> Alpha => _alpha;

    /// <summary>The sink's value in logits, <c>[V]</c>.</summary>
    public IReadOnlyList<double> Beta => _beta;

    /// <summary>One step of gradient descent.</summary>
    /// <returns>The loss before it.</returns>
    public double Step()
    {
        var (size, contexts) = (_beta.Length, _problem.Contexts);
        var mass = _problem.ContextMass;
        var (byAlpha, byBeta, next) = (new double[_alpha.Length], new double[size], new double[size]);
        double loss = 0;
        for (var token = 0; token < _alpha.Length; token++)
        {
            var (share, weight) = (_problem.Shares[token] / contexts.Count, Math.Exp(_alpha[token]));
            var (probabilities, logs) = (_problem.Next[token], _logNext[token]);
            foreach (var context in contexts)
            {
                var most = double.NegativeInfinity;
                for (var i = 0; i < size; i++)
                {
                    next[i] = logs[i] + (((weight * _beta[i]) + context[i]) / (weight + mass));
                    most = Math.Max(most, next[i]);
                }

                double sum = 0;
                for (var i = 0; i < size; i++)
                {
                    sum += Math.Exp(next[i] - most);
                }

                var logSum = most + Math.Log(sum);
                double along = 0;
                for (var i = 0; i < size; i++)
                {
                    var logPredicted = next[i] - logSum;
                    var error = Math.Exp(logPredicted) - probabilities[i];
                    loss += share * probabilities[i] * (logs[i] - logPredicted);
                    along += error * (context[i] - (mass * _beta[i]));
                    byBeta[i] += share * weight / (weight + mass) * error;
                }

                byAlpha[token] -= share * weight / ((weight + mass) * (weight + mass)) * along;
            }
        }

        if (!_problem.FixLogits)
        {
            for (var token = 0; token < _alpha.Length; token++)
            {
                _alpha[token] -= _problem.LearningRate * byAlpha[token];
            }
        }

        if (!_problem.FixValue)
        {
            for (var i = 0; i < size; i++)
            {
                _beta[i] -= _problem.LearningRate * byBeta[i];
            }
        }

        return loss;
    }
}
