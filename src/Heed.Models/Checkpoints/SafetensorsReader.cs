using System.Buffers.Binary;
using System.IO.MemoryMappedFiles;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>A safetensors file, memory-mapped: the header is read and checked when it is opened, a tensor's bytes when it is asked for.</summary>
public sealed class SafetensorsReader : IDisposable
{
    private readonly MemoryMappedFile? _map;
    private readonly MemoryMappedViewAccessor? _view;
    private readonly Dictionary<string, SafetensorsEntry> _entries;
    private readonly Dictionary<string, string> _metadata;

    /// <summary>Opens a file and checks its header.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">The file is truncated, or its header is malformed or contradicts the file; nothing was allocated.</exception>
    public SafetensorsReader(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"The safetensors file {path} does not exist.", path);
        }

        Path = path;
        using var handle = File.OpenHandle(path);
        var length = RandomAccess.GetLength(handle);
        (_entries, _metadata) = SafetensorsFormat.ReadHeader(path, ReadHeaderBytes(handle, path, length), length);
        if (_entries.Values.Any(entry => entry.ByteLength > 0))
        {
            _map = MemoryMappedFile.CreateFromFile(path, FileMode.Open, null, 0, MemoryMappedFileAccess.Read);
            _view = _map.CreateViewAccessor(0, 0, MemoryMappedFileAccess.Read);
        }
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>The tensors by name.</summary>
    public IReadOnlyDictionary<string, SafetensorsEntry> Entries => _entries;

    /// <summary>The header's free-form strings.</summary>
    public IReadOnlyDictionary<string, string> Metadata => _metadata;

    /// <summary>Reads a tensor into memory of its own.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>A contiguous tensor on the CPU, of the type in the file, that needs no gradient.</returns>
    /// <exception cref="KeyNotFoundException">The file has no tensor of that name.</exception>
    public Tensor Read(string name)
    {
        var entry = Find(name);
        var result = empty(entry.Shape.ToArray(), dtype: entry.Type);
        CopyTo(entry, result);
        return result;
    }

    /// <summary>Reads a tensor over the memory of another, converting its type where they differ.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="target">A tensor of the same shape.</param>
    /// <exception cref="KeyNotFoundException">The file has no tensor of that name.</exception>
    /// <exception cref="ArgumentException">The target has another shape.</exception>
    public void ReadInto(string name, Tensor target)
    {
        ArgumentNullException.ThrowIfNull(target);
        var entry = Find(name);
        if (!entry.Shape.SequenceEqual(target.shape))
        {
            throw new ArgumentException($"The tensor '{name}' has the shape [{string.Join(", ", entry.Shape)}], its target [{string.Join(", ", target.shape)}].", nameof(target));
        }

        using var quiet = no_grad();
        using var source = Read(name);
        target.copy_(source);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _view?.Dispose();
        _map?.Dispose();
    }

    private static byte[] ReadHeaderBytes(SafeFileHandle handle, string path, long length)
    {
        Span<byte> prefix = stackalloc byte[SafetensorsFormat.PrefixBytes];
        if (RandomAccess.Read(handle, prefix, 0) < prefix.Length)
        {
            throw new InvalidDataException($"{path} is not a valid safetensors file: it has {length} bytes and needs at least {prefix.Length}.");
        }

        var headerLength = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (headerLength > SafetensorsFormat.MaximumHeaderBytes)
        {
            throw new InvalidDataException(
                $"{path} is not a valid safetensors file: it claims a header of {headerLength} bytes, and at most {SafetensorsFormat.MaximumHeaderBytes} are allowed.");
        }

        if (headerLength > (ulong)(length - prefix.Length))
        {
            throw new InvalidDataException(
                $"{path} is not a valid safetensors file: its header of {headerLength} bytes reaches beyond its end (a truncated file?).");
        }

        var header = new byte[headerLength];
        for (var read = 0; read < header.Length;)
        {
            var count = RandomAccess.Read(handle, header.AsSpan(read), prefix.Length + read);
            if (count == 0)
            {
                throw new InvalidDataException($"{path} became shorter while it was read.");
            }

            read += count;
        }

        return header;
    }

    private SafetensorsEntry Find(string name) => _entries.TryGetValue(name, out var entry)
        ? entry
        : throw new KeyNotFoundException($"{Path} has no tensor named '{name}'.");

    private unsafe void CopyTo(SafetensorsEntry entry, Tensor target)
    {
        if (entry.ByteLength == 0)
        {
            return;
        }

        ObjectDisposedException.ThrowIf(_view!.SafeMemoryMappedViewHandle.IsClosed, this);
        byte* start = null;
        var handle = _view.SafeMemoryMappedViewHandle;
        handle.AcquirePointer(ref start);
        try
        {
            // Spans end at 2 GiB, so a large tensor is copied in pieces of whole elements.
            const long Piece = 1L << 30;
            using var flat = target.view(-1);
            var elementBytes = SafetensorsFormat.BytesOf(entry.Type);
            var source = start + _view.PointerOffset + entry.Offset;
            for (long done = 0; done < entry.ByteLength; done += Piece)
            {
                var bytes = Math.Min(Piece, entry.ByteLength - done);
                using var part = flat.narrow(0, done / elementBytes, bytes / elementBytes);
                new ReadOnlySpan<byte>(source + done, (int)bytes).CopyTo(part.bytes);
            }
        }
        finally
        {
            handle.ReleasePointer();
        }
    }
}
