using System.Buffers.Binary;
using Heed.Lab.Images;

namespace Heed.Lab.Tests.Images;

/// <summary>Pictures in the form of Fashion-MNIST whose class is where a bright bar stands: learned in a few steps.</summary>
internal static class SmallPictures
{
    private const int Side = 28;

    public static FashionMnist Data(int train = 256, int test = 100) => new(Make(train, 1), Make(test, 2));

    /// <summary>Writes them as the package's files.</summary>
    public static string Write(string folder, int train = 256, int test = 100)
    {
        foreach (var (split, count, seed) in new[] { ("train", train, 1), ("t10k", test, 2) })
        {
            var (pixels, labels) = Draw(count, seed);
            File.WriteAllBytes(Path.Combine(folder, $"{split}-images-idx3-ubyte"), [.. Header(0x803, count, Side, Side), .. pixels]);
            File.WriteAllBytes(Path.Combine(folder, $"{split}-labels-idx1-ubyte"), [.. Header(0x801, count), .. labels]);
        }

        return folder;
    }

    private static ImageData Make(int count, int seed)
    {
        var (pixels, labels) = Draw(count, seed);
        return new(FashionMnist.Task, FashionMnist.ClassNames, pixels, labels, FashionMnist.Scale);
    }

    private static (byte[] Pixels, byte[] Labels) Draw(int count, int seed)
    {
        var random = new Random(seed);
        var (pixels, labels) = (new byte[count * Side * Side], new byte[count]);
        random.NextBytes(pixels);
        for (var i = 0; i < count; i++)
        {
            labels[i] = (byte)(i % 10);
            for (var at = 0; at < Side * Side; at++)
            {
                var lit = at / Side / 14 == labels[i] / 5 && at % Side / 6 == labels[i] % 5;
                pixels[(i * Side * Side) + at] = (byte)((pixels[(i * Side * Side) + at] / 4) + (lit ? 190 : 0));
            }
        }

        return (pixels, labels);
    }

    private static byte[] Header(params int[] numbers)
    {
        var header = new byte[4 * numbers.Length];
        for (var i = 0; i < numbers.Length; i++)
        {
            BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4 * i), numbers[i]);
        }

        return header;
    }
}
