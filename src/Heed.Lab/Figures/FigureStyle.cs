using ScottPlot;
using SkiaSharp;

namespace Heed.Lab.Figures;

/// <summary>What all figures share: colours that also people with colour-blindness tell apart, sizes that stay readable when a figure is shown half as large.</summary>
internal static class FigureStyle
{
    // Okabe and Ito's palette without its yellow, which is hard to see on white.
    private static readonly string[] Palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"];

    // What a system without fontconfig calls its default may be a serif face.
    private static readonly string[] Families = ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans"];

    /// <summary>The face of all text in pictures.</summary>
    public static SKTypeface Typeface { get; } = Families.Select(SKFontManager.Default.MatchFamily).FirstOrDefault(face => face is not null) ?? SKTypeface.Default;

    public static Color ColorOf(int line) => Color.FromHex(Palette[line % Palette.Length]);

    /// <summary>Draws a plot and returns it as PNG.</summary>
    public static byte[] Render(Action<Plot> draw, int width, int height)
    {
        using var plot = new Plot();
        plot.Font.Set(Typeface.FamilyName);
        draw(plot);
        plot.Axes.Title.Label.FontSize = 24;
        plot.Axes.Title.Label.Bold = false;
        foreach (var axis in plot.Axes.GetAxes())
        {
            axis.TickLabelStyle.FontSize = 18;
        }

        plot.Axes.Bottom.Label.FontSize = plot.Axes.Left.Label.FontSize = 20;
        plot.Axes.Bottom.Label.Bold = plot.Axes.Left.Label.Bold = false;
        plot.Legend.FontSize = 18;
        plot.Grid.MajorLineColor = Color.FromHex("#E4E4E4");
        plot.Axes.Top.IsVisible = plot.Axes.Right.IsVisible = false;
        return plot.GetImage(width, height).GetImageBytes(ImageFormat.Png);
    }
}
