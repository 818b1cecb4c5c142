using TorchSharp;

namespace Heed;

/// <summary>The places of a block at which its hidden states can be observed or changed. All are <c>[B, N, C]</c> unless said otherwise; a block without a part has no such place.</summary>
public enum StreamPoint
{
    /// <summary>The residual stream before the block: the embeddings (with positions) before block 0.</summary>
    BlockInput,

    /// <summary>What attention reads, after the norm before it.</summary>
    AttentionInput,

    /// <summary>What attention adds to the residual stream, after the output projection.</summary>
    AttentionOutput,

    /// <summary>What the feed-forward part reads, after the norm before it.</summary>
    FeedForwardInput,

    /// <summary>The gate before its activation, <c>[B, N, inner]</c>; in a feed-forward part without gate, its hidden layer before the activation.</summary>
    Gate,

    /// <summary>The up projection beside the gate, <c>[B, N, inner]</c>.</summary>
    Up,

    /// <summary>The gate (or hidden layer) after the activation, <c>[B, N, inner]</c>.</summary>
    Activation,

    /// <summary>What the down projection reads, <c>[B, N, inner]</c>: activated gate times up.</summary>
    Product,

    /// <summary>What the feed-forward part adds to the residual stream.</summary>
    FeedForwardOutput,

    /// <summary>The residual stream after the block, before any final norm.</summary>
    BlockOutput,
}

/// <summary>Where in a model a hidden state stands.</summary>
/// <param name="Layer">The block, from 0.</param>
/// <param name="Point">The place in the block.</param>
/// <param name="Name">The block's name in the model, for example <c>model.layers.3</c>.</param>
public readonly record struct StreamSite(int Layer, StreamPoint Point, string Name)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Name}.{Point}";
}

/// <summary>Observes (a probe) or changes (an edit) hidden states between the parts of a model's blocks. Installed on a model's <see cref="AttentionHooks"/> for a scope.</summary>
public abstract class StreamHook
{
    /// <summary>The position of the first of the states' tokens in the sequence: 0, or in a model that goes on from a cache the number of tokens in it.</summary>
    protected internal long FirstPosition { get; internal set; }

    /// <summary>Whether this hook has business at a place.</summary>
    public abstract bool ActsAt(StreamSite site);

    /// <summary>The hidden states to go on with.</summary>
    /// <param name="site">The place.</param>
    /// <param name="states">What stands there. A hook that keeps it takes a handle of its own (<c>states.detach().DetachFromDisposeScope()</c>) and does not change it in place.</param>
    /// <returns><paramref name="states"/>, or a tensor of its shape.</returns>
    public abstract torch.Tensor OnStates(StreamSite site, torch.Tensor states);
}

/// <summary>How a block hands its hidden states to the hooks of its model.</summary>
/// <param name="Hooks">The model's hooks; null: there are none.</param>
/// <param name="Layer">The block, from 0.</param>
/// <param name="Name">The block's name in the model.</param>
public readonly record struct StreamPlace(AttentionHooks? Hooks, int Layer, string Name)
{
    /// <summary>Passes hidden states through the hooks that act at a place of the block; without any, nothing is done.</summary>
    /// <param name="point">The place.</param>
    /// <param name="states">What stands there.</param>
    /// <returns>What the hooks made of it.</returns>
    /// <exception cref="InvalidOperationException">A hook returned another shape.</exception>
    public torch.Tensor Pass(StreamPoint point, torch.Tensor states) => Hooks is { Watchers.Count: > 0 } hooks ? hooks.Pass(new(Layer, point, Name), states) : states;
}
