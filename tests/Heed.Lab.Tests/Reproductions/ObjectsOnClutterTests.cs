using Heed.Lab.Reproductions;
using Xunit;

namespace Heed.Lab.Tests.Reproductions;

public sealed class ObjectsOnClutterTests
{
    [Fact]
    public void Half_of_a_square_is_where_the_pictures_say_and_it_is_bright()
    {
        var pictures = ObjectsOnClutter.Make(40, 3);
        var squares = Enumerable.Range(0, 40).Where(picture => pictures.Data.LabelOf(picture) == 1).ToList();
        Assert.NotEmpty(squares);
        foreach (var picture in squares)
        {
            var pixels = pictures.Data.PixelsAt(picture).ToArray();
            var inside = Enumerable.Range(0, 32 * 32).Where(pixel => pictures.IsOnObject(picture, pixel, patch: 1)).ToList();

            // Eleven by eleven pixels around the centre, of which the square fills nine by nine.
            Assert.Equal(121, inside.Count);
            Assert.True(inside.Count(pixel => pixels[pixel] >= 150) >= 81);
        }
    }

    [Fact]
    public void Chance_is_the_share_of_cells()
    {
        var pictures = ObjectsOnClutter.Make(30, 5);
        Assert.Equal(121.0 / (32 * 32), pictures.CellShare(1), 12);
        Assert.InRange(pictures.CellShare(4), 0.08, 0.16);
    }

    [Fact]
    public void A_seed_decides_everything() =>
        Assert.Equal(ObjectsOnClutter.Make(3, 7).Data.PixelsAt(2).ToArray(), ObjectsOnClutter.Make(3, 7).Data.PixelsAt(2).ToArray());
}
