using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>One change of hidden states.</summary>
/// <param name="Point">The place in the block.</param>
/// <param name="Layers">The layers; null: all.</param>
/// <param name="Scale">What the states are multiplied by; 0 ablates them.</param>
/// <param name="Vector">What is added after that, <c>[C]</c> or anything that broadcasts to the states; null: nothing. Borrowed: it must live as long as the edit.</param>
/// <param name="Positions">The tokens, counted from the start of the sequence, or negative from the end of what the model reads at once (-1: its last); those that a call lacks are passed over. Null: all.</param>
public sealed record StreamChange(
    StreamPoint Point, IReadOnlyList<int>? Layers = null, double Scale = 1, Tensor? Vector = null, IReadOnlyList<long>? Positions = null);

/// <summary>Scales, shifts or ablates hidden states of a trained model: the residual stream, what attention or the feed-forward part adds to it, or a hidden layer. Differentiable.</summary>
/// <remarks>Removing a circuit is a scale of zero at <see cref="StreamPoint.AttentionOutput"/> or <see cref="StreamPoint.FeedForwardOutput"/>: see <see cref="Ablate"/>. Adding a vector to
/// <see cref="StreamPoint.BlockOutput"/> steers. In generation with a cache a position counts once, when its token is read, and -1 is every token that is read.</remarks>
public sealed class StreamEdit : StreamHook
{
    private readonly StreamChange[] _changes;

    /// <summary>Initializes the edit.</summary>
    /// <param name="changes">The changes; several of one place act in order.</param>
    /// <exception cref="ArgumentException">A scale is not finite, a layer is negative, or a change names no layer or position.</exception>
    public StreamEdit(params IEnumerable<StreamChange> changes)
    {
        ArgumentNullException.ThrowIfNull(changes);
        _changes = [.. changes];
        foreach (var change in _changes)
        {
            if (!double.IsFinite(change.Scale))
            {
                throw new ArgumentException($"The scale of hidden states is a finite number, not {change.Scale}.", nameof(changes));
            }

            if (change.Layers is { Count: 0 } || change.Positions is { Count: 0 } || change.Layers?.Any(layer => layer < 0) == true)
            {
                throw new ArgumentException("A change of hidden states names at least one layer from 0 on and one position, or leaves them null for all.", nameof(changes));
            }
        }
    }

    /// <summary>An edit that removes what parts of layers add to the residual stream.</summary>
    /// <param name="attention">Layers whose attention is removed.</param>
    /// <param name="feedForward">Layers whose feed-forward part is removed.</param>
    public static StreamEdit Ablate(IReadOnlyList<int>? attention = null, IReadOnlyList<int>? feedForward = null)
    {
        List<StreamChange> changes = [];
        if (attention is { Count: > 0 })
        {
            changes.Add(new(StreamPoint.AttentionOutput, attention, 0));
        }

        if (feedForward is { Count: > 0 })
        {
            changes.Add(new(StreamPoint.FeedForwardOutput, feedForward, 0));
        }

        return new(changes);
    }

    /// <inheritdoc/>
    public override bool ActsAt(StreamSite site)
    {
        foreach (var change in _changes)
        {
            if (ActsAt(change, site))
            {
                return true;
            }
        }

        return false;
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">A vector does not broadcast to the states.</exception>
    public override Tensor OnStates(StreamSite site, Tensor states)
    {
        ArgumentNullException.ThrowIfNull(states);
        using var scope = NewDisposeScope();
        var changed = states;
        foreach (var change in _changes)
        {
            if (ActsAt(change, site))
            {
                changed = Apply(change, site, changed, FirstPosition);
            }
        }

        return ReferenceEquals(changed, states) ? states : changed.MoveToOuterDisposeScope();
    }

    private static bool ActsAt(StreamChange change, StreamSite site) => change.Point == site.Point && (change.Layers is null || change.Layers.Contains(site.Layer));

    private static Tensor Apply(StreamChange change, StreamSite site, Tensor states, long first)
    {
        using TorchSharp.Scalar scale = change.Scale;
        // Zero times infinity is no number: what is removed is removed, whatever it was.
        var changed = change.Scale == 0 ? zeros_like(states) : change.Scale == 1 ? states : states * scale;
        if (change.Vector is { } vector)
        {
            if (vector.dim() > states.dim() || Enumerable.Range(1, (int)vector.dim()).Any(i => vector.shape[^i] != 1 && vector.shape[^i] != states.shape[^i]))
            {
                throw new ArgumentException($"The states at {site} are [{string.Join(", ", states.shape)}]; a vector of [{string.Join(", ", vector.shape)}] cannot be added.");
            }

            changed = changed + vector.to(states.dtype).to(states.device);
        }

        if (change.Positions is not { } positions)
        {
            return changed;
        }

        var tokens = states.shape[^2];
        var chosen = new bool[tokens];
        foreach (var position in positions)
        {
            var at = position < 0 ? position + tokens : position - first;
            if (at >= 0 && at < tokens)
            {
                chosen[at] = true;
            }
        }

        return where(tensor(chosen, device: states.device).unsqueeze(-1), changed, states);
    }
}
