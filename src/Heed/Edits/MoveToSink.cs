using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>Makes chosen heads put all their attention on one token, normally the first (arXiv 2410.13835): every row's output becomes the sink's value. Where a head is dormant this changes little. Calls stay fused, for no map is
/// needed, unless <see cref="Materialize"/> asks for it; differentiable.</summary>
/// <remarks>Probes see the weights as they were, or moved with <see cref="Materialize"/>. Every row moves, those before the sink and those whose window does not reach it included; with padding, every batch item's own first key is the sink.</remarks>
public sealed class MoveToSink : AttentionHook
{
    private readonly (int Layer, int Head)[] _heads;
    private readonly long _sink;
    private readonly AttentionKind? _kind;

    /// <summary>Initializes the edit.</summary>
    /// <param name="heads">Layer and query head of each.</param>
    /// <param name="sink">The key that gets all attention.</param>
    /// <param name="kind">The kind of attention that moves; null: every kind.</param>
    /// <exception cref="ArgumentException">A number is negative.</exception>
    public MoveToSink(IEnumerable<(int Layer, int Head)> heads, long sink = 0, AttentionKind? kind = null)
    {
        ArgumentNullException.ThrowIfNull(heads);
        _heads = [.. heads];
        (_sink, _kind) = (sink, kind);
        if (sink < 0 || _heads.Any(head => head.Layer < 0 || head.Head < 0))
        {
            throw new ArgumentException($"Layers, heads and the sink ({sink}) are counted from 0.", nameof(heads));
        }
    }

    /// <summary>Whether the map itself is edited, so that probes see it edited. Costs the map: O(Nq Nk) memory per call.</summary>
    public bool Materialize { get; init; }

    /// <summary>The same on maps.</summary>
    /// <param name="weights"><c>[B, H, Nq, Nk]</c>.</param>
    /// <param name="heads">The heads, boolean <c>[H]</c> or <c>[B, H]</c>.</param>
    /// <param name="sink">The key that gets all attention.</param>
    /// <returns>Maps whose chosen heads have ones in the sink's column and zeros elsewhere.</returns>
    /// <exception cref="ArgumentException">There is no such key, or the heads do not fit.</exception>
    public static Tensor Apply(Tensor weights, Tensor heads, long sink = 0)
    {
        ArgumentNullException.ThrowIfNull(weights);
        ArgumentNullException.ThrowIfNull(heads);
        if (weights.dim() != 4 || sink < 0 || sink >= weights.shape[3])
        {
            throw new ArgumentException($"Maps [batch, heads, queries, keys] with a key {sink} were expected, not [{string.Join(", ", weights.shape)}].", nameof(weights));
        }

        using var scope = NewDisposeScope();
        using Scalar one = 1;
        var moved = zeros([weights.shape[3]], weights.dtype, weights.device);
        moved[sink].fill_(one);
        return where(HeadScaling.Chosen(weights, heads), moved, weights).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) =>
        !Array.Exists(_heads, head => ActsAt(head.Layer, site)) ? AttentionStages.None : Materialize ? AttentionStages.Weights : AttentionStages.Output;

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">The layer has no such head, or the call has no such key or is packed.</exception>
    public override Tensor OnWeights(AttentionCall call, Tensor weights)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(weights);
        using var scope = NewDisposeScope();
        var moved = Apply(weights, Chosen(call, (int)weights.shape[1]), _sink);
        return (Rows(call) is { } rows ? where(rows, moved, weights) : moved).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">The layer has no such head, or the call has no such key or is packed.</exception>
    public override Tensor OnOutput(AttentionCall call, Tensor output)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(output);
        using var scope = NewDisposeScope();
        var heads = output.size(1);
        var chosen = Chosen(call, (int)heads);
        var value = call.Value.narrow(2, _sink, 1).to(output.dtype);
        value = value.shape[1] == heads ? value : value.repeat_interleave(heads / value.shape[1], dim: 1);
        if (call.Options.Gate is { } gate)
        {
            value = value * gate.to(output.dtype);
        }

        var moved = where(chosen.view(1, -1, 1, 1), value, output);
        return (Rows(call) is { } rows ? moved * rows.to(output.dtype) : moved).MoveToOuterDisposeScope();
    }

    /// <summary>Rows that are no padding, boolean <c>[B, 1, Nq, 1]</c>; null: all. Those of padding stay zeros.</summary>
    private static Tensor? Rows(AttentionCall call) => call.Options.QueryLengths is { } lengths
        ? arange(call.Query.size(2), dtype: int64, device: call.Query.device).view(1, 1, -1, 1).lt(lengths.to(call.Query.device).view(-1, 1, 1, 1)) : null;

    private bool ActsAt(int layer, AttentionSite site) => layer == site.Layer && (_kind is null || _kind == site.Kind);

    private Tensor Chosen(AttentionCall call, int heads)
    {
        var keys = call.Value.size(2);
        var chosen = new bool[heads];
        foreach (var (layer, head) in _heads)
        {
            if (ActsAt(layer, call.Site))
            {
                chosen[head] = head < heads ? true : throw new ArgumentException($"The site '{call.Site}' has heads 0 to {heads - 1}; the edit moves head {head}.");
            }
        }

        if (_sink >= keys || call.Options.QueryOffsets is not null)
        {
            throw new ArgumentException(call.Options.QueryOffsets is null
                ? $"The call at the site '{call.Site}' has keys 0 to {keys - 1}; the edit moves attention to key {_sink}."
                : $"Packed sequences have a sink each: the edit at the site '{call.Site}' moves attention to one key of a batch item; give the sequences as a batch.");
        }

        return tensor(chosen, device: call.Query.device);
    }
}
