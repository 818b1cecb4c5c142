namespace Heed.Onnx.Graphs;

/// <summary>A model read from a file (ModelProto), down to nodes and types; weights stay where they are in the file's bytes.</summary>
internal sealed class OnnxGraph
{
    /// <summary>Bodies of If and Loop lie within each other only so deep; a file that goes further means harm.</summary>
    private const int MostLevels = 16;

    private readonly List<WireField> _modelRest = [];
    private readonly List<WireField> _graphRest = [];
    private readonly List<ReadOnlyMemory<byte>> _addedOutputs = [];
    private readonly Dictionary<string, long> _opsets = new(StringComparer.Ordinal);

    private OnnxGraph()
    {
    }

    /// <summary>Nodes in the order of the file, which is the order in which they can run.</summary>
    public List<OnnxNode> Nodes { get; private init; } = [];

    public Dictionary<string, OnnxConstant> Constants { get; private init; } = new(StringComparer.Ordinal);

    /// <summary>What a caller gives; weights that old files list among the inputs are left out.</summary>
    public List<OnnxValue> Inputs { get; private init; } = [];

    public List<OnnxValue> Outputs { get; private init; } = [];

    /// <summary>What the file says of values in between.</summary>
    public List<OnnxValue> Values { get; private init; } = [];

    /// <summary>Version of the standard operators.</summary>
    public long Opset => _opsets.GetValueOrDefault("");

    /// <summary>Operators that the file itself defines, as <c>domain:name</c>, with their bodies.</summary>
    public Dictionary<string, ReadOnlyMemory<byte>> Functions { get; private init; } = new(StringComparer.Ordinal);

    /// <summary>Whose operators the file uses.</summary>
    public IReadOnlyDictionary<string, long> Opsets => _opsets;

    public static OnnxGraph Read(ReadOnlyMemory<byte> file)
    {
        var graph = new OnnxGraph();
        var seen = false;
        foreach (var field in Wire.Read(file))
        {
            switch (field.Number)
            {
                case 7 when field.Type == WireType.Bytes && !seen:
                    graph.ReadBody(field.Bytes);
                    seen = true;
                    continue;
                case 8:
                    var opset = Wire.Read(field.Bytes);
                    var domain = opset.LastOrDefault(part => part.Number == 1) is { Number: 1 } named ? named.Text : "";
                    graph._opsets[domain is "ai.onnx" ? "" : domain] = opset.LastOrDefault(part => part.Number == 2).Integer;
                    break;
                case 25:
                    var function = Wire.Read(field.Bytes);
                    string Part(int number) => function.LastOrDefault(part => part.Number == number) is { Number: > 0 } found ? found.Text : "";
                    graph.Functions[$"{Part(10)}:{Part(1)}"] = field.Bytes;
                    break;
            }

            graph._modelRest.Add(field);
        }

        return seen && graph._opsets.Count > 0 ? graph : throw new InvalidDataException(seen ? "it names no version of the operators" : "it holds no graph");
    }

    /// <summary>The nodes of a graph within a node, with all that lie deeper.</summary>
    public static IEnumerable<OnnxNode> NodesOf(ReadOnlyMemory<byte> body, int nodeField = 1, int level = 0)
    {
        if (level > MostLevels)
        {
            throw new InvalidDataException($"its graphs lie more than {MostLevels} deep within each other");
        }

        foreach (var field in Wire.Read(body))
        {
            if (field.Number == nodeField)
            {
                var node = OnnxNode.Read(field.Bytes);
                yield return node;
                foreach (var deeper in node.Graphs.SelectMany(inner => NodesOf(inner, 1, level + 1)))
                {
                    yield return deeper;
                }
            }
        }
    }

    /// <summary>The nodes of a function's body.</summary>
    public static IEnumerable<OnnxNode> NodesOfFunction(ReadOnlyMemory<byte> function) => NodesOf(function, 7);

    /// <summary>A copy whose nodes and outputs can be changed without this one's. Weights are shared.</summary>
    public OnnxGraph Copy()
    {
        var copy = new OnnxGraph { Nodes = [.. Nodes.Select(node => node.Copy())], Constants = Constants, Inputs = Inputs, Outputs = [.. Outputs], Values = Values, Functions = Functions };
        copy._modelRest.AddRange(_modelRest);
        copy._graphRest.AddRange(_graphRest);
        copy._addedOutputs.AddRange(_addedOutputs);
        foreach (var (domain, version) in _opsets)
        {
            copy._opsets[domain] = version;
        }

        return copy;
    }

    /// <summary>Makes a value one of the graph's outputs.</summary>
    public void AddOutput(string name, OnnxElementType type)
    {
        if (Outputs.Any(output => output.Name == name))
        {
            return;
        }

        Outputs.Add(new(name, type, null, true));
        _addedOutputs.Add(OnnxValue.Write(name, type).ToArray());
    }

    /// <summary>The whole file.</summary>
    public WireMessage Write()
    {
        var body = new WireMessage();
        Nodes.ForEach(node => body.Message(1, node.Write()));
        _graphRest.ForEach(field => body.Raw(field.Raw));
        _addedOutputs.ForEach(output => body.Bytes(12, output));
        var message = new WireMessage();
        _modelRest.ForEach(field => message.Raw(field.Raw));
        return message.Message(7, body);
    }

    private void ReadBody(ReadOnlyMemory<byte> body)
    {
        var inputs = new List<OnnxValue>();
        foreach (var field in Wire.Read(body))
        {
            switch (field.Number)
            {
                case 1:
                    Nodes.Add(OnnxNode.Read(field.Bytes));
                    continue;
                case 5:
                    var constant = OnnxConstant.Read(field.Bytes);
                    Constants[constant.Name] = constant;
                    break;
                case 11:
                    inputs.Add(OnnxValue.Read(field.Bytes));
                    break;
                case 12:
                    Outputs.Add(OnnxValue.Read(field.Bytes));
                    break;
                case 13:
                    Values.Add(OnnxValue.Read(field.Bytes));
                    break;
            }

            _graphRest.Add(field);
        }

        Inputs.AddRange(inputs.Where(input => !Constants.ContainsKey(input.Name)));
    }
}
