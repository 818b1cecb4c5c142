using TorchSharp;

namespace Heed;

/// <summary>The stages of an attention call at which a hook may observe or change it.</summary>
[Flags]
public enum AttentionStages
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Query, key and value, before anything is computed. Stays fused.</summary>
    Inputs = 1,

    /// <summary>Scores before the normaliser, as a tensor. Materialises the map at this site.</summary>
    Scores = 2,

    /// <summary>Weights after the normaliser, as a tensor. Materialises the map at this site.</summary>
    Weights = 4,

    /// <summary>The output per head, before the gate's merge into the model. Stays fused.</summary>
    Output = 8,

    /// <summary>Streamed statistics of rows and columns. Stays fused.</summary>
    Statistics = 16,

    /// <summary>The call as it is computed, to ask <see cref="AttentionCall.Weights"/> for parts of the map. Stays fused.</summary>
    Map = 32,
}

/// <summary>Statistics that a hook asks for at <see cref="AttentionStages.Statistics"/>.</summary>
public sealed record AttentionStatisticsRequest
{
    /// <summary>Entropy of every row, in nats.</summary>
    public bool Entropy { get; init; }

    /// <summary>The largest weight of every row and its key.</summary>
    public bool Maximum { get; init; }

    /// <summary>Mean distance between every query and its keys, in tokens.</summary>
    public bool MeanDistance { get; init; }

    /// <summary>Keys whose mass is wanted, boolean <c>[n]</c> or <c>[B, n]</c> with n at most Nk (keys past its end are not in the set, so
    /// that <c>[true]</c> is the first key of any call); null: not wanted.</summary>
    public torch.Tensor? KeySet { get; init; }

    /// <summary>How many of the largest weights of every row are wanted (0: none, at most 64).</summary>
    public int TopCount { get; init; }

    /// <summary>Mass that every key receives (a second half-pass).</summary>
    public bool MassPerKey { get; init; }

    /// <summary>Entropy of the queries of every key (the second half-pass, a little slower).</summary>
    public bool KeyEntropy { get; init; }

    /// <summary>The first key of any call as a key set, the usual sink: one tensor for all who ask for it, so that they share a pass.</summary>
    public static torch.Tensor FirstKey { get; } = torch.ones(1, dtype: torch.@bool).DetachFromDisposeScope();

    /// <summary>Everything that either of two requests asks for, in one pass; null where their key sets differ.</summary>
    internal static AttentionStatisticsRequest? TryMerge(AttentionStatisticsRequest first, AttentionStatisticsRequest second) =>
        first.KeySet is not null && second.KeySet is not null && !ReferenceEquals(first.KeySet, second.KeySet)
            ? null
            : new()
            {
                Entropy = first.Entropy || second.Entropy,
                Maximum = first.Maximum || second.Maximum,
                MeanDistance = first.MeanDistance || second.MeanDistance,
                KeySet = first.KeySet ?? second.KeySet,
                TopCount = Math.Max(first.TopCount, second.TopCount),
                MassPerKey = first.MassPerKey || second.MassPerKey,
                KeyEntropy = first.KeyEntropy || second.KeyEntropy,
            };
}

/// <summary>Streamed statistics of one call. Members that were not asked for are null. The tensors live until the call
/// returns: a hook that keeps one takes a handle of its own (<c>tensor.detach().DetachFromDisposeScope()</c>).</summary>
public sealed record AttentionStatistics
{
    /// <summary>Log-sum-exp of every row (sink included), float32 <c>[B, H, Nq]</c>; minus infinity where there is no pair. Always
    /// given.</summary>
    public torch.Tensor? LogSumExp { get; init; }

    /// <summary>Entropy in nats, float32 <c>[B, H, Nq]</c>.</summary>
    public torch.Tensor? Entropy { get; init; }

    /// <summary>Largest weight, float32 <c>[B, H, Nq]</c>.</summary>
    public torch.Tensor? Maximum { get; init; }

    /// <summary>Key of the largest weight, int32 <c>[B, H, Nq]</c>; -1 where there is none.</summary>
    public torch.Tensor? MaximumKey { get; init; }

    /// <summary>Mean distance in tokens, float32 <c>[B, H, Nq]</c>.</summary>
    public torch.Tensor? MeanDistance { get; init; }

    /// <summary>Mass on the key set, float32 <c>[B, H, Nq]</c>.</summary>
    public torch.Tensor? SetMass { get; init; }

    /// <summary>Largest weights, descending, float32 <c>[B, H, Nq, k]</c>.</summary>
    public torch.Tensor? TopWeights { get; init; }

    /// <summary>Their keys, int32 <c>[B, H, Nq, k]</c>.</summary>
    public torch.Tensor? TopKeys { get; init; }

    /// <summary>Mass received, float32 <c>[B, H, Nk]</c>.</summary>
    public torch.Tensor? MassPerKey { get; init; }

    /// <summary>Entropy in nats of the weights of every key as shares of the mass it receives, float32 <c>[B, H, Nk]</c>: 0 where one query gives it all.</summary>
    public torch.Tensor? KeyEntropy { get; init; }
}

/// <summary>
/// Observes (a probe) or changes (an edit) attention calls. Installed on a model's <see cref="AttentionHooks"/> for a scope; acts per site,
/// by stage. A hook declares the stages it needs, so that calls stay fused wherever nobody needs the map itself.
/// </summary>
public abstract class AttentionHook
{
    /// <summary>The stages this hook needs at a site; <see cref="AttentionStages.None"/> where it has no business.</summary>
    public abstract AttentionStages StagesAt(AttentionSite site);

    /// <summary>The statistics this hook wants at a site, where <see cref="StagesAt"/> includes them.</summary>
    public virtual AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => null;

    /// <summary>Stage inputs: may assign <see cref="AttentionCall.Query"/>, <see cref="AttentionCall.Key"/>,
    /// <see cref="AttentionCall.Value"/> and <see cref="AttentionCall.Options"/>.</summary>
    public virtual void OnInputs(AttentionCall call)
    {
    }

    /// <summary>Stage scores: the scores <c>[B, H, Nq, Nk]</c> (minus infinity where masked) to go on with.</summary>
    public virtual torch.Tensor OnScores(AttentionCall call, torch.Tensor scores) => scores;

    /// <summary>Stage weights: the weights <c>[B, H, Nq, Nk]</c> to go on with.</summary>
    public virtual torch.Tensor OnWeights(AttentionCall call, torch.Tensor weights) => weights;

    /// <summary>Stage output: the output <c>[B, H, Nq, Dv]</c> to go on with.</summary>
    public virtual torch.Tensor OnOutput(AttentionCall call, torch.Tensor output) => output;

    /// <summary>Stage map: after inputs, scores and weights are final.</summary>
    public virtual void OnMap(AttentionCall call)
    {
    }

    /// <summary>Stage statistics: the statistics that were asked for, and perhaps more that other hooks asked for.</summary>
    public virtual void OnStatistics(AttentionCall call, AttentionStatistics statistics)
    {
    }
}

/// <summary>The hooks installed on a model. Every attention call of the model passes them on to <see cref="Attention"/>; its blocks show their hidden states to the <see cref="StreamHook"/>s among them.</summary>
public sealed class AttentionHooks
{
    private readonly List<AttentionHook> _hooks = [];
    private readonly List<StreamHook> _watchers = [];

    /// <summary>The installed hooks, in the order in which they act.</summary>
    public IReadOnlyList<AttentionHook> Installed => _hooks;

    /// <summary>The installed hooks on hidden states, in the order in which they act.</summary>
    public IReadOnlyList<StreamHook> Watchers => _watchers;

    /// <summary>What the tokens of the sequence that the model reads stand for; null: all are of one kind, or nobody said. A model of several kinds of tokens sets it when it reads a prompt.</summary>
    public TokenLayout? Layout { get; set; }

    /// <summary>The position of the first token that the model reads now: the number of tokens in its cache. Set by models that have one.</summary>
    public long FirstPosition { get; set; }

    /// <summary>The stages that any installed hook needs at a site.</summary>
    public AttentionStages StagesAt(AttentionSite site)
    {
        var stages = AttentionStages.None;
        for (var i = 0; i < _hooks.Count; i++)
        {
            stages |= _hooks[i].StagesAt(site);
        }

        return stages;
    }

    /// <summary>Installs a hook until the returned scope is disposed.</summary>
    public IDisposable Install(AttentionHook hook)
    {
        ArgumentNullException.ThrowIfNull(hook);
        _hooks.Add(hook);
        return new Scope<AttentionHook>(_hooks, hook);
    }

    /// <summary>Installs a hook on hidden states until the returned scope is disposed.</summary>
    public IDisposable Install(StreamHook hook)
    {
        ArgumentNullException.ThrowIfNull(hook);
        _watchers.Add(hook);
        return new Scope<StreamHook>(_watchers, hook);
    }

    /// <summary>Takes all installed hooks and the layout away until the returned scope is disposed: for a pass that must see the model as it was trained.</summary>
    public IDisposable Suspend() => new Suspension(this);

    internal torch.Tensor Pass(StreamSite site, torch.Tensor states)
    {
        foreach (var watcher in _watchers)
        {
            if (watcher.ActsAt(site))
            {
                var shape = states.shape;
                watcher.FirstPosition = FirstPosition;
                states = watcher.OnStates(site, states);
                if (!states.shape.AsSpan().SequenceEqual(shape))
                {
                    throw new InvalidOperationException(
                        $"The hook {watcher.GetType().Name} returned [{string.Join(", ", states.shape)}] at {site}, where [{string.Join(", ", shape)}] stands: return the same shape.");
                }
            }
        }

        return states;
    }

    private sealed class Scope<THook>(List<THook> hooks, THook hook) : IDisposable
    {
        private bool _disposed;

        public void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                hooks.Remove(hook);
            }
        }
    }

    private sealed class Suspension : IDisposable
    {
        private readonly AttentionHooks _owner;
        private readonly AttentionHook[] _hooks;
        private readonly StreamHook[] _watchers;
        private readonly TokenLayout? _layout;
        private bool _disposed;

        public Suspension(AttentionHooks owner)
        {
            (_owner, _hooks, _watchers, _layout) = (owner, [.. owner._hooks], [.. owner._watchers], owner.Layout);
            owner._hooks.Clear();
            owner._watchers.Clear();
            owner.Layout = null;
        }

        public void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                _owner._hooks.InsertRange(0, _hooks);
                _owner._watchers.InsertRange(0, _watchers);
                _owner.Layout = _layout;
            }
        }
    }
}
