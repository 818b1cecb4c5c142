using Heed.Kernels;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention on a grid in which every query sees a box of keys around itself (arXiv 2504.16922; 2204.07143, 2209.15001, 2403.04690).</summary>
/// <remarks>Tokens are re-ordered so that tiles of the grid lie side by side, and the kernel visits the tiles that a tile of queries needs; boxes that align with tiles need no mask. Memory is O(tokens). Which pairs are
/// computed depends on geometry alone and is remembered.</remarks>
public static class NeighborhoodAttention
{
    /// <summary>Neighborhood attention with one list per knob.</summary>
    /// <param name="query"><c>[B, L1, H, D]</c>, <c>[B, L1, L2, H, D]</c> or <c>[B, L1, L2, L3, H, D]</c>: heads last.</param>
    /// <param name="key"><c>[B, grid, Hkv, D]</c>, Hkv a divisor of H.</param>
    /// <param name="value"><c>[B, grid, Hkv, Dv]</c>.</param>
    /// <param name="window">Keys on each axis, from 2, or one number for all axes; -1: the whole axis.</param>
    /// <param name="stride">Neighbouring queries that share a window, 1 to the window; null: 1.</param>
    /// <param name="dilation">Distance of two keys of a window, from 1; null: 1. Window times dilation is at most the axis's length.</param>
    /// <param name="isCausal">Axes on which later keys are left out; null: none.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="additionalKeys">Keys that every query sees beside its window (text tokens, registers), <c>[B, E, Hkv, D]</c>; null: none.</param>
    /// <param name="additionalValues">Their values, <c>[B, E, Hkv, Dv]</c>.</param>
    /// <returns>The output <c>[B, grid, H, Dv]</c>. Differentiable; the choice of windows has no gradient.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, a window is below 2 or does not fit its axis, a stride exceeds its window, or only one of the additional tensors is given.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, IReadOnlyList<long> window, IReadOnlyList<long>? stride = null, IReadOnlyList<long>? dilation = null, IReadOnlyList<bool>? isCausal = null,
        double? scale = null, Tensor? additionalKeys = null, Tensor? additionalValues = null) =>
        Compute(query, key, value, Geometry(query, window, stride, dilation, isCausal), scale, additionalKeys, additionalValues);

    /// <summary>Neighborhood attention over a given neighborhood.</summary>
    /// <param name="query"><c>[B, grid, H, D]</c>.</param>
    /// <param name="key"><c>[B, grid, Hkv, D]</c>.</param>
    /// <param name="value"><c>[B, grid, Hkv, Dv]</c>.</param>
    /// <param name="neighborhood">Who sees whom, on the same grid.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="additionalKeys">Keys that every query sees, <c>[B, E, Hkv, D]</c>; null: none.</param>
    /// <param name="additionalValues">Their values, <c>[B, E, Hkv, Dv]</c>.</param>
    /// <param name="tiles">Tiles to compute in, for comparisons: the result does not depend on them. Null: those with the least work.</param>
    /// <param name="site">Where the call stands in its model; needed where hooks are given.</param>
    /// <param name="hooks">The model's hooks; null: none. A call with hooks is computed in raster order (keys of the grid, then the additional ones), so that they see queries and keys where the model has them; that is
    /// slower.</param>
    /// <returns>The output <c>[B, grid, H, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, or only one of the additional tensors is given.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, double? scale = null, Tensor? additionalKeys = null, Tensor? additionalValues = null, NeighborhoodTiles? tiles = null,
        AttentionSite site = default, AttentionHooks? hooks = null)
    {
        using var scope = NewDisposeScope();
        if (hooks is not null && hooks.StagesAt(site) != AttentionStages.None)
        {
            return Hooked(query, key, value, neighborhood, scale, additionalKeys, additionalValues, site, hooks).MoveToOuterDisposeScope();
        }

        return Run(query, key, value, neighborhood, scale, additionalKeys, additionalValues, tiles, withLogSumExp: false).Output.MoveToOuterDisposeScope();
    }

    /// <summary>As <see cref="Compute(Tensor, Tensor, Tensor, Neighborhood, double?, Tensor?, Tensor?, NeighborhoodTiles?, AttentionSite, AttentionHooks?)"/>, with what <see cref="AttentionMerge"/> needs to put the result together with
    /// attention over other keys.</summary>
    /// <param name="query"><c>[B, grid, H, D]</c>.</param>
    /// <param name="key"><c>[B, grid, Hkv, D]</c>.</param>
    /// <param name="value"><c>[B, grid, Hkv, Dv]</c>.</param>
    /// <param name="neighborhood">Who sees whom, on the same grid.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(D).</param>
    /// <param name="additionalKeys">Keys that every query sees, <c>[B, E, Hkv, D]</c>; null: none.</param>
    /// <param name="additionalValues">Their values, <c>[B, E, Hkv, Dv]</c>.</param>
    /// <param name="tiles">Tiles to compute in; null: those with the least work.</param>
    /// <returns>The output <c>[B, grid, H, Dv]</c> and the log-sum-exp (natural logarithm) <c>[B, grid, H]</c>. Gradients flow through both.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, or only one of the additional tensors is given.</exception>
    public static (Tensor Output, Tensor LogSumExp) ComputePart(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, double? scale = null, Tensor? additionalKeys = null, Tensor? additionalValues = null, NeighborhoodTiles? tiles = null)
    {
        using var scope = NewDisposeScope();
        var (output, logSumExp) = Run(query, key, value, neighborhood, scale, additionalKeys, additionalValues, tiles, withLogSumExp: true);
        return (output.MoveToOuterDisposeScope(), logSumExp!.MoveToOuterDisposeScope());
    }

    /// <summary>The neighborhood of a query's grid, with the limits of the published operator.</summary>
    internal static Neighborhood Geometry(
        Tensor query, IReadOnlyList<long> window, IReadOnlyList<long>? stride, IReadOnlyList<long>? dilation, IReadOnlyList<bool>? isCausal)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(window);
        if (query.dim() is < 4 or > 6)
        {
            throw new ArgumentException($"Neighborhood attention takes [B, grid, H, D] with a grid of 1 to 3 axes; {AttentionShape.Text(query)} was given.", nameof(query));
        }

        if (window.FirstOrDefault(keys => keys is < 2 and not Neighborhood.WholeAxis, 2) is var small and not 2)
        {
            throw new ArgumentException($"A window holds at least 2 keys (or -1 for the whole axis), not {small}.", nameof(window));
        }

        return Neighborhood.Of(query.shape[1..^2], window, stride, dilation, isCausal);
    }

    private static Tensor Hooked(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, double? scale, Tensor? additionalKeys, Tensor? additionalValues, AttentionSite site, AttentionHooks hooks)
    {
        ArgumentNullException.ThrowIfNull(neighborhood);
        Check(query, key, value, neighborhood, additionalKeys, additionalValues);
        var options = AttentionOptions.Default with { Scale = scale, BlockMask = neighborhood.ToBlockMask(additionalKeys: additionalKeys?.shape[1] ?? 0) };
        var output = Attention.Compute(
            query.flatten(1, -3).transpose(1, 2), WithMore(key.flatten(1, -3), additionalKeys).transpose(1, 2), WithMore(value.flatten(1, -3), additionalValues).transpose(1, 2), options, site, hooks);
        return output.transpose(1, 2).reshape([query.shape[0], .. query.shape[1..^1], value.shape[^1]]);

        static Tensor WithMore(Tensor tensor, Tensor? more) => more is null ? tensor : cat([tensor, more], 1);
    }

    private static (Tensor Output, Tensor? LogSumExp) Run(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, double? scale, Tensor? additionalKeys, Tensor? additionalValues, NeighborhoodTiles? tiles, bool withLogSumExp)
    {
        ArgumentNullException.ThrowIfNull(neighborhood);
        Check(query, key, value, neighborhood, additionalKeys, additionalValues);
        var (batch, heads, tokens) = (query.shape[0], query.shape[^2], neighborhood.Tokens);
        var options = AttentionOptions.Default with { Scale = scale };
        var hasMore = additionalKeys is not null && additionalKeys.shape[1] > 0;
        var (output, logSumExp) = Window(Tokens(query), Tokens(key), Tokens(value), neighborhood, options, tiles, withLogSumExp || hasMore);
        if (hasMore)
        {
            var more = Attention.ComputePart(Tokens(query).transpose(1, 2), additionalKeys!.transpose(1, 2), additionalValues!.transpose(1, 2), options);
            (output, logSumExp) = Attention.Merge((output, logSumExp!), (more.Output.transpose(1, 2), more.LogSumExp.transpose(1, 2)));
        }

        var grid = query.shape[1..^2];
        return (output.reshape([batch, .. grid, heads, value.shape[^1]]), logSumExp?.reshape([batch, .. grid, heads]));

        Tensor Tokens(Tensor tensor) => tensor.reshape(batch, tokens, tensor.shape[^2], tensor.shape[^1]);
    }

    /// <summary>Attention within the windows over tokens <c>[B, N, H, D]</c>: output <c>[B, N, H, Dv]</c>, log-sum-exp <c>[B, N, H]</c>.</summary>
    private static (Tensor Output, Tensor? LogSumExp) Window(
        Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, AttentionOptions options, NeighborhoodTiles? tiles, bool withLogSumExp)
    {
        if (tiles is null)
        {
            if (neighborhood.IsWhole)
            {
                return Through(query, key, value, options, withLogSumExp);
            }

            if (neighborhood.Axes is [{ IsCausal: true, Dilation: 1 } causal] && (causal.Stride == 1 || causal.IsWhollyCausal))
            {
                return Through(query, key, value, options with { Causal = Causality.AlignedToEnd, WindowBefore = causal.Window - 1 }, withLogSumExp);
            }

            if (neighborhood.Axes.All(axis => axis is { IsCausal: false, Dilation: 1 } && (axis.Stride == axis.Window || axis.IsWhole) && axis.Length % axis.Window == 0))
            {
                // Every block by itself: a batch of small dense problems.
                var blocks = TokenOrder.Tiles([.. neighborhood.Axes.Select(axis => axis.Length)], [.. neighborhood.Axes.Select(axis => axis.Window)]);
                return Ordered(query, key, value, blocks, blocks, neighborhood.Tokens / neighborhood.WindowTokens, options, withLogSumExp);
            }
        }

        var plan = NeighborhoodPlan.Of(neighborhood, tiles);
        return Ordered(query, key, value, plan.QueryOrder, plan.KeyOrder, plan.Groups, options with { BlockMask = plan.Mask(query.shape[0]) }, withLogSumExp);
    }

    /// <summary>Re-orders tokens into groups, computes the groups as a batch, and puts tokens back.</summary>
    private static (Tensor Output, Tensor? LogSumExp) Ordered(
        Tensor query, Tensor key, Tensor value, TokenOrder? queryOrder, TokenOrder? keyOrder, long groups, AttentionOptions options, bool withLogSumExp)
    {
        var batch = query.shape[0];
        var (output, logSumExp) = Through(Grouped(query, queryOrder), Grouped(key, keyOrder), Grouped(value, keyOrder), options, withLogSumExp);
        return (Back(output)!, Back(logSumExp));

        Tensor Grouped(Tensor tensor, TokenOrder? order)
        {
            var ordered = order?.Apply(tensor, 1) ?? tensor;
            return groups == 1 ? ordered : ordered.reshape(batch * groups, ordered.shape[1] / groups, ordered.shape[2], ordered.shape[3]);
        }

        Tensor? Back(Tensor? tensor)
        {
            if (tensor is null)
            {
                return null;
            }

            var whole = groups == 1 ? tensor : tensor.reshape([batch, tensor.shape[1] * groups, .. tensor.shape[2..]]);
            return queryOrder?.Restore(whole, 1) ?? whole;
        }
    }

    private static (Tensor Output, Tensor? LogSumExp) Through(Tensor query, Tensor key, Tensor value, AttentionOptions options, bool withLogSumExp)
    {
        var (q, k, v) = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2));
        if (!withLogSumExp)
        {
            return (Attention.Compute(q, k, v, options).transpose(1, 2), null);
        }

        var (output, logSumExp) = Attention.ComputePart(q, k, v, options);
        return (output.transpose(1, 2), logSumExp.transpose(1, 2));
    }

    private static void Check(Tensor query, Tensor key, Tensor value, Neighborhood neighborhood, Tensor? additionalKeys, Tensor? additionalValues)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        var grid = neighborhood.Axes.Select(axis => axis.Length).ToArray();
        foreach (var tensor in new[] { query, key, value })
        {
            if (tensor.dim() != grid.Length + 3 || !tensor.shape.AsSpan(1, grid.Length).SequenceEqual(grid))
            {
                throw new ArgumentException(
                    $"Query, key and value are [B, {string.Join(", ", grid)}, heads, D] on this grid; {AttentionShape.Text(query)}, {AttentionShape.Text(key)} and {AttentionShape.Text(value)} were given.", nameof(query));
            }
        }

        if ((additionalKeys is null) != (additionalValues is null))
        {
            throw new ArgumentException("Additional keys and additional values come together; only one of them was given.", nameof(additionalKeys));
        }

        foreach (var (tensor, like, name) in new[] { (additionalKeys, key, "keys"), (additionalValues, value, "values") })
        {
            if (tensor is not null && (tensor.dim() != 4 || tensor.shape[0] != like.shape[0] || tensor.shape[1] != additionalKeys!.shape[1] || !tensor.shape.AsSpan(2).SequenceEqual(like.shape.AsSpan((int)like.dim() - 2))))
            {
                throw new ArgumentException(
                    $"Additional {name} are [{like.shape[0]}, E, {like.shape[^2]}, {like.shape[^1]}] beside {AttentionShape.Text(like)}; {AttentionShape.Text(tensor)} were given.", nameof(additionalKeys));
            }
        }
    }
}
