using System.Runtime.InteropServices;
using Heed.Kernels;
using Heed.Lab.Figures;
using Heed.Models;
using SkiaSharp;

namespace Heed.Lab.Drawing;

/// <summary>
/// A picture of a block mask or of key runs: on the left every pair, on the right the plan of blocks or runs that a kernel follows. Where there are more pairs than pixels, a pixel stands for a square of pairs and its
/// shade for the share of them that exist.
/// </summary>
public sealed class MaskPicture : IDisposable
{
    private const int PanelSize = 640;
    private const int Margin = 32;
    private const int Gap = 48;
    private const int HeaderHeight = 96;
    private const int FooterHeight = 64;
    private const int MostLevels = 4;
    private const double PalestLevel = 0.75;

    private static readonly SKColor Background = SKColors.White;
    private static readonly SKColor Ink = new(0x22, 0x22, 0x22);
    private static readonly SKColor FullColor = new(0x00, 0x72, 0xB2);
    private static readonly SKColor PartialColor = new(0xE6, 0x9F, 0x00);
    private static readonly SKColor EmptyColor = new(0xEE, 0xEE, 0xEE);
    private readonly SKBitmap _bitmap;

    private MaskPicture(SKBitmap bitmap, SKPointI pairsAt, int pixelsPerPair, int pairsPerPixel, MaskCensus census)
    {
        _bitmap = bitmap;
        PairsAt = pairsAt;
        PixelsPerPair = pixelsPerPair;
        PairsPerPixel = pairsPerPixel;
        Census = census;
    }

    /// <summary>What was counted while drawing.</summary>
    public MaskCensus Census { get; }

    /// <summary>Width in pixels.</summary>
    public int Width => _bitmap.Width;

    /// <summary>Height in pixels.</summary>
    public int Height => _bitmap.Height;

    /// <summary>Where the panel of pairs begins.</summary>
    internal SKPointI PairsAt { get; }

    /// <summary>Width of a pair in pixels, at least 1.</summary>
    internal int PixelsPerPair { get; }

    /// <summary>Pairs that a pixel stands for along each axis; 1 where every pair has a pixel or more.</summary>
    internal int PairsPerPixel { get; }

    /// <summary>Draws one head of a mask.</summary>
    /// <param name="mask">The mask.</param>
    /// <param name="title">What to write above it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Head.</param>
    public static MaskPicture Draw(BlockMask mask, string title, int batch = 0, int head = 0)
    {
        ArgumentNullException.ThrowIfNull(mask);
        return Draw(mask.QueryLength, mask.KeyLength, title, (rectangle, plan) => MaskCensus.Of(mask, batch, head, rectangle, plan));
    }

    /// <summary>Draws one head of key runs.</summary>
    /// <param name="runs">The runs.</param>
    /// <param name="title">What to write above it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">The list's head.</param>
    public static MaskPicture Draw(KeyRuns runs, string title, int batch = 0, int head = 0)
    {
        ArgumentNullException.ThrowIfNull(runs);
        return Draw(runs.QueryLength, runs.KeyLength, title, (rectangle, plan) => MaskCensus.Of(runs, batch, head, rectangle, plan));
    }

    /// <summary>Draws one head of what a call computes.</summary>
    /// <param name="call">The call, as a selector rewrote it.</param>
    /// <param name="title">What to write above it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Query head.</param>
    public static MaskPicture Draw(AttentionCall call, string title, int batch = 0, int head = 0)
    {
        ArgumentNullException.ThrowIfNull(call);
        return Draw(call.Query.size(2), call.Key.size(2), title, (rectangle, plan) => MaskCensus.Of(call, batch, head, rectangle, plan));
    }

    private static MaskPicture Draw(
        long queryLength, long keyLength, string title, Func<Action<long, long, long, long>, Action<PlannedBlock>, MaskCensus> count)
    {
        var longest = Math.Max(queryLength, keyLength);
        var pixelsPerPair = (int)Math.Max(1, PanelSize / longest);
        var pairsPerPixel = (int)Math.Max(1, (longest + PanelSize - 1) / PanelSize);
        var panel = new SKSizeI((int)Pixels(keyLength), (int)Pixels(queryLength));
        var second = Margin + Math.Max(panel.Width, PanelSize / 2) + Gap;
        var bitmap = new SKBitmap(
            second + Math.Max(panel.Width, PanelSize / 2) + Margin, HeaderHeight + panel.Height + FooterHeight, SKColorType.Rgba8888, SKAlphaType.Opaque);
        var pairsAt = new SKPointI(Margin, HeaderHeight);
        using var canvas = new SKCanvas(bitmap);
        canvas.Clear(Background);
        using var paint = new SKPaint { IsAntialias = false };

        // Pairs are counted per pixel: a full block as a rectangle, a pair of a partial one by itself.
        var counts = new long[panel.Width, panel.Height];
        var blocksAt = new SKPointI(second, HeaderHeight);
        FillRectangle(blocksAt.X, blocksAt.Y, panel.Width, panel.Height, EmptyColor);
        var planned = new List<PlannedBlock>();
        var census = count(Count, planned.Add);
        // Blocks with a bias stand for something coarser or weaker: the further from no bias, the paler.
        var levels = planned.Select(block => block.Bias).Distinct().OrderBy(Math.Abs).ToList();
        foreach (var block in planned)
        {
            var (left, right) = (Pixel(block.Key), Pixel(block.Key + block.Keys));
            var (top, bottom) = (Pixel(block.Query), Pixel(block.Query + block.Queries));
            // Blocks are set apart where there is room for it.
            var apart = Math.Min(right - left, bottom - top) >= 6 ? 1 : 0;
            FillRectangle(
                blocksAt.X + left, blocksAt.Y + top, Math.Max(1, right - left - apart), Math.Max(1, bottom - top - apart),
                Level(block.IsPartial ? PartialColor : FullColor, levels.IndexOf(block.Bias), levels.Count));
        }

        canvas.Flush();
        var pixels = MemoryMarshal.Cast<byte, uint>(bitmap.GetPixelSpan());
        for (var y = 0; y < panel.Height; y++)
        {
            var row = pixels.Slice(((pairsAt.Y + y) * bitmap.Width) + pairsAt.X, panel.Width);
            for (var x = 0; x < row.Length; x++)
            {
                var shade = Shade(counts[x, y] / (double)PairsOf(x, y));
                row[x] = shade.Red | ((uint)shade.Green << 8) | ((uint)shade.Blue << 16) | (0xFFu << 24);
            }
        }

        Frame(pairsAt);
        Frame(blocksAt);
        WriteTexts();
        return new MaskPicture(bitmap, pairsAt, pixelsPerPair, pairsPerPixel, census);

        long Pixels(long pairs) => pairsPerPixel > 1 ? (pairs + pairsPerPixel - 1) / pairsPerPixel : pairs * pixelsPerPair;

        int Pixel(long pair) => (int)(pairsPerPixel > 1 ? (pair + pairsPerPixel - 1) / pairsPerPixel : pair * pixelsPerPair);

        long PairsOf(int x, int y) => pairsPerPixel == 1
            ? 1
            : Math.Min(pairsPerPixel, keyLength - ((long)x * pairsPerPixel)) * Math.Min(pairsPerPixel, queryLength - ((long)y * pairsPerPixel));

        void Count(long query, long key, long queries, long keys)
        {
            for (var y = query / pairsPerPixel; y * pairsPerPixel < query + queries; y++)
            {
                var rows = Math.Min((y + 1) * pairsPerPixel, query + queries) - Math.Max(y * pairsPerPixel, query);
                for (var x = key / pairsPerPixel; x * pairsPerPixel < key + keys; x++)
                {
                    var columns = Math.Min((x + 1) * pairsPerPixel, key + keys) - Math.Max(x * pairsPerPixel, key);
                    for (var i = 0; i < pixelsPerPair * pixelsPerPair; i++)
                    {
                        counts[(x * pixelsPerPair) + (i % pixelsPerPair), (y * pixelsPerPair) + (i / pixelsPerPair)] += rows * columns;
                    }
                }
            }
        }

        void FillRectangle(int x, int y, int width, int height, SKColor color)
        {
            paint.Color = color;
            paint.Style = SKPaintStyle.Fill;
            canvas.DrawRect(x, y, width, height, paint);
        }

        void Frame(SKPointI at)
        {
            paint.Color = new SKColor(0x99, 0x99, 0x99);
            paint.Style = SKPaintStyle.Stroke;
            canvas.DrawRect(at.X - 1, at.Y - 1, panel.Width + 1, panel.Height + 1, paint);
        }

        void WriteTexts()
        {
            using var text = new SKPaint { Color = Ink, IsAntialias = true };
            using var large = new SKFont(FigureStyle.Typeface, 24);
            large.Size *= Math.Min(1, (bitmap.Width - (2 * Margin)) / Math.Max(1, large.MeasureText(title)));
            using var small = new SKFont(FigureStyle.Typeface, 15);
            canvas.DrawText(title, Margin, 38, large, text);
            canvas.DrawText($"{census.Pairs:N0} of {census.Queries:N0} x {census.Keys:N0} pairs ({census.Share:P1})", Margin, 66, small, text);
            canvas.DrawText("queries down, keys to the right" + (pairsPerPixel > 1 ? $"; a pixel is {pairsPerPixel} x {pairsPerPixel} pairs" : ""), Margin, HeaderHeight - 8, small, text);
            canvas.DrawText(
                census.KeyBlock is { } keyBlock ? $"blocks of {census.QueryBlock} x {keyBlock}, {census.ListedShare:P1} computed" : census.QueryBlock == 1 ? "runs of keys for each query" : $"runs of keys for blocks of {census.QueryBlock} queries",
                blocksAt.X, HeaderHeight - 8, small, text);
            var x = blocksAt.X;
            foreach (var (color, label) in Legend())
            {
                FillRectangle(x, HeaderHeight + panel.Height + 22, 16, 16, color);
                canvas.DrawText(label, x + 22, HeaderHeight + panel.Height + 36, small, text);
                x += 22 + (int)small.MeasureText(label) + 24;
            }
        }

        IEnumerable<(SKColor Color, string Label)> Legend()
        {
            var isRuns = census.KeyBlock is null;
            if (levels.Count > 1)
            {
                foreach (var level in levels.Take(MostLevels))
                {
                    yield return (Level(FullColor, levels.IndexOf(level), levels.Count), $"bias {level:0.##}: {planned.Count(block => block.Bias == level):N0}");
                }
            }
            else
            {
                var isPerQuery = isRuns && census.QueryBlock == 1;
                yield return (FullColor, isPerQuery ? $"{census.FullBlocks:N0} runs" : isRuns ? $"{census.FullBlocks:N0} runs for a whole block" : $"{census.FullBlocks:N0} full");
                if (census.PartialBlocks > 0 || !isRuns)
                {
                    yield return (PartialColor, isPerQuery ? $"{census.PartialBlocks:N0} cut by causality" : isRuns ? $"{census.PartialBlocks:N0} for some of its queries" : $"{census.PartialBlocks:N0} partial");
                }
            }

            if (!isRuns)
            {
                yield return (EmptyColor, $"{census.EmptyBlocks:N0} empty");
            }
        }
    }

    /// <summary>Writes the picture as PNG, whole or not at all.</summary>
    public void Save(string path)
    {
        using var data = _bitmap.Encode(SKEncodedImageFormat.Png, 100);
        AtomicFile.Write(path, data.SaveTo);
    }

    /// <inheritdoc/>
    public void Dispose() => _bitmap.Dispose();

    /// <summary>The colour of a pixel.</summary>
    internal SKColor ColorAt(int x, int y) => _bitmap.GetPixel(x, y);

    /// <summary>The colour of a share of existing pairs: white for none, the full blocks' colour for all.</summary>
    internal static SKColor Shade(double share) => new(
        Between(Background.Red, FullColor.Red, share), Between(Background.Green, FullColor.Green, share), Between(Background.Blue, FullColor.Blue, share));

    /// <summary>A paler form of a colour for every further level of bias.</summary>
    private static SKColor Level(SKColor color, int level, int levels)
    {
        var share = levels > 1 ? PalestLevel * level / (levels - 1) : 0;
        return new(Between(color.Red, Background.Red, share), Between(color.Green, Background.Green, share), Between(color.Blue, Background.Blue, share));
    }

    private static byte Between(byte from, byte to, double share) => (byte)Math.Round(from + ((to - from) * share));
}
