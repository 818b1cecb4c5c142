using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>A layer of neighborhood attention over a grid (arXiv 2504.16922): projections to queries, keys and values of the heads, attention within windows, projection back. Parameters <c>qkv.weight</c> <c>[3C, C]</c>,
/// <c>qkv.bias</c>, <c>proj.weight</c> <c>[C, C]</c>, <c>proj.bias</c>, as published checkpoints have them.</summary>
public abstract class NeighborhoodAttentionModule : nn.Module<Tensor, Tensor>
{
    private readonly Linear qkv;
    private readonly Linear proj;
    private readonly Dropout proj_drop;
    private readonly int _axes;
    private readonly long _width, _heads;
    private readonly IReadOnlyList<long> _window, _stride, _dilation;
    private readonly IReadOnlyList<bool> _isCausal;
    private readonly double? _scale;

    private protected NeighborhoodAttentionModule(
        string name, int axes, long width, long heads, IReadOnlyList<long> window, IReadOnlyList<long>? stride, IReadOnlyList<long>? dilation, IReadOnlyList<bool>? isCausal, bool hasQkvBias, double? scale,
        double dropout)
        : base(name)
    {
        ArgumentNullException.ThrowIfNull(window);
        if (width < 1 || heads < 1 || width % heads != 0)
        {
            throw new ArgumentException($"The number of heads divides the width; {heads} heads and width {width} were given.", nameof(heads));
        }

        (_axes, _width, _heads, _window, _stride, _dilation, _isCausal, _scale) = (axes, width, heads, window, stride ?? [1], dilation ?? [1], isCausal ?? [false], scale);
        foreach (var (count, knob) in new[] { (_window.Count, "window"), (_stride.Count, "stride"), (_dilation.Count, "dilation"), (_isCausal.Count, "causality") })
        {
            if (count != 1 && count != axes)
            {
                throw new ArgumentException($"The {knob} is one value, or one for each of the {axes} axes; {count} were given.", nameof(window));
            }
        }

        qkv = nn.Linear(width, 3 * width, hasQkvBias);
        proj = nn.Linear(width, width);
        proj_drop = nn.Dropout(dropout);
        RegisterComponents();
    }

    /// <summary>Where the layer stands in its model.</summary>
    public AttentionSite Site { get; set; }

    /// <summary>The model's hooks; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, grid, C]</c>.</param>
    /// <returns><c>[B, grid, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another number of axes or width, or the window does not fit its grid.</exception>
    public override Tensor forward(Tensor input) => forward(input, null, null);

    /// <summary>The layer's output with keys that every query sees beside its window.</summary>
    /// <param name="input"><c>[B, grid, C]</c>.</param>
    /// <param name="additionalKeys"><c>[B, E, H, D]</c>; null: none.</param>
    /// <param name="additionalValues"><c>[B, E, H, D]</c>; null: none.</param>
    /// <returns><c>[B, grid, C]</c>.</returns>
    /// <exception cref="ArgumentException">As for <see cref="forward(Tensor)"/>, or the additional tensors do not fit.</exception>
    public Tensor forward(Tensor input, Tensor? additionalKeys, Tensor? additionalValues)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != _axes + 2 || input.shape[^1] != _width)
        {
            throw new ArgumentException($"The input is [B, grid of {_axes}, {_width}]; {AttentionShape.Text(input)} was given.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var parts = qkv.forward(input).reshape([.. input.shape[..^1], 3, _heads, _width / _heads]).unbind(-3);
        var neighborhood = NeighborhoodAttention.Geometry(parts[0], _window, _stride, _dilation, _isCausal);
        var heads = NeighborhoodAttention.Compute(parts[0], parts[1], parts[2], neighborhood, _scale, additionalKeys, additionalValues, site: Site, hooks: Hooks);
        return proj_drop.forward(proj.forward(heads.reshape(input.shape))).MoveToOuterDisposeScope();
    }
}

/// <summary>Neighborhood attention over a sequence <c>[B, L, C]</c>.</summary>
public sealed class NeighborhoodAttention1d : NeighborhoodAttentionModule
{
    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="window">Keys of a window, from 2; -1: all.</param>
    /// <param name="stride">Neighbouring queries that share a window.</param>
    /// <param name="dilation">Distance of two keys of a window.</param>
    /// <param name="isCausal">Whether later keys are left out.</param>
    /// <param name="hasQkvBias">Whether the projection to queries, keys and values has a bias.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="dropout">Share of the output dropped in training.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width.</exception>
    public NeighborhoodAttention1d(
        long width, long heads, long window, long stride = 1, long dilation = 1, bool isCausal = false, bool hasQkvBias = true, double? scale = null, double dropout = 0)
        : base(nameof(NeighborhoodAttention1d), 1, width, heads, [window], [stride], [dilation], [isCausal], hasQkvBias, scale, dropout)
    {
    }
}

/// <summary>Neighborhood attention over images <c>[B, L1, L2, C]</c>.</summary>
public sealed class NeighborhoodAttention2d : NeighborhoodAttentionModule
{
    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="window">Keys of a window on each axis, from 2, or one number for both; -1: all.</param>
    /// <param name="stride">Neighbouring queries that share a window; null: 1.</param>
    /// <param name="dilation">Distance of two keys of a window; null: 1.</param>
    /// <param name="isCausal">Axes on which later keys are left out; null: none.</param>
    /// <param name="hasQkvBias">Whether the projection to queries, keys and values has a bias.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="dropout">Share of the output dropped in training.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width, or a list is neither one nor two long.</exception>
    public NeighborhoodAttention2d(
        long width, long heads, IReadOnlyList<long> window, IReadOnlyList<long>? stride = null, IReadOnlyList<long>? dilation = null, IReadOnlyList<bool>? isCausal = null, bool hasQkvBias = true,
        double? scale = null, double dropout = 0)
        : base(nameof(NeighborhoodAttention2d), 2, width, heads, window, stride, dilation, isCausal, hasQkvBias, scale, dropout)
    {
    }
}

/// <summary>Neighborhood attention over videos or volumes <c>[B, L1, L2, L3, C]</c>.</summary>
public sealed class NeighborhoodAttention3d : NeighborhoodAttentionModule
{
    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <param name="window">Keys of a window on each axis, from 2, or one number for all; -1: all.</param>
    /// <param name="stride">Neighbouring queries that share a window; null: 1.</param>
    /// <param name="dilation">Distance of two keys of a window; null: 1.</param>
    /// <param name="isCausal">Axes on which later keys are left out; null: none.</param>
    /// <param name="hasQkvBias">Whether the projection to queries, keys and values has a bias.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="dropout">Share of the output dropped in training.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width, or a list is neither one nor three long.</exception>
    public NeighborhoodAttention3d(
        long width, long heads, IReadOnlyList<long> window, IReadOnlyList<long>? stride = null, IReadOnlyList<long>? dilation = null, IReadOnlyList<bool>? isCausal = null, bool hasQkvBias = true,
        double? scale = null, double dropout = 0)
        : base(nameof(NeighborhoodAttention3d), 3, width, heads, window, stride, dilation, isCausal, hasQkvBias, scale, dropout)
    {
    }
}
