namespace Heed.Mixers;

/// <summary>Scan orders for pictures of any size: what a mixer is built with before it knows the picture.</summary>
/// <param name="Name">What it is called on the command line.</param>
/// <param name="Routes">Number of routes, the same for every picture.</param>
/// <param name="Order">The order of a picture with so many rows and columns.</param>
public sealed record ScanPattern(string Name, int Routes, Func<int, int, ScanOrder> Order)
{
    /// <summary>Names that <see cref="Parse"/> knows, in words.</summary>
    public const string Known = "raster, cross2d, bidi, unidi, continuous, localW (W: side of a window), atrous, zigzag, hilbert";

    /// <summary>By rows, by columns, and both reversed (VMamba).</summary>
    public static ScanPattern Cross2d { get; } = new("cross2d", 4, (height, width) => ScanOrder.Cross(height, width));

    /// <summary>By rows twice, and reversed twice.</summary>
    public static ScanPattern Bidirectional { get; } = new("bidi", 4, (height, width) => ScanOrder.Cross(height, width, CrossRoutes.Bidirectional));

    /// <summary>By rows four times.</summary>
    public static ScanPattern Unidirectional { get; } = new("unidi", 4, (height, width) => ScanOrder.Cross(height, width, CrossRoutes.Unidirectional));

    /// <summary>By rows, once.</summary>
    public static ScanPattern Raster { get; } = new("raster", 1, ScanOrder.Raster);

    /// <summary>Four serpentines (PlainMamba).</summary>
    public static ScanPattern Continuous { get; } = new("continuous", 4, ScanOrder.Continuous);

    /// <summary>Four sequences of a quarter of the tokens (EfficientVMamba).</summary>
    public static ScanPattern Atrous { get; } = new("atrous", 4, (height, width) => ScanOrder.Atrous(height, width));

    /// <summary>Four routes over windows (LocalMamba).</summary>
    /// <param name="window">Side of a window, from 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">The window is below 1.</exception>
    public static ScanPattern Local(int window)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(window, 1);
        return new($"local{window}", 4, (height, width) => ScanOrder.LocalCross(height, width, window));
    }

    /// <summary>The serpentine of a layer (ZigMa): one of eight over a square picture.</summary>
    /// <param name="layer">The layer, from 0.</param>
    public static ScanPattern Zigzag(int layer) => new("zigzag", 1, (height, width) => ScanOrder.Zigzag(Square("zigzag", height, width)).Only(layer % 8));

    /// <summary>The Hilbert walk of a layer: one of eight over a square picture.</summary>
    /// <param name="layer">The layer, from 0.</param>
    public static ScanPattern Hilbert(int layer) => new("hilbert", 1, (height, width) => ScanOrder.Hilbert(Square("hilbert", height, width)).Only(layer % 8));

    /// <summary>The pattern of a name.</summary>
    /// <param name="name">One of <see cref="Known"/>.</param>
    /// <param name="layer">The layer, from 0, for patterns that differ between layers.</param>
    /// <exception cref="ArgumentException">There is no such pattern.</exception>
    public static ScanPattern Parse(string name, int layer = 0)
    {
        ArgumentNullException.ThrowIfNull(name);
        return name switch
        {
            "cross2d" => Cross2d,
            "bidi" => Bidirectional,
            "unidi" => Unidirectional,
            "raster" => Raster,
            "continuous" => Continuous,
            "atrous" => Atrous,
            "zigzag" => Zigzag(layer),
            "hilbert" => Hilbert(layer),
            _ when name.StartsWith("local", StringComparison.Ordinal) && int.TryParse(name["local".Length..], out var window) && window >= 1 => Local(window),
            _ => throw new ArgumentException($"There is no scan pattern '{name}'; there are: {Known}.", nameof(name)),
        };
    }

    private static int Square(string name, int height, int width) => height == width
        ? height
        : throw new ArgumentException($"The order '{name}' goes over squares only, not over {height} x {width} tokens: use continuous.", nameof(width));
}
