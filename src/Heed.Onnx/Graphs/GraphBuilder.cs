namespace Heed.Onnx.Graphs;

/// <summary>Makes nodes, in the words of the operators' version that a graph uses.</summary>
/// <param name="opset">That version.</param>
/// <param name="prefix">What names of new values begin with.</param>
internal sealed class GraphBuilder(long opset, string prefix)
{
    private int _count;

    public List<OnnxNode> Nodes { get; } = [];

    public string Add(string operation, IEnumerable<string> inputs, params (string Name, object Value)[] attributes)
    {
        var name = $"{prefix}{_count++}";
        AddAs(name, operation, inputs, attributes);
        return name;
    }

    /// <summary>Adds a node whose output has a name already.</summary>
    public void AddAs(string output, string operation, IEnumerable<string> inputs, params (string Name, object Value)[] attributes) =>
        Nodes.Add(OnnxNode.Make(operation, inputs, [output], attributes));

    public string Integers(params long[] values) => Add("Constant", [], ("value", OnnxConstant.Of([values.Length], values)));

    public string Integer(long value) => Add("Constant", [], ("value", OnnxConstant.Of([], value)));

    public string Numbers(OnnxElementType type, long[] shape, params float[] values) => Cast(Add("Constant", [], ("value", OnnxConstant.Of(shape, values))), OnnxElementType.Float32, type);

    public string Number(OnnxElementType type, float value) => Numbers(type, [], value);

    public string Cast(string value, OnnxElementType from, OnnxElementType to) => from == to ? value : Add("Cast", [value], ("to", (long)to));

    public string Unsqueeze(string value, params long[] axes) => opset < 13 ? Add("Unsqueeze", [value], ("axes", axes)) : Add("Unsqueeze", [value, Integers(axes)]);

    public string Sum(string value, long axis) => opset < 13 ? Add("ReduceSum", [value], ("axes", new[] { axis }), ("keepdims", 1L)) : Add("ReduceSum", [value, Integers(axis)], ("keepdims", 1L));

    public string Transpose(string value, params long[] order) => Add("Transpose", [value], ("perm", order));

    public string Reshape(string value, params long[] shape) => Add("Reshape", [value, Integers(shape)]);

    /// <summary>Some sizes of a value, as a list.</summary>
    public string Sizes(string value, params long[] axes) => Add("Gather", [Add("Shape", [value]), Integers(axes)], ("axis", 0L));

    public string Size(string value, long axis) => Add("Gather", [Add("Shape", [value]), Integer(axis)], ("axis", 0L));

    public string[] Split(string value, long axis, params long[] sizes)
    {
        string[] outputs = [.. sizes.Select(_ => $"{prefix}{_count++}")];
        Nodes.Add(opset < 13
            ? OnnxNode.Make("Split", [value], outputs, ("axis", axis), ("split", sizes))
            : OnnxNode.Make("Split", [value, Integers(sizes)], outputs, ("axis", axis)));
        return outputs;
    }

    public string Softmax(string value) => Add("Softmax", [value], ("axis", opset < 13 ? 3L : -1L));
}
