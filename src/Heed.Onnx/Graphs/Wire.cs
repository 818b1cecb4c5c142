using System.Buffers.Binary;
using System.Text;

namespace Heed.Onnx.Graphs;

/// <summary>How a field of a protobuf message is written.</summary>
internal enum WireType
{
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// <summary>One field of a protobuf message.</summary>
/// <param name="Number">The field's number.</param>
/// <param name="Type">How it is written.</param>
/// <param name="Value">Its value, where it is a number.</param>
/// <param name="Bytes">Its bytes, where it is a text, a message or a packed list: a view of the file.</param>
/// <param name="Raw">All of it with its tag, to be copied where nothing changes.</param>
internal readonly record struct WireField(int Number, WireType Type, ulong Value, ReadOnlyMemory<byte> Bytes, ReadOnlyMemory<byte> Raw)
{
    public string Text => Encoding.UTF8.GetString(Bytes.Span);

    public long Integer => unchecked((long)Value);

    public float Single => BitConverter.UInt32BitsToSingle((uint)Value);
}

/// <summary>Reads protobuf messages field by field as views of the file, so that weights are never copied, and what this library knows nothing of survives a round trip.</summary>
internal static class Wire
{
    /// <summary>The fields of a message.</summary>
    /// <exception cref="InvalidDataException">It is no message, or ends too early.</exception>
    public static List<WireField> Read(ReadOnlyMemory<byte> message)
    {
        var fields = new List<WireField>();
        for (var at = 0; at < message.Length;)
        {
            var start = at;
            var tag = Varint(message.Span, ref at);
            var number = tag >> 3;
            if (number is 0 or > 0x1FFFFFFF)
            {
                throw new InvalidDataException($"byte {start} begins no field");
            }

            var type = (WireType)(tag & 7);
            ulong value = 0;
            var bytes = ReadOnlyMemory<byte>.Empty;
            switch (type)
            {
                case WireType.Varint:
                    value = Varint(message.Span, ref at);
                    break;
                case WireType.Fixed64:
                    value = BinaryPrimitives.ReadUInt64LittleEndian(Take(message, ref at, 8).Span);
                    break;
                case WireType.Fixed32:
                    value = BinaryPrimitives.ReadUInt32LittleEndian(Take(message, ref at, 4).Span);
                    break;
                case WireType.Bytes:
                    var length = Varint(message.Span, ref at);
                    bytes = length <= (ulong)(message.Length - at) ? Take(message, ref at, (int)length)
                        : throw new InvalidDataException($"a field of {length} bytes reaches beyond the end (a truncated file?)");
                    break;
                default:
                    throw new InvalidDataException($"byte {start} begins a field of an unknown kind");
            }

            fields.Add(new((int)number, type, value, bytes, message[start..at]));
        }

        return fields;
    }

    /// <summary>The numbers of a repeated field, packed or not.</summary>
    public static IEnumerable<long> Integers(IEnumerable<WireField> fields)
    {
        foreach (var field in fields)
        {
            if (field.Type != WireType.Bytes)
            {
                yield return field.Integer;
                continue;
            }

            for (var at = 0; at < field.Bytes.Length;)
            {
                yield return unchecked((long)Varint(field.Bytes.Span, ref at));
            }
        }
    }

    /// <summary>The 32-bit numbers of a repeated field, packed or not.</summary>
    public static IEnumerable<float> Singles(IEnumerable<WireField> fields)
    {
        foreach (var field in fields)
        {
            if (field.Type == WireType.Fixed32)
            {
                yield return field.Single;
                continue;
            }

            for (var at = 0; at + 4 <= field.Bytes.Length; at += 4)
            {
                yield return BinaryPrimitives.ReadSingleLittleEndian(field.Bytes.Span[at..]);
            }
        }
    }

    private static ReadOnlyMemory<byte> Take(ReadOnlyMemory<byte> message, ref int at, int count)
    {
        if (count > message.Length - at)
        {
            throw new InvalidDataException("it ends within a field (a truncated file?)");
        }

        at += count;
        return message.Slice(at - count, count);
    }

    private static ulong Varint(ReadOnlySpan<byte> bytes, ref int at)
    {
        ulong value = 0;
        for (var shift = 0; shift < 64; shift += 7)
        {
            if (at >= bytes.Length)
            {
                throw new InvalidDataException("it ends within a field (a truncated file?)");
            }

            var next = bytes[at++];
            value |= (ulong)(next & 0x7F) << shift;
            if (next < 0x80)
            {
                return value;
            }
        }

        throw new InvalidDataException("it holds a number of more than 64 bits");
    }
}

/// <summary>A protobuf message being written, as a list of pieces: pieces of the file it came from are referred to, not copied.</summary>
internal sealed class WireMessage
{
    private readonly List<ReadOnlyMemory<byte>> _pieces = [];

    /// <summary>Length in bytes.</summary>
    public long Length { get; private set; }

    public WireMessage Raw(ReadOnlyMemory<byte> piece)
    {
        _pieces.Add(piece);
        Length += piece.Length;
        return this;
    }

    public WireMessage Integer(int number, long value) => Raw((byte[])[.. Varint((ulong)number << 3), .. Varint(unchecked((ulong)value))]);

    public WireMessage Single(int number, float value)
    {
        var piece = new byte[4];
        BinaryPrimitives.WriteSingleLittleEndian(piece, value);
        return Raw((byte[])[.. Varint(((ulong)number << 3) | (ulong)WireType.Fixed32), .. piece]);
    }

    public WireMessage Text(int number, string value) => Bytes(number, Encoding.UTF8.GetBytes(value));

    public WireMessage Bytes(int number, ReadOnlyMemory<byte> value) => Tag(number, value.Length).Raw(value);

    public WireMessage Message(int number, WireMessage value)
    {
        Tag(number, value.Length);
        _pieces.AddRange(value._pieces);
        Length += value.Length;
        return this;
    }

    public void WriteTo(Stream stream) => _pieces.ForEach(piece => stream.Write(piece.Span));

    public byte[] ToArray()
    {
        var bytes = new byte[Length];
        var at = 0;
        foreach (var piece in _pieces)
        {
            piece.CopyTo(bytes.AsMemory(at));
            at += piece.Length;
        }

        return bytes;
    }

    private static byte[] Varint(ulong value)
    {
        var bytes = new List<byte>(10);
        for (; value >= 0x80; value >>= 7)
        {
            bytes.Add((byte)(value | 0x80));
        }

        bytes.Add((byte)value);
        return [.. bytes];
    }

    private WireMessage Tag(int number, long length) => Raw((byte[])[.. Varint(((ulong)number << 3) | (ulong)WireType.Bytes), .. Varint((ulong)length)]);
}
