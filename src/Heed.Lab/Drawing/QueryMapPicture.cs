using Heed.Lab.Figures;
using SkiaSharp;

namespace Heed.Lab.Drawing;

/// <summary>A row of <see cref="QueryMapPicture"/>: one scene.</summary>
/// <param name="Marks">What stands where: a label per patch; null: nothing.</param>
/// <param name="Maps">Where each query looks, weights over the patches, row by row of the scene.</param>
/// <param name="Rings">The patch that each query should look at; negative: none is known.</param>
public sealed record QueryMapRow(IReadOnlyList<string?> Marks, IReadOnlyList<IReadOnlyList<double>> Maps, IReadOnlyList<int> Rings);

/// <summary>Maps of queries over scenes: a row per scene, first the scene with what stands where, then a panel per query, the darker the more weight (each panel to its own largest), with a ring where the query should look.</summary>
public static class QueryMapPicture
{
    private const int Panel = 112, Gap = 14, Margin = 24, Header = 92;

    private static readonly SKColor Ink = new(0x22, 0x22, 0x22);
    private static readonly SKColor Line = new(0xCC, 0xCC, 0xCC);
    private static readonly SKColor Weight = new(0x00, 0x72, 0xB2);
    private static readonly SKColor Ring = new(0xD5, 0x5E, 0x00);

    /// <summary>Draws.</summary>
    /// <param name="title">What to write above.</param>
    /// <param name="side">Patches of a side.</param>
    /// <param name="names">Names of the queries.</param>
    /// <param name="rows">The scenes.</param>
    /// <returns>A PNG.</returns>
    /// <exception cref="ArgumentException">A row has not as many maps and rings as there are names, or a map not as many weights as patches.</exception>
    public static byte[] Png(string title, int side, IReadOnlyList<string> names, IReadOnlyList<QueryMapRow> rows)
    {
        ArgumentNullException.ThrowIfNull(names);
        ArgumentNullException.ThrowIfNull(rows);
        if (side < 1 || rows.Any(row => row.Marks.Count != side * side || row.Maps.Count != names.Count || row.Rings.Count != names.Count || row.Maps.Any(map => map.Count != side * side)))
        {
            throw new ArgumentException($"Every scene has {side} x {side} patches, and a map and a ring for each of {names.Count} queries.", nameof(rows));
        }

        using var bitmap = new SKBitmap((2 * Margin) + ((names.Count + 1) * (Panel + Gap)) - Gap, Header + (rows.Count * (Panel + Gap)) + Margin - Gap, SKColorType.Rgba8888, SKAlphaType.Opaque);
        using var canvas = new SKCanvas(bitmap);
        canvas.Clear(SKColors.White);
        using var ink = new SKPaint { Color = Ink, IsAntialias = true };
        using var large = new SKFont(FigureStyle.Typeface, 22);
        large.Size *= Math.Min(1, (bitmap.Width - (2 * Margin)) / Math.Max(1, large.MeasureText(title)));
        using var small = new SKFont(FigureStyle.Typeface, 13);
        canvas.DrawText(title, Margin, 40, large, ink);
        for (var column = 0; column <= names.Count; column++)
        {
            canvas.DrawText(column == 0 ? "scene" : names[column - 1], Margin + (column * (Panel + Gap)), Header - 8, small, ink);
        }

        for (var row = 0; row < rows.Count; row++)
        {
            for (var column = 0; column <= names.Count; column++)
            {
                DrawPanel(canvas, rows[row], column - 1, side, Margin + (column * (Panel + Gap)), Header + (row * (Panel + Gap)), small, ink);
            }
        }

        canvas.Flush();
        using var data = bitmap.Encode(SKEncodedImageFormat.Png, 100);
        return data.ToArray();
    }

    private static void DrawPanel(SKCanvas canvas, QueryMapRow row, int query, int side, int left, int top, SKFont font, SKPaint ink)
    {
        var step = (float)Panel / side;
        using var paint = new SKPaint { IsAntialias = true };
        var largest = query < 0 ? 0 : row.Maps[query].Max();
        for (var patch = 0; patch < side * side; patch++)
        {
            var (x, y) = (left + (patch % side * step), top + (patch / side * step));
            if (query >= 0 && largest > 0)
            {
                (paint.Style, paint.Color) = (SKPaintStyle.Fill, Weight.WithAlpha((byte)Math.Round(255 * row.Maps[query][patch] / largest)));
                canvas.DrawRect(x, y, step, step, paint);
            }
            else if (query < 0 && row.Marks[patch] is { } mark)
            {
                canvas.DrawText(mark, x + ((step - font.MeasureText(mark)) / 2), y + (step / 2) + 5, font, ink);
            }

            (paint.Style, paint.Color, paint.StrokeWidth) = (SKPaintStyle.Stroke, Line, 1);
            canvas.DrawRect(x, y, step, step, paint);
        }

        if (query >= 0 && row.Rings[query] is >= 0 and var ring)
        {
            (paint.Style, paint.Color, paint.StrokeWidth) = (SKPaintStyle.Stroke, Ring, 2);
            canvas.DrawCircle(left + ((ring % side + 0.5f) * step), top + ((ring / side + 0.5f) * step), step / 2, paint);
        }
    }
}
