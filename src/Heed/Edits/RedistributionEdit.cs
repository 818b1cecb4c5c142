using Heed.Interop;
using Heed.Probes;
using TorchSharp;
using static TorchSharp.torch;
using TensorPrimitives = System.Numerics.Tensors.TensorPrimitives;

namespace Heed.Edits;

/// <summary>Visual attention redistribution, VAR (arXiv 2503.03321; <see cref="VisualAttentionRedistribution"/>), in a trained vision-language model, without the map: the weights of image and sink tokens are enough.</summary>
/// <remarks>
/// <para>Install it with <see cref="InstallOn"/>: it watches the hidden states before each layer, where sink tokens carry massive activations. They are found when the prompt is read (rows after the picture are edited then);
/// generated tokens are never sinks, and every generated row is edited. A prompt may be read in several calls: no row sees a later sink, so that the result is that of one call. One edit serves one text (or batch of texts) at a time.</para>
/// <para>The image tokens are those of <see cref="AttentionHooks.Layout"/>; texts without an image span are left alone. A layer without a sink among its image tokens costs nothing.</para>
/// </remarks>
public sealed class RedistributionEdit : WeightEdit
{
    private readonly long[] _dimensions;
    private readonly double? _threshold;
    private readonly double _rho;
    private readonly double _imageAttention;
    private readonly double _sinkScale;
    private readonly Range _layers;
    private readonly Dictionary<int, SinkState> _states = [];

    // What may be the first part of another text: the attention call that follows tells.
    private readonly Dictionary<int, SinkState> _begun = [];
    private SinkState? _current;
    private long _firstRow;

    /// <summary>Initializes the edit.</summary>
    /// <param name="sinkDimensions">The hidden dimensions in which the language model's sinks carry massive activations; see <see cref="SinkDimensions"/>.</param>
    /// <param name="threshold">The sink value above which a token is a sink; null: <see cref="SinkDimensions.Threshold"/> of the width (20 for the published models).</param>
    /// <param name="rho">The largest share of the picture's attention that may lie in sinks.</param>
    /// <param name="minimumImageAttention">The least attention to the picture.</param>
    /// <param name="sinkScale">The share that sinks keep, 0 to 1.</param>
    /// <param name="layers">The layers; null: 2.. (the released code edits the last layer too).</param>
    /// <exception cref="ArgumentException">There is no dimension, a number is out of range, or the layers are counted from the end.</exception>
    public RedistributionEdit(
        IReadOnlyList<long> sinkDimensions, double? threshold = null, double rho = VisualAttentionRedistribution.DefaultRho,
        double minimumImageAttention = VisualAttentionRedistribution.DefaultImageAttention, double sinkScale = VisualAttentionRedistribution.DefaultSinkScale, Range? layers = null)
    {
        ArgumentNullException.ThrowIfNull(sinkDimensions);
        if (sinkDimensions.Count == 0 || sinkDimensions.Any(dimension => dimension < 0))
        {
            throw new ArgumentException("Redistribution needs at least one sink dimension, counted from 0.", nameof(sinkDimensions));
        }

        if (threshold is { } limit && !double.IsFinite(limit))
        {
            throw new ArgumentException($"The threshold of the sink value is a finite number, not {limit}.", nameof(threshold));
        }

        if (double.IsNaN(rho) || double.IsNaN(minimumImageAttention))
        {
            throw new ArgumentException("The bounds of the attention to the picture are numbers.", double.IsNaN(rho) ? nameof(rho) : nameof(minimumImageAttention));
        }

        MapEdit.CheckShare(sinkScale, nameof(sinkScale));
        _layers = LayerRange.Check(layers ?? 2.., nameof(layers));
        (_dimensions, _threshold, _rho, _imageAttention, _sinkScale) = ([.. sinkDimensions], threshold, rho, minimumImageAttention, sinkScale);
    }

    /// <summary>The sink tokens found at a layer's input when the prompt was read, per batch item; null where the layer has not read one.</summary>
    public IReadOnlyList<IReadOnlyList<long>>? SinksOf(int layer) => _states.GetValueOrDefault(layer)?.Sinks;

    /// <summary>Installs the edit on a model's hooks until the returned scope is disposed.</summary>
    public IDisposable InstallOn(AttentionHooks hooks)
    {
        ArgumentNullException.ThrowIfNull(hooks);
        return new Installation(hooks.Install(new Watcher(this, hooks)), hooks.Install(this));
    }

    private protected override bool ActsAt(AttentionSite site) => site.Kind == AttentionKind.Self && LayerRange.Contains(_layers, site.Layer);

    private protected override bool Begin(AttentionCall call)
    {
        var layout = call.Layout ?? throw new InvalidOperationException(
            "Redistribution of visual attention needs to know the image tokens, and the model did not say what its tokens stand for: set AttentionHooks.Layout.");
        if (layout.Spans.All(span => span.Kind != TokenKind.Image))
        {
            return false;
        }

        var (batch, queries, keys) = (call.Query.size(0), call.Query.size(2), call.Key.size(2));
        if (_begun.Remove(call.Site.Layer, out var begun) && queries == keys)
        {
            _states[call.Site.Layer] = begun;
        }

        var state = _states.GetValueOrDefault(call.Site.Layer);
        if (state is null || state.Batch != batch)
        {
            throw new InvalidOperationException(
                $"Redistribution has seen no hidden states before the site '{call.Site}': install it with {nameof(InstallOn)} before the prompt is read, on a model that shows its hidden states.");
        }

        if (!state.Continue(keys - queries, queries))
        {
            throw new InvalidOperationException(
                $"Redistribution at the site '{call.Site}' has seen {state.Seen} tokens of this text and the call continues {keys - queries}: a cache that was cut or has a window cannot be gone on with, read the prompt again.");
        }

        _current = state;
        state.Plan(layout.Only(TokenKind.Image));
        _firstRow = Math.Max(0, layout.Only(TokenKind.Image).End - (keys - queries));
        return _firstRow < queries && state.HasVisualSinks && state.Columns[^1] < keys;
    }

    private protected override Tensor EditMap(AttentionCall call, Tensor weights)
    {
        using var scope = NewDisposeScope();
        using Scalar first = _firstRow, queries = weights.shape[2];
        var rows = arange(queries, dtype: int64, device: weights.device).ge(first);
        var columns = tensor(_current!.Columns, device: weights.device);
        var part = weights.index_select(3, columns);
        return weights.index_copy(3, columns, Redistribute(part, rows)).MoveToOuterDisposeScope();
    }

    private protected override Tensor EditColumns(AttentionCall call, Tensor output)
    {
        using var scope = NewDisposeScope();
        var keys = _current!.Columns;
        var rows = _firstRow == 0 ? null : Enumerable.Range((int)_firstRow, (int)(call.Query.size(2) - _firstRow)).Select(row => (long)row).ToArray();
        var weights = call.ColumnWeights(keys, null, rows);
        return Correct(call, output, keys, Redistribute(weights, null) - weights, null, null, _firstRow).MoveToOuterDisposeScope();
    }

    private protected override void EditRow(AttentionCall call, in DecodingRow row)
    {
        var state = _current!;
        var weights = new float[state.Columns.Length].AsSpan();
        for (var batch = 0; batch < row.Batch; batch++)
        {
            var roles = state.Roles(batch);
            for (var head = 0; head < row.Heads; head++)
            {
                row.Scores(batch, head, state.Runs, weights);
                TensorPrimitives.Subtract(weights, row.LogSumExp(batch, head), weights);
                TensorPrimitives.Exp(weights, weights);
                if (Differences(weights, roles))
                {
                    row.Add(batch, head, state.Runs, weights);
                }
            }
        }
    }

    /// <summary>Replaces weights by what is to be added to them. False where the row stays as it is.</summary>
    private bool Differences(Span<float> weights, ReadOnlySpan<TokenRole> roles)
    {
        const float small = 1e-6f;
        float visual = 0, image = 0, padded = 0, sinks = 0, rest = 0;
        var hasVisualSink = false;
        for (var i = 0; i < weights.Length; i++)
        {
            var (weight, role) = (weights[i], roles[i]);
            sinks += (role & TokenRole.Sink) != 0 ? weight : 0;
            if ((role & TokenRole.Image) != 0)
            {
                image += weight;
                padded += weight + small;
                (visual, rest) = (role & TokenRole.Sink) != 0 ? (visual + weight, rest) : (visual, rest + weight);
                hasVisualSink |= (role & TokenRole.Sink) != 0;
            }
        }

        if (!(hasVisualSink && visual / padded <= _rho && image >= _imageAttention && rest > 0))
        {
            return false;
        }

        var moved = 1 - (float)_sinkScale;
        var share = moved * sinks / rest;
        for (var i = 0; i < weights.Length; i++)
        {
            weights[i] *= (roles[i] & TokenRole.Sink) != 0 ? -moved : roles[i] == TokenRole.Image ? share : 0;
        }

        return true;
    }

    private Tensor Redistribute(Tensor weights, Tensor? rows)
    {
        var state = _current!;
        var sinks = state.Mask(TokenRole.Sink).to(weights.device);
        var image = state.Mask(TokenRole.Image).to(weights.device);
        return VisualAttentionRedistribution.Apply(weights, sinks, image, rows, _rho, _imageAttention, _sinkScale);
    }

    /// <summary>What an edited column is.</summary>
    [Flags]
    private enum TokenRole : byte
    {
        None = 0,
        Sink = 1,
        Image = 2,
    }

    /// <summary>The sinks of one layer and text, and what follows from them.</summary>
    private sealed class SinkState
    {
        private readonly List<long>[] _sinks;
        private TokenRole[] _roles = [];
        private TokenSpan? _image;
        private long _expected;

        public SinkState(int batch) => _sinks = [.. Enumerable.Range(0, batch).Select(_ => new List<long>())];

        public int Batch => _sinks.Length;

        public IReadOnlyList<IReadOnlyList<long>> Sinks => _sinks;

        /// <summary>Tokens whose attention was computed.</summary>
        public long Seen { get; private set; }

        /// <summary>Whether any batch item has a sink among its image tokens.</summary>
        public bool HasVisualSinks { get; private set; }

        /// <summary>Image tokens and sinks of any batch item, ascending.</summary>
        public long[] Columns { get; private set; } = [];

        /// <summary>The same as runs.</summary>
        public KeyRange[] Runs { get; private set; } = [];

        public ReadOnlySpan<TokenRole> Roles(int batch) => _roles.AsSpan(batch * Columns.Length, Columns.Length);

        /// <summary>Takes the sinks of tokens that are read next, boolean <c>[B, n]</c>.</summary>
        public void Add(Tensor isSink)
        {
            var length = isSink.shape[1];
            var flags = isSink.cpu().contiguous().data<bool>().ToArray();
            for (var i = 0; i < flags.Length; i++)
            {
                if (flags[i])
                {
                    _sinks[i / length].Add(Seen + (i % length));
                    _image = null;
                }
            }

            _expected = Seen + length;
        }

        /// <summary>Goes on with a call, where it is the next one.</summary>
        public bool Continue(long earlier, long queries)
        {
            if (earlier != Seen || (_expected > Seen && _expected != Seen + queries))
            {
                return false;
            }

            Seen += queries;
            return true;
        }

        public void Plan(TokenSpan image)
        {
            if (_image == image)
            {
                return;
            }

            _image = image;
            Columns = [.. Enumerable.Range((int)image.Start, (int)image.Length).Select(token => (long)token).Concat(_sinks.SelectMany(sinks => sinks)).Distinct().Order()];
            Runs = KeyRange.Of(Columns);
            _roles = new TokenRole[Batch * Columns.Length];
            HasVisualSinks = false;
            for (var batch = 0; batch < Batch; batch++)
            {
                var sinks = _sinks[batch].ToHashSet();
                for (var i = 0; i < Columns.Length; i++)
                {
                    var isImage = Columns[i] >= image.Start && Columns[i] < image.End;
                    var isSink = sinks.Contains(Columns[i]);
                    HasVisualSinks |= isImage && isSink;
                    _roles[(batch * Columns.Length) + i] = (isImage ? TokenRole.Image : TokenRole.None) | (isSink ? TokenRole.Sink : TokenRole.None);
                }
            }
        }

        public Tensor Mask(TokenRole role) => tensor(Array.ConvertAll(_roles, found => (found & role) != 0)).view(Batch, Columns.Length);
    }

    /// <summary>Finds the sinks at the input of every edited layer.</summary>
    private sealed class Watcher(RedistributionEdit edit, AttentionHooks hooks) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockInput && LayerRange.Contains(edit._layers, site.Layer);

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            if (hooks.Layout is not { } layout || layout.Spans.All(span => span.Kind != TokenKind.Image))
            {
                return states;
            }

            var known = edit._states.GetValueOrDefault(site.Layer);
            var tokens = states.shape[1];
            // A prompt holds the picture; what is shorter than the prompt goes on with it or begins another one, and after it nothing is a sink.
            if (known is null || tokens >= layout.Length || known.Batch != states.shape[0])
            {
                edit._states[site.Layer] = known = new((int)states.shape[0]);
            }

            var begins = FirstPosition == 0 && known.Seen > 0;
            if (begins || known.Seen < layout.Length)
            {
                using var scope = NewDisposeScope();
                using var still = no_grad();
                var isSink = SinkMask.FromMassiveDimensions(states.detach(), edit._dimensions, edit._threshold).IsSink;
                if (begins)
                {
                    edit._begun[site.Layer] = new(known.Batch);
                    edit._begun[site.Layer].Add(isSink);
                }

                if (known.Seen < layout.Length)
                {
                    known.Add(isSink);
                }
            }

            return states;
        }
    }

    private sealed class Installation(IDisposable watcher, IDisposable edit) : IDisposable
    {
        public void Dispose()
        {
            watcher.Dispose();
            edit.Dispose();
        }
    }
}
