using System.Numerics;
using Heed.Interop;
using Heed.Kernels;
using Heed.Probes;
using TorchSharp;
using static TorchSharp.torch;
using TensorPrimitives = System.Numerics.Tensors.TensorPrimitives;

namespace Heed.Edits;

/// <summary>Attention calibration, ACT (arXiv 2406.15765; <see cref="AttentionCalibration"/>), in a trained model, without the map.</summary>
/// <remarks>
/// <para>Reading a text: the mass that every key receives gives the columns S; o' = c o + (beta - c) A_S V_S with c = 1 + (1 - beta) m / (1 - m), where m is a row's mass in S. Rows that have hardly any mass
/// elsewhere are computed from their weights.</para>
/// <para>In generation with a cache, where the released code means nothing: the sums of the columns run on, a key's score is its sum over the rows that saw it, and the new row is calibrated with the columns found so far. One
/// edit serves one text (or batch of texts) at a time: a call of as many queries as keys begins another.</para>
/// </remarks>
public sealed class CalibrationEdit : WeightEdit
{
    // Below this share of a row outside its sinks, what is left after subtracting them has lost too many digits.
    private const float ThinRow = 1f / 8;

    private const int RowsAtOnce = 256;

    private readonly Dictionary<int, int[]> _heads;
    private readonly Dictionary<AttentionSite, ColumnSums> _sums = [];
    private readonly double _threshold;
    private readonly double _beta;
    private readonly bool _keepFirst;
    private float[]? _mass;

    /// <summary>Initializes the edit.</summary>
    /// <param name="heads">Layer and query head of each head that is calibrated: those that a search found to profit, or <see cref="Heads"/>.</param>
    /// <param name="sinkThreshold">A key whose mean weight over the rows that see it exceeds this is a sink.</param>
    /// <param name="beta">The share that a sink keeps, 0 to 1.</param>
    /// <param name="keepFirst">Whether the first sink of a head is left alone.</param>
    /// <exception cref="ArgumentException">There is no head, a layer or head is negative, or beta lies outside 0 to 1.</exception>
    public CalibrationEdit(
        IEnumerable<(int Layer, int Head)> heads, double sinkThreshold = SinkMask.AttentionThreshold, double beta = AttentionCalibration.DefaultBeta, bool keepFirst = true)
    {
        ArgumentNullException.ThrowIfNull(heads);
        _heads = heads.GroupBy(head => head.Layer, head => head.Head).ToDictionary(layer => layer.Key, layer => layer.Distinct().Order().ToArray());
        if (_heads.Count == 0 || _heads.Keys.Any(layer => layer < 0) || _heads.Values.Any(layer => layer[0] < 0))
        {
            throw new ArgumentException("Calibration names at least one head by its layer and number, both from 0.", nameof(heads));
        }

        if (!double.IsFinite(sinkThreshold))
        {
            throw new ArgumentException($"The threshold of a sink is a finite number, not {sinkThreshold}.", nameof(sinkThreshold));
        }

        MapEdit.CheckShare(beta, nameof(beta));
        (_threshold, _beta, _keepFirst) = (sinkThreshold, beta, keepFirst);
    }

    /// <summary>Every head of the layers that the method considers: 2 to L - 2; the first two and the last are left alone.</summary>
    /// <param name="layers">Layers L of the model.</param>
    /// <param name="headsPerLayer">Query heads of a layer.</param>
    public static IEnumerable<(int Layer, int Head)> Heads(int layers, int headsPerLayer) =>
        Enumerable.Range(2, Math.Max(0, layers - 3)).SelectMany(layer => Enumerable.Range(0, headsPerLayer).Select(head => (layer, head)));

    /// <summary>Forgets the texts read so far.</summary>
    public void Reset() => _sums.Clear();

    /// <inheritdoc/>
    public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => new() { MassPerKey = true };

    /// <inheritdoc/>
    public override void OnStatistics(AttentionCall call, AttentionStatistics statistics)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(statistics);
        if (Form == EditForm.Columns)
        {
            _mass = MassOf(statistics.MassPerKey!, _heads[call.Site.Layer]);
        }
    }

    private protected override bool RowNeedsLogSumExp => false;

    private protected override bool ActsAt(AttentionSite site) => site.Kind == AttentionKind.Self && _heads.ContainsKey(site.Layer);

    private protected override bool Begin(AttentionCall call)
    {
        var heads = _heads[call.Site.Layer];
        if (heads[^1] >= call.Query.size(1))
        {
            throw new ArgumentException($"The site '{call.Site}' has heads 0 to {call.Query.size(1) - 1}; head {heads[^1]} is to be calibrated.");
        }

        var (batch, queries, keys) = (call.Query.size(0), call.Query.size(2), call.Key.size(2));
        if (queries == 0 || keys == 0)
        {
            return false;
        }

        if (queries == keys || call.Options.Causal == Causality.None)
        {
            _sums[call.Site] = new ColumnSums((int)batch, heads.Length) { Seen = queries };
            return true;
        }

        if (!_sums.TryGetValue(call.Site, out var sums) || sums.Batch != batch)
        {
            throw new InvalidOperationException(
                $"The calibration at the site '{call.Site}' has not seen the first {keys - queries} keys of this text: install it before the text is read, and read the text from its start.");
        }

        // A window drops the oldest keys, and none that the next query reaches. A cut takes the latest ones: where that leaves as many keys as the window does, the position tells.
        var dropped = sums.Held + queries - keys;
        var droppable = call.Options.WindowBefore is { } before ? Math.Max(0, sums.Held - before) : 0;
        if (dropped < 0 || dropped > droppable || (call.FirstPosition > 0 && call.FirstPosition != sums.Seen))
        {
            throw new InvalidOperationException(
                $"The calibration at the site '{call.Site}' has seen {sums.Seen} tokens of this text and the call continues {Math.Max(keys - queries, call.FirstPosition)}: a cache that was cut cannot be gone on with, read the text again.");
        }

        sums.Drop((int)dropped);
        sums.Seen += queries;
        return true;
    }

    private protected override Tensor EditMap(AttentionCall call, Tensor weights)
    {
        using var scope = NewDisposeScope();
        var heads = _heads[call.Site.Layer];
        var received = weights.detach().sum(-2);
        var (keys, members) = Columns(call, MassOf(received, heads));
        var mask = Mask(call, heads, keys, members, (int)weights.shape[1]).to(weights.device);
        return AttentionCalibration.Apply(weights, mask, _beta, HasFirstRow(call) ? heads : []).MoveToOuterDisposeScope();
    }

    private protected override Tensor EditColumns(AttentionCall call, Tensor output)
    {
        using var scope = NewDisposeScope();
        var heads = _heads[call.Site.Layer];
        var (keys, members) = Columns(call, _mass!);
        _mass = null;
        var edited = keys.Length == 0 ? output.alias() : EditRows(call, output, heads, keys, members);
        if (HasFirstRow(call) && call.Options.Sinks is not null)
        {
            // The first row's weight of itself is one, whatever the sink took.
            var only = WithGate(call, PlainAttention.Choose(PlainAttention.RepeatHeads(call.Value.narrow(2, 0, 1).to(ScalarType.Float32), output.shape[1]), heads, null), heads, [0]);
            var sees = PlainAttention.Choose(call.LogSumExp!.narrow(2, 0, 1).unsqueeze(-1), heads, null).isfinite();
            var current = PlainAttention.Choose(edited.narrow(2, 0, 1), heads, null);
            edited = edited.clone();
            edited.narrow(2, 0, 1).index_copy_(1, Indices(heads), where(sees, only.to(current.dtype), current));
        }

        return edited.MoveToOuterDisposeScope();
    }

    private protected override void EditRow(AttentionCall call, in DecodingRow row)
    {
        var heads = _heads[call.Site.Layer];
        var sums = _sums[call.Site];
        sums.Grow(row.Keys);
        sums.Count(1, call.Options.Causal != Causality.None, WindowOf(call), null);
        var weights = new float[row.Keys].AsSpan();
        for (var batch = 0; batch < row.Batch; batch++)
        {
            for (var i = 0; i < heads.Length; i++)
            {
                row.Scores(batch, heads[i], 0, weights);
                TensorPrimitives.Subtract(weights, TensorPrimitives.Max(weights), weights);
                TensorPrimitives.Exp(weights, weights);
                TensorPrimitives.Divide(weights, TensorPrimitives.Sum(weights), weights);
                var mass = sums.Mass(batch, i);
                TensorPrimitives.Add(mass, weights, mass);
                Calibrate(row, batch, heads[i], weights, Above(mass, sums.Limits(_threshold, batch, i)));
            }
        }
    }

    private void Calibrate(in DecodingRow row, int batch, int head, Span<float> weights, List<int> sinks)
    {
        var beta = (float)_beta;
        if (_keepFirst && sinks.Count > 0)
        {
            sinks.RemoveAt(0);
        }

        if (sinks.Count == 0)
        {
            return;
        }

        var mass = 0f;
        foreach (var sink in sinks)
        {
            mass += weights[sink];
        }

        var output = row.Output(batch, head);
        if (1 - mass >= ThinRow)
        {
            var factor = 1 + ((1 - beta) * mass / (1 - mass));
            TensorPrimitives.Multiply(output, factor, output);
            foreach (var sink in sinks)
            {
                row.Add(batch, head, sink, [(beta - factor) * weights[sink]]);
            }

            return;
        }

        var outside = 0f;
        for (int key = 0, next = 0; key < weights.Length; key++)
        {
            if (next < sinks.Count && sinks[next] == key)
            {
                next++;
            }
            else
            {
                outside += weights[key];
            }
        }

        if (outside > 0)
        {
            var share = 1 + ((1 - beta) * mass / outside);
            for (int key = 0, next = 0; key < weights.Length; key++)
            {
                if (next < sinks.Count && sinks[next] == key)
                {
                    weights[key] *= beta;
                    next++;
                }
                else
                {
                    weights[key] *= share;
                }
            }

            output.Clear();
            row.Add(batch, head, 0, weights);
        }
    }

    /// <summary>Keys whose sum exceeds their limit, ascending.</summary>
    private static List<int> Above(ReadOnlySpan<float> sums, ReadOnlySpan<float> limits)
    {
        List<int> found = [];
        var key = 0;
        for (; key <= sums.Length - Vector<float>.Count; key += Vector<float>.Count)
        {
            if (Vector.GreaterThanAny(new Vector<float>(sums[key..]), new Vector<float>(limits[key..])))
            {
                for (var lane = key; lane < key + Vector<float>.Count; lane++)
                {
                    if (sums[lane] > limits[lane])
                    {
                        found.Add(lane);
                    }
                }
            }
        }

        for (; key < sums.Length; key++)
        {
            if (sums[key] > limits[key])
            {
                found.Add(key);
            }
        }

        return found;
    }

    private static bool HasFirstRow(AttentionCall call) => call.Options.Causal != Causality.None && call.Query.size(2) == call.Key.size(2);

    /// <summary>How many keys a row sees at most under plain causality.</summary>
    private static long WindowOf(AttentionCall call) => call.Options.WindowBefore is { } before ? before + 1 : long.MaxValue;

    /// <summary>The columns of every head, <c>[B, H, Nk]</c>.</summary>
    private static Tensor Mask(AttentionCall call, int[] heads, long[] columns, bool[] members, int headCount)
    {
        var (batch, keys) = ((int)call.Query.size(0), (int)call.Key.size(2));
        var mask = new bool[batch * headCount * keys];
        for (var at = 0; at < batch * heads.Length; at++)
        {
            var start = ((at / heads.Length * headCount) + heads[at % heads.Length]) * keys;
            for (var i = 0; i < columns.Length; i++)
            {
                mask[start + columns[i]] = members[(at * columns.Length) + i];
            }
        }

        return tensor(mask).view(batch, headCount, keys);
    }

    private static Tensor WithGate(AttentionCall call, Tensor output, int[] heads, long[] rows)
    {
        if (call.Options.Gate is not { } gate)
        {
            return output;
        }

        var whole = gate.expand(call.Query.size(0), call.Query.size(1), call.Query.size(2), call.Value.size(3));
        return output * PlainAttention.Choose(whole, heads, rows).to(output.dtype);
    }

    private Tensor EditRows(AttentionCall call, Tensor output, int[] heads, long[] keys, bool[] members)
    {
        using Scalar unity = 1, thin = ThinRow, zero = 0, moved = 1 - _beta, kept = _beta;
        var chosen = tensor(members).view(call.Query.size(0), heads.Length, 1, keys.Length).to(ScalarType.Float32);
        var weights = call.ColumnWeights(keys, heads) * chosen;
        var mass = weights.sum(-1, keepdim: true);
        var rest = mass.neg().add(unity);
        if (call.Options.Sinks is { } sinks)
        {
            var logSumExp = PlainAttention.Choose(call.LogSumExp!.unsqueeze(-1), heads, null);
            var logits = PlainAttention.Choose(sinks.to(ScalarType.Float32).view(1, -1, 1, 1), heads, null);
            rest = where(logSumExp.isfinite(), rest - (logits - logSumExp).exp(), rest);
        }

        var isThin = rest.lt(thin).logical_and(mass.gt(zero));
        var factor = (mass * moved / rest.masked_fill(isThin, unity)).add(unity);
        var edited = Correct(call, output, keys, (factor.neg().add(kept)) * weights, factor, heads, 0);
        var thinRows = isThin.any(-1).any(1).any(0).nonzero().flatten().data<long>().ToArray();
        foreach (var rows in thinRows.Chunk(RowsAtOnce))
        {
            using var inner = NewDisposeScope();
            var wide = call.Query.to(ScalarType.Float32);
            var mask = PlainAttention.Choose(Mask(call, heads, keys, members, (int)output.shape[1]).unsqueeze(-2), heads, null);
            var map = MapEdit.Redistribute(PlainAttention.Weights(wide, call.Key, call.Options, heads, rows), mask, mask.logical_not(), _beta);
            var values = PlainAttention.Choose(PlainAttention.RepeatHeads(call.Value.to(ScalarType.Float32), output.shape[1]), heads, null);
            var exact = WithGate(call, matmul(map, values), heads, rows);
            var current = PlainAttention.Choose(edited, heads, rows);
            var place = tensor(rows);
            var part = edited.index_select(2, place).index_copy(1, Indices(heads), where(isThin.index_select(2, place), exact.to(current.dtype), current));
            edited.index_copy_(2, place, part);
        }

        return edited;
    }

    private static Tensor Indices(int[] heads) => tensor(Array.ConvertAll(heads, head => (long)head));

    private static float[] MassOf(Tensor perKey, int[] heads)
    {
        using var scope = NewDisposeScope();
        return perKey.detach().index_select(1, Indices(heads).to(perKey.device)).to(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();
    }

    /// <summary>Adds a call's mass to the sums, and finds the columns of any head, and which of them belong to each head: <c>[B, heads, columns]</c>.</summary>
    private (long[] Columns, bool[] Members) Columns(AttentionCall call, float[] mass)
    {
        var sums = _sums[call.Site];
        var (heads, keys, queries) = (_heads[call.Site.Layer], (int)call.Key.size(2), (int)call.Query.size(2));
        sums.Grow(keys);
        var causal = call.Options.Causal != Causality.None;
        sums.Count(queries, causal, WindowOf(call), IsPlain(call) ? null : PairsPerKey(call, heads));
        var perRow = new List<int>[sums.Batch * heads.Length];
        for (var batch = 0; batch < sums.Batch; batch++)
        {
            for (var i = 0; i < heads.Length; i++)
            {
                var at = (batch * heads.Length) + i;
                var total = sums.Mass(batch, i);
                TensorPrimitives.Add(total, mass.AsSpan(at * keys, keys), total);
                perRow[at] = Above(total, sums.Limits(_threshold, batch, i));
                if (_keepFirst && perRow[at].Count > 0)
                {
                    perRow[at].RemoveAt(0);
                }
            }
        }

        long[] columns = [.. perRow.SelectMany(found => found).Distinct().Order().Select(key => (long)key)];
        var members = new bool[perRow.Length * columns.Length];
        for (var at = 0; at < perRow.Length; at++)
        {
            foreach (var key in perRow[at])
            {
                members[(at * columns.Length) + Array.BinarySearch(columns, key)] = true;
            }
        }

        return (columns, members);
    }

    /// <summary>Whether the rows that see a key can be counted without looking: by causality, or all of them, and a window.</summary>
    private static bool IsPlain(AttentionCall call)
    {
        var options = call.Options;
        return options.Mask is null && options.BlockMask is null && options.KeyRuns is null && options.QueryLengths is null && options.KeyLengths is null && options.QueryOffsets is null
            && options.QueryPositions is null && (options.Causal == Causality.None ? options.WindowBefore is null && options.WindowAfter is null : options.WindowAfter is null or >= 0)
            && (options.Causal != Causality.AlignedToStart || call.Query.size(2) == call.Key.size(2));
    }

    private static float[] PairsPerKey(AttentionCall call, int[] heads)
    {
        using var scope = NewDisposeScope();
        var pairs = call.Pairs().to(ScalarType.Float32).expand(call.Query.size(0), call.Query.size(1), call.Query.size(2), call.Key.size(2)).sum(-2);
        return MassOf(pairs, heads);
    }

    /// <summary>The sums of the columns of one site, per batch item and calibrated head, over the text so far, and how many rows saw each key.</summary>
    private sealed class ColumnSums(int batch, int heads)
    {
        private readonly float[][] _mass = [.. Enumerable.Range(0, batch * heads).Select(_ => Array.Empty<float>())];

        // The rows that saw each key; null while causality alone says it.
        private float[][]? _rows;
        private float[] _limits = [];
        private bool _limitsHold;
        private long _window = long.MaxValue;
        private bool _hasRows;

        public int Batch => batch;

        /// <summary>Keys that the latest call had.</summary>
        public int Held { get; private set; }

        /// <summary>Tokens of the text so far, dropped ones included.</summary>
        public long Seen { get; set; }

        public Span<float> Mass(int item, int head) => _mass[(item * heads) + head].AsSpan(0, Held);

        /// <summary>Makes room for the keys of a call.</summary>
        public void Grow(int keys)
        {
            for (var i = 0; i < _mass.Length; i++)
            {
                Resize(ref _mass[i], keys, Held);
                if (_rows is not null)
                {
                    Resize(ref _rows[i], keys, Held);
                }
            }

            Resize(ref _limits, keys, 0);
            Held = keys;
        }

        /// <summary>Counts the rows of a call.</summary>
        /// <param name="queries">Its rows.</param>
        /// <param name="causal">Whether they see no later key; otherwise they see all.</param>
        /// <param name="window">How many keys a row sees at most, itself included.</param>
        /// <param name="pairs">How many of them see each key, <c>[B, heads, Nk]</c>; null: as causality and window say.</param>
        public void Count(int queries, bool causal, long window, float[]? pairs)
        {
            _limitsHold = false;
            if (pairs is null && causal && _rows is null)
            {
                (_window, _hasRows) = (window, true);
                return;
            }

            var earlier = Held - queries;
            if (_rows is null)
            {
                _rows = [.. _mass.Select(mass => new float[mass.Length])];
                foreach (var rows in _rows)
                {
                    for (var key = 0; _hasRows && key < earlier; key++)
                    {
                        rows[key] = Math.Min(earlier - key, _window);
                    }
                }
            }

            for (var i = 0; i < _rows.Length; i++)
            {
                for (var key = 0; key < Held; key++)
                {
                    _rows[i][key] += pairs is not null ? pairs[(i * Held) + key]
                        : causal ? Math.Min(Held - key, window) - Math.Min(Math.Max(earlier - key, 0), window)
                        : queries;
                }
            }
        }

        /// <summary>The sums above which keys are sinks. Valid until asked for again.</summary>
        public ReadOnlySpan<float> Limits(double threshold, int item, int head)
        {
            if (_rows is null)
            {
                // The same for every head.
                for (var key = 0; !_limitsHold && key < Held; key++)
                {
                    _limits[key] = (float)(threshold * Math.Min(Held - key, _window));
                }

                _limitsHold = true;
            }
            else
            {
                var rows = _rows[(item * heads) + head];
                for (var key = 0; key < Held; key++)
                {
                    _limits[key] = (float)(threshold * rows[key]);
                }
            }

            return _limits.AsSpan(0, Held);
        }

        /// <summary>Forgets the first keys, which a window dropped.</summary>
        public void Drop(int keys)
        {
            if (keys > 0)
            {
                foreach (var sums in _rows is null ? _mass : [.. _mass, .. _rows])
                {
                    sums.AsSpan(keys, Held - keys).CopyTo(sums);
                    sums.AsSpan(Held - keys).Clear();
                }

                Held -= keys;
            }
        }

        private static void Resize(ref float[] numbers, int count, int held)
        {
            if (numbers.Length < count)
            {
                // A text that is read has its length; one that is written grows.
                Array.Resize(ref numbers, held == 0 ? count : 2 * count);
            }
        }
    }
}
