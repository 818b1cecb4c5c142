using Heed.Probes;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>Sets the length of the sink vector that a feed-forward part writes (arXiv 2512.22213): an output that points along the sink's direction keeps its direction and gets a given norm. Small norms stop secondary sinks from
/// forming, large ones strengthen them.</summary>
/// <remarks>The threshold is on the feed-forward part's output; the one of <see cref="SinkDetector"/> is on the residual stream.</remarks>
public sealed class SinkNormSteering : StreamHook, IDisposable
{
    /// <summary>The published threshold of the cosine.</summary>
    public const double DefaultThreshold = 0.98;

    private readonly int _layer;
    private readonly double _targetNorm;
    private readonly double _threshold;
    private readonly HashSet<long> _exempt;
    private readonly bool _learns;
    private Tensor? _direction;

    /// <summary>Initializes the edit.</summary>
    /// <param name="layer">The block whose feed-forward output is steered: the creation layer of the sinks.</param>
    /// <param name="direction">The sink's direction <c>[C]</c>, of any length: the begin token's feed-forward output at that block. Null: the output at position 0 of the pass that starts the text, per batch item.</param>
    /// <param name="targetNorm">The norm that steered outputs get, 0 or more.</param>
    /// <param name="cosineThreshold">Outputs whose cosine with the direction exceeds it (strictly) are steered.</param>
    /// <param name="exempt">Positions that are left alone; null: 0, 1 and 2.</param>
    /// <exception cref="ArgumentException">The layer is negative, the norm is not a number from 0, the threshold not between -1 and 1, or the direction not <c>[C]</c>.</exception>
    public SinkNormSteering(int layer, Tensor? direction = null, double targetNorm = 100, double cosineThreshold = DefaultThreshold, IEnumerable<long>? exempt = null)
    {
        if (layer < 0 || !(targetNorm >= 0) || double.IsInfinity(targetNorm) || cosineThreshold is not (>= -1 and <= 1) || direction is { } given && given.dim() != 1)
        {
            throw new ArgumentException(
                $"Steering needs a layer from 0, a finite norm from 0, a cosine from -1 to 1 and a direction [C], not {layer}, {targetNorm}, {cosineThreshold}{(direction is null ? "" : $" and [{string.Join(", ", direction.shape)}]")}.");
        }

        (_layer, _targetNorm, _threshold, _exempt, _learns) = (layer, targetNorm, cosineThreshold, [.. exempt ?? [0, 1, 2]], direction is null);
        _direction = direction?.detach().clone().DetachFromDisposeScope();
    }

    /// <summary>Which tokens would be steered.</summary>
    /// <param name="states">Outputs of the feed-forward part, <c>[B, N, C]</c>.</param>
    /// <param name="firstPosition">The position of the first token.</param>
    /// <returns>The cosine with the direction, and whether it is steered, <c>[B, N]</c>.</returns>
    /// <exception cref="ArgumentException">The states have another width than the direction.</exception>
    /// <exception cref="InvalidOperationException">There is no direction yet.</exception>
    public (Tensor Cosine, Tensor IsSteered) Find(Tensor states, long firstPosition = 0)
    {
        ArgumentNullException.ThrowIfNull(states);
        var direction = _direction ?? throw new InvalidOperationException("The direction is taken from the token at position 0, which has not been read yet: start the text while the edit is installed.");
        if (states.dim() != 3 || states.shape[2] != direction.shape[^1])
        {
            throw new ArgumentException($"Feed-forward outputs [batch, tokens, {direction.shape[^1]}] were expected, as wide as the direction, not [{string.Join(", ", states.shape)}].", nameof(states));
        }

        using var scope = NewDisposeScope();
        using Scalar limit = _threshold;
        var cosine = SinkMask.Cosine(states, direction.to(states.dtype).to(states.device));
        var allowed = Enumerable.Range(0, (int)states.shape[1]).Select(token => !_exempt.Contains(firstPosition + token)).ToArray();
        var steered = cosine.gt(limit).logical_and(tensor(allowed, device: states.device));
        return (cosine.MoveToOuterDisposeScope(), steered.MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public override bool ActsAt(StreamSite site) => site.Layer == _layer && site.Point == StreamPoint.FeedForwardOutput;

    /// <inheritdoc/>
    public override Tensor OnStates(StreamSite site, Tensor states)
    {
        ArgumentNullException.ThrowIfNull(states);
        if (_learns && FirstPosition == 0)
        {
            _direction?.Dispose();
            _direction = states.narrow(1, 0, 1).detach().clone().DetachFromDisposeScope();
        }

        return Steer(states, FirstPosition);
    }

    /// <summary>Steers outputs of a feed-forward part; differentiable.</summary>
    /// <param name="states"><c>[B, N, C]</c>.</param>
    /// <param name="firstPosition">The position of the first token.</param>
    /// <exception cref="ArgumentException">The states have another width than the direction.</exception>
    public Tensor Steer(Tensor states, long firstPosition = 0)
    {
        ArgumentNullException.ThrowIfNull(states);
        using var scope = NewDisposeScope();
        using Scalar target = _targetNorm, one = 1, least = 1e-12;
        var (_, steered) = Find(states, firstPosition);
        var factor = target / SinkMask.Norm(states).clamp_min(least);
        return (states * factor.masked_fill(steered.logical_not(), one).unsqueeze(-1).to(states.dtype)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose() => _direction?.Dispose();
}
