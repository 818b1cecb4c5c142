namespace Heed.Onnx.Graphs;

/// <summary>An attribute of a node (AttributeProto).</summary>
internal sealed class OnnxAttribute
{
    private const int FloatKind = 1, IntegerKind = 2, TextKind = 3, TensorKind = 4, IntegersKind = 7;

    private OnnxAttribute(string name, long integer, float single, string text, long[] integers, float[] singles, OnnxConstant? tensor, IReadOnlyList<ReadOnlyMemory<byte>> graphs)
    {
        Name = name;
        Integer = integer;
        Single = single;
        Text = text;
        Integers = integers;
        Singles = singles;
        Tensor = tensor;
        Graphs = graphs;
    }

    public string Name { get; }

    public long Integer { get; }

    public float Single { get; }

    public string Text { get; }

    public long[] Integers { get; }

    public float[] Singles { get; }

    public OnnxConstant? Tensor { get; }

    /// <summary>Graphs within the node: the bodies of If, Loop and Scan.</summary>
    public IReadOnlyList<ReadOnlyMemory<byte>> Graphs { get; }

    public static OnnxAttribute Read(ReadOnlyMemory<byte> message)
    {
        var fields = Wire.Read(message);
        WireField? Last(int number) => fields.LastOrDefault(field => field.Number == number) is { Number: > 0 } found ? found : null;
        return new(
            Last(1)?.Text ?? "",
            Last(3)?.Integer ?? 0,
            Last(2)?.Single ?? 0,
            Last(4)?.Text ?? "",
            [.. Wire.Integers(fields.Where(field => field.Number == 8))],
            [.. Wire.Singles(fields.Where(field => field.Number == 7))],
            Last(5) is { } tensor ? OnnxConstant.Read(tensor.Bytes) : null,
            [.. fields.Where(field => field.Number is 6 or 11).Select(field => field.Bytes)]);
    }

    /// <summary>Writes an attribute: a whole number, whole numbers, a number, a text or a tensor.</summary>
    public static WireMessage Write(string name, object value)
    {
        var message = new WireMessage().Text(1, name);
        switch (value)
        {
            case long integer:
                return message.Integer(3, integer).Integer(20, IntegerKind);
            case long[] integers:
                foreach (var integer in integers)
                {
                    message.Integer(8, integer);
                }

                return message.Integer(20, IntegersKind);
            case float single:
                return message.Single(2, single).Integer(20, FloatKind);
            case string text:
                return message.Text(4, text).Integer(20, TextKind);
            case OnnxConstant tensor:
                return message.Message(5, tensor.Write("")).Integer(20, TensorKind);
            default:
                throw new ArgumentException($"An attribute cannot be a {value.GetType().Name}.", nameof(value));
        }
    }
}
