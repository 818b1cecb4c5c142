using System.Globalization;
using Heed.Lab.Figures;
using Heed.Masks;
using Heed.Mixers;
using Heed.Models;
using SkiaSharp;

namespace Heed.Lab.Drawing;

/// <summary>A picture of the routes of a scan order: a panel per route, the path from its start (blue, a ring) to its end (orange, a disc), jumps as thin dashes. Padding is left out.</summary>
public sealed class ScanPicture : IDisposable
{
    /// <summary>How to write it for <c>heed draw</c>.</summary>
    public const string Usage = "scan:order=cross2d,h=8,w=8";

    /// <summary>What it is, in one line.</summary>
    public const string Summary = "the path of a scan over a picture; order: " + ScanPattern.Known;

    private const int Panel = 220;
    private const int Margin = 28;
    private const int Gap = 28;
    private const int Header = 64;
    private const int PanelTitle = 26;
    private const int MostColumns = 4;
    private const int MostSide = 64;

    private static readonly SKColor Start = new(0x00, 0x72, 0xB2);
    private static readonly SKColor End = new(0xE6, 0x9F, 0x00);
    private static readonly SKColor Ink = new(0x22, 0x22, 0x22);
    private static readonly SKColor Cell = new(0xE4, 0xE4, 0xE4);

    private readonly SKBitmap _bitmap;

    private ScanPicture(SKBitmap bitmap, ScanOrder order)
    {
        _bitmap = bitmap;
        Order = order;
    }

    /// <summary>What was drawn.</summary>
    public ScanOrder Order { get; }

    /// <summary>Width in pixels.</summary>
    public int Width => _bitmap.Width;

    /// <summary>Height in pixels.</summary>
    public int Height => _bitmap.Height;

    /// <summary>The order of a specification such as <c>scan:order=local2,h=8,w=6</c>. All eight routes of a zigzag or Hilbert order are drawn.</summary>
    /// <exception cref="ArgumentException">There is no such order, or an option is wrong.</exception>
    public static ScanOrder OrderOf(Specification specification)
    {
        ArgumentNullException.ThrowIfNull(specification);
        var (height, width) = (specification.Integer("h", 8, 1), specification.Integer("w", 8, 1));
        var name = specification.Text("order") ?? ScanPattern.Cross2d.Name;
        specification.RefuseUnread();
        if (height > MostSide || width > MostSide)
        {
            throw new ArgumentException($"A path over more than {MostSide} x {MostSide} tokens cannot be made out: draw a smaller picture than {height} x {width}.");
        }

        return name switch
        {
            "zigzag" when height == width => ScanOrder.Zigzag(height),
            "hilbert" when height == width => ScanOrder.Hilbert(height),
            _ => ScanPattern.Parse(name).Order(height, width),
        };
    }

    /// <summary>Draws the routes of an order.</summary>
    /// <param name="order">The order.</param>
    public static ScanPicture Draw(ScanOrder order)
    {
        ArgumentNullException.ThrowIfNull(order);
        var columns = Math.Min(order.Count, MostColumns);
        var rows = (order.Count + columns - 1) / columns;
        var step = (float)Panel / Math.Max(order.Height, order.Width);
        var (panelWidth, panelHeight) = ((int)Math.Ceiling(step * order.Width), (int)Math.Ceiling(step * order.Height));
        var bitmap = new SKBitmap(
            Math.Max((2 * Margin) + (columns * (panelWidth + Gap)) - Gap, 420), Header + (rows * (panelHeight + PanelTitle + Gap)), SKColorType.Rgba8888, SKAlphaType.Opaque);
        using var canvas = new SKCanvas(bitmap);
        canvas.Clear(SKColors.White);
        using var ink = new SKPaint { Color = Ink, IsAntialias = true };
        using var large = new SKFont(FigureStyle.Typeface, 20);
        using var small = new SKFont(FigureStyle.Typeface, 13);
        var padding = order.Length - order.Routes[0].Order.ToArray().Count(token => token >= 0);
        var places = string.Create(CultureInfo.InvariantCulture, $"{order.Length:N0} place{(order.Length == 1 ? "" : "s")} a route{(padding > 0 ? $", {padding:N0} of them padding in the first" : "")}");
        canvas.DrawText($"{order.Name}, {order.Height} x {order.Width}: {places}", Margin, 36, large, ink);
        for (var route = 0; route < order.Count; route++)
        {
            var (left, top) = (Margin + (route % columns * (panelWidth + Gap)), Header + (route / columns * (panelHeight + PanelTitle + Gap)));
            canvas.DrawText($"route {route}", left, top + 12, small, ink);
            DrawRoute(canvas, order.Routes[route], order, left, top + PanelTitle, step);
        }

        canvas.Flush();
        return new(bitmap, order);
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

    private static void DrawRoute(SKCanvas canvas, TokenOrder route, ScanOrder order, int left, int top, float step)
    {
        using var paint = new SKPaint { IsAntialias = true, Style = SKPaintStyle.Stroke, Color = Cell, StrokeWidth = 1 };
        for (var row = 0; row <= order.Height; row++)
        {
            canvas.DrawLine(left, top + (row * step), left + (order.Width * step), top + (row * step), paint);
        }

        for (var column = 0; column <= order.Width; column++)
        {
            canvas.DrawLine(left + (column * step), top, left + (column * step), top + (order.Height * step), paint);
        }

        var tokens = route.Order.ToArray().Where(token => token >= 0).ToArray();
        using var dashes = SKPathEffect.CreateDash([3, 3], 0);
        for (var t = 1; t < tokens.Length; t++)
        {
            var (from, to) = (Centre(tokens[t - 1]), Centre(tokens[t]));
            var isJump = Math.Abs(from.X - to.X) + Math.Abs(from.Y - to.Y) > 1.5f * step;
            paint.Color = Between((double)t / tokens.Length);
            paint.StrokeWidth = isJump ? 1 : Math.Clamp(step / 8, 1.5f, 3);
            paint.PathEffect = isJump ? dashes : null;
            canvas.DrawLine(from, to, paint);
        }

        if (tokens.Length == 0)
        {
            return;
        }

        paint.PathEffect = null;
        var radius = Math.Clamp(step / 4, 2, 6);
        (paint.Color, paint.StrokeWidth) = (Start, 2);
        canvas.DrawCircle(Centre(tokens[0]), radius, paint);
        (paint.Color, paint.Style) = (End, SKPaintStyle.Fill);
        canvas.DrawCircle(Centre(tokens[^1]), radius, paint);

        SKPoint Centre(long token) => new(left + (((token % order.Width) + 0.5f) * step), top + (((token / order.Width) + 0.5f) * step));
    }

    private static SKColor Between(double share)
    {
        byte Mix(byte from, byte to) => (byte)Math.Round(from + ((to - from) * share));
        return new(Mix(Start.Red, End.Red), Mix(Start.Green, End.Green), Mix(Start.Blue, End.Blue));
    }
}
