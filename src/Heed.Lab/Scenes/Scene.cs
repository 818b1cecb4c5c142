using Heed.Lab.Images;

namespace Heed.Lab.Scenes;

/// <summary>What stands in a scene.</summary>
public enum SceneShape
{
    /// <summary>A filled square.</summary>
    Square,

    /// <summary>A filled disc.</summary>
    Disc,

    /// <summary>A filled triangle, point up.</summary>
    Triangle,

    /// <summary>An upright cross.</summary>
    Cross,

    /// <summary>A ring.</summary>
    Ring,

    /// <summary>A lying bar.</summary>
    Bar,
}

/// <summary>The colours of a scene's objects.</summary>
public enum SceneColour
{
    /// <summary>Red.</summary>
    Red,

    /// <summary>Green.</summary>
    Green,

    /// <summary>Blue.</summary>
    Blue,

    /// <summary>Yellow.</summary>
    Yellow,
}

/// <summary>An object without its place.</summary>
/// <param name="Colour">Its colour.</param>
/// <param name="Shape">Its shape.</param>
public readonly record struct SceneThing(SceneColour Colour, SceneShape Shape)
{
    /// <summary>The thing that keeps this one company in most scenes: shapes go in pairs, and the second's colour follows the first's. It is its companion's companion.</summary>
    public SceneThing Companion => (int)Shape % 2 == 0
        ? new((SceneColour)(((int)Colour + 1) % Colours), Shape + 1)
        : new((SceneColour)(((int)Colour + Colours - 1) % Colours), Shape - 1);

    private static int Colours => Enum.GetValues<SceneColour>().Length;

    /// <inheritdoc/>
    public override string ToString() => $"{Colour} {Shape}".ToLowerInvariant();
}

/// <summary>An object of a scene.</summary>
/// <param name="Thing">What it is.</param>
/// <param name="Top">Its topmost row of pixels.</param>
/// <param name="Left">Its leftmost column of pixels.</param>
public readonly record struct SceneObject(SceneThing Thing, int Top, int Left);

/// <summary>How scenes are drawn.</summary>
public sealed record SceneOptions
{
    /// <summary>How often a thing's companion is there, too, 0 to 1. 0: every companion is missing.</summary>
    public double CompanionShare { get; init; } = 0.9;

    /// <summary>Standard deviation of the noise of every pixel's every channel, of 255.</summary>
    public double Noise { get; init; } = 12;
}

/// <summary>A generated picture of 2 to 4 coloured shapes, all different, on a textured ground: 48 x 48 pixels, three channels.</summary>
/// <param name="Objects">What stands in it, in the order of the shapes: that in which captions name them.</param>
/// <param name="Pixels"><c>[3, 48, 48]</c>, 0 to 255.</param>
public sealed record Scene(IReadOnlyList<SceneObject> Objects, byte[] Pixels)
{
    /// <summary>Pixels of a side.</summary>
    public const int Side = 48;

    /// <summary>Pixels of a side of an object.</summary>
    public const int ObjectSide = 14;

    private const int Area = Side * Side, Cell = 16, CellsOfSide = Side / Cell, Pairs = 3;

    private static readonly byte[][] s_colours = [[220, 50, 45], [50, 180, 70], [60, 90, 225], [225, 200, 50]];

    /// <summary>The pictures' size and channels, for files.</summary>
    public static ImageTask Task => new(Side, 3, 1);

    /// <summary>Draws a scene: one or two of the three pairs of shapes, each thing with its companion in most cases, and another pair where that leaves one thing alone.</summary>
    /// <param name="random">Decides everything.</param>
    /// <param name="options">How.</param>
    public static Scene Draw(Random random, SceneOptions options)
    {
        ArgumentNullException.ThrowIfNull(random);
        ArgumentNullException.ThrowIfNull(options);
        var pairs = Enumerable.Range(0, Pairs).ToArray();
        random.Shuffle(pairs);
        var (wanted, things) = (random.Next(1, Pairs), new List<SceneThing>());
        foreach (var (pair, index) in pairs.Select((pair, index) => (pair, index)))
        {
            if (index >= wanted && things.Count >= 2)
            {
                break;
            }

            var thing = new SceneThing((SceneColour)random.Next(s_colours.Length), (SceneShape)((2 * pair) + random.Next(2)));
            things.Add(thing);
            if (random.NextDouble() < options.CompanionShare)
            {
                things.Add(thing.Companion);
            }
        }

        return Paint([.. things.OrderBy(thing => thing.Shape)], random, options);
    }

    /// <summary>Draws a scene of given things.</summary>
    /// <param name="things">At most nine, in the order of their shapes.</param>
    /// <param name="random">Decides places, ground and noise.</param>
    /// <param name="options">How.</param>
    /// <exception cref="ArgumentException">There are too many things.</exception>
    public static Scene Paint(IReadOnlyList<SceneThing> things, Random random, SceneOptions options)
    {
        ArgumentNullException.ThrowIfNull(things);
        ArgumentNullException.ThrowIfNull(random);
        ArgumentNullException.ThrowIfNull(options);
        if (things.Count > CellsOfSide * CellsOfSide)
        {
            throw new ArgumentException($"A scene has room for {CellsOfSide * CellsOfSide} things, not {things.Count}.", nameof(things));
        }

        var cells = Enumerable.Range(0, CellsOfSide * CellsOfSide).ToArray();
        random.Shuffle(cells);
        var objects = things.Select((thing, index) => new SceneObject(
            thing, (cells[index] / CellsOfSide * Cell) + random.Next(Cell - ObjectSide + 1), (cells[index] % CellsOfSide * Cell) + random.Next(Cell - ObjectSide + 1))).ToArray();
        var values = new double[3 * Area];
        Ground(values, random);
        foreach (var (thing, top, left) in objects)
        {
            for (var row = 0; row < ObjectSide; row++)
            {
                for (var column = 0; column < ObjectSide; column++)
                {
                    if (Covers(thing.Shape, row - ((ObjectSide - 1) / 2.0), column - ((ObjectSide - 1) / 2.0)))
                    {
                        for (var channel = 0; channel < 3; channel++)
                        {
                            values[(channel * Area) + ((top + row) * Side) + left + column] = s_colours[(int)thing.Colour][channel];
                        }
                    }
                }
            }
        }

        return new(objects, [.. values.Select(value => (byte)Math.Clamp(Math.Round(value + (options.Noise * Gaussian(random))), 0, 255))]);
    }

    /// <summary>Which patches show a part of an object.</summary>
    /// <param name="patch">Pixels of a patch's side.</param>
    /// <returns>A flag for each patch, row by row; the others show ground alone.</returns>
    public bool[] Occupied(int patch)
    {
        var grid = Side / patch;
        var occupied = new bool[grid * grid];
        foreach (var (_, top, left) in Objects)
        {
            for (var row = top / patch; row <= (top + ObjectSide - 1) / patch; row++)
            {
                for (var column = left / patch; column <= (left + ObjectSide - 1) / patch; column++)
                {
                    occupied[(row * grid) + column] = true;
                }
            }
        }

        return occupied;
    }

    // Two slow waves in a dark grey: a texture, but no shape.
    private static void Ground(double[] values, Random random)
    {
        var (grey, angle, other) = (60 + (40 * random.NextDouble()), random.NextDouble() * Math.PI, random.NextDouble() * Math.PI);
        var (phase, tone) = (random.NextDouble() * 2 * Math.PI, random.NextDouble() * 2 * Math.PI);
        for (var place = 0; place < Area; place++)
        {
            var (y, x) = (place / Side, place % Side);
            var wave = grey + (12 * Math.Sin((((x * Math.Cos(angle)) + (y * Math.Sin(angle))) * 0.5) + phase)) + (8 * Math.Sin((((x * Math.Cos(other)) + (y * Math.Sin(other))) * 1.1) + tone));
            (values[place], values[Area + place], values[(2 * Area) + place]) = (wave, wave, wave + 8);
        }
    }

    private static bool Covers(SceneShape shape, double y, double x)
    {
        const double Half = ObjectSide / 2.0;
        var distance = Math.Sqrt((y * y) + (x * x));
        return shape switch
        {
            SceneShape.Square => Math.Max(Math.Abs(y), Math.Abs(x)) < Half - 1,
            SceneShape.Disc => distance < Half,
            SceneShape.Triangle => Math.Abs(x) <= (y + Half) / 2,
            SceneShape.Cross => Math.Min(Math.Abs(y), Math.Abs(x)) < 2.2,
            SceneShape.Ring => distance < Half && distance > Half - 3,
            _ => Math.Abs(y) < 3,
        };
    }

    private static double Gaussian(Random random) => Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
}
