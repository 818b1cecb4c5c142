using Heed.Layers;
using Heed.Masks;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape and parts of a <see cref="SuperlinearAttention"/>.</summary>
public sealed record SuperlinearAttentionOptions
{
    /// <summary>Width C of the module's input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of query heads; each searches for itself.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of key/value heads, a divisor of <see cref="Heads"/>; 0: as many as heads.</summary>
    public int KeyValueHeads { get; init; }

    /// <summary>Head dimension D; 0: <see cref="Width"/> / <see cref="Heads"/>.</summary>
    public int HeadWidth { get; init; }

    /// <summary>Search, spans and window.</summary>
    public SuperlinearOptions Search { get; init; } = new();
}

/// <summary>
/// Superlinear attention with two steps (arXiv 2601.18401): every query searches O(L^P) anchor keys, attends within a span of O(L^a) keys around each of the best, together with a local window, and mixes the spans' outputs by a
/// softmax over the anchors' scores. O(L^1.5) in all at P = a = 1/2. The mixture makes the search trainable.
/// </summary>
/// <remarks>
/// <para>Each span is a softmax of its own, with the window inside: the window is computed once, every span once, and they are merged by their log-sum-exps.</para>
/// <para>The scheme assumes that a key already knows something of its neighbourhood (the paper's step 0: an accumulation before the attention). Without it an anchor is blind for its span.</para>
/// <para>Left out: more than two steps, and the paper's Mamba layers.</para>
/// </remarks>
public sealed class SuperlinearAttention : nn.Module<Tensor, Tensor>
{
    // Finite, so that a query without a single anchor mixes its empty spans evenly: its output is then that of the window.
    private const double MissingScore = -1e9;

    private readonly SuperlinearAttentionOptions _options;
    private readonly int _keyValueHeads;
    private readonly int _headWidth;
    private readonly Projection q_search_proj;
    private readonly Projection q_proj;
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection o_proj;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Shape and parts.</param>
    /// <param name="site">Where it stands in a model; its layer is where a cache is read.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <exception cref="ArgumentException">A size is not positive, heads do not divide, or an option of the search is out of its range.</exception>
    public SuperlinearAttention(SuperlinearAttentionOptions options, AttentionSite site = default, Generator? generator = null)
        : base(nameof(SuperlinearAttention))
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Search.Validate();
        _options = options;
        Site = site;
        _keyValueHeads = options.KeyValueHeads == 0 ? options.Heads : options.KeyValueHeads;
        if (options.Width < 1 || options.Heads < 1 || _keyValueHeads < 1 || options.HeadWidth < 0 || options.Heads % _keyValueHeads != 0)
        {
            throw new ArgumentException(
                $"Width, heads and key/value heads are positive and key/value heads divide the heads; {options.Width}, {options.Heads} and {_keyValueHeads} do not fit.", nameof(options));
        }

        if (options.HeadWidth == 0 && options.Width % options.Heads != 0)
        {
            throw new ArgumentException($"A width of {options.Width} does not divide into {options.Heads} heads; give HeadWidth.", nameof(options));
        }

        _headWidth = options.HeadWidth == 0 ? options.Width / options.Heads : options.HeadWidth;
        q_search_proj = new(options.Width, options.Heads * _headWidth, false, generator);
        q_proj = new(options.Width, options.Heads * _headWidth, false, generator);
        k_proj = new(options.Width, _keyValueHeads * _headWidth, false, generator);
        v_proj = new(options.Width, _keyValueHeads * _headWidth, false, generator);
        o_proj = new(options.Heads * _headWidth, options.Width, false, generator);
        RegisterComponents();
    }

    /// <summary>Shape and parts.</summary>
    public SuperlinearAttentionOptions Options => _options;

    /// <summary>Where the module stands in a model.</summary>
    public AttentionSite Site { get; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The module's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="cache">Earlier tokens, to which these are appended at the layer of <see cref="Site"/> (a cache without a window); null: none.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public Tensor forward(Tensor input, KeyValueCache? cache)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != _options.Width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {_options.Width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        var (batch, tokens) = (input.shape[0], input.shape[1]);
        Tensor Heads(Projection projection, int heads) => projection.forward(input).view(batch, tokens, heads, _headWidth).transpose(1, 2);
        var (keys, values) = (Heads(k_proj, _keyValueHeads), Heads(v_proj, _keyValueHeads));
        if (cache is not null)
        {
            (keys, values) = cache.Append(Site.Layer, keys, values);
        }

        var first = keys.shape[2] - tokens;
        var positions = Enumerable.Range(0, (int)tokens).Select(token => first + token).ToArray();
        var output = Prefill(Heads(q_search_proj, _options.Heads), Heads(q_proj, _options.Heads), keys, values, positions, _options.Search);
        return o_proj.forward(output.transpose(1, 2).reshape(batch, tokens, _options.Heads * _headWidth)).MoveToOuterDisposeScope();
    }

    /// <summary>The attention of any queries of a sequence.</summary>
    /// <param name="searchQuery">Search queries Q1 <c>[B, H, Nq, D]</c>.</param>
    /// <param name="query">Attention queries Q2 <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, L, D]</c>, at positions 0 to L - 1; keys after the last query are not read.</param>
    /// <param name="value"><c>[B, Hkv, L, Dv]</c>.</param>
    /// <param name="positions">Absolute position of each query, ascending, below L.</param>
    /// <param name="options">The options; null: the defaults.</param>
    /// <param name="attentionMask">Boolean <c>[B, L]</c>, false where a key is padding; null: none is.</param>
    /// <returns><c>[B, H, Nq, Dv]</c>. Gradients flow to both queries, keys and values.</returns>
    /// <exception cref="ArgumentException">Shapes, positions or options do not fit.</exception>
    public static Tensor Prefill(
        Tensor searchQuery, Tensor query, Tensor key, Tensor value, IReadOnlyList<long> positions, SuperlinearOptions? options = null, Tensor? attentionMask = null) =>
        Compute(searchQuery, query, key, value, positions, options, attentionMask).Output;

    /// <summary>As <see cref="Prefill"/>, for one query over a cache.</summary>
    /// <param name="searchQuery">Search query <c>[B, H, 1, D]</c>.</param>
    /// <param name="query">Attention query <c>[B, H, 1, D]</c>.</param>
    /// <param name="keyCache"><c>[B, Hkv, L, D]</c>; may be longer than what is filled.</param>
    /// <param name="valueCache"><c>[B, Hkv, L, Dv]</c>.</param>
    /// <param name="position">The query's position: keys 0 to <paramref name="position"/> are filled.</param>
    /// <param name="options">The options; null: the defaults.</param>
    /// <exception cref="ArgumentException">Shapes, position or options do not fit.</exception>
    public static Tensor Decode(Tensor searchQuery, Tensor query, Tensor keyCache, Tensor valueCache, long position, SuperlinearOptions? options = null) =>
        Prefill(searchQuery, query, keyCache, valueCache, [position], options);

    /// <summary>As <see cref="Prefill"/>, with the mixture and what was searched.</summary>
    /// <inheritdoc cref="Prefill"/>
    /// <returns>The output <c>[B, H, Nq, Dv]</c>, the weight of every span <c>[B, H, Nq, k]</c>, and the spans.</returns>
    public static (Tensor Output, Tensor Gate, SpanSelection Spans) Compute(
        Tensor searchQuery, Tensor query, Tensor key, Tensor value, IReadOnlyList<long> positions, SuperlinearOptions? options = null, Tensor? attentionMask = null)
    {
        options ??= new();
        options.Validate();
        var shape = AttentionShape.Read(query, key, value);
        if (!query.shape.SequenceEqual(searchQuery.shape))
        {
            throw new ArgumentException($"Search queries have the shape of the queries, {AttentionShape.Text(query)}, not {AttentionShape.Text(searchQuery)}.", nameof(searchQuery));
        }

        SpanSearch.CheckPositions(positions, shape.Queries, shape.Keys);
        using var scope = NewDisposeScope();
        if (positions.Count > 0 && positions[^1] + 1 < key.size(2))
        {
            var filled = positions[^1] + 1;
            (key, value, attentionMask) = (key.narrow(2, 0, filled), value.narrow(2, 0, filled), attentionMask?.narrow(1, 0, filled));
        }

        var padding = SpanSearch.Padding(attentionMask, key);
        var spans = SpanSearch.Select(searchQuery, key, positions, options, padding);
        var gate = Gate(searchQuery, key, spans);
        var window = Window(query, key, value, positions, options.Window, padding is null ? null : attentionMask);
        Tensor? output = null;
        for (var span = 0; span < options.NumSpans; span++)
        {
            var part = Attention.ComputePart(query, key, value, AttentionOptions.Default with { KeyRuns = spans.Runs(span, padding) });
            var whole = window is { } near ? Attention.Merge(near, part).Output : part.Output;
            var weighted = whole * gate.narrow(-1, span, 1).to(whole.dtype);
            output = output is null ? weighted : output + weighted;
        }

        return (output!.MoveToOuterDisposeScope(), gate.MoveToOuterDisposeScope(), spans);
    }

    /// <summary>The weights of the spans: a softmax over the unscaled scores of their anchors, computed anew where a gradient is wanted.</summary>
    private static Tensor Gate(Tensor searchQuery, Tensor key, SpanSelection spans)
    {
        using var scope = NewDisposeScope();
        using Scalar zero = 0, missing = MissingScore;
        Tensor scores;
        var anchor = spans.Anchor().to(searchQuery.device).to(int64);
        var isMissing = anchor.lt(zero);
        if (is_grad_enabled() && (searchQuery.requires_grad || key.requires_grad))
        {
            // The heads of a group gather from the same keys, so that their gradients add up there.
            var (batch, heads, queries, count) = (anchor.size(0), anchor.size(1), anchor.size(2), anchor.size(3));
            var at = anchor.clamp_min(zero).reshape(batch, key.size(1), -1, 1).expand(-1, -1, -1, key.size(3));
            var anchors = key.gather(2, at).view(batch, heads, queries, count, key.size(3));
            scores = matmul(anchors, searchQuery.unsqueeze(-1)).squeeze(-1);
        }
        else
        {
            scores = spans.Score().to(searchQuery.device);
        }

        return nn.functional.softmax(scores.masked_fill(isMissing, missing), -1).MoveToOuterDisposeScope();
    }

    private static (Tensor Output, Tensor LogSumExp)? Window(
        Tensor query, Tensor key, Tensor value, IReadOnlyList<long> positions, long window, Tensor? attentionMask)
    {
        if (window == 0 || positions.Count == 0)
        {
            return null;
        }

        if (positions[^1] - positions[0] == positions.Count - 1)
        {
            return Attention.ComputePart(query, key, value, AttentionOptions.CausalSelf with { WindowBefore = window - 1, Mask = attentionMask?.unsqueeze(1).unsqueeze(1) });
        }

        var padding = SpanSearch.Padding(attentionMask, key);
        var (batches, heads, queries, keys) = (query.size(0), query.size(1), query.size(2), key.size(2));
        var runs = SpanSelection.Intervals(batches, heads, queries, keys, padding, (row, add) =>
        {
            var position = positions[(int)(row % queries)];
            add((int)Math.Max(0, position - (window - 1)), (int)position);
        });
        return Attention.ComputePart(query, key, value, AttentionOptions.Default with { KeyRuns = runs });
    }
}
