namespace Heed.Onnx.Graphs;

/// <summary>What a graph says of one of its values (ValueInfoProto).</summary>
/// <param name="Name">Its name.</param>
/// <param name="Type">Type of its elements.</param>
/// <param name="Shape">Its shape: sizes, or null where a size is free; null: not said.</param>
/// <param name="IsTensor">Whether it is a tensor, and not a sequence, a map or an optional value.</param>
internal sealed record OnnxValue(string Name, OnnxElementType Type, long?[]? Shape, bool IsTensor)
{
    public static OnnxValue Read(ReadOnlyMemory<byte> message)
    {
        var (name, type, isTensor) = ("", 0L, true);
        long?[]? shape = null;
        foreach (var field in Wire.Read(message))
        {
            if (field.Number == 1)
            {
                name = field.Text;
            }
            else if (field.Number == 2)
            {
                foreach (var kind in Wire.Read(field.Bytes))
                {
                    isTensor &= kind.Number is 1 or 6;
                    foreach (var part in kind.Number == 1 ? Wire.Read(kind.Bytes) : [])
                    {
                        type = part.Number == 1 ? part.Integer : type;
                        shape = part.Number == 2 ? [.. Wire.Read(part.Bytes).Where(size => size.Number == 1).Select(size => Size(size.Bytes))] : shape;
                    }
                }
            }
        }

        return new(name, (OnnxElementType)type, shape, isTensor);
    }

    /// <summary>A value of a type, with or without a shape.</summary>
    public static WireMessage Write(string name, OnnxElementType type, long?[]? shape = null)
    {
        var tensor = new WireMessage().Integer(1, (long)type);
        if (shape is not null)
        {
            var sizes = new WireMessage();
            foreach (var size in shape)
            {
                sizes.Message(1, size is { } known ? new WireMessage().Integer(1, known) : new WireMessage());
            }

            tensor.Message(2, sizes);
        }

        return new WireMessage().Text(1, name).Message(2, new WireMessage().Message(1, tensor));
    }

    private static long? Size(ReadOnlyMemory<byte> message)
    {
        foreach (var field in Wire.Read(message))
        {
            // Some writers put 0 or -1 where a size is free.
            if (field.Number == 1 && field.Integer > 0)
            {
                return field.Integer;
            }
        }

        return null;
    }
}
