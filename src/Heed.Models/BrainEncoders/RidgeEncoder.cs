using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>The ridge baseline of arXiv 2505.17329: responses as linear functions of the flattened feature map, in closed form, with the penalty that predicts held-out pictures best.</summary>
public sealed class RidgeEncoder : IDisposable
{
    private readonly Tensor _weights;
    private readonly Tensor _means;
    private readonly Tensor _responseMeans;

    private RidgeEncoder(Tensor weights, Tensor means, Tensor responseMeans, double penalty)
    {
        (_weights, _means, _responseMeans, Penalty) = (weights.DetachFromDisposeScope(), means.DetachFromDisposeScope(), responseMeans.DetachFromDisposeScope(), penalty);
    }

    /// <summary>The penalties that are tried where none is given, times the number of pictures.</summary>
    public static IReadOnlyList<double> UsualPenalties { get; } = [1e-3, 1e-2, 1e-1, 1, 10, 100];

    /// <summary>The penalty that was chosen: what is added to the Gram matrix' diagonal.</summary>
    public double Penalty { get; }

    /// <summary>Fits.</summary>
    /// <param name="features">Feature maps, <c>[N, C, h, w]</c> (or flat, <c>[N, F]</c>).</param>
    /// <param name="responses">Responses, <c>[N, V]</c>.</param>
    /// <param name="penalties">Penalties to choose from, above 0, by the mean correlation on the last fifth of the pictures; null: <see cref="UsualPenalties"/> times N.</param>
    /// <exception cref="ArgumentException">There are not as many responses as pictures, fewer than five pictures, or a penalty is not above 0.</exception>
    public static RidgeEncoder Fit(Tensor features, Tensor responses, IReadOnlyList<double>? penalties = null)
    {
        ArgumentNullException.ThrowIfNull(features);
        ArgumentNullException.ThrowIfNull(responses);
        if (features.dim() < 2 || responses.dim() != 2 || features.shape[0] != responses.shape[0] || features.shape[0] < 5)
        {
            throw new ArgumentException($"Ridge needs at least five pictures and the responses of each, [N, ...] and [N, V], not [{string.Join(", ", features.shape)}] and [{string.Join(", ", responses.shape)}].", nameof(responses));
        }

        var count = features.shape[0];
        penalties ??= [.. UsualPenalties.Select(penalty => penalty * count)];
        if (penalties.Count == 0 || penalties.Any(penalty => !(penalty > 0)))
        {
            throw new ArgumentException($"Penalties are numbers above 0, not {string.Join(", ", penalties)}.", nameof(penalties));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (x, y) = (features.flatten(1).to(float64), responses.to(float64));
        var best = penalties[0];
        if (penalties.Count > 1)
        {
            var training = count - (count / 5);
            var (seen, held) = (Centre(x.narrow(0, 0, training), y.narrow(0, 0, training)), (X: x.narrow(0, training, count - training), Y: y.narrow(0, training, count - training)));
            var solver = new Solver(seen.X, seen.Y);
            best = penalties.MaxBy(penalty => VertexCorrelation.Pearson(matmul(held.X - seen.Means, solver.Solve(penalty)), held.Y).mean().item<double>());
        }

        var (all, targets, means, responseMeans) = Centre(x, y);
        return new(new Solver(all, targets).Solve(best), means, responseMeans, best);
    }

    /// <summary>Predicts.</summary>
    /// <param name="features">Feature maps of the size that was fitted.</param>
    /// <returns>float64 <c>[B, V]</c>.</returns>
    /// <exception cref="ArgumentException">The maps have another size.</exception>
    public Tensor Predict(Tensor features)
    {
        ArgumentNullException.ThrowIfNull(features);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var x = features.flatten(1).to(float64);
        return x.shape[1] == _weights.shape[0] ? (matmul(x - _means, _weights) + _responseMeans).MoveToOuterDisposeScope()
            : throw new ArgumentException($"Ridge was fitted on {_weights.shape[0]} features a picture; {x.shape[1]} were given.", nameof(features));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _weights.Dispose();
        _means.Dispose();
        _responseMeans.Dispose();
    }

    private static (Tensor X, Tensor Y, Tensor Means, Tensor ResponseMeans) Centre(Tensor x, Tensor y)
    {
        var (means, responseMeans) = (x.mean([0L], keepdim: true), y.mean([0L], keepdim: true));
        return (x - means, y - responseMeans, means, responseMeans);
    }

    /// <summary>One decomposition serves every penalty, of whichever Gram matrix is the smaller.</summary>
    private sealed class Solver
    {
        private readonly Tensor _values;
        private readonly Tensor _left;
        private readonly Tensor _right;

        public Solver(Tensor x, Tensor y)
        {
            var isTall = x.shape[0] >= x.shape[1];
            (_values, var vectors) = linalg.eigh(isTall ? matmul(x.t(), x) : matmul(x, x.t()));
            _right = isTall ? matmul(vectors.t(), matmul(x.t(), y)) : matmul(vectors.t(), y);
            _left = isTall ? vectors : matmul(x.t(), vectors);
        }

        public Tensor Solve(double penalty)
        {
            using Scalar added = penalty;
            return matmul(_left, _right / _values.add(added).unsqueeze(1));
        }
    }
}
