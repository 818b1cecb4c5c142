using System.Buffers.Binary;
using System.IO.Compression;
using Heed.Lab.Images;
using Xunit;

namespace Heed.Lab.Tests.Images;

public sealed class FashionMnistTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-fashion-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void The_package_holds_sixty_thousand_pictures_whose_pixels_are_normalised()
    {
        Assert.SkipUnless(FashionMnist.IsInstalled(), "dataset-fashion-mnist is not installed.");
        var data = FashionMnist.Load();

        Assert.Equal((60_000, 10_000), (data.Train.Count, data.Test.Count));
        Assert.Equal([.. Enumerable.Repeat(6000, 10)], Enumerable.Range(0, data.Train.Count).GroupBy(data.Train.LabelOf).OrderBy(group => group.Key).Select(group => group.Count()));
        var (images, labels) = data.Train.Range(0, 2000);
        using (images)
        using (labels)
        {
            Assert.Equal([2000L, 1, 28, 28], images.shape);
            // Of 1.6 million pixels; the constants are those of all 47 million.
            Assert.Equal(0, images.mean().item<float>(), 0.02);
            Assert.Equal(1, images.std().item<float>(), 0.02);
            Assert.Equal(data.Train.LabelOf(7), labels[7].item<long>());
        }
    }

    [Fact]
    public void A_folder_of_ones_own_is_read_gzipped_or_not()
    {
        Write("train-images-idx3-ubyte.gz", Images(3));
        Write("train-labels-idx1-ubyte", Labels(1, 9, 0));
        Write("t10k-images-idx3-ubyte", Images(1));
        Write("t10k-labels-idx1-ubyte.gz", Labels(4));

        var data = FashionMnist.Load(_folder);
        Assert.Equal([1, 9, 0], Enumerable.Range(0, 3).Select(data.Train.LabelOf));
        Assert.Equal(2, data.Train.PixelsAt(2)[5]);
        Assert.Equal(4, data.Test.LabelOf(0));
    }

    [Fact]
    public void A_missing_file_says_how_to_get_it()
    {
        Assert.False(FashionMnist.IsInstalled(_folder));
        var sentence = Assert.Throws<FileNotFoundException>(() => FashionMnist.Load(_folder)).Message;
        Assert.Contains("apt-get install dataset-fashion-mnist", sentence, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("truncated", "ends too early")]
    [InlineData("longer", "goes on after its last item")]
    [InlineData("huge", "does not start as")]
    [InlineData("negative", "does not start as")]
    [InlineData("magic", "does not start as")]
    [InlineData("side", "does not start as")]
    [InlineData("not gzip", "not gzip")]
    [InlineData("empty", "ends too early")]
    public void Broken_pictures_are_told_in_a_sentence(string how, string sentence)
    {
        var images = Images(2);
        switch (how)
        {
            case "truncated": images = images[..^1]; break;
            case "longer": images = [.. images, 0]; break;
            case "huge": BinaryPrimitives.WriteInt32BigEndian(images.AsSpan(4), int.MaxValue); break;
            case "negative": BinaryPrimitives.WriteInt32BigEndian(images.AsSpan(4), -1); break;
            case "magic": images[3] = 1; break;
            case "side": images[11] = 29; break;
            case "empty": images = []; break;
            default: break;
        }

        if (how == "not gzip")
        {
            File.WriteAllBytes(Path.Combine(_folder, "t10k-images-idx3-ubyte.gz"), images);
        }
        else
        {
            Write(how == "empty" ? "t10k-images-idx3-ubyte" : "t10k-images-idx3-ubyte.gz", images);
        }

        Write("t10k-labels-idx1-ubyte.gz", Labels(0, 1));
        Assert.Contains(sentence, Assert.Throws<InvalidDataException>(() => FashionMnist.LoadTest(_folder)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Labels_must_be_classes_and_as_many_as_pictures()
    {
        Write("t10k-images-idx3-ubyte.gz", Images(2));
        Write("t10k-labels-idx1-ubyte.gz", Labels(0, 10));
        Assert.Contains("label above 9", Assert.Throws<InvalidDataException>(() => FashionMnist.LoadTest(_folder)).Message, StringComparison.Ordinal);
        Write("t10k-labels-idx1-ubyte.gz", Labels(0));
        Assert.Contains("2 t10k pictures and 1 labels", Assert.Throws<InvalidDataException>(() => FashionMnist.LoadTest(_folder)).Message, StringComparison.Ordinal);
    }

    private static byte[] Images(int count) => [.. Header(0x803, count, 28, 28), .. Enumerable.Range(0, count * 784).Select(i => (byte)(i / 784))];

    private static byte[] Labels(params byte[] labels) => [.. Header(0x801, labels.Length), .. labels];

    private static byte[] Header(params int[] numbers)
    {
        var header = new byte[4 * numbers.Length];
        for (var i = 0; i < numbers.Length; i++)
        {
            BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4 * i), numbers[i]);
        }

        return header;
    }

    private void Write(string name, byte[] content)
    {
        using var file = File.Create(Path.Combine(_folder, name));
        using var stream = name.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionLevel.Fastest) : (Stream)file;
        stream.Write(content);
    }
}
