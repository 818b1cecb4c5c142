using Heed.Layers;
using Heed.Kernels;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention over the most important keys, by an importance that each key/value head learns from the values (arXiv 2508.02124). The importance also stands in the score of the
/// keys that stay, which is how it is trained; what is dropped is not computed.</summary>
/// <remarks>Works between projections: it takes queries, keys and values, and has the parameters <c>A</c> and <c>dt_proj</c> only. <see cref="DogeAttention"/> is the whole layer.
/// At first A is drawn with a deviation of 0.02, so the choice begins as noise; with an A of zero the layer is a sliding window of the last w keys.</remarks>
public sealed class DynamicMaskAttention : nn.Module
{
    private readonly Parameter A;
    private readonly Projection dt_proj;
    private readonly int _heads;
    private readonly int _keyValueHeads;
    private readonly int _headWidth;

    /// <summary>Makes the module.</summary>
    /// <param name="heads">Number of query heads H.</param>
    /// <param name="keyValueHeads">Number of key/value heads, a divisor of H.</param>
    /// <param name="headWidth">Width D of a value.</param>
    /// <param name="windowSize">w, the number of keys that a query keeps, from 1.</param>
    /// <param name="form">Linear or exponential importance.</param>
    /// <param name="hasBias">Whether <c>dt_proj</c> has a bias.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <exception cref="ArgumentException">A size is less than 1, or the key/value heads do not divide the heads.</exception>
    public DynamicMaskAttention(
        int heads, int keyValueHeads, int headWidth, int windowSize, ImportanceForm form = ImportanceForm.Linear, bool hasBias = false, Generator? generator = null)
        : base(nameof(DynamicMaskAttention))
    {
        if (heads < 1 || keyValueHeads < 1 || headWidth < 1 || windowSize < 1)
        {
            throw new ArgumentException($"Heads, key/value heads, head width and window must be positive, not {heads}, {keyValueHeads}, {headWidth}, {windowSize}.", nameof(windowSize));
        }

        if (heads % keyValueHeads != 0)
        {
            throw new ArgumentException($"{keyValueHeads} key/value heads do not divide {heads} query heads.", nameof(keyValueHeads));
        }

        (_heads, _keyValueHeads, _headWidth, WindowSize, Form) = (heads, keyValueHeads, headWidth, windowSize, form);
        dt_proj = new Projection(keyValueHeads * headWidth, keyValueHeads, hasBias, generator);
        A = Parameters.Make([keyValueHeads], tensor => tensor.normal_(0, Projection.InitialDeviation, generator));
        RegisterComponents();
    }

    /// <summary>Number of keys that a query keeps.</summary>
    public int WindowSize { get; }

    /// <summary>Linear or exponential importance.</summary>
    public ImportanceForm Form { get; }

    /// <summary>The amplitude of every key/value head's importance, <c>[Hkv]</c>.</summary>
    public Parameter Amplitude => A;

    /// <summary>The output.</summary>
    /// <param name="query"><c>[B, H, T, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, n, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, n, D]</c>, of all positions: cached ones too.</param>
    /// <param name="allowed">Pairs that exist, boolean, broadcastable to <c>[B, H, T, n]</c>; null: all.</param>
    /// <param name="causal">Whether a query sees its own and earlier keys only, the last query at the last key; on top of <paramref name="allowed"/>.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="site">Where the call stands in its model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, T, H, D]</c>; zeros for a query that may see nothing.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit each other; the message says which.</exception>
    public Tensor forward(
        Tensor query, Tensor key, Tensor value, Tensor? allowed = null, bool causal = true, double? scale = null, AttentionSite site = default, AttentionHooks? hooks = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        using var scope = NewDisposeScope();
        if (query.dim() != 4 || query.shape[1] != _heads)
        {
            throw new ArgumentException($"Queries are [B, {_heads}, T, {_headWidth}]; {AttentionShape.Text(query)} was given.", nameof(query));
        }

        var options = new AttentionOptions { Scale = scale, Causal = causal ? Causality.AlignedToEnd : Causality.None, Mask = allowed };
        return Compute(query, key, value, Importance(value), WindowSize, options, site, hooks).transpose(1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>The importance of every key, added to the scores of those that stay.</summary>
    /// <param name="value"><c>[B, Hkv, n, D]</c>.</param>
    /// <returns><c>[B, Hkv, n]</c>.</returns>
    /// <exception cref="ArgumentException">The values have another shape.</exception>
    public Tensor Importance(Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        return value.dim() == 4 && value.shape[1] == _keyValueHeads && value.shape[3] == _headWidth
            ? DynamicMask.Importance(value, dt_proj.Weight, dt_proj.Bias, A, Form)
            : throw new ArgumentException($"Values are [B, {_keyValueHeads}, n, {_headWidth}]; {AttentionShape.Text(value)} was given.", nameof(value));
    }

    /// <summary>Attention over the w most important keys of every query.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="importance"><c>[B, Hkv, Nk]</c>, differentiable through the scores.</param>
    /// <param name="windowSize">w, from 1.</param>
    /// <param name="options">What else the call does; null: causal self-attention.</param>
    /// <param name="site">Where the call stands in its model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, H, Nq, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes or options do not fit each other; the message says which.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, Tensor importance, int windowSize, AttentionOptions? options = null, AttentionSite site = default, AttentionHooks? hooks = null)
    {
        options ??= AttentionOptions.CausalSelf;
        AttentionShape.Read(query, key, value).Check(options, query);
        using var scope = NewDisposeScope();
        return Attention.Compute(query, key, value, DynamicMask.Restrict(options, query, key, importance, windowSize), site, hooks).MoveToOuterDisposeScope();
    }
}
