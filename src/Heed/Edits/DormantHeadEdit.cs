using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>What is done to dormant heads.</summary>
public enum DormantHeadAction
{
    /// <summary>Their weights become zero: they add nothing.</summary>
    Zero,

    /// <summary>All their weight goes to the sink.</summary>
    MoveToSink,
}

/// <summary>Finds the heads that are dormant on the text at hand (<see cref="DormantHeads"/>), per batch item, and zeroes them or moves their attention to the sink (arXiv 2410.13835). The map is materialised at the sites it
/// acts on.</summary>
/// <remarks>A call with fewer queries than keys (a step with a cache) is left alone: dormancy is told from square maps.</remarks>
public sealed class DormantHeadEdit : AttentionHook
{
    private readonly Func<AttentionSite, bool>? _at;
    private readonly double _rowThreshold;
    private readonly double _columnThreshold;
    private readonly long _sink;

    /// <summary>Initializes the edit.</summary>
    /// <param name="action">What is done.</param>
    /// <param name="rowThreshold">A dormant head's row entropy is smaller.</param>
    /// <param name="columnThreshold">A dormant head's column entropy is larger.</param>
    /// <param name="sink">The key that gets all attention.</param>
    /// <param name="at">Chooses the sites; null: all.</param>
    public DormantHeadEdit(
        DormantHeadAction action, double rowThreshold = DormantHeads.RowThreshold, double columnThreshold = DormantHeads.ColumnThreshold, long sink = 0, Func<AttentionSite, bool>? at = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sink);
        (Action, _rowThreshold, _columnThreshold, _sink, _at) = (action, rowThreshold, columnThreshold, sink, at);
    }

    /// <summary>What is done.</summary>
    public DormantHeadAction Action { get; }

    /// <summary>The same on maps.</summary>
    /// <param name="weights"><c>[B, H, N, N]</c>.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <exception cref="ArgumentException">The maps are not square, or there is no such sink.</exception>
    public Tensor Apply(Tensor weights, bool causal = true)
    {
        using var scope = NewDisposeScope();
        var dormant = DormantHeads.Detect(weights, _rowThreshold, _columnThreshold, causal).IsDormant;
        return (Action == DormantHeadAction.Zero ? HeadScaling.Zero(weights, dormant) : MoveToSink.Apply(weights, dormant, _sink)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => _at is null || _at(site) ? AttentionStages.Weights : AttentionStages.None;

    /// <inheritdoc/>
    public override Tensor OnWeights(AttentionCall call, Tensor weights)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(weights);
        return weights.shape[2] == weights.shape[3] ? Apply(weights, call.Options.Causal != Kernels.Causality.None) : weights;
    }
}
