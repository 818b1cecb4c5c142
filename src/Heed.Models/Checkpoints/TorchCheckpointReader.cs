using System.IO.Compression;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>One tensor of a PyTorch checkpoint.</summary>
/// <param name="Name">The tensor's name.</param>
/// <param name="Type">Its element type.</param>
/// <param name="Shape">Its shape; empty for a scalar.</param>
public sealed record TorchCheckpointEntry(string Name, ScalarType Type, IReadOnlyList<long> Shape);

/// <summary>A state dictionary that PyTorch wrote (<c>.pth</c>, <c>.pt</c>, <c>.bin</c>): a zip archive with a pickle and a file for every storage. Of the pickle format exactly what a state dictionary needs
/// is understood; nothing in it is ever executed, and a file that would have Python import anything else is refused.</summary>
/// <remarks>Left out: the format before PyTorch 1.6, TorchScript archives, sparse, quantised and complex tensors, compressed archives (PyTorch writes none).</remarks>
public sealed class TorchCheckpointReader : IDisposable
{
    // The pickle holds names and shapes; the largest published models need a few megabytes.
    private const long MaximumPickleBytes = 100_000_000;

    // Where training scripts keep the weights, from the most usual to the least.
    private static readonly string[] s_keys = ["model", "state_dict", "model_state_dict", "module", "net", "params", "weights", "state_dict_ema", "model_ema"];

    private readonly FileStream _file;
    private readonly ZipArchive _archive;
    private readonly Dictionary<string, ZipArchiveEntry> _storages = new(StringComparer.Ordinal);
    private readonly Dictionary<string, PickledTensor> _tensors = new(StringComparer.Ordinal);
    private readonly Dictionary<string, TorchCheckpointEntry> _entries = new(StringComparer.Ordinal);

    /// <summary>Opens a file and checks everything that it says against what it holds; no tensor is read yet.</summary>
    /// <param name="path">The file.</param>
    /// <param name="key">Under which key of the saved dictionary the tensors lie; null: at the top, or under the first of the usual keys (<c>model</c>, <c>state_dict</c> ...).</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is truncated, of another format, contradicts itself, or holds more than tensors in dictionaries.</exception>
    public TorchCheckpointReader(string path, string? key = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"The checkpoint {path} does not exist.", path);
        }

        Path = path;
        _file = File.OpenRead(path);
        try
        {
            _archive = Open();
            var pickle = Index();
            AddTensors(StateDictionary(ReadPickle(pickle), key));
        }
        catch
        {
            _archive?.Dispose();
            _file.Dispose();
            throw;
        }
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>The tensors by name.</summary>
    public IReadOnlyDictionary<string, TorchCheckpointEntry> Entries => _entries;

    /// <summary>Whether a file starts as a zip archive does, which PyTorch's checkpoints are since version 1.6.</summary>
    internal static bool IsArchive(string path) => Starts(path, "PK\u0003\u0004"u8);

    /// <summary>Whether a file starts as PyTorch's checkpoints did before version 1.6: a pickle of a magic number.</summary>
    internal static bool IsOldFormat(string path) => Starts(path, [0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19]);

    /// <summary>Reads a tensor into memory of its own.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>A contiguous tensor on the CPU, of the type in the file, that needs no gradient.</returns>
    /// <exception cref="KeyNotFoundException">The file has no tensor of that name.</exception>
    /// <exception cref="InvalidDataException">The file became shorter while it was read.</exception>
    public Tensor Read(string name)
    {
        var tensor = _tensors.GetValueOrDefault(name) ?? throw new KeyNotFoundException($"{Path} has no tensor named '{name}'.");
        using var scope = NewDisposeScope();
        var flat = empty([Reach(tensor)], dtype: tensor.Storage.Type);
        if (flat.numel() > 0)
        {
            Fill(flat, _storages[tensor.Storage.Key], tensor.Offset * flat.element_size());
        }

        // A scalar has no strides, an empty tensor no elements that they could reach.
        return (flat.numel() == 0 ? empty(tensor.Shape, dtype: tensor.Storage.Type) : flat.as_strided(tensor.Shape, tensor.Strides).clone()).contiguous().MoveToOuterDisposeScope();
    }

    /// <summary>Reads a tensor over the memory of another, converting its type where they differ.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="target">A tensor of the same shape.</param>
    /// <exception cref="KeyNotFoundException">The file has no tensor of that name.</exception>
    /// <exception cref="ArgumentException">The target has another shape.</exception>
    public void ReadInto(string name, Tensor target)
    {
        ArgumentNullException.ThrowIfNull(target);
        using var quiet = no_grad();
        using var source = Read(name);
        if (!source.shape.SequenceEqual(target.shape))
        {
            throw new ArgumentException($"The tensor '{name}' has the shape [{string.Join(", ", source.shape)}], its target [{string.Join(", ", target.shape)}].", nameof(target));
        }

        target.copy_(source);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _archive.Dispose();
        _file.Dispose();
    }

    private static bool Starts(string path, ReadOnlySpan<byte> magic)
    {
        using var file = File.OpenRead(path);
        Span<byte> start = stackalloc byte[magic.Length];
        return file.ReadAtLeast(start, start.Length, throwOnEndOfStream: false) == start.Length && start.SequenceEqual(magic);
    }

    /// <summary>Elements from a tensor's first to its last, which other tensors may lie between.</summary>
    private static long Reach(PickledTensor tensor)
    {
        long last = 0;
        for (var axis = 0; axis < tensor.Shape.Length; axis++)
        {
            if (tensor.Shape[axis] == 0)
            {
                return 0;
            }

            last = checked(last + ((tensor.Shape[axis] - 1) * tensor.Strides[axis]));
        }

        return last + 1;
    }

    private ZipArchive Open()
    {
        if (IsOldFormat(Path))
        {
            throw new InvalidDataException(
                $"{Path} is in the format that PyTorch wrote before version 1.6: write it anew with a later one, torch.save(torch.load('{System.IO.Path.GetFileName(Path)}'), 'new.pth').");
        }

        if (!IsArchive(Path))
        {
            throw Broken("it is not the zip archive that PyTorch writes since version 1.6");
        }

        try
        {
            return new ZipArchive(_file, ZipArchiveMode.Read, leaveOpen: true);
        }
        catch (Exception error) when (error is InvalidDataException or EndOfStreamException)
        {
            throw Broken("its archive has no directory (a truncated file?)", error);
        }
    }

    /// <summary>Finds the pickle and the storages: <c>NAME/data.pkl</c> and <c>NAME/data/KEY</c>.</summary>
    private ZipArchiveEntry Index()
    {
        ZipArchiveEntry? pickle = null;
        try
        {
            var all = _archive.Entries;
            pickle = all.FirstOrDefault(entry => entry.FullName.EndsWith("/data.pkl", StringComparison.Ordinal) && entry.FullName.Count(letter => letter == '/') == 1) ?? throw Broken("its archive has no data.pkl");
            var root = pickle.FullName[..^"data.pkl".Length];
            if (all.Any(entry => entry.FullName == root + "constants.pkl"))
            {
                throw Broken("it is a TorchScript archive, a program: save the model's state dictionary in its place, torch.save(model.state_dict(), 'weights.pth')");
            }

            if (all.FirstOrDefault(entry => entry.FullName == root + "byteorder") is { Length: <= 16 } order)
            {
                using var reader = new StreamReader(order.Open());
                if (reader.ReadToEnd() != "little")
                {
                    throw Broken("its numbers have their bytes in big-endian order");
                }
            }

            var prefix = root + "data/";
            foreach (var entry in all.Where(entry => entry.FullName.StartsWith(prefix, StringComparison.Ordinal)))
            {
                // Stored files are as long as the archive says, or the archive is broken; a compressed one could claim anything.
                if (entry.CompressedLength != entry.Length || entry.Length > _file.Length || !_storages.TryAdd(entry.FullName[prefix.Length..], entry))
                {
                    throw Broken($"'{entry.FullName}' is compressed, there twice, or longer than the file");
                }
            }
        }
        catch (Exception error) when (error is EndOfStreamException || (error is InvalidDataException && !error.Message.StartsWith(Path, StringComparison.Ordinal)))
        {
            throw Broken("its archive's directory is damaged", error);
        }

        return pickle;
    }

    private object? ReadPickle(ZipArchiveEntry entry)
    {
        if (entry.Length > MaximumPickleBytes || entry.CompressedLength != entry.Length || entry.Length > _file.Length)
        {
            throw Broken($"its data.pkl is compressed, longer than the file, or longer than {MaximumPickleBytes:N0} bytes");
        }

        try
        {
            var bytes = new byte[entry.Length];
            using (var stream = entry.Open())
            {
                stream.ReadExactly(bytes);
            }

            return Pickle.Read(bytes);
        }
        catch (EndOfStreamException error)
        {
            throw Broken("its data.pkl is cut short", error);
        }
        catch (InvalidDataException error)
        {
            throw Broken(error.Message.TrimEnd('.'), error);
        }
    }

    private PickledDictionary StateDictionary(object? root, string? key)
    {
        if (root is not PickledDictionary dictionary)
        {
            throw Broken("it does not hold a dictionary");
        }

        if (key is not null)
        {
            return dictionary[key] as PickledDictionary ?? throw Broken($"it has no dictionary under '{key}'; its keys are {Keys()}");
        }

        return HasTensors(dictionary) ? dictionary
            : s_keys.Select(known => dictionary[known]).OfType<PickledDictionary>().FirstOrDefault(HasTensors)
            ?? throw Broken($"there are no tensors at its top nor under any of {string.Join(", ", s_keys)}; its keys are {Keys()}: say under which the tensors lie");

        static bool HasTensors(PickledDictionary candidate) => candidate.Items.Any(item => item.Value is PickledTensor);

        string Keys() => string.Join(", ", dictionary.Items.Select(item => item.Key).OfType<string>().Take(10));
    }

    private void AddTensors(PickledDictionary state)
    {
        foreach (var (key, value) in state.Items)
        {
            if (value is PickledTensor tensor)
            {
                var name = key as string ?? throw Broken("a tensor's name is not a text");
                Check(name, tensor);
                _tensors[name] = tensor;
                _entries[name] = new(name, tensor.Storage.Type, tensor.Shape);
            }
        }
    }

    private void Check(string name, PickledTensor tensor)
    {
        var shape = $"'{name}' of the shape [{string.Join(", ", tensor.Shape)}]";
        if (tensor.Shape.Length != tensor.Strides.Length || tensor.Shape.Length > 32 || tensor.Offset < 0 || tensor.Shape.Concat(tensor.Strides).Any(number => number < 0))
        {
            throw Broken($"the tensor {shape} has impossible strides");
        }

        if (!_storages.TryGetValue(tensor.Storage.Key, out var storage))
        {
            throw Broken($"the storage '{tensor.Storage.Key}' of the tensor '{name}' is missing");
        }

        long count = 1, reach;
        try
        {
            foreach (var size in tensor.Shape)
            {
                count = checked(count * Math.Max(1, size));
            }

            reach = checked(Reach(tensor) + tensor.Offset);
        }
        catch (OverflowException error)
        {
            throw Broken($"the tensor {shape} is too large", error);
        }

        var elements = storage.Length / SafetensorsFormat.BytesOf(tensor.Storage.Type);
        if (reach > elements || (Reach(tensor) > 0 && count > elements))
        {
            throw Broken($"the tensor {shape} needs {Math.Max(reach, count):N0} elements, and its storage has {elements:N0}");
        }
    }

    private void Fill(Tensor flat, ZipArchiveEntry entry, long skip)
    {
        // Spans end at 2 GiB, so a large tensor is read in pieces.
        const long Piece = 1L << 27;
        try
        {
            using var stream = entry.Open();
            Skip(stream, skip);
            for (long done = 0; done < flat.numel(); done += Piece)
            {
                using var part = flat.narrow(0, done, Math.Min(Piece, flat.numel() - done));
                stream.ReadExactly(part.bytes);
            }
        }
        catch (Exception error) when (error is EndOfStreamException or InvalidDataException)
        {
            throw Broken($"the storage '{entry.FullName}' is cut short", error);
        }
    }

    private static void Skip(Stream stream, long bytes)
    {
        if (stream.CanSeek)
        {
            stream.Seek(bytes, SeekOrigin.Current);
            return;
        }

        var buffer = new byte[Math.Min(bytes, 1 << 16)];
        while (bytes > 0)
        {
            var count = (int)Math.Min(bytes, buffer.Length);
            stream.ReadExactly(buffer, 0, count);
            bytes -= count;
        }
    }

    private InvalidDataException Broken(string what, Exception? cause = null) => new($"{Path} is not a PyTorch checkpoint that can be read: {what}.", cause);
}
