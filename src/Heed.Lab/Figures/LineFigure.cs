using Heed.Models;
using ScottPlot;

namespace Heed.Lab.Figures;

/// <summary>One line of a <see cref="LineFigure"/>.</summary>
/// <param name="Name">Its name in the legend.</param>
/// <param name="X">Places.</param>
/// <param name="Y">Values, as many.</param>
/// <param name="Markers">Whether its points are marked.</param>
public sealed record FigureLine(string Name, IReadOnlyList<double> X, IReadOnlyList<double> Y, bool Markers = false);

/// <summary>A figure of lines over one axis, in the style of all of Heed's figures.</summary>
public sealed record LineFigure(string Title, string XLabel, string YLabel, IReadOnlyList<FigureLine> Lines)
{
    /// <summary>Width in pixels.</summary>
    public int Width { get; init; } = 1200;

    /// <summary>Height in pixels.</summary>
    public int Height { get; init; } = 700;

    /// <summary>Writes the figure as PNG, whole or not at all.</summary>
    public void Save(string path)
    {
        var image = Png();
        AtomicFile.Write(path, stream => stream.Write(image));
    }

    /// <summary>The figure as PNG.</summary>
    public byte[] Png() => FigureStyle.Render(Draw, Width, Height);

    private void Draw(Plot plot)
    {
        plot.Title(Title);
        plot.XLabel(XLabel);
        plot.YLabel(YLabel);
        for (var i = 0; i < Lines.Count; i++)
        {
            var line = Lines[i];
            var scatter = plot.Add.Scatter(line.X.ToArray(), line.Y.ToArray(), FigureStyle.ColorOf(i));
            scatter.LegendText = line.Name;
            scatter.LineWidth = 2.5f;
            scatter.MarkerSize = line.Markers ? 9 : 0;
        }

        if (Lines.Count > 1)
        {
            plot.ShowLegend(Alignment.UpperRight);
        }
    }
}
