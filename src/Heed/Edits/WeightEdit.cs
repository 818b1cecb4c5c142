using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>An edit of attention weights that does without the map: the output of a row follows from its unedited output, its log-sum-exp, and the weights and values of the few columns that the edit touches.</summary>
/// <remarks>
/// <para>Three forms, one meaning. Reading a text, the weights of the touched columns are computed for all rows. In generation (one query) the row is edited in memory. Where the call has the map anyway (float64, other
/// devices, gradients, another normaliser, hooks that change scores or weights), the map is edited.</para>
/// <para>The edit goes by the weights of the call as the model computes them. Install it before edits that change outputs (<see cref="HeadScaling"/>), and give all but one <see cref="Materialize"/> where several
/// edits of weights meet at a site.</para>
/// </remarks>
public abstract class WeightEdit : AttentionHook
{
    private EditForm _form;

    private protected WeightEdit()
    {
    }

    /// <summary>Whether the map itself is edited, so that probes see it edited. Costs the map: O(Nq Nk) memory per call.</summary>
    public bool Materialize { get; init; }

    /// <summary>How the latest call was edited.</summary>
    internal EditForm Form => _form;

    /// <summary>The stage at which the materialised form acts.</summary>
    private protected virtual AttentionStages MapStage => AttentionStages.Weights;

    /// <summary>Whether the one-row form needs the row's log-sum-exp.</summary>
    private protected virtual bool RowNeedsLogSumExp => true;

    /// <inheritdoc/>
    public sealed override AttentionStages StagesAt(AttentionSite site)
    {
        if (!ActsAt(site))
        {
            return AttentionStages.None;
        }

        if (Materialize)
        {
            return AttentionStages.Inputs | MapStage;
        }

        // Asked again after OnInputs, which knows what the call needs. The stage map keeps selectors from putting other keys in place.
        var wantsStatistics = _form == EditForm.Columns || (_form == EditForm.Row && RowNeedsLogSumExp);
        return AttentionStages.Inputs | AttentionStages.Map | AttentionStages.Output | (wantsStatistics ? AttentionStages.Statistics : AttentionStages.None);
    }

    /// <inheritdoc/>
    public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => new();

    /// <inheritdoc/>
    public sealed override void OnInputs(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        _form = EditForm.None;
        if (Begin(call))
        {
            _form = Materialize ? EditForm.Map : FormOf(call);
        }
    }

    /// <inheritdoc/>
    public override Tensor OnWeights(AttentionCall call, Tensor weights)
    {
        ArgumentNullException.ThrowIfNull(call);
        return _form == EditForm.None ? weights : EditMap(call, weights);
    }

    /// <inheritdoc/>
    public sealed override Tensor OnOutput(AttentionCall call, Tensor output)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(output);
        if (_form == EditForm.None)
        {
            return output;
        }

        if (_form == EditForm.Map || call.Map is not null)
        {
            _form = EditForm.Map;
            return ByMap(call, output);
        }

        if (_form == EditForm.Columns)
        {
            using var still = no_grad();
            return EditColumns(call, output);
        }

        var edited = output.clone();
        EditRow(call, new DecodingRow(call, edited));
        GC.KeepAlive(call);
        GC.KeepAlive(edited);
        return edited;
    }

    /// <summary>Whether the edit has business at a site.</summary>
    private protected abstract bool ActsAt(AttentionSite site);

    /// <summary>Starts a call: false where nothing is to be done.</summary>
    private protected abstract bool Begin(AttentionCall call);

    /// <summary>The edited weights <c>[B, H, Nq, Nk]</c>.</summary>
    private protected abstract Tensor EditMap(AttentionCall call, Tensor weights);

    /// <summary>The edited output, from the weights of columns. The statistics that were asked for have been seen.</summary>
    private protected abstract Tensor EditColumns(AttentionCall call, Tensor output);

    /// <summary>Edits the output of a call of one query in place.</summary>
    private protected abstract void EditRow(AttentionCall call, in DecodingRow row);

    /// <summary>The form that suits a call.</summary>
    private protected virtual EditForm FormOf(AttentionCall call)
    {
        var wantsGradient = is_grad_enabled() && (call.Query.requires_grad || call.Key.requires_grad || call.Value.requires_grad);
        return !FusedPath.Takes(call.Query) || call.Options.Normalizer != Normalizer.Softmax || wantsGradient ? EditForm.Map
            : DecodingRow.Fits(call) ? EditForm.Row
            : EditForm.Columns;
    }

    /// <summary>output[b, heads, rows] := factor * output + gate * (difference of the columns' weights) values, in float32.</summary>
    /// <param name="call">The call.</param>
    /// <param name="output">Its output <c>[B, H, Nq, Dv]</c>.</param>
    /// <param name="keys">The columns.</param>
    /// <param name="difference">What is added to their weights, <c>[B, heads, rows, keys]</c>.</param>
    /// <param name="factor">What every other weight is multiplied by, <c>[B, heads, rows, 1]</c>; null: one.</param>
    /// <param name="heads">The query heads; null: all.</param>
    /// <param name="firstRow">The first of the rows, which run to the last.</param>
    private protected static Tensor Correct(
        AttentionCall call, Tensor output, IReadOnlyList<long> keys, Tensor difference, Tensor? factor, IReadOnlyList<int>? heads, long firstRow)
    {
        using var scope = NewDisposeScope();
        var count = output.shape[2] - firstRow;
        var columns = tensor(keys.ToArray(), device: output.device);
        var values = PlainAttention.Choose(PlainAttention.RepeatHeads(call.Value.index_select(2, columns).to(difference.dtype), output.shape[1]), heads, null);
        var added = matmul(difference, values);
        if (call.Options.Gate is { } gate)
        {
            added = added * PlainAttention.Choose(gate.to(added.dtype).expand(output.shape).narrow(2, firstRow, count), heads, null);
        }

        var part = PlainAttention.Choose(output.narrow(2, firstRow, count), heads, null).to(added.dtype);
        var corrected = ((factor is null ? part : part * factor) + added).to(output.dtype);
        if (heads is null && firstRow == 0)
        {
            return corrected.MoveToOuterDisposeScope();
        }

        var edited = output.clone();
        var place = edited.narrow(2, firstRow, count);
        if (heads is null)
        {
            place.copy_(corrected);
        }
        else
        {
            place.index_copy_(1, tensor(heads.Select(head => (long)head).ToArray(), device: output.device), corrected);
        }

        return edited.MoveToOuterDisposeScope();
    }

    private Tensor ByMap(AttentionCall call, Tensor output)
    {
        using var scope = NewDisposeScope();
        var weights = call.Weights(null);
        var difference = EditMap(call, weights) - weights;
        var added = matmul(difference, PlainAttention.RepeatHeads(call.Value.to(difference.dtype), output.shape[1]));
        if (call.Options.Gate is { } gate)
        {
            added = added * gate.to(added.dtype);
        }

        return (output + added.to(output.dtype)).MoveToOuterDisposeScope();
    }
}

/// <summary>How an edit of weights is computed.</summary>
internal enum EditForm
{
    /// <summary>It is not: nothing changes.</summary>
    None,

    /// <summary>One query row in memory.</summary>
    Row,

    /// <summary>From the weights of the touched columns.</summary>
    Columns,

    /// <summary>The whole map.</summary>
    Map,
}

/// <summary>Ranges of layers as edits take them.</summary>
internal static class LayerRange
{
    /// <summary>Whether a layer lies in a range that is counted from the start (its end may be open).</summary>
    public static bool Contains(Range layers, int layer) => layer >= layers.Start.Value && (layers.End.IsFromEnd || layer < layers.End.Value);

    /// <summary>Refuses ranges that depend on the number of layers.</summary>
    public static Range Check(Range layers, string name) =>
        !layers.Start.IsFromEnd && (layers.End.IsFromEnd ? layers.End.Value == 0 : layers.End.Value > layers.Start.Value) ? layers
        : throw new ArgumentException($"A range of layers is counted from the first layer and not empty, for example 2..32 or 2.., not {layers}.", name);
}
