using Heed.Kernels;

namespace Heed.Masks;

/// <summary>Neighborhood attention (arXiv 2504.16922) in place of a model's dense attention, training-free. On text it is the causal one of a single axis, whose length is the number of keys; on a grid the model's tokens are
/// in raster order.</summary>
/// <remarks>With a stride above 1 the last, incomplete stretch of queries is led by the last token that there is: a token at the end of the text sees up to stride - 1 keys more than it does once the text has gone on. A
/// decoding step therefore equals the last row of a prefill of the same length. On grids <c>Heads.NeighborhoodAttention</c> is faster: a selector cannot re-order the queries.</remarks>
public sealed class NeighborhoodSelector : AttentionSelector
{
    private readonly Neighborhood? _grid;
    private readonly NeighborhoodAxis _axis;
    private (long Queries, long Keys, BlockMask Mask)? _last;

    /// <summary>Makes a selector for causal text.</summary>
    /// <param name="window">Keys that a query sees, its own included, from 1; where the text is shorter, all.</param>
    /// <param name="stride">Neighbouring queries that share the start of their windows, 1 to the window.</param>
    /// <param name="dilation">Distance of two keys of a window, from 1.</param>
    /// <exception cref="ArgumentException">A number is below 1, or the stride exceeds the window.</exception>
    public NeighborhoodSelector(long window, long stride = 1, long dilation = 1)
    {
        _axis = new(long.MaxValue, window, stride, dilation, IsCausal: true);
        if (_axis.Fault is { } fault)
        {
            throw new ArgumentException(fault, nameof(window));
        }
    }

    /// <summary>Makes a selector for a grid.</summary>
    /// <param name="neighborhood">Who sees whom; its tokens are the call's.</param>
    public NeighborhoodSelector(Neighborhood neighborhood)
    {
        ArgumentNullException.ThrowIfNull(neighborhood);
        _grid = neighborhood;
    }

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        var (options, queries, keys) = (call.Options, call.Query.shape[2], call.Key.shape[2]);
        if (_grid is null)
        {
            if (options.Causal == Causality.None || (options.Causal == Causality.AlignedToStart && queries != keys))
            {
                throw new ArgumentException($"Neighborhood attention of one axis follows causal calls aligned to the end; this one is {options.Causal}: give a neighborhood of the grid instead.", nameof(call));
            }

            if (_axis is { Stride: 1, Dilation: 1 })
            {
                call.Options = options with { WindowBefore = Math.Min(options.WindowBefore ?? long.MaxValue, _axis.Window - 1) };
                return;
            }
        }
        else if (queries != _grid.Tokens || keys != _grid.Tokens)
        {
            throw new ArgumentException($"The neighborhood has {_grid.Tokens} tokens; the call has {queries} queries and {keys} keys.", nameof(call));
        }

        if (options.BlockMask is not null || options.QueryLengths is not null || options.KeyLengths is not null || options.QueryOffsets is not null)
        {
            throw new ArgumentException(
                $"Neighborhood attention writes a block mask for sequences of one length: it cannot be combined with {nameof(AttentionOptions)}."
                + $"{(options.BlockMask is not null ? nameof(options.BlockMask) : "lengths or offsets")}.", nameof(call));
        }

        if (_last is not { } last || (last.Queries, last.Keys) != (queries, keys))
        {
            _last = last = (queries, keys, _grid?.ToBlockMask() ?? Build(queries, keys));
        }

        call.Options = options with { BlockMask = last.Mask };
    }

    private BlockMask Build(long queries, long keys)
    {
        var axis = _axis with { Length = keys };
        var selection = new KeySelection(queries, keys);
        for (long query = 0; query < queries; query++)
        {
            var (group, start, end) = axis.Bounds(keys - queries + query);
            if (axis.Dilation == 1)
            {
                selection.AddInterval(0, 0, query, start, end - 1);
                continue;
            }

            for (var y = start; y < end; y++)
            {
                selection.AddKeys(0, 0, query, [(y * axis.Dilation) + group]);
            }
        }

        return selection.ToBlockMask();
    }
}
