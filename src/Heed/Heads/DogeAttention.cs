using Heed.Layers;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape and parts of a <see cref="DogeAttention"/>.</summary>
public sealed record DogeAttentionOptions
{
    /// <summary>Width C of the module's input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of query heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of key/value heads, a divisor of <see cref="Heads"/>; 0: as many as heads.</summary>
    public int KeyValueHeads { get; init; }

    /// <summary>Head dimension D; 0: <see cref="Width"/> / <see cref="Heads"/>.</summary>
    public int HeadWidth { get; init; }

    /// <summary>Number of keys that a query keeps, from 1.</summary>
    public int WindowSize { get; init; } = 2048;

    /// <summary>Linear or exponential importance.</summary>
    public ImportanceForm Form { get; init; }

    /// <summary>Epsilon of the norms of queries and keys.</summary>
    public double NormEpsilon { get; init; } = 1e-6;

    /// <summary>Whether the query, key, value and importance projections have biases.</summary>
    public bool QueryKeyValueBias { get; init; }

    /// <summary>Whether the output projection has a bias.</summary>
    public bool OutputBias { get; init; }
}

/// <summary>The attention layer of the Doge language models (arXiv 2508.02124): grouped heads, normalised queries and keys, rotary positions, and causal attention over the keys that
/// matter most by their values. Parameter names are those of the published checkpoints.</summary>
public sealed class DogeAttention : nn.Module<Tensor, Tensor>
{
    private readonly DogeAttentionOptions _options;
    private readonly int _keyValueHeads;
    private readonly int _headWidth;
    private readonly Parameter A;
    private readonly Projection q_proj;
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection dt_proj;
    private readonly Projection o_proj;
    private readonly RmsNorm q_norm;
    private readonly RmsNorm k_norm;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Shape and parts.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <param name="initialize">False leaves weights as memory comes, for a checkpoint to fill.</param>
    /// <exception cref="ArgumentException">A size is not positive, or the key/value heads do not divide the heads.</exception>
    public DogeAttention(DogeAttentionOptions options, AttentionSite site = default, Generator? generator = null, bool initialize = true)
        : base(nameof(DogeAttention))
    {
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        Site = site;
        _keyValueHeads = options.KeyValueHeads == 0 ? options.Heads : options.KeyValueHeads;
        if (options.Width < 1 || options.Heads < 1 || _keyValueHeads < 1 || options.HeadWidth < 0 || options.WindowSize < 1)
        {
            throw new ArgumentException(
                $"Width, heads, key/value heads, head width and window must be positive, not {options.Width}, {options.Heads}, {_keyValueHeads}, {options.HeadWidth}, {options.WindowSize}.",
                nameof(options));
        }

        if (options.Heads % _keyValueHeads != 0)
        {
            throw new ArgumentException($"{_keyValueHeads} key/value heads do not divide {options.Heads} query heads.", nameof(options));
        }

        if (options.HeadWidth == 0 && options.Width % options.Heads != 0)
        {
            throw new ArgumentException($"A width of {options.Width} does not divide into {options.Heads} heads; give HeadWidth.", nameof(options));
        }

        _headWidth = options.HeadWidth == 0 ? options.Width / options.Heads : options.HeadWidth;
        var (width, inner, bias) = (options.Width, _keyValueHeads * _headWidth, options.QueryKeyValueBias);
        q_proj = new Projection(width, options.Heads * _headWidth, bias, generator, initialize);
        k_proj = new Projection(width, inner, bias, generator, initialize);
        v_proj = new Projection(width, inner, bias, generator, initialize);
        dt_proj = new Projection(inner, _keyValueHeads, bias, generator, initialize);
        o_proj = new Projection(options.Heads * _headWidth, width, options.OutputBias, generator, initialize);
        A = Parameters.Make([_keyValueHeads], initialize ? tensor => tensor.normal_(0, Projection.InitialDeviation, generator) : null);
        q_norm = new RmsNorm(_headWidth, options.NormEpsilon);
        k_norm = new RmsNorm(_headWidth, options.NormEpsilon);
        RegisterComponents();
    }

    /// <summary>Shape and parts.</summary>
    public DogeAttentionOptions Options => _options;

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The amplitude of every key/value head's importance, <c>[Hkv]</c>.</summary>
    public Parameter Amplitude => A;

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The module's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="rotary">Tables of the tokens' positions; null: no positions.</param>
    /// <param name="cache">Earlier tokens; the layer of <see cref="Site"/> must have slots (<see cref="KeyValueCache.Slots"/>) as many as the window, and keeps the tokens that later ones
    /// can still choose. Null: none.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape, or the cache has no such slots.</exception>
    public Tensor forward(Tensor input, RotaryTables? rotary, KeyValueCache? cache = null)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != _options.Width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {_options.Width}], not {AttentionShape.Text(input)}.", nameof(input));
        }

        if (cache is not null && cache.Slots(Site.Layer) != _options.WindowSize)
        {
            throw new ArgumentException(
                $"Layer {Site.Layer} of the cache has {(cache.Slots(Site.Layer) is { } slots ? $"{slots} ranked slots" : "no ranked slots")}; this layer needs {_options.WindowSize}.", nameof(cache));
        }

        using var scope = NewDisposeScope();
        var (batch, tokens) = (input.shape[0], input.shape[1]);
        Tensor Heads(Projection projection, int heads) => projection.forward(input).view(batch, tokens, heads, _headWidth);
        var (query, key) = (q_norm.forward(Heads(q_proj, _options.Heads)), k_norm.forward(Heads(k_proj, _keyValueHeads)));
        if (rotary is not null)
        {
            (query, key) = (rotary.Apply(query), rotary.Apply(key));
        }

        var (keys, values) = (key.transpose(1, 2), Heads(v_proj, _keyValueHeads).transpose(1, 2));
        var importance = DynamicMask.Importance(values, dt_proj.Weight, dt_proj.Bias, A, _options.Form);
        if (cache is not null)
        {
            (keys, values, importance) = cache.AppendRanked(Site.Layer, keys, values, importance);
        }

        var mixed = DynamicMaskAttention.Compute(query.transpose(1, 2), keys, values, importance, _options.WindowSize, AttentionOptions.CausalSelf, Site, Hooks);
        return o_proj.forward(mixed.transpose(1, 2).reshape(batch, tokens, _options.Heads * _headWidth)).MoveToOuterDisposeScope();
    }
}
