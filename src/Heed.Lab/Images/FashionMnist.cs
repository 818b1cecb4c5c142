using System.Buffers.Binary;
using System.IO.Compression;

namespace Heed.Lab.Images;

/// <summary>Fashion-MNIST (arXiv 1708.07747): 60,000 pictures to train on and 10,000 to test on, 28 x 28 grey pixels, ten kinds of clothing. Read from the files of the Debian package
/// <c>dataset-fashion-mnist</c>.</summary>
/// <param name="Train">The pictures to train on.</param>
/// <param name="Test">The pictures to test on.</param>
public sealed record FashionMnist(ImageData Train, ImageData Test)
{
    /// <summary>Where the Debian package puts the files.</summary>
    public const string DefaultFolder = "/usr/share/datasets/fashion-mnist";

    private const int Side = 28;
    private const int ImagesMagic = 0x803;
    private const int LabelsMagic = 0x801;

    // More than any split has; a header that claims more is not believed before memory is taken for it.
    private const int MostPictures = 100_000;

    /// <summary>Takes off the mean of all training pixels and divides by their standard deviation.</summary>
    public static PixelScale Scale { get; } = new(0.2860, 0.3530);

    /// <summary>What the classes are called.</summary>
    public static IReadOnlyList<string> ClassNames { get; } = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

    /// <summary>The task.</summary>
    public static ImageTask Task => new(Side, 1, ClassNames.Count);

    /// <summary>Whether the files are there.</summary>
    /// <param name="folder">The folder; null: <see cref="DefaultFolder"/>.</param>
    public static bool IsInstalled(string? folder = null) => Find(folder ?? DefaultFolder, "t10k-labels-idx1-ubyte") is not null;

    /// <summary>Reads both splits.</summary>
    /// <param name="folder">A folder with the four files, gzipped or not; null: <see cref="DefaultFolder"/>.</param>
    /// <exception cref="FileNotFoundException">A file is missing; the message says how to get it.</exception>
    /// <exception cref="InvalidDataException">A file is truncated or is not what its name says.</exception>
    public static FashionMnist Load(string? folder = null) => new(LoadSplit("train", folder), LoadTest(folder));

    /// <summary>Reads the pictures to test on only.</summary>
    /// <inheritdoc cref="Load"/>
    public static ImageData LoadTest(string? folder = null) => LoadSplit("t10k", folder);

    private static ImageData LoadSplit(string split, string? folder)
    {
        folder ??= DefaultFolder;
        var pixels = Read(folder, $"{split}-images-idx3-ubyte", ImagesMagic, [Side, Side], byte.MaxValue);
        var labels = Read(folder, $"{split}-labels-idx1-ubyte", LabelsMagic, [], (byte)(ClassNames.Count - 1));
        return pixels.Length == labels.Length * Side * Side
            ? new ImageData(Task, ClassNames, pixels, labels, Scale)
            : throw new InvalidDataException($"'{folder}' has {pixels.Length / (Side * Side):N0} {split} pictures and {labels.Length:N0} labels of them: get the files afresh.");
    }

    private static string? Find(string folder, string name) => new[] { $"{name}.gz", name }.Select(file => Path.Combine(folder, file)).FirstOrDefault(File.Exists);

    private static byte[] Read(string folder, string name, int magic, int[] sides, byte largest)
    {
        var path = Find(folder, name) ?? throw new FileNotFoundException(
            $"Fashion-MNIST's file {name}.gz is not in '{folder}': run 'apt-get install dataset-fashion-mnist', or name a folder that holds the four files with --data FOLDER.");
        try
        {
            using var file = File.OpenRead(path);
            using var stream = path.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionMode.Decompress) : (Stream)file;
            var header = new byte[4 * (2 + sides.Length)];
            stream.ReadExactly(header);
            var count = BinaryPrimitives.ReadInt32BigEndian(header.AsSpan(4));
            var shaped = sides.Select((side, axis) => BinaryPrimitives.ReadInt32BigEndian(header.AsSpan(8 + (4 * axis))) == side).All(fits => fits);
            if (BinaryPrimitives.ReadInt32BigEndian(header) != magic || !shaped || count is < 1 or > MostPictures)
            {
                throw Broken($"it does not start as 1 to {MostPictures:N0} {(sides.Length > 0 ? $"pictures of {Side} x {Side}" : "labels")} in the idx format do", null);
            }

            var content = new byte[sides.Aggregate(count, (product, side) => product * side)];
            stream.ReadExactly(content);
            return stream.ReadByte() >= 0 ? throw Broken("it goes on after its last item", null)
                : content.AsSpan().IndexOfAnyExceptInRange((byte)0, largest) >= 0 ? throw Broken($"it holds a label above {largest}", null)
                : content;
        }
        catch (EndOfStreamException exception)
        {
            throw Broken("it ends too early", exception);
        }
        catch (InvalidDataException exception) when (!exception.Message.StartsWith('\''))
        {
            throw Broken("it is not gzip", exception);
        }

        InvalidDataException Broken(string what, Exception? cause) => new($"'{path}' is not a file of Fashion-MNIST: {what}. Get it afresh ('apt-get install --reinstall dataset-fashion-mnist').", cause);
    }
}
