using System.Buffers.Binary;
using System.Text.Json;
using static TorchSharp.torch;

namespace Heed.Models.Checkpoints;

/// <summary>Writes safetensors files, atomically: the file appears whole or not at all.</summary>
public static class SafetensorsWriter
{
    /// <summary>Writes tensors to a file.</summary>
    /// <param name="path">The file; replaced if it exists.</param>
    /// <param name="tensors">Tensors by name, of the types that the format has; any device and layout.</param>
    /// <param name="metadata">Free-form strings for the header; null: none.</param>
    /// <param name="floatingType">The type that floating-point tensors are rounded to as they are written; null: as they are.</param>
    /// <exception cref="ArgumentException">A tensor's type has no place in the format, or a name is taken by the format.</exception>
    /// <exception cref="IOException">The disk is full or the folder cannot be written; the former file, if any, is untouched.</exception>
    public static void Write(
        string path, IReadOnlyDictionary<string, Tensor> tensors, IReadOnlyDictionary<string, string>? metadata = null, ScalarType? floatingType = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentNullException.ThrowIfNull(tensors);
        // Widest elements first, then by name, as the format's own library has it: every tensor is aligned to its element.
        var ordered = tensors
            .Select(entry => (Name: entry.Key, Tensor: entry.Value, Type: TypeOf(entry.Value, floatingType)))
            .OrderByDescending(entry => SafetensorsFormat.BytesOf(entry.Type)).ThenBy(entry => entry.Name, StringComparer.Ordinal).ToList();
        var header = Header(ordered, metadata);
        AtomicFile.Write(path, stream =>
        {
            Span<byte> prefix = stackalloc byte[SafetensorsFormat.PrefixBytes];
            BinaryPrimitives.WriteUInt64LittleEndian(prefix, (ulong)header.Length);
            stream.Write(prefix);
            stream.Write(header);
            foreach (var (_, tensor, type) in ordered)
            {
                WriteTensor(stream, tensor, type);
            }
        });
    }

    private static ScalarType TypeOf(Tensor tensor, ScalarType? floatingType)
    {
        var type = floatingType is { } wanted && is_floating_point(tensor) ? wanted : tensor.dtype;
        SafetensorsFormat.NameOf(type);
        return type;
    }

    private static byte[] Header(IEnumerable<(string Name, Tensor Tensor, ScalarType Type)> ordered, IReadOnlyDictionary<string, string>? metadata)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            if (metadata is { Count: > 0 })
            {
                json.WriteStartObject(SafetensorsFormat.MetadataName);
                foreach (var (key, text) in metadata.OrderBy(entry => entry.Key, StringComparer.Ordinal))
                {
                    json.WriteString(key, text);
                }

                json.WriteEndObject();
            }

            long offset = 0;
            foreach (var (name, tensor, type) in ordered)
            {
                if (name == SafetensorsFormat.MetadataName)
                {
                    throw new ArgumentException($"A tensor cannot be named {name}: the safetensors header uses that name.");
                }

                var end = offset + (tensor.numel() * SafetensorsFormat.BytesOf(type));
                json.WriteStartObject(name);
                json.WriteString("dtype", SafetensorsFormat.NameOf(type));
                json.WriteStartArray("shape");
                foreach (var size in tensor.shape)
                {
                    json.WriteNumberValue(size);
                }

                json.WriteEndArray();
                json.WriteStartArray("data_offsets");
                json.WriteNumberValue(offset);
                json.WriteNumberValue(end);
                json.WriteEndArray();
                json.WriteEndObject();
                offset = end;
            }

            json.WriteEndObject();
        }

        // Trailing spaces align the data to eight bytes.
        while (buffer.Length % 8 != 0)
        {
            buffer.WriteByte((byte)' ');
        }

        return buffer.ToArray();
    }

    private static void WriteTensor(Stream stream, Tensor tensor, ScalarType type)
    {
        if (tensor.numel() == 0)
        {
            return;
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        tensor.detach().to(type).cpu().contiguous().WriteBytesToStream(stream, 1 << 20);
    }
}
