using Heed.Lab.Figures;
using SkiaSharp;
using Xunit;

namespace Heed.Lab.Tests.Figures;

public sealed class LineFigureTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-figures-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void Every_line_is_drawn_in_its_colour()
    {
        var path = Path.Combine(_folder, "figure.png");
        var figure = new LineFigure("title", "x", "y", [new("first", [0, 1, 2], [3, 1, 2]), new("second", [0, 1, 2], [1, 2, 1], Markers: true)]) { Width = 600, Height = 400 };

        figure.Save(path);

        using var picture = SKBitmap.Decode(path);
        Assert.Equal((600, 400), (picture.Width, picture.Height));
        Assert.All([0, 1], line => Assert.True(picture.Pixels.Count(pixel => IsClose(pixel, line)) > 300));

        static bool IsClose(SKColor pixel, int line)
        {
            var color = FigureStyle.ColorOf(line);
            return Math.Abs(pixel.Red - color.R) + Math.Abs(pixel.Green - color.G) + Math.Abs(pixel.Blue - color.B) < 12;
        }
    }
}
