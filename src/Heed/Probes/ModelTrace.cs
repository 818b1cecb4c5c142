using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The parts of an attention call that a trace keeps.</summary>
[Flags]
public enum TraceParts
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Queries <c>[B, H, Nq, D]</c>, as attention reads them: after norms and positions.</summary>
    Query = 1,

    /// <summary>Keys <c>[B, Hkv, Nk, D]</c>.</summary>
    Key = 2,

    /// <summary>Values <c>[B, Hkv, Nk, Dv]</c>.</summary>
    Value = 4,

    /// <summary>Scores before the normaliser, minus infinity where there is no pair, <c>[B, heads, rows, Nk]</c>.</summary>
    Scores = 8,

    /// <summary>Weights, <c>[B, heads, rows, Nk]</c>.</summary>
    Weights = 16,

    /// <summary>The output per head, before the output projection, <c>[B, H, Nq, Dv]</c>.</summary>
    Output = 32,

    /// <summary>All of them.</summary>
    All = 63,
}

/// <summary>What a trace keeps.</summary>
public sealed record ModelTraceRequest
{
    /// <summary>Parts of attention calls.</summary>
    public TraceParts Attention { get; init; }

    /// <summary>Places of the residual stream and the feed-forward part.</summary>
    public IReadOnlyList<StreamPoint> Points { get; init; } = [];

    /// <summary>Layers; null: all.</summary>
    public IReadOnlyList<int>? Layers { get; init; }

    /// <summary>Query heads of scores and weights; null: all.</summary>
    public IReadOnlyList<int>? Heads { get; init; }

    /// <summary>Query rows of scores and weights, negative ones counted from the end; null: all.</summary>
    public IReadOnlyList<long>? Rows { get; init; }

    /// <summary>The most bytes that the trace may take at any time: what it keeps, what it computes maps with, and 1/64 for what tensors cost beside their elements.</summary>
    public long Budget { get; init; } = 256L << 20;
}

/// <summary>A tensor that a trace keeps or had no room for.</summary>
/// <param name="Layer">The layer.</param>
/// <param name="Site">The attention site's or the block's name.</param>
/// <param name="What">The part or place.</param>
/// <param name="Bytes">Its size.</param>
public readonly record struct TraceItem(int Layer, string Site, string What, long Bytes)
{
    /// <inheritdoc/>
    public override string ToString() => $"{What} of {Site}";
}

/// <summary>Keeps what passes through a model: queries, keys, values, scores, weights and outputs of its attention, the residual stream and the stages of the feed-forward parts, within a budget of bytes. What does not fit is left
/// out whole and listed, never kept in part. Calls stay fused: scores and weights are computed again, a few rows at a time.</summary>
/// <remarks>Tensors are copies, valid until the site's next call, <see cref="Clear"/> or <see cref="Dispose"/>. First come, first served: layers are kept from the first on.</remarks>
/// <example>
/// <code>
/// using var trace = new ModelTrace(new() { Attention = TraceParts.Weights, Points = [StreamPoint.BlockOutput], Budget = 64 &lt;&lt; 20 });
/// using (trace.Install(model.Hooks)) { model.forward(ids); }
/// var sinks = SinkDetector.Detect(trace.Stream(StreamPoint.BlockOutput));
/// foreach (var item in trace.LeftOut) { Console.WriteLine($"no room for {item}: {item.Bytes} bytes"); }
/// </code>
/// </example>
public sealed class ModelTrace : IDisposable
{
    // Computing a part of a map holds so many tensors of the part's size: products, scores, masks, weights.
    private const int Workspace = 10;

    // What tensors cost beside their elements: headers, whole pages, handles until they are collected. Measured: 1/300.
    private const long Beside = 64;

    // Larger parts are no faster.
    private const long MostWorkspace = 8L << 20;

    private readonly Dictionary<(int Layer, string Site, string What), Tensor> _kept = [];
    private readonly List<TraceItem> _items = [];
    private readonly List<TraceItem> _leftOut = [];
    private readonly Calls _calls;
    private readonly Streams _streams;

    /// <summary>Initializes a trace.</summary>
    /// <param name="request">What to keep.</param>
    /// <exception cref="ArgumentException">The budget is negative, or nothing is asked for.</exception>
    public ModelTrace(ModelTraceRequest request)
    {
        ArgumentNullException.ThrowIfNull(request);
        if (request.Budget < 0)
        {
            throw new ArgumentException($"The budget of a trace is a number of bytes from 0 on, not {request.Budget}.", nameof(request));
        }

        if (request.Attention == TraceParts.None && request.Points.Count == 0)
        {
            throw new ArgumentException("The trace is asked for nothing: name parts of attention calls or places of the stream.", nameof(request));
        }

        Request = request;
        (_calls, _streams) = (new(this), new(this));
    }

    /// <summary>What is kept.</summary>
    public ModelTraceRequest Request { get; }

    /// <summary>Bytes that the kept tensors take.</summary>
    public long Bytes { get; private set; }

    /// <summary>What is kept, in the order of the pass.</summary>
    public IReadOnlyList<TraceItem> Items => _items;

    /// <summary>What did not fit the budget.</summary>
    public IReadOnlyList<TraceItem> LeftOut => _leftOut;

    /// <summary>Installs the trace until the returned scope is disposed; what was kept stays.</summary>
    /// <param name="hooks">The model's hooks.</param>
    public IDisposable Install(AttentionHooks hooks)
    {
        ArgumentNullException.ThrowIfNull(hooks);
        return new InstalledTogether(hooks.Install(_calls), hooks.Install(_streams));
    }

    /// <summary>A part of the latest attention call of a layer.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="part">One part.</param>
    /// <param name="site">The site's name, where a layer has several; null: its first.</param>
    /// <exception cref="KeyNotFoundException">It was not asked for, did not fit, or the layer was not run.</exception>
    public Tensor this[int layer, TraceParts part, string? site = null] => Find(layer, part.ToString(), site);

    /// <summary>The hidden states at a place of a layer in the latest pass, <c>[B, N, C]</c> (or as wide as the place).</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="point">The place.</param>
    /// <exception cref="KeyNotFoundException">It was not asked for, did not fit, or the block has no such place.</exception>
    public Tensor this[int layer, StreamPoint point] => Find(layer, point.ToString(), null);

    /// <summary>The hidden states of one batch item at a place, layer after layer: what <see cref="SinkDetector"/> reads.</summary>
    /// <param name="point">The place.</param>
    /// <param name="item">The batch item.</param>
    /// <returns>Views <c>[N, C]</c> of the kept tensors, in the caller's dispose scope.</returns>
    /// <exception cref="KeyNotFoundException">A layer did not fit, or nothing was kept there.</exception>
    public IReadOnlyList<Tensor> Stream(StreamPoint point = StreamPoint.BlockOutput, int item = 0)
    {
        var what = point.ToString();
        if (_leftOut.FirstOrDefault(left => left.What == what) is { Site: not null } missing)
        {
            throw Missing(missing.Layer, what);
        }

        var layers = _items.Where(kept => kept.What == what).OrderBy(kept => kept.Layer).ToArray();
        return layers.Length == 0 ? throw Missing(0, what) : [.. layers.Select(kept => _kept[(kept.Layer, kept.Site, what)].select(0, item))];
    }

    /// <summary>Forgets what was kept.</summary>
    public void Clear()
    {
        foreach (var tensor in _kept.Values)
        {
            tensor.Dispose();
        }

        _kept.Clear();
        _items.Clear();
        _leftOut.Clear();
        Bytes = 0;
    }

    /// <inheritdoc/>
    public void Dispose() => Clear();

    /// <summary>Bytes that are left.</summary>
    private long Free => Request.Budget - (Request.Budget / Beside) - Bytes;

    private bool Wants(int layer) => Request.Layers is null || Request.Layers.Contains(layer);

    private Tensor Find(int layer, string what, string? site)
    {
        var item = _items.FirstOrDefault(kept => kept.Layer == layer && kept.What == what && (site is null || kept.Site == site));
        return item.Site is null ? throw Missing(layer, what) : _kept[(item.Layer, item.Site, what)];
    }

    private KeyNotFoundException Missing(int layer, string what)
    {
        var left = _leftOut.FirstOrDefault(item => item.Layer == layer && item.What == what);
        return new(left.Site is null
            ? $"The trace has no {what} of layer {layer}: ask for it in the request, and run the model while the trace is installed."
            : $"{left} takes {left.Bytes} bytes and did not fit the budget of {Request.Budget}: ask for fewer layers, heads or rows, or give a larger budget.");
    }

    /// <summary>Keeps a tensor if it fits, and what it takes to compute it.</summary>
    private void Keep(int layer, string site, string what, long bytes, long workspace, Func<Tensor> make)
    {
        if (_kept.Remove((layer, site, what), out var old))
        {
            Bytes -= old.numel() * old.ElementSize;
            old.Dispose();
            _items.RemoveAll(item => item.Layer == layer && item.Site == site && item.What == what);
        }

        _leftOut.RemoveAll(item => item.Layer == layer && item.Site == site && item.What == what);
        var entry = new TraceItem(layer, site, what, bytes);
        if (bytes + workspace > Free)
        {
            _leftOut.Add(entry);
            return;
        }

        using var still = no_grad();
        _kept[(layer, site, what)] = make().DetachFromDisposeScope();
        _items.Add(entry);
        Bytes += bytes;
    }

    private void Copy(int layer, string site, string what, Tensor states) => Keep(layer, site, what, states.numel() * states.ElementSize, 0, () => states.detach().clone());

    private void Map(AttentionCall call, TraceParts part)
    {
        var (batch, allHeads, queries, keys) = (call.Query.size(0), call.Query.size(1), call.Query.size(2), call.Key.size(2));
        var rows = Rows(call.Site, queries);
        var heads = Request.Heads?.Count ?? allHeads;
        var perRow = batch * heads * keys * call.Query.ElementSize;
        // Keys are written out for every query head, in the query's type.
        var repeated = call.Key.size(1) == allHeads && call.Key.dtype == call.Query.dtype ? 0 : batch * allHeads * keys * call.Query.size(3) * call.Query.ElementSize;
        var room = Math.Min(MostWorkspace, Free - (rows.Length * perRow) - repeated);
        var count = Math.Clamp(room / Math.Max(1, Workspace * perRow), 1, Math.Max(1, rows.Length));
        Keep(call.Site.Layer, call.Site.Name, part.ToString(), rows.Length * perRow, (count * Workspace * perRow) + repeated, () =>
        {
            var map = empty([batch, heads, rows.Length, keys], call.Query.dtype, call.Query.device);
            for (var first = 0; first < rows.Length; first += (int)count)
            {
                using var scope = NewDisposeScope();
                var some = rows[first..(int)Math.Min(rows.Length, first + count)];
                map.narrow(2, first, some.Length).copy_(part == TraceParts.Scores ? call.Scores(Request.Heads, some) : call.Weights(Request.Heads, some));
            }

            return map;
        });
    }

    private long[] Rows(AttentionSite site, long queries)
    {
        var rows = Request.Rows is null ? [.. Enumerable.Range(0, (int)queries).Select(row => (long)row)] : Request.Rows.Select(row => row < 0 ? row + queries : row).ToArray();
        return rows.All(row => row >= 0 && row < queries)
            ? rows
            : throw new ArgumentException($"The call at the site '{site}' has {queries} query rows; the trace asks for {string.Join(", ", Request.Rows!)}.");
    }

    private sealed class Calls(ModelTrace trace) : AttentionHook
    {
        private static readonly TraceParts[] s_inputs = [TraceParts.Query, TraceParts.Key, TraceParts.Value];
        private static readonly TraceParts[] s_maps = [TraceParts.Scores, TraceParts.Weights];

        public override AttentionStages StagesAt(AttentionSite site)
        {
            var wanted = trace.Wants(site.Layer) ? trace.Request.Attention : TraceParts.None;
            return ((wanted & ~TraceParts.Output) != TraceParts.None ? AttentionStages.Map : AttentionStages.None) | (wanted.HasFlag(TraceParts.Output) ? AttentionStages.Output : AttentionStages.None);
        }

        public override void OnMap(AttentionCall call)
        {
            foreach (var part in s_inputs.Where(part => trace.Request.Attention.HasFlag(part)))
            {
                trace.Copy(call.Site.Layer, call.Site.Name, part.ToString(), part switch { TraceParts.Query => call.Query, TraceParts.Key => call.Key, _ => call.Value });
            }

            foreach (var part in s_maps.Where(part => trace.Request.Attention.HasFlag(part)))
            {
                trace.Map(call, part);
            }
        }

        public override Tensor OnOutput(AttentionCall call, Tensor output)
        {
            trace.Copy(call.Site.Layer, call.Site.Name, nameof(TraceParts.Output), output);
            return output;
        }
    }

    private sealed class Streams(ModelTrace trace) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => trace.Wants(site.Layer) && trace.Request.Points.Contains(site.Point);

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            trace.Copy(site.Layer, site.Name, site.Point.ToString(), states);
            return states;
        }
    }
}
