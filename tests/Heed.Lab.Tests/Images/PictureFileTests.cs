using Heed.Lab.Images;
using Xunit;

namespace Heed.Lab.Tests.Images;

public sealed class PictureFileTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-picture-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void A_picture_survives_the_way_through_a_file(int channels)
    {
        var task = new ImageTask(28, channels, 10);
        var pixels = new byte[channels * 784];
        new Random(1).NextBytes(pixels);
        var path = Path.Combine(_folder, "picture.png");
        File.WriteAllBytes(path, PictureFile.Png(pixels, task));
        Assert.Equal(pixels, PictureFile.Read(path, task));
    }

    [Fact]
    public void Larger_pictures_are_scaled_and_keep_their_middle()
    {
        var pixels = new byte[56 * 56];
        for (var i = 0; i < pixels.Length; i++)
        {
            pixels[i] = (byte)(i % 56 < 28 ? 0 : 255);
        }

        var path = Path.Combine(_folder, "large.png");
        File.WriteAllBytes(path, PictureFile.Png(pixels, new(56, 1, 10)));
        var small = PictureFile.Read(path, new(28, 1, 10));
        Assert.Equal(0, small[5]);
        Assert.Equal(255, small[22]);
    }

    [Fact]
    public void What_is_no_picture_is_told()
    {
        var path = Path.Combine(_folder, "text.png");
        File.WriteAllText(path, "no picture");
        Assert.Contains("not a picture", Assert.Throws<InvalidDataException>(() => PictureFile.Read(path, FashionMnist.Task)).Message, StringComparison.Ordinal);
        var whole = PictureFile.Png(new byte[784], FashionMnist.Task);
        File.WriteAllBytes(path, whole[..40]);
        Assert.ThrowsAny<InvalidDataException>(() => PictureFile.Read(path, FashionMnist.Task));
        Assert.Throws<FileNotFoundException>(() => PictureFile.Read(Path.Combine(_folder, "none.png"), FashionMnist.Task));
        Assert.Throws<ArgumentException>(() => PictureFile.Read(path, new(28, 2, 10)));
    }
}
