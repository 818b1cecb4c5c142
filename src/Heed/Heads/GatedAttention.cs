using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape and parts of a <see cref="GatedAttention"/>.</summary>
public sealed record GatedAttentionOptions
{
    /// <summary>Width C of the module's input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of query heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of key/value heads, a divisor of <see cref="Heads"/>; 0: as many as heads.</summary>
    public int KeyValueHeads { get; init; }

    /// <summary>Head dimension D; 0: <see cref="Width"/> / <see cref="Heads"/>.</summary>
    public int HeadWidth { get; init; }

    /// <summary>The gate.</summary>
    public GateOptions Gate { get; init; } = GateOptions.None;

    /// <summary>What is done to the output of every head before the gate.</summary>
    public HeadNonlinearity Nonlinearity { get; init; }

    /// <summary>Whether queries and keys are normalised per head (<c>q_norm</c>, <c>k_norm</c>).</summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-6;

    /// <summary>Whether the query, key and value projections (and an input gate of its own) have biases.</summary>
    public bool QueryKeyValueBias { get; init; }

    /// <summary>Whether the output projection has a bias.</summary>
    public bool OutputBias { get; init; }

    /// <summary>What the attention call does: causality, window and so on.</summary>
    public AttentionOptions Attention { get; init; } = AttentionOptions.CausalSelf;
}

/// <summary>
/// Multi-head self-attention with grouped heads, optional query/key norm, rotary positions, and an optional gate at any of five places (arXiv 2505.06708,
/// section 2). Without a gate it is the attention of the Llama family. Parameter names are those of the published checkpoints.
/// </summary>
/// <remarks>The paper's gated layer trains from scratch: gates put into a trained model scale it down (a sigmoid gate with zero weights halves the output).</remarks>
public sealed class GatedAttention : nn.Module<Tensor, Tensor>
{
    private readonly GatedAttentionOptions _options;
    private readonly int _keyValueHeads;
    private readonly int _headWidth;
    private readonly bool _gateWithinQuery;
    private readonly Projection q_proj;
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection o_proj;
    private readonly RmsNorm? q_norm;
    private readonly RmsNorm? k_norm;
    private readonly RmsNorm? out_norm;
    private readonly nn.Module? gate;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Shape and parts.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <param name="initialize">False leaves weights as memory comes, for a checkpoint to fill.</param>
    /// <exception cref="ArgumentException">A size is not positive, the key/value heads do not divide the heads, or gate options exclude each other.</exception>
    public GatedAttention(GatedAttentionOptions options, AttentionSite site = default, Generator? generator = null, bool initialize = true)
        : base(nameof(GatedAttention))
    {
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        Site = site;
        _keyValueHeads = options.KeyValueHeads == 0 ? options.Heads : options.KeyValueHeads;
        if (options.Width < 1 || options.Heads < 1 || _keyValueHeads < 1 || options.HeadWidth < 0)
        {
            throw new ArgumentException(
                $"Width, heads, key/value heads and head width must be positive, not {options.Width}, {options.Heads}, {_keyValueHeads}, {options.HeadWidth}.", nameof(options));
        }

        if (options.Heads % _keyValueHeads != 0)
        {
            throw new ArgumentException($"{_keyValueHeads} key/value heads do not divide {options.Heads} query heads.", nameof(options));
        }

        if (options.HeadWidth == 0 && options.Width % options.Heads != 0)
        {
            throw new ArgumentException($"A width of {options.Width} does not divide into {options.Heads} heads; give HeadWidth.", nameof(options));
        }

        options.Gate.Validate();
        _headWidth = options.HeadWidth == 0 ? options.Width / options.Heads : options.HeadWidth;
        var gateOptions = options.Gate;
        var gated = gateOptions.Position != GatePosition.None;
        _gateWithinQuery = gated && gateOptions.Layout == GateLayout.WithinQueryProjection;
        var (width, heads, bias) = (options.Width, options.Heads, options.QueryKeyValueBias);
        q_proj = new Projection(width, heads * (_headWidth + (_gateWithinQuery ? ScoresPerHead : 0)), bias, generator, initialize);
        k_proj = new Projection(width, _keyValueHeads * _headWidth, bias, generator, initialize);
        v_proj = new Projection(width, _keyValueHeads * _headWidth, bias, generator, initialize);
        o_proj = new Projection(heads * _headWidth, width, options.OutputBias, generator, initialize);
        if (options.QueryKeyNorm)
        {
            q_norm = new RmsNorm(_headWidth, options.NormEpsilon);
            k_norm = new RmsNorm(_headWidth, options.NormEpsilon);
        }

        if (options.Nonlinearity == HeadNonlinearity.RmsNorm)
        {
            out_norm = new RmsNorm(_headWidth, options.NormEpsilon);
        }

        if (gated && !_gateWithinQuery)
        {
            long[] shape = gateOptions.Position == GatePosition.DenseOutput ? [width] : [GatedHeads, ScoresPerHead];
            gate = gateOptions.Source == GateSource.Constant
                ? new ConstantGate(shape)
                : new Projection(width, shape.Aggregate((product, size) => product * size), bias, generator, initialize);
        }

        RegisterComponents();
    }

    /// <summary>Shape and parts.</summary>
    public GatedAttentionOptions Options => _options;

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Chooses the heads of every token by the lengths of its queries, before they are rotated; null: all heads are used. Not together with a gate of the heads' outputs.</summary>
    public QueryNormHeadRouter? Router { get; set; }

    private int GatedHeads => _options.Gate.Position is GatePosition.Value or GatePosition.Key ? _keyValueHeads : _options.Heads;

    private int ScoresPerHead => _options.Gate.Granularity == GateGranularity.Headwise ? 1 : _headWidth;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The module's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="rotary">Tables of the tokens' positions; null: no positions.</param>
    /// <param name="cache">Earlier tokens, to which these are appended at the layer of <see cref="Site"/>; null: none.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public Tensor forward(Tensor input, RotaryTables? rotary, KeyValueCache? cache = null)
    {
        using var scope = NewDisposeScope();
        return Run(input, rotary, cache).Output.MoveToOuterDisposeScope();
    }

    /// <summary>The module's output and the gate's scores after the activation.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="rotary">Tables of the tokens' positions; null: no positions.</param>
    /// <param name="cache">Earlier tokens, to which these are appended at the layer of <see cref="Site"/>; null: none.</param>
    /// <returns>The output <c>[B, N, C]</c>, and the scores <c>[B, N, heads, D]</c>: one head where they are shared, one element where they are headwise,
    /// <c>[B, N, C]</c> at <see cref="GatePosition.DenseOutput"/>, null without a gate.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, Tensor? GateScores) ForwardWithGate(Tensor input, RotaryTables? rotary = null, KeyValueCache? cache = null)
    {
        using var scope = NewDisposeScope();
        var (output, scores) = Run(input, rotary, cache);
        return (output.MoveToOuterDisposeScope(), scores?.MoveToOuterDisposeScope());
    }

    private (Tensor Output, Tensor? Scores) Run(Tensor input, RotaryTables? rotary, KeyValueCache? cache)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != _options.Width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {_options.Width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        var (batch, tokens) = (input.shape[0], input.shape[1]);
        var (query, logits) = QueryAndGate(input, batch, tokens);
        var key = k_proj.forward(input).view(batch, tokens, _keyValueHeads, _headWidth);
        var value = v_proj.forward(input).view(batch, tokens, _keyValueHeads, _headWidth);
        var position = _options.Gate.Position;
        var scores = logits is null ? null : Scores(logits, batch, tokens);
        switch (position)
        {
            case GatePosition.Query:
                query = Combine(query, scores!);
                break;
            case GatePosition.Key:
                key = Combine(key, scores!);
                break;
            case GatePosition.Value:
                value = Combine(value, scores!);
                break;
        }

        var routing = Router?.Route(query, training);
        query = q_norm?.forward(query) ?? query;
        key = k_norm?.forward(key) ?? key;
        if (rotary is not null)
        {
            query = rotary.Apply(query);
            key = rotary.Apply(key);
        }

        // The door multiplies the gate in while the output is still in its registers; what it cannot do in one pass is done after it.
        var throughDoor = position == GatePosition.SdpaOutput && _options.Gate.Combine == GateCombination.Multiply && _options.Nonlinearity == HeadNonlinearity.None;
        var attention = throughDoor ? _options.Attention with { Gate = scores!.transpose(1, 2) } : _options.Attention;
        var (keys, values) = (key.transpose(1, 2), value.transpose(1, 2));
        if (cache is not null)
        {
            (keys, values) = cache.Append(Site.Layer, keys, values);
        }

        var heads = (routing is null
            ? Attention.Compute(query.transpose(1, 2), keys, values, attention, Site, Hooks)
            : RoutedHeads.Compute(query.transpose(1, 2), keys, values, routing, attention, Site, Hooks)).transpose(1, 2);
        heads = _options.Nonlinearity switch
        {
            HeadNonlinearity.SiLU => nn.functional.silu(heads),
            HeadNonlinearity.RmsNorm => out_norm!.forward(heads),
            _ => heads,
        };
        if (position == GatePosition.SdpaOutput && !throughDoor)
        {
            heads = Combine(heads, scores!);
        }

        var output = o_proj.forward(heads.reshape(batch, tokens, _options.Heads * _headWidth));
        return (position == GatePosition.DenseOutput ? Combine(output, scores!) : output, scores);
    }

    private (Tensor Query, Tensor? Logits) QueryAndGate(Tensor input, long batch, long tokens)
    {
        var projected = q_proj.forward(input);
        if (_gateWithinQuery)
        {
            var perGroup = _options.Heads / _keyValueHeads;
            var groups = projected.view(batch, tokens, _keyValueHeads, -1);
            var query = groups.narrow(-1, 0, perGroup * _headWidth).reshape(batch, tokens, _options.Heads, _headWidth);
            var scores = groups.narrow(-1, perGroup * _headWidth, perGroup * ScoresPerHead).reshape(batch, tokens, _options.Heads, ScoresPerHead);
            return (query, scores);
        }

        var logits = gate switch
        {
            ConstantGate constant => constant.forward(),
            Projection linear => linear.forward(input),
            _ => null,
        };
        return (projected.view(batch, tokens, _options.Heads, _headWidth), logits);
    }

    private Tensor Scores(Tensor logits, long batch, long tokens) => _options.Gate.Position == GatePosition.DenseOutput
        ? GateScores.Activate(_options.Gate.Activation, logits).expand(batch, tokens, _options.Width)
        : GateScores.Of(_options.Gate, logits, batch, tokens, GatedHeads, ScoresPerHead);

    private Tensor Combine(Tensor gated, Tensor scores) => GateScores.Combine(_options.Gate, gated, scores);
}
