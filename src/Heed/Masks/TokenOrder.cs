using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// A re-ordering of tokens, with padding: place i of the new order holds token <c>order[i]</c>, or zeros where that is -1. Tiles of a grid, space-filling curves and scans are data for it. Immutable;
/// shared between calls and threads.
/// </summary>
public sealed class TokenOrder
{
    private readonly long[] _order;
    private readonly long[] _padding;
    // Where each token went, -1 for tokens that are left out; null where a token stands at several places.
    private readonly long[]? _places;

    /// <summary>Initializes an order.</summary>
    /// <param name="order">The token of each place of the new order, 0 to <paramref name="tokens"/> - 1, or -1 for padding. Tokens may be left out, and may stand at several places.</param>
    /// <param name="tokens">Number of tokens before re-ordering, from 1.</param>
    /// <exception cref="ArgumentException">There are no tokens, no places, or a place names a token that does not exist.</exception>
    public TokenOrder(long[] order, long tokens)
    {
        ArgumentNullException.ThrowIfNull(order);
        if (tokens < 1 || order.Length < 1)
        {
            throw new ArgumentException($"A token order has at least one token and one place; {tokens} tokens and {order.Length} places were given.", nameof(order));
        }

        _order = [.. order];
        Tokens = tokens;
        var places = new long[tokens];
        Array.Fill(places, -1);
        var padding = new List<long>();
        var isDistinct = true;
        for (var place = 0; place < _order.Length; place++)
        {
            var token = _order[place];
            if (token < -1 || token >= tokens)
            {
                throw new ArgumentException($"Place {place} of the order names token {token}; there are tokens 0 to {tokens - 1}, and -1 stands for padding.", nameof(order));
            }

            if (token < 0)
            {
                padding.Add(place);
            }
            else
            {
                isDistinct &= places[token] < 0;
                places[token] = place;
            }
        }

        _padding = [.. padding];
        _places = isDistinct ? places : null;
        IsComplete = Array.IndexOf(places, -1) < 0;
    }

    /// <summary>Number of tokens before re-ordering.</summary>
    public long Tokens { get; }

    /// <summary>Number of places after re-ordering, padding included.</summary>
    public long Places => _order.Length;

    /// <summary>The token of each place, -1 for padding.</summary>
    public ReadOnlySpan<long> Order => _order;

    /// <summary>Whether no token stands at two places.</summary>
    public bool IsDistinct => _places is not null;

    /// <summary>Whether every token has a place.</summary>
    public bool IsComplete { get; }

    /// <summary>Whether some places are padding.</summary>
    public bool HasPadding => _padding.Length > 0;

    /// <summary>The order back: place t holds the place that token t went to, padding where it went nowhere.</summary>
    /// <exception cref="InvalidOperationException">A token stands at several places.</exception>
    public TokenOrder Inverse => _places is not null
        ? new(_places, Places)
        : throw new InvalidOperationException("An order in which a token stands at several places has no inverse; Restore adds them up.");

    /// <summary>The order that leaves tokens where they are.</summary>
    /// <param name="tokens">Number of tokens, from 1.</param>
    public static TokenOrder Identity(long tokens)
    {
        var order = new long[tokens];
        for (long i = 0; i < tokens; i++)
        {
            order[i] = i;
        }

        return new(order, tokens);
    }

    /// <summary>Cuts a grid (tokens in raster order) into tiles, tile after tile, the tokens of a tile side by side: padding at the end of each axis to whole tiles. With dilation the grid first falls apart into groups
    /// of every d-th token, one group after the other.</summary>
    /// <param name="grid">Length of each axis, from 1.</param>
    /// <param name="tile">Length of a tile on each axis, from 1.</param>
    /// <param name="dilation">Dilation of each axis, from 1; null: 1.</param>
    /// <param name="isReversed">Whether axes are walked in reversed order (the first axis fastest) among groups, tiles and tokens of a tile.</param>
    /// <returns>An order with <c>prod d * prod(rest * tile)</c> places.</returns>
    /// <exception cref="ArgumentException">The axes differ in number, or a length is below 1.</exception>
    public static TokenOrder Tiles(IReadOnlyList<long> grid, IReadOnlyList<long> tile, IReadOnlyList<long>? dilation = null, bool isReversed = false)
    {
        ArgumentNullException.ThrowIfNull(grid);
        ArgumentNullException.ThrowIfNull(tile);
        var axes = grid.Count;
        dilation ??= [.. Enumerable.Repeat(1L, axes)];
        if (axes < 1 || tile.Count != axes || dilation.Count != axes || grid.Concat(tile).Concat(dilation).Any(length => length < 1))
        {
            throw new ArgumentException(
                $"Grid, tile and dilation have one length of at least 1 per axis; {string.Join("x", grid)}, {string.Join("x", tile)} and {string.Join("x", dilation)} were given.", nameof(tile));
        }

        // Digits of a place, slowest first: dilation offsets, tiles, tokens of a tile; each with what a step of it moves along its axis.
        var walk = isReversed ? Enumerable.Range(0, axes).Reverse().ToArray() : [.. Enumerable.Range(0, axes)];
        var digits = new List<(int Axis, long Count, long Step)>();
        digits.AddRange(walk.Select(axis => (axis, dilation[axis], 1L)));
        digits.AddRange(walk.Select(axis => (axis, (grid[axis] + (tile[axis] * dilation[axis]) - 1) / (tile[axis] * dilation[axis]), tile[axis] * dilation[axis])));
        digits.AddRange(walk.Select(axis => (axis, tile[axis], dilation[axis])));
        long tokens = 1, places = 1;
        foreach (var length in grid)
        {
            tokens = checked(tokens * length);
        }

        foreach (var (_, count, _) in digits)
        {
            places = checked(places * count);
        }

        var order = new long[places];
        var counters = new long[digits.Count];
        var position = new long[axes];
        for (long place = 0; place < places; place++)
        {
            long token = 0;
            for (var axis = 0; axis < axes && token >= 0; axis++)
            {
                token = position[axis] < grid[axis] ? (token * grid[axis]) + position[axis] : -1;
            }

            order[place] = token;
            for (var digit = digits.Count - 1; digit >= 0; digit--)
            {
                var (axis, count, step) = digits[digit];
                position[axis] += step;
                if (++counters[digit] < count)
                {
                    break;
                }

                position[axis] -= count * step;
                counters[digit] = 0;
            }
        }

        return new(order, tokens);
    }

    /// <summary>This order followed by another one of its places.</summary>
    /// <param name="next">An order of <see cref="Places"/> tokens.</param>
    /// <returns>One order that does both.</returns>
    /// <exception cref="ArgumentException">The other order is of another number of tokens.</exception>
    public TokenOrder Then(TokenOrder next)
    {
        ArgumentNullException.ThrowIfNull(next);
        return next.Tokens == Places
            ? new([.. next._order.Select(place => place < 0 ? -1 : _order[place])], Tokens)
            : throw new ArgumentException($"This order has {Places} places; an order of {next.Tokens} tokens cannot follow.", nameof(next));
    }

    /// <summary>Puts a tensor's tokens into this order; padding is zeros. Differentiable.</summary>
    /// <param name="tensor">Any shape with <see cref="Tokens"/> along <paramref name="axis"/>.</param>
    /// <param name="axis">The axis of the tokens; negative ones count from the end.</param>
    /// <returns>The same shape with <see cref="Places"/> along the axis.</returns>
    /// <exception cref="ArgumentException">The axis has another length.</exception>
    public Tensor Apply(Tensor tensor, int axis) => Gather(tensor, axis, _order, _padding, Tokens, "tokens");

    /// <summary>Takes every token back from its place; tokens that were left out are zeros, tokens that stand at several places are added up, padding is dropped: the transpose of <see cref="Apply"/>, and its inverse
    /// where every token has one place. Differentiable.</summary>
    /// <param name="tensor">Any shape with <see cref="Places"/> along <paramref name="axis"/>.</param>
    /// <param name="axis">The axis of the places; negative ones count from the end.</param>
    /// <returns>The same shape with <see cref="Tokens"/> along the axis.</returns>
    /// <exception cref="ArgumentException">The axis has another length.</exception>
    public Tensor Restore(Tensor tensor, int axis)
    {
        if (_places is not null)
        {
            return Gather(tensor, axis, _places, IsComplete ? [] : [.. Missing()], Places, "places");
        }

        using var scope = NewDisposeScope();
        axis = Checked(tensor, axis, Places, "places");
        var taken = new List<long>();
        for (var place = 0; place < _order.Length; place++)
        {
            if (_order[place] >= 0)
            {
                taken.Add(place);
            }
        }

        var shape = tensor.shape;
        shape[axis] = Tokens;
        var present = HasPadding ? tensor.index_select(axis, Indices([.. taken], tensor)) : tensor;
        using Scalar unity = 1;
        return zeros(shape, tensor.dtype, tensor.device)
            .index_add(axis, Indices([.. taken.Select(place => _order[place])], tensor), present, unity).MoveToOuterDisposeScope();
    }

    private static Tensor Gather(Tensor tensor, int axis, long[] from, long[] empty, long length, string name)
    {
        axis = Checked(tensor, axis, length, name);
        using var scope = NewDisposeScope();
        if (empty.Length == 0)
        {
            return tensor.index_select(axis, Indices(from, tensor)).MoveToOuterDisposeScope();
        }

        // Something must be read for padding: the first token, overwritten at once.
        using Scalar zero = 0;
        return tensor.index_select(axis, Indices([.. from.Select(index => Math.Max(index, 0))], tensor)).index_fill_(axis, Indices(empty, tensor), zero).MoveToOuterDisposeScope();
    }

    private static int Checked(Tensor tensor, int axis, long length, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        var dimensions = (int)tensor.dim();
        var wanted = axis < 0 ? axis + dimensions : axis;
        return wanted >= 0 && wanted < dimensions && tensor.size(wanted) == length
            ? wanted
            : throw new ArgumentException($"The order is one of {length} {name}; axis {axis} of {AttentionShape.Text(tensor)} was given.", nameof(tensor));
    }

    private static Tensor Indices(long[] values, Tensor like) => torch.tensor(values, device: like.device);

    private IEnumerable<long> Missing()
    {
        for (long token = 0; token < Tokens; token++)
        {
            if (_places![token] < 0)
            {
                yield return token;
            }
        }
    }
}
