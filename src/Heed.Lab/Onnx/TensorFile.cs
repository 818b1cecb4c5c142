using System.Buffers.Binary;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Heed.Models.Checkpoints;
using Heed.Onnx;
using static TorchSharp.torch;

namespace Heed.Lab.Onnx;

/// <summary>Reads tensors that a model is given from files: NumPy's <c>.npy</c>, safetensors, JSON.</summary>
public static partial class TensorFile
{
    private const long MostElements = 1L << 30;

    /// <summary>The tensors of a file.</summary>
    /// <param name="path">A <c>.npy</c> or <c>.json</c> file (lists within lists) with one tensor without a name, or a <c>.safetensors</c> file with any number of named ones.</param>
    /// <returns>Tensors by name; an empty name for one without.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is of another kind, or damaged.</exception>
    public static IReadOnlyDictionary<string, OnnxTensor> Read(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"There is no tensor file '{path}'.", path);
        }

        return Path.GetExtension(path).ToLowerInvariant() switch
        {
            ".npy" => new Dictionary<string, OnnxTensor> { [""] = Numpy(path) },
            ".json" => new Dictionary<string, OnnxTensor> { [""] = Json(path) },
            ".safetensors" => Safetensors(path),
            var other => throw new InvalidDataException($"'{path}' ends in '{other}': give a tensor as .npy, .safetensors or .json (lists of numbers within lists)."),
        };
    }

    private static Dictionary<string, OnnxTensor> Safetensors(string path)
    {
        using var reader = new SafetensorsReader(path);
        var tensors = new Dictionary<string, OnnxTensor>(StringComparer.Ordinal);
        foreach (var name in reader.Entries.Keys)
        {
            using var value = reader.Read(name);
            using var plain = is_floating_point(value) ? value.to(ScalarType.Float32) : value.to(ScalarType.Int64);
            tensors[name] = is_floating_point(value) ? OnnxTensor.Of(plain.data<float>().ToArray(), value.shape) : OnnxTensor.Of(plain.data<long>().ToArray(), value.shape);
        }

        return tensors.Count > 0 ? tensors : throw new InvalidDataException($"'{path}' holds no tensor.");
    }

    private static OnnxTensor Json(string path)
    {
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            var shape = new List<long>();
            for (var at = document.RootElement; at.ValueKind == JsonValueKind.Array; at = at[0])
            {
                shape.Add(at.GetArrayLength());
                if (at.GetArrayLength() == 0)
                {
                    throw new InvalidDataException($"'{path}' holds an empty list, and a tensor has numbers.");
                }
            }

            var values = new List<double>();
            Collect(document.RootElement, shape, 0, values, path);
            return values.All(value => value == Math.Floor(value)) ? OnnxTensor.Of(values.ConvertAll(value => (long)value).ToArray(), [.. shape]) : OnnxTensor.Of(values.ConvertAll(value => (float)value).ToArray(), [.. shape]);
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"'{path}' is not JSON: {error.Message.Split(". ")[0].TrimEnd('.')}.", error);
        }
    }

    private static void Collect(JsonElement element, List<long> shape, int depth, List<double> values, string path)
    {
        if (depth == shape.Count && element.ValueKind == JsonValueKind.Number)
        {
            values.Add(element.GetDouble());
        }
        else if (depth < shape.Count && element.ValueKind == JsonValueKind.Array && element.GetArrayLength() == shape[depth])
        {
            foreach (var inner in element.EnumerateArray())
            {
                Collect(inner, shape, depth + 1, values, path);
            }
        }
        else
        {
            throw new InvalidDataException($"'{path}' is no tensor: all its lists on one level must be of one length, down to numbers.");
        }
    }

    private static OnnxTensor Numpy(string path)
    {
        var bytes = File.ReadAllBytes(path);
        InvalidDataException Damaged(string why) => new($"'{path}' is not a NumPy file that can be read: {why}.");
        if (bytes.Length < 12 || bytes[0] != 0x93 || !bytes.AsSpan(1, 5).SequenceEqual("NUMPY"u8))
        {
            throw Damaged("it does not begin as one");
        }

        var wide = bytes[6] >= 2;
        long length = wide ? BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(8)) : BinaryPrimitives.ReadUInt16LittleEndian(bytes.AsSpan(8));
        var start = (wide ? 12 : 10) + length;
        if (start > bytes.Length)
        {
            throw Damaged("its header reaches beyond its end");
        }

        var header = NumpyHeader().Match(Encoding.Latin1.GetString(bytes, wide ? 12 : 10, (int)length));
        if (!header.Success || header.Groups["order"].Value == "True")
        {
            throw Damaged(header.Success ? "it is stored column by column: save numpy.ascontiguousarray(x)" : "its header is of another kind");
        }

        long[] shape = [.. header.Groups["shape"].Value.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Select(size => long.Parse(size, CultureInfo.InvariantCulture))];
        var count = shape.Aggregate(1L, (product, size) => size == 0 || product > MostElements / Math.Max(1, size) ? MostElements + 1 : product * size);
        var data = bytes.AsSpan((int)start);
        var type = header.Groups["type"].Value;
        var size = int.Parse(type[2..], CultureInfo.InvariantCulture);
        if (count > MostElements || data.Length < count * size || type[0] == '>')
        {
            throw Damaged(type[0] == '>' ? "its numbers have their high bytes first" : "its data are shorter than its shape says");
        }

        data = data[..(int)(count * size)];
        return type[1..] switch
        {
            "f4" => OnnxTensor.Of(MemoryMarshal.Cast<byte, float>(data).ToArray(), shape),
            "f8" => OnnxTensor.Of(MemoryMarshal.Cast<byte, double>(data).ToArray(), shape),
            "f2" => OnnxTensor.Of(Array.ConvertAll(MemoryMarshal.Cast<byte, Half>(data).ToArray(), value => (float)value), shape),
            "i8" => OnnxTensor.Of(MemoryMarshal.Cast<byte, long>(data).ToArray(), shape),
            "i4" => OnnxTensor.Of(Array.ConvertAll(MemoryMarshal.Cast<byte, int>(data).ToArray(), value => (long)value), shape),
            "i1" => OnnxTensor.Of(Array.ConvertAll(MemoryMarshal.Cast<byte, sbyte>(data).ToArray(), value => (long)value), shape),
            "u1" or "b1" => OnnxTensor.Of(Array.ConvertAll(data.ToArray(), value => (long)value), shape),
            _ => throw Damaged($"its numbers are of the type {type}"),
        };
    }

    [GeneratedRegex(@"'descr':\s*'(?<type>[<>|=][a-z]\d+)',\s*'fortran_order':\s*(?<order>True|False),\s*'shape':\s*\((?<shape>[\d,\s]*)\)")]
    private static partial Regex NumpyHeader();
}
