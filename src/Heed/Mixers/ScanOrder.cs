using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>How a step of a scan was reached from the step before: what PlainMamba's direction terms are looked up by.</summary>
public enum ScanDirection
{
    /// <summary>The first step.</summary>
    Start,

    /// <summary>One column to the right.</summary>
    Right,

    /// <summary>One column to the left.</summary>
    Left,

    /// <summary>One row up.</summary>
    Up,

    /// <summary>One row down.</summary>
    Down,
}

/// <summary>The four routes of a cross-scan.</summary>
public enum CrossRoutes
{
    /// <summary>Row by row, column by column, and both reversed (VMamba's <c>cross2d</c>).</summary>
    TwoDimensional,

    /// <summary>Row by row twice, and reversed twice (<c>bidi</c>).</summary>
    Bidirectional,

    /// <summary>Row by row four times (<c>unidi</c>).</summary>
    Unidirectional,
}

/// <summary>The routes along which a scan goes over a picture: index permutations, as data for one gather and one scatter-add. Tokens are numbered row by row, <c>y * width + x</c>; place t of route k holds token
/// <c>Order(k)[t]</c>, or zeros where that is -1. Immutable; shared between calls and threads. The taxonomy is that of arXiv 2404.15956.</summary>
public sealed class ScanOrder
{
    private readonly TokenOrder[] _routes;
    // All routes one behind the other: one gather instead of one per route.
    private readonly TokenOrder _joined;

    /// <summary>Initializes an order.</summary>
    /// <param name="name">What it is called.</param>
    /// <param name="height">Rows of the picture, from 1.</param>
    /// <param name="width">Columns of the picture, from 1.</param>
    /// <param name="routes">Routes of <c>height * width</c> tokens, at least one, all of the same number of places.</param>
    /// <exception cref="ArgumentException">A side is below 1, there is no route, or routes differ in length or in their number of tokens.</exception>
    public ScanOrder(string name, int height, int width, params TokenOrder[] routes)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        ArgumentNullException.ThrowIfNull(routes);
        CheckSides(height, width);
        if (routes.Length == 0 || routes.Any(route => route.Tokens != (long)height * width || route.Places != routes[0].Places))
        {
            throw new ArgumentException($"A scan of {height} x {width} tokens needs at least one route, all of {(long)height * width} tokens and as long as each other.", nameof(routes));
        }

        (Name, Height, Width, _routes) = (name, height, width, [.. routes]);
        _joined = new([.. routes.SelectMany(route => route.Order.ToArray())], Tokens);
    }

    /// <summary>What it is called, for example <c>continuous</c>.</summary>
    public string Name { get; }

    /// <summary>Rows of the picture.</summary>
    public int Height { get; }

    /// <summary>Columns of the picture.</summary>
    public int Width { get; }

    /// <summary>Tokens of the picture.</summary>
    public long Tokens => (long)Height * Width;

    /// <summary>Number K of routes.</summary>
    public int Count => _routes.Length;

    /// <summary>Places of a route, padding included.</summary>
    public long Length => _routes[0].Places;

    /// <summary>The routes.</summary>
    public IReadOnlyList<TokenOrder> Routes => _routes;

    /// <summary>Whether every step of every route goes to a neighbouring cell.</summary>
    public bool IsContinuous => Enumerable.Range(0, Count).All(route => Walk(route) is not null);

    /// <summary>Row by row from the top left: one route.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    public static ScanOrder Raster(int height, int width)
    {
        CheckSides(height, width);
        return new("raster", height, width, TokenOrder.Identity((long)height * width));
    }

    /// <summary>The four routes of VMamba (arXiv 2401.10166, section 4.2) and their controls. Routes 2 and 3 are routes 0 and 1 reversed.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="routes">Which four.</param>
    public static ScanOrder Cross(int height, int width, CrossRoutes routes = CrossRoutes.TwoDimensional)
    {
        CheckSides(height, width);
        var rows = TokenOrder.Identity((long)height * width);
        var columns = TokenOrder.Tiles([height, width], [height, width], isReversed: true);
        return routes switch
        {
            CrossRoutes.TwoDimensional => new("cross2d", height, width, rows, columns, Reversed(rows), Reversed(columns)),
            CrossRoutes.Bidirectional => new("bidi", height, width, rows, rows, Reversed(rows), Reversed(rows)),
            CrossRoutes.Unidirectional => new("unidi", height, width, rows, rows, rows, rows),
            _ => throw new ArgumentOutOfRangeException(nameof(routes), routes, "The routes of a cross-scan are TwoDimensional, Bidirectional or Unidirectional."),
        };
    }

    /// <summary>Window by window (LocalMamba, arXiv 2403.09338, section 4.1): one route. The picture is padded with zeros at the bottom and at the right to whole windows; the padding is part of the route.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="window">Side of a window, from 1.</param>
    /// <param name="flip">Whether the route (padding included, so that it may come first) is reversed.</param>
    /// <param name="columnFirst">Whether windows, and the tokens in them, are walked column by column instead of row by row.</param>
    /// <exception cref="ArgumentException">The window is below 1.</exception>
    public static ScanOrder Local(int height, int width, int window, bool flip = false, bool columnFirst = false)
    {
        CheckSides(height, width);
        var route = Windows(height, width, window, columnFirst);
        return new($"local{window}", height, width, flip ? Reversed(route) : route);
    }

    /// <summary>Four routes over windows: row by row, column by column, and both reversed, as LocalMamba's blocks of four directions combine them.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="window">Side of a window, from 1.</param>
    /// <exception cref="ArgumentException">The window is below 1.</exception>
    public static ScanOrder LocalCross(int height, int width, int window)
    {
        CheckSides(height, width);
        var (rows, columns) = (Windows(height, width, window, false), Windows(height, width, window, true));
        return new($"local{window}", height, width, rows, columns, Reversed(rows), Reversed(columns));
    }

    /// <summary>Four serpentines whose consecutive tokens are always neighbours (PlainMamba, arXiv 2403.17695, section 3.2): by rows from the top left, by columns from the top left, and both reversed, in the order rows,
    /// rows reversed, columns, columns reversed.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    public static ScanOrder Continuous(int height, int width)
    {
        CheckSides(height, width);
        var rows = Serpentine(height, width, (line, place) => (line, place));
        var columns = Serpentine(width, height, (line, place) => (place, line), width);
        return new("continuous", height, width, rows, Reversed(rows), columns, Reversed(columns));
    }

    /// <summary>Four sequences of a quarter of the tokens (EfficientVMamba, arXiv 2403.09977, section 3.2): even rows and even columns row by row; odd rows and even columns column by column; even rows and odd columns row by row; odd
    /// rows and odd columns column by column. The picture is padded with zeros to even sides.</summary>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="step">Distance of neighbours in a sequence: 2.</param>
    /// <exception cref="ArgumentException">The step is another one: four sequences then leave cells out.</exception>
    public static ScanOrder Atrous(int height, int width, int step = 2)
    {
        CheckSides(height, width);
        if (step != 2)
        {
            throw new ArgumentException($"Four atrous sequences cover every token at a step of 2 only, not {step}: use a step of 2.", nameof(step));
        }

        var (rows, columns) = ((height + 1) / 2, (width + 1) / 2);
        TokenOrder Route(int row, int column, bool columnFirst) => new(
            [.. Enumerable.Range(0, rows * columns).Select(place =>
            {
                var (y, x) = columnFirst ? (place % rows, place / rows) : (place / columns, place % columns);
                (y, x) = ((2 * y) + row, (2 * x) + column);
                return y < height && x < width ? ((long)y * width) + x : -1;
            })],
            (long)height * width);
        return new("atrous", height, width, Route(0, 0, false), Route(1, 0, true), Route(0, 1, false), Route(1, 1, true));
    }

    /// <summary>Eight serpentines over a square (ZigMa, arXiv 2403.13802, section 3.2): from the top left, top right, bottom left and bottom right corner, by rows and then by columns each. Layer i uses route i modulo their number.</summary>
    /// <param name="side">Rows and columns, from 1.</param>
    public static ScanOrder Zigzag(int side)
    {
        CheckSides(side, side);
        var routes = new List<TokenOrder>();
        foreach (var (bottom, right) in new[] { (false, false), (false, true), (true, false), (true, true) })
        {
            (int, int) Corner(int row, int column) => (bottom ? side - 1 - row : row, right ? side - 1 - column : column);
            routes.Add(Serpentine(side, side, Corner));
            routes.Add(Serpentine(side, side, (line, place) => Corner(place, line)));
        }

        return new("zigzag", side, side, [.. routes]);
    }

    /// <summary>Eight walks along the generalised Hilbert curve of a square: the curve, its transpose, and both turned by 90, 180 and 270 degrees.</summary>
    /// <param name="side">Rows and columns, from 1.</param>
    /// <param name="asReference">Whether the curve's <see cref="HilbertRanks"/> are used as the order, as ZigMa's code does: that is the inverse of a walk, and its steps jump.</param>
    public static ScanOrder Hilbert(int side, bool asReference = false)
    {
        var ranks = HilbertRanks(side).Select(rank => new TokenOrder(rank, rank.Length));
        return new("hilbert", side, side, [.. asReference ? ranks : ranks.Select(rank => rank.Inverse)]);
    }

    /// <summary>The rank of every cell on the generalised Hilbert curve of a square, on its transpose, and on both turned counter-clockwise by 90, 180 and 270 degrees.</summary>
    /// <param name="side">Rows and columns, from 1.</param>
    /// <returns>Eight arrays by token.</returns>
    public static long[][] HilbertRanks(int side)
    {
        CheckSides(side, side);
        // The curve's first axis is the row here: its token x + side * y stands at row x.
        var walk = GilbertCurve.PlaneOrder(side, side).Order;
        var grid = new long[side, side];
        for (var rank = 0; rank < walk.Length; rank++)
        {
            grid[walk[rank] % side, walk[rank] / side] = rank;
        }

        var ranks = new long[8][];
        for (var turn = 0; turn < 4; turn++)
        {
            ranks[2 * turn] = Flat((y, x) => grid[y, x]);
            ranks[(2 * turn) + 1] = Flat((y, x) => grid[x, y]);
            var (before, after) = (grid, new long[side, side]);
            for (var y = 0; y < side; y++)
            {
                for (var x = 0; x < side; x++)
                {
                    after[y, x] = before[x, side - 1 - y];
                }
            }

            grid = after;
        }

        return ranks;

        long[] Flat(Func<int, int, long> at) => [.. Enumerable.Range(0, side * side).Select(token => at(token / side, token % side))];
    }

    /// <summary>One route of this order by itself.</summary>
    /// <param name="route">Its number, from 0.</param>
    public ScanOrder Only(int route) => new($"{Name} {route}", Height, Width, _routes[route]);

    /// <summary>How each step of a route was reached.</summary>
    /// <param name="route">Its number, from 0.</param>
    /// <exception cref="InvalidOperationException">A step of the route does not go to a neighbour.</exception>
    public ScanDirection[] Directions(int route) => Walk(route)
        ?? throw new InvalidOperationException($"Route {route} of the order '{Name}' jumps: only steps to a neighbouring cell have a direction.");

    /// <summary>Puts tokens into the order of every route; padding is zeros. Differentiable.</summary>
    /// <param name="tokens"><c>[B, C, T]</c>.</param>
    /// <returns><c>[B, K, C, L]</c>.</returns>
    /// <exception cref="ArgumentException">The tensor has another shape.</exception>
    public Tensor Gather(Tensor tokens)
    {
        Check(tokens, 3, Tokens, "tokens [batch, channels, tokens]");
        using var scope = NewDisposeScope();
        return _joined.Apply(tokens, 2).view(tokens.shape[0], tokens.shape[1], Count, Length).transpose(1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>Takes every token back from its places and adds up what several routes say of it; padding is dropped. The transpose of <see cref="Gather"/>. Differentiable.</summary>
    /// <param name="routes"><c>[B, K, C, L]</c>.</param>
    /// <returns><c>[B, C, T]</c>.</returns>
    /// <exception cref="ArgumentException">The tensor has another shape.</exception>
    public Tensor ScatterAdd(Tensor routes)
    {
        Check(routes, 4, Length, $"routes [batch, {Count}, channels, places]");
        using var scope = NewDisposeScope();
        Tensor? sum = null;
        // A gather per route, not a scatter: no two threads meet at a token, and the order of the sum is fixed.
        for (var route = 0; route < Count; route++)
        {
            var part = _routes[route].Restore(routes.select(1, route), 2);
            sum = sum is null ? part : sum.add_(part);
        }

        return sum!.MoveToOuterDisposeScope();
    }

    /// <summary>Takes every token back from its place in every route, without adding routes up.</summary>
    /// <param name="routes"><c>[B, K, C, L]</c>.</param>
    /// <returns><c>[B, K, C, T]</c>.</returns>
    /// <exception cref="ArgumentException">The tensor has another shape.</exception>
    public Tensor Restore(Tensor routes)
    {
        Check(routes, 4, Length, $"routes [batch, {Count}, channels, places]");
        using var scope = NewDisposeScope();
        return stack([.. _routes.Select((route, k) => route.Restore(routes.select(1, k), 2))], 1).MoveToOuterDisposeScope();
    }

    private static TokenOrder Reversed(TokenOrder route)
    {
        var order = route.Order.ToArray();
        Array.Reverse(order);
        return new(order, route.Tokens);
    }

    private static TokenOrder Windows(int height, int width, int window, bool columnFirst) => window < 1
        ? throw new ArgumentException($"A window has a side of at least 1, not {window}.", nameof(window))
        : TokenOrder.Tiles([height, width], [window, window], isReversed: columnFirst);

    /// <summary>Lines one after the other, every second one backwards.</summary>
    private static TokenOrder Serpentine(int lines, int places, Func<int, int, (int Row, int Column)> cell, int? width = null)
    {
        var order = new long[lines * places];
        for (var t = 0; t < order.Length; t++)
        {
            var (line, place) = (t / places, t % places);
            var (row, column) = cell(line, line % 2 == 0 ? place : places - 1 - place);
            order[t] = ((long)row * (width ?? places)) + column;
        }

        return new(order, order.Length);
    }

    private static void CheckSides(int height, int width)
    {
        if (height < 1 || width < 1)
        {
            throw new ArgumentException($"A scan goes over at least 1 x 1 tokens, not {height} x {width}.", nameof(height));
        }
    }

    private ScanDirection[]? Walk(int route)
    {
        var order = _routes[route].Order;
        var directions = new ScanDirection[order.Length];
        for (var t = 1; t < order.Length; t++)
        {
            if (order[t] < 0 || order[t - 1] < 0)
            {
                return null;
            }

            ScanDirection? direction = ((order[t] / Width) - (order[t - 1] / Width), (order[t] % Width) - (order[t - 1] % Width)) switch
            {
                (0, 1) => ScanDirection.Right,
                (0, -1) => ScanDirection.Left,
                (-1, 0) => ScanDirection.Up,
                (1, 0) => ScanDirection.Down,
                _ => null,
            };
            if (direction is null)
            {
                return null;
            }

            directions[t] = direction.Value;
        }

        return directions;
    }

    private void Check(Tensor tensor, int dimensions, long length, string expected)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        if (tensor.dim() != dimensions || tensor.shape[^1] != length || (dimensions == 4 && tensor.shape[1] != Count))
        {
            throw new ArgumentException($"The order '{Name}' of {Height} x {Width} tokens takes {expected} of length {length}, not {AttentionShape.Text(tensor)}.", nameof(tensor));
        }
    }
}
