using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Heed.Onnx.Graphs;

/// <summary>A constant tensor (TensorProto): its type and shape, and its values where they are asked for.</summary>
internal sealed class OnnxConstant
{
    private readonly List<WireField> _data;

    private OnnxConstant(string name, OnnxElementType type, long[] shape, bool isExternal, string? location, List<WireField> data)
    {
        Name = name;
        Type = type;
        Shape = shape;
        IsExternal = isExternal;
        Location = location;
        _data = data;
    }

    public string Name { get; }

    public OnnxElementType Type { get; }

    public long[] Shape { get; }

    /// <summary>Whether the values lie in a file beside the model.</summary>
    public bool IsExternal { get; }

    /// <summary>That file, as the model names it.</summary>
    public string? Location { get; }

    public long Count => Shape.Aggregate(1L, (count, size) => count * size);

    public static OnnxConstant Read(ReadOnlyMemory<byte> message)
    {
        var dimensions = new List<WireField>();
        var data = new List<WireField>();
        var (name, type, external) = ("", 0, false);
        string? location = null;
        foreach (var field in Wire.Read(message))
        {
            switch (field.Number)
            {
                case 1:
                    dimensions.Add(field);
                    break;
                case 2:
                    type = (int)field.Integer;
                    break;
                case 8:
                    name = field.Text;
                    break;
                case 13:
                    var entry = Wire.Read(field.Bytes);
                    if (entry.Any(part => part.Number == 1 && part.Text == "location"))
                    {
                        location = entry.LastOrDefault(part => part.Number == 2).Text;
                    }

                    break;
                case 14:
                    external = field.Integer == 1;
                    break;
                case 4 or 5 or 7 or 9 or 10 or 11:
                    data.Add(field);
                    break;
            }
        }

        long[] shape = [.. Wire.Integers(dimensions)];
        return shape.All(size => size is >= 0 and < int.MaxValue) ? new(name, (OnnxElementType)type, shape, external, location, data)
            : throw new InvalidDataException($"the tensor '{name}' has the shape [{string.Join(", ", shape)}]");
    }

    public static OnnxConstant Of(long[] shape, params long[] values) => new(
        "", OnnxElementType.Int64, shape, false, null, [new(9, WireType.Bytes, 0, MemoryMarshal.AsBytes(values.AsSpan()).ToArray(), default)]);

    public static OnnxConstant Of(long[] shape, params float[] values) => new(
        "", OnnxElementType.Float32, shape, false, null, [new(9, WireType.Bytes, 0, MemoryMarshal.AsBytes(values.AsSpan()).ToArray(), default)]);

    /// <summary>The values as whole numbers; null where they are not whole numbers, lie elsewhere, or are not as many as the shape says.</summary>
    public long[]? Integers()
    {
        if (IsExternal || Type is not (OnnxElementType.Int64 or OnnxElementType.Int32 or OnnxElementType.Boolean or OnnxElementType.UInt8))
        {
            return null;
        }

        long[] values = Raw() is { } raw
            ? Type switch
            {
                OnnxElementType.Int64 => MemoryMarshal.Cast<byte, long>(raw.Span).ToArray(),
                OnnxElementType.Int32 => [.. MemoryMarshal.Cast<byte, int>(raw.Span).ToArray()],
                _ => [.. raw.ToArray()],
            }
            : [.. Wire.Integers(_data.Where(field => field.Number is 5 or 7))];
        return values.Length == Count ? values : null;
    }

    /// <summary>The values as floating-point numbers; null where there are none, or not as many as the shape says.</summary>
    public float[]? Singles()
    {
        if (IsExternal)
        {
            return null;
        }

        float[]? values = Type switch
        {
            OnnxElementType.Float32 => Raw() is { } raw ? MemoryMarshal.Cast<byte, float>(raw.Span).ToArray() : [.. Wire.Singles(_data.Where(field => field.Number == 4))],
            OnnxElementType.Float16 => Raw() is { } raw ? [.. MemoryMarshal.Cast<byte, Half>(raw.Span).ToArray().Select(value => (float)value)]
                : [.. Wire.Integers(_data.Where(field => field.Number == 5)).Select(bits => (float)BitConverter.UInt16BitsToHalf((ushort)bits))],
            OnnxElementType.Float64 => Raw() is { } raw ? [.. MemoryMarshal.Cast<byte, double>(raw.Span).ToArray().Select(value => (float)value)] : Doubles(),
            _ => Integers() is { } integers ? [.. integers.Select(value => (float)value)] : null,
        };
        return values?.Length == Count ? values : null;
    }

    public WireMessage Write(string name)
    {
        var message = new WireMessage();
        foreach (var size in Shape)
        {
            message.Integer(1, size);
        }

        return message.Integer(2, (long)Type).Text(8, name).Bytes(9, Raw()!.Value);
    }

    private ReadOnlyMemory<byte>? Raw() => _data.Where(field => field.Number == 9).Select(field => (ReadOnlyMemory<byte>?)field.Bytes).LastOrDefault();

    private float[] Doubles() => [.. _data.Where(field => field.Number == 10).SelectMany(field => field.Type == WireType.Fixed64
        ? [(float)BitConverter.UInt64BitsToDouble(field.Value)]
        : Enumerable.Range(0, field.Bytes.Length / 8).Select(i => (float)BinaryPrimitives.ReadDoubleLittleEndian(field.Bytes.Span[(8 * i)..])))];
}
