using Heed.Lab.Images;

namespace Heed.Lab.Reproductions;

/// <summary>Pictures that cannot be read without looking twice: squares, discs and triangles in clutter, and in a corner a patch whose colour says which kind to count. The class is their number, 0 to 3.</summary>
internal static class CueTask
{
    /// <summary>Pixels of a side.</summary>
    public const int Side = 32;

    private const int Channels = 3, Kinds = 3, MostCounted = 3, CellSide = 10, Shape = 7;

    /// <summary>Sizes and classes.</summary>
    public static ImageTask Task => new(Side, Channels, MostCounted + 1);

    /// <summary>Makes pictures; the same seed makes the same.</summary>
    public static ImageData Make(int count, int seed)
    {
        var random = new Random(seed);
        var size = Channels * Side * Side;
        var (pixels, labels) = (new byte[count * size], new byte[count]);
        for (var i = 0; i < count; i++)
        {
            labels[i] = Draw(pixels.AsSpan(i * size, size), random);
        }

        return new ImageData(Task, ["none", "one", "two", "three"], pixels, labels);
    }

    private static byte Draw(Span<byte> picture, Random random)
    {
        // Clutter: dim noise everywhere, short dashes anywhere.
        foreach (ref var pixel in picture)
        {
            pixel = (byte)random.Next(60);
        }

        for (var dash = 0; dash < 8; dash++)
        {
            var (row, column, grey, upright) = (random.Next(Side - 3), random.Next(Side - 3), (byte)random.Next(80, 180), random.Next(2) == 0);
            for (var i = 0; i < 3; i++)
            {
                Paint(picture, row + (upright ? i : 0), column + (upright ? 0 : i), grey);
            }
        }

        var (cued, counted) = (random.Next(Kinds), random.Next(MostCounted + 1));
        var kinds = Enumerable.Repeat(cued, counted).Concat(Enumerable.Range(0, random.Next(2, 5)).Select(_ => (cued + random.Next(1, Kinds)) % Kinds)).ToArray();
        // Nine cells; the first has the cue.
        var cells = Enumerable.Range(1, 8).ToArray();
        random.Shuffle(cells);
        foreach (var (cell, kind) in cells.Zip(kinds))
        {
            DrawShape(picture, (cell / 3 * CellSide) + random.Next(1, CellSide - Shape + 1), (cell % 3 * CellSide) + random.Next(1, CellSide - Shape + 1), kind, (byte)random.Next(170, 256));
        }

        for (var i = 0; i < 25; i++)
        {
            for (var channel = 0; channel < Channels; channel++)
            {
                picture[(channel * Side * Side) + ((1 + (i / 5)) * Side) + 1 + (i % 5)] = channel == cued ? (byte)255 : (byte)0;
            }
        }

        return (byte)counted;
    }

    private static void DrawShape(Span<byte> picture, int top, int left, int kind, byte grey)
    {
        const double Middle = (Shape - 1) / 2.0;
        for (var row = 0; row < Shape; row++)
        {
            for (var column = 0; column < Shape; column++)
            {
                var (y, x) = (row - Middle, column - Middle);
                var inside = kind switch
                {
                    0 => Math.Max(Math.Abs(y), Math.Abs(x)) <= Middle - 0.5,
                    1 => (y * y) + (x * x) <= (Middle + 0.3) * (Middle + 0.3),
                    _ => Math.Abs(x) <= row / 2.0,
                };
                if (inside)
                {
                    Paint(picture, top + row, left + column, grey);
                }
            }
        }
    }

    private static void Paint(Span<byte> picture, int row, int column, byte grey)
    {
        for (var channel = 0; channel < Channels; channel++)
        {
            picture[(channel * Side * Side) + (row * Side) + column] = grey;
        }
    }
}
