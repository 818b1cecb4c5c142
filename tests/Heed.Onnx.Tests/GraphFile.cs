using Heed.Onnx.Graphs;

namespace Heed.Onnx.Tests;

/// <summary>A model file written node by node, in a folder of its own.</summary>
internal sealed class GraphFile : IDisposable
{
    private readonly WireMessage _graph = new();
    private readonly List<(string Domain, long Version)> _opsets = [];

    public GraphFile(long opset = 17) => _opsets.Add(("", opset));

    public string Folder { get; } = Directory.CreateTempSubdirectory("heed-onnx-").FullName;

    public string Path => System.IO.Path.Combine(Folder, "model.onnx");

    public GraphFile Domain(string domain)
    {
        _opsets.Add((domain, 1));
        return this;
    }

    public GraphFile Input(string name, params long?[] shape) => Input(name, OnnxElementType.Float32, shape);

    public GraphFile Input(string name, OnnxElementType type, params long?[] shape)
    {
        _graph.Message(11, OnnxValue.Write(name, type, shape));
        return this;
    }

    public GraphFile Output(string name, OnnxElementType type = OnnxElementType.Float32)
    {
        _graph.Message(12, OnnxValue.Write(name, type));
        return this;
    }

    public GraphFile Constant(string name, OnnxConstant value)
    {
        _graph.Message(5, value.Write(name));
        return this;
    }

    /// <summary>Weights in a file beside the model.</summary>
    public GraphFile External(string name, long[] shape, string file)
    {
        var message = new WireMessage();
        foreach (var size in shape)
        {
            message.Integer(1, size);
        }

        message.Integer(2, (long)OnnxElementType.Float32).Text(8, name).Message(13, new WireMessage().Text(1, "location").Text(2, file)).Integer(14, 1);
        _graph.Message(5, message);
        return this;
    }

    public GraphFile Node(string operation, string[] inputs, string output, params (string Name, object Value)[] attributes) => Node(operation, "", inputs, [output], attributes);

    public GraphFile Node(string operation, string domain, string[] inputs, string[] outputs, params (string Name, object Value)[] attributes)
    {
        _graph.Message(1, OnnxNode.Make(operation.ToLowerInvariant() + outputs[0], operation, domain, inputs, outputs, attributes).Write());
        return this;
    }

    /// <summary>A node with a body, such as If.</summary>
    public GraphFile Body(string operation, string attribute, string[] inputs, string output, params OnnxNode[] nodes)
    {
        var body = new WireMessage();
        Array.ForEach(nodes, node => body.Message(1, node.Write()));
        _graph.Message(1, new WireMessage().Text(1, inputs[0]).Text(2, output).Text(3, operation).Text(4, operation).Message(5, new WireMessage().Text(1, attribute).Message(6, body).Integer(20, 5)));
        return this;
    }

    /// <summary>Self-attention of one head over <c>x</c> with constant projections, from <c>x</c> to <c>y</c>.</summary>
    public GraphFile SelfAttention(string product = "MatMul") => Input("x", 1, null, 4).Output("y")
        .Node("Transpose", ["x"], "keys", ("perm", new long[] { 0, 2, 1 }))
        .Node(product, ["x", "keys"], "scores")
        .Node("Softmax", ["scores"], "weights", ("axis", -1L))
        .Node("MatMul", ["weights", "x"], "y");

    public GraphFile Write()
    {
        var message = new WireMessage().Integer(1, 8).Text(2, "heed tests").Message(7, _graph);
        foreach (var (domain, version) in _opsets)
        {
            message.Message(8, new WireMessage().Text(1, domain).Integer(2, version));
        }

        File.WriteAllBytes(Path, message.ToArray());
        return this;
    }

    public OnnxModel Load()
    {
        Write();
        return OnnxModel.Load(Path);
    }

    public void Dispose() => Directory.Delete(Folder, recursive: true);
}
