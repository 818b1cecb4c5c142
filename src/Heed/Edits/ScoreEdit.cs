using Heed.Interop;
using TorchSharp;
using static TorchSharp.torch;
using TensorPrimitives = System.Numerics.Tensors.TensorPrimitives;

namespace Heed.Edits;

/// <summary>Columns whose scores are boosted.</summary>
/// <param name="Columns">Keys, from 0.</param>
/// <param name="Factor">The factor f of s + f |s|.</param>
public sealed record ScoreBoost(IReadOnlyList<long> Columns, double Factor);

/// <summary>Boosts the scores of chosen keys in a trained model: s becomes s + f |s| before the softmax (<see cref="LogitBoost"/>), for the last query or all, without the map.</summary>
/// <remarks>A call stays fused and costs O(H n) more per edited row. Keys that a row cannot see are never boosted. A negative factor, which lowers scores, takes the map.</remarks>
public class ScoreEdit : WeightEdit
{
    private readonly BoostPlan? _plan;
    private readonly Range _layers;
    private readonly EditedRows _rows;
    private readonly HashSet<int>? _heads;
    private BoostPlan? _current;

    /// <summary>Initializes the edit.</summary>
    /// <param name="boosts">The sets of keys, each with its factor; no key is in two.</param>
    /// <param name="layers">The layers, counted from the first; null: all.</param>
    /// <param name="heads">The query heads; null: all.</param>
    /// <param name="rows">The rows.</param>
    /// <exception cref="ArgumentException">A key is negative or named twice, a factor is not finite, or the layers are counted from the end.</exception>
    public ScoreEdit(IEnumerable<ScoreBoost> boosts, Range? layers = null, IReadOnlyList<int>? heads = null, EditedRows rows = EditedRows.Last)
        : this(layers ?? Range.All, rows)
    {
        ArgumentNullException.ThrowIfNull(boosts);
        _heads = heads is null ? null : [.. heads];
        _plan = BoostPlan.Of([[.. boosts]]);
    }

    private protected ScoreEdit(Range layers, EditedRows rows)
    {
        _layers = LayerRange.Check(layers, nameof(layers));
        _rows = rows;
    }

    private protected override AttentionStages MapStage => AttentionStages.Scores;

    /// <inheritdoc/>
    public override Tensor OnScores(AttentionCall call, Tensor scores)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(scores);
        if (_current is not { } plan || Form == EditForm.None)
        {
            return scores;
        }

        using var scope = NewDisposeScope();
        var factors = plan.Dense(call, HeadsOf(call)).to(scores.dtype);
        return LogitBoost.Apply(scores, Rows(call).logical_and(plan.Mask(call)), factors).MoveToOuterDisposeScope();
    }

    private protected override bool ActsAt(AttentionSite site) => LayerRange.Contains(_layers, site.Layer);

    private protected override bool Begin(AttentionCall call)
    {
        _current = PlanOf(call);
        if (_current is null || call.Query.size(2) == 0)
        {
            return false;
        }

        _current.Check(call);
        if (_current.Columns[^1] >= call.Key.size(2))
        {
            throw new ArgumentException($"The call at the site '{call.Site}' has keys 0 to {call.Key.size(2) - 1}; the score of key {_current.Columns[^1]} is to be boosted.");
        }

        if (_heads is not null && _heads.Any(head => head < 0 || head >= call.Query.size(1)))
        {
            throw new ArgumentException($"The call at the site '{call.Site}' has heads 0 to {call.Query.size(1) - 1}; the scores of others are to be boosted.");
        }

        if (!Materialize && call.Options.Normalizer != Kernels.Normalizer.Softmax)
        {
            throw new ArgumentException($"Scores under the normaliser {call.Options.Normalizer} can only be boosted with {nameof(Materialize)}: the rest of a row follows from a boost by softmax alone.");
        }

        return true;
    }

    /// <summary>What is boosted in a call; null: nothing.</summary>
    private protected virtual BoostPlan? PlanOf(AttentionCall call) => _plan;

    private protected override EditForm FormOf(AttentionCall call) => _current!.HasNegative ? EditForm.Map : base.FormOf(call);

    /// <summary>From weights: the boosted ones grow by e^(f |s|), and the row is divided by what it sums to then.</summary>
    private protected override Tensor EditMap(AttentionCall call, Tensor weights)
    {
        using var scope = NewDisposeScope();
        using Scalar zero = 0, nothing = double.NegativeInfinity;
        var plan = _current!;
        var columns = tensor(plan.Columns, device: weights.device);
        var scores = call.ColumnScores(plan.Columns);
        var rise = scores.masked_fill(scores.eq(nothing), zero).abs() * plan.Factors(call, HeadsOf(call)).to(scores.dtype);
        rise = rise.masked_fill(Rows(call).logical_not(), zero);
        var shift = rise.detach().amax([-1L], keepdim: true).clamp(min: zero);
        var chosen = weights.index_select(3, columns);
        var unraised = shift.neg().exp();
        var raised = chosen * (rise - shift).exp();
        var sum = unraised + (raised - (chosen * unraised)).sum(-1, keepdim: true);
        return (weights * unraised / sum).index_copy(3, columns, raised / sum).MoveToOuterDisposeScope();
    }

    private protected override Tensor EditColumns(AttentionCall call, Tensor output)
    {
        using var scope = NewDisposeScope();
        using Scalar zero = 0, nothing = double.NegativeInfinity, unity = 1;
        var plan = _current!;
        var queries = call.Query.size(2);
        var first = _rows == EditedRows.Last ? queries - 1 : 0;
        var scores = call.ColumnScores(plan.Columns, null, first == 0 ? null : [queries - 1]);
        var logSumExp = call.LogSumExp!.narrow(2, first, queries - first).unsqueeze(-1);
        var raised = scores + (scores.masked_fill(scores.eq(nothing), zero).abs() * plan.Factors(call, HeadsOf(call)));
        var shift = maximum(logSumExp, raised.amax([-1L], keepdim: true));
        shift = shift.masked_fill(shift.eq(nothing), zero);
        var kept = (logSumExp - shift).exp();
        var risen = (raised - shift).exp() - (scores - shift).exp();
        var sum = kept + risen.sum(-1, keepdim: true);
        // A row without any pair keeps its zeros.
        sum = sum.masked_fill(sum.eq(zero), unity);
        return Correct(call, output, plan.Columns, risen / sum, kept / sum, null, first).MoveToOuterDisposeScope();
    }

    private protected override void EditRow(AttentionCall call, in DecodingRow row)
    {
        var plan = _current!;
        var count = plan.Columns.Length;
        var scores = new float[count].AsSpan();
        var raised = new float[count].AsSpan();
        for (var batch = 0; batch < row.Batch; batch++)
        {
            for (var head = 0; head < row.Heads; head++)
            {
                if (_heads is not null && !_heads.Contains(head))
                {
                    continue;
                }

                var logSumExp = row.LogSumExp(batch, head);
                row.Scores(batch, head, plan.Runs, scores);
                TensorPrimitives.Abs(scores, raised);
                TensorPrimitives.MultiplyAdd(raised, plan.Row(batch, head), scores, raised);
                var shift = MathF.Max(logSumExp, TensorPrimitives.Max(raised));
                TensorPrimitives.Subtract(scores, shift, scores);
                TensorPrimitives.Subtract(raised, shift, raised);
                TensorPrimitives.Exp(scores, scores);
                TensorPrimitives.Exp(raised, raised);
                TensorPrimitives.Subtract(raised, scores, raised);
                var kept = MathF.Exp(logSumExp - shift);
                var sum = kept + TensorPrimitives.Sum(raised);
                TensorPrimitives.Divide(raised, sum, raised);
                var output = row.Output(batch, head);
                TensorPrimitives.Multiply(output, kept / sum, output);
                row.Add(batch, head, plan.Runs, raised);
            }
        }
    }

    private Tensor Rows(AttentionCall call)
    {
        var queries = call.Query.size(2);
        var rows = _rows == EditedRows.All ? ones([queries, 1], dtype: ScalarType.Bool, device: call.Query.device) : zeros([queries, 1], dtype: ScalarType.Bool, device: call.Query.device);
        if (_rows == EditedRows.Last)
        {
            using var last = rows.narrow(0, queries - 1, 1).logical_not_();
        }

        return rows;
    }

    private Tensor? HeadsOf(AttentionCall call) => _heads is null ? null : AttentionCalibration.Chosen([.. _heads], call.Query.size(1)).to(call.Query.device).view(1, -1, 1, 1);
}

/// <summary>The factors of the boosted columns, per batch item and head.</summary>
internal sealed class BoostPlan
{
    private readonly double[] _factors;
    private readonly float[] _rounded;
    private readonly int _batches;
    private readonly int _heads;

    private BoostPlan(long[] columns, double[] factors, int batches, int heads)
    {
        Columns = columns;
        _rounded = Array.ConvertAll(factors, factor => (float)factor);
        Runs = KeyRange.Of(columns);
        HasNegative = factors.Any(factor => factor < 0);
        (_factors, _batches, _heads) = (factors, batches, heads);
    }

    /// <summary>The columns of any batch item, ascending.</summary>
    public long[] Columns { get; }

    /// <summary>The same as runs.</summary>
    public KeyRange[] Runs { get; }

    /// <summary>Whether any score is lowered.</summary>
    public bool HasNegative { get; }

    /// <summary>A plan of sets per batch item (one: for all); null where there is no column.</summary>
    /// <param name="perItem">The sets of each batch item.</param>
    /// <param name="headScales">What the factors of the sets of each item are multiplied by, per head; null: one.</param>
    /// <exception cref="ArgumentException">A column is negative or named twice in an item, or a factor is not finite.</exception>
    public static BoostPlan? Of(IReadOnlyList<IReadOnlyList<ScoreBoost>> perItem, Func<int, IReadOnlyList<double>?>? headScales = null)
    {
        long[] columns = [.. perItem.SelectMany(item => item).SelectMany(boost => boost.Columns).Distinct().Order()];
        if (columns.Length == 0)
        {
            return null;
        }

        if (columns[0] < 0)
        {
            throw new ArgumentException($"Boosted keys are counted from 0; {columns[0]} was given.", nameof(perItem));
        }

        var heads = headScales is null ? 1 : Enumerable.Range(0, perItem.Max(item => item.Count)).Select(headScales).Max(scales => scales?.Count ?? 1);
        var factors = new double[perItem.Count * heads * columns.Length];
        for (var item = 0; item < perItem.Count; item++)
        {
            var seen = new HashSet<long>();
            foreach (var (set, boost) in perItem[item].Index())
            {
                if (!double.IsFinite(boost.Factor))
                {
                    throw new ArgumentException($"The factor of a boost is a finite number, not {boost.Factor}.", nameof(perItem));
                }

                var scales = headScales?.Invoke(set);
                foreach (var column in boost.Columns)
                {
                    if (!seen.Add(column))
                    {
                        throw new ArgumentException($"Key {column} is boosted twice: sets of keys have no key in common.", nameof(perItem));
                    }

                    var place = Array.BinarySearch(columns, column);
                    for (var head = 0; head < heads; head++)
                    {
                        factors[(((item * heads) + head) * columns.Length) + place] = boost.Factor * (scales?[head] ?? 1);
                    }
                }
            }
        }

        return new(columns, factors, perItem.Count, heads);
    }

    /// <summary>The factors of one row.</summary>
    public ReadOnlySpan<float> Row(int batch, int head) =>
        _rounded.AsSpan((((_batches == 1 ? 0 : batch) * _heads) + (_heads == 1 ? 0 : head)) * Columns.Length, Columns.Length);

    /// <summary>The factors of the columns, <c>[B or 1, H or 1, 1, n]</c>, zero for heads that are not chosen.</summary>
    public Tensor Factors(AttentionCall call, Tensor? heads)
    {
        var factors = tensor(_factors, dtype: call.Query.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32, device: call.Query.device).view(_batches, _heads, 1, Columns.Length);
        return heads is null ? factors : factors * heads.to(factors.dtype);
    }

    /// <summary>Refuses calls of another batch or number of heads.</summary>
    public void Check(AttentionCall call)
    {
        if ((_batches != 1 && _batches != call.Query.size(0)) || (_heads != 1 && _heads != call.Query.size(1)))
        {
            throw new ArgumentException(
                $"The boosts are for a batch of {_batches} and {_heads} heads; the call at the site '{call.Site}' has {call.Query.size(0)} and {call.Query.size(1)}.");
        }
    }

    /// <summary>The factors of every key, zero where it is not boosted, <c>[B or 1, H or 1, 1, Nk]</c>.</summary>
    public Tensor Dense(AttentionCall call, Tensor? heads)
    {
        var factors = Factors(call, heads);
        var dense = zeros([.. factors.shape[..3], call.Key.size(2)], factors.dtype, call.Query.device);
        return dense.index_copy(3, tensor(Columns, device: call.Query.device), factors);
    }

    /// <summary>The boosted keys, boolean <c>[Nk]</c>.</summary>
    public Tensor Mask(AttentionCall call)
    {
        var mask = new bool[call.Key.size(2)];
        foreach (var column in Columns)
        {
            mask[column] = true;
        }

        return tensor(mask, device: call.Query.device);
    }
}
