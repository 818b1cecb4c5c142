using Heed.Lab.Drawing;
using Heed.Mixers;
using Xunit;

namespace Heed.Lab.Tests.Drawing;

public sealed class ScanPictureTests
{
    private const int Left = 28;
    private const int Top = 64 + 26;
    private const int Panel = 220;

    [Fact]
    public void A_route_starts_in_a_ring_and_ends_in_a_disc()
    {
        using var picture = ScanPicture.Draw(ScanOrder.Raster(4, 4));
        var step = Panel / 4;
        // The first cell's ring is hollow; the last cell's disc is full.
        var (start, end) = (picture.ColorAt(Left + (step / 2) - 2, Top + (step / 2)), picture.ColorAt(Left + (3 * step) + (step / 2), Top + (3 * step) + (step / 2)));
        Assert.True(start.Blue > 200 && start.Red > 200, $"{start}");
        Assert.True(end.Red > 200 && end.Blue < 60, $"{end}");
    }

    [Theory]
    [InlineData("scan", "cross2d", 4)]
    [InlineData("scan:order=local3,h=7,w=5", "local3", 4)]
    [InlineData("scan:order=zigzag,h=5,w=5", "zigzag", 8)]
    [InlineData("scan:order=hilbert,h=8,w=8", "hilbert", 8)]
    public void Specifications_name_orders(string text, string name, int routes)
    {
        var order = ScanPicture.OrderOf(Specification.Parse(text));
        Assert.Equal((name, routes), (order.Name, order.Count));
        using var picture = ScanPicture.Draw(order);
        Assert.True(picture.Width > 400 && picture.Height > Panel);
    }

    [Theory]
    [InlineData("scan:order=spiral", "There is no scan pattern 'spiral'")]
    [InlineData("scan:order=zigzag,h=3,w=4", "squares only")]
    [InlineData("scan:h=100", "draw a smaller picture than 100 x 8")]
    [InlineData("scan:height=4", "no option 'height'")]
    public void Wrong_specifications_are_refused(string text, string part) =>
        Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(() => ScanPicture.Draw(ScanPicture.OrderOf(Specification.Parse(text))).Dispose()).Message, StringComparison.Ordinal);
}
