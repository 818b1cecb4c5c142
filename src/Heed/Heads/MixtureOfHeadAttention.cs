using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape and parts of a <see cref="MixtureOfHeadAttention"/>.</summary>
public sealed record MixtureOfHeadAttentionOptions
{
    /// <summary>Width C of the module's input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number H of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Head dimension D; 0: <see cref="Width"/> / <see cref="Heads"/>. The inner width H D need not be <see cref="Width"/>.</summary>
    public int HeadWidth { get; init; }

    /// <summary>How many heads, the first ones, every token uses.</summary>
    public required int SharedHeads { get; init; }

    /// <summary>How many of the other heads a token uses: K, not the number of candidates.</summary>
    public required int RoutedHeads { get; init; }

    /// <summary>Whether the query, key and value projection has a bias.</summary>
    public bool QueryKeyValueBias { get; init; } = true;

    /// <summary>Whether queries and keys are normalised per head (<c>q_norm</c>, <c>k_norm</c>, layer norms).</summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>Epsilon of these norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;

    /// <summary>Times which the load-balance loss is attached to the output in training, so that a training loop need not know of it (the authors: 0.01 over the number of layers with routed heads). Zero: not attached; take it
    /// from <see cref="MixtureOfHeadAttention.ForwardWithRouting"/>.</summary>
    public double BalanceWeight { get; init; }

    /// <summary>Rows and columns of the picture that the tokens are (the last ones, where others stand before them), for maps of the weights; null: no picture.</summary>
    public (int Rows, int Columns)? Grid { get; init; }

    /// <summary>What the attention call does: scale, causality, window and so on.</summary>
    public AttentionOptions Attention { get; init; } = AttentionOptions.Default;

    /// <summary>How it is computed.</summary>
    public RoutedComputation Computation { get; init; }
}

/// <summary>Multi-head attention as a mixture of heads (arXiv 2410.11842, equation 5): <c>out_t = W_O concat_i(g_ti Y_ti) + b</c>, where a router gives each token weights g that are zero for all heads but the shared ones and its own K.
/// Keys and values are those of all tokens and heads. Parameter names: <c>qkv</c>, <c>proj</c>, <c>q_norm</c>, <c>k_norm</c>, <c>wg</c>, <c>wg_0</c>, <c>wg_1</c>.</summary>
/// <remarks>Attention is computed only of the heads that a token uses where that pays, see <see cref="RoutedHeads"/>; queries are projected, and outputs mapped, for all heads.</remarks>
public sealed class MixtureOfHeadAttention : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly MixtureOfHeadAttentionOptions _options;
    private readonly int _headWidth;
    private readonly Func<Tensor, bool, Tensor?, double, HeadRouting> _route;
    private readonly Projection qkv;
    private readonly Projection proj;
    private readonly LayerNorm? q_norm;
    private readonly LayerNorm? k_norm;
    private readonly Projection? wg;
    private readonly Projection? wg_0;
    private readonly Projection? wg_1;

    /// <summary>Makes the module.</summary>
    /// <param name="options">Shape and parts.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">The counts of heads do not fit together, or a width is not positive or does not divide.</exception>
    public MixtureOfHeadAttention(MixtureOfHeadAttentionOptions options, AttentionSite site = default)
        : base(nameof(MixtureOfHeadAttention))
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Width < 1 || options.HeadWidth < 0)
        {
            throw new ArgumentException($"Width and head width must be positive, not {options.Width} and {options.HeadWidth}.", nameof(options));
        }

        // The router checks the counts.
        var router = new HeadRouter(options.Width, options.Heads, options.SharedHeads, options.RoutedHeads);
        if (options.HeadWidth == 0 && options.Width % options.Heads != 0)
        {
            throw new ArgumentException($"A width of {options.Width} does not divide into {options.Heads} heads; give HeadWidth.", nameof(options));
        }

        (_options, Site, _route) = (options, site, router.Route);
        _headWidth = options.HeadWidth == 0 ? options.Width / options.Heads : options.HeadWidth;
        var inner = options.Heads * _headWidth;
        qkv = new(options.Width, 3 * inner, options.QueryKeyValueBias);
        proj = new(inner, options.Width, true);
        if (options.QueryKeyNorm)
        {
            q_norm = nn.LayerNorm(_headWidth, options.NormEpsilon);
            k_norm = nn.LayerNorm(_headWidth, options.NormEpsilon);
        }

        (wg, wg_0, wg_1) = (router.ToRouted, router.ToParts, router.ToShared);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Shape and parts.</summary>
    public MixtureOfHeadAttentionOptions Options => _options;

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; }

    /// <summary>The hooks that the module's attention calls pass on; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return ForwardWithRouting(input).Output.MoveToOuterDisposeScope();
    }

    /// <summary>The module's output and which heads the tokens use.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="counted">Boolean <c>[B, N]</c>: the tokens that count in the load-balance loss; null: all. Leave padding out.</param>
    /// <returns>The output <c>[B, N, C]</c>, and the routing, with the load-balance loss in training.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, HeadRouting Routing) ForwardWithRouting(Tensor input, Tensor? counted = null)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != _options.Width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {_options.Width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        var (batch, tokens) = (input.shape[0], input.shape[1]);
        var routing = _route(input, training, counted, training ? _options.BalanceWeight : 0);
        var projected = qkv.forward(input).view(batch, tokens, 3, _options.Heads, _headWidth).unbind(2);
        var (query, key) = (q_norm?.forward(projected[0]) ?? projected[0], k_norm?.forward(projected[1]) ?? projected[1]);
        var heads = RoutedHeads.Compute(
            query.transpose(1, 2), key.transpose(1, 2), projected[2].transpose(1, 2), routing, _options.Attention, Site, Hooks, _options.Computation);
        GateMaps.Record(this, routing.Gates, _options.Grid);
        var output = proj.forward(heads.transpose(1, 2).reshape(batch, tokens, -1));
        return (output.MoveToOuterDisposeScope(), routing.MoveToOuterDisposeScope());
    }
}

/// <summary>Shows weights of heads over the picture that the tokens are.</summary>
internal static class GateMaps
{
    /// <summary>Hands the weights over where somebody records and there is a picture.</summary>
    /// <param name="source">The module.</param>
    /// <param name="gates"><c>[B, N, H]</c>; the picture's tokens are the last ones.</param>
    /// <param name="grid">Its rows and columns.</param>
    public static void Record(IMapSource source, Tensor gates, (int Rows, int Columns)? grid)
    {
        if (source.Recorder is { } recorder && grid is var (rows, columns) && (long)rows * columns <= gates.shape[1])
        {
            using var scope = NewDisposeScope();
            var heads = gates.shape[2];
            var maps = gates.narrow(1, gates.shape[1] - ((long)rows * columns), (long)rows * columns).transpose(1, 2).reshape(gates.shape[0], heads, rows, columns);
            recorder.Record(source, "gate", maps, [.. Enumerable.Range(0, (int)heads).Select(head => $"head {head}")]);
        }
    }
}
