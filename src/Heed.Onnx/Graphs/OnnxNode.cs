namespace Heed.Onnx.Graphs;

/// <summary>A node of a graph (NodeProto). Inputs and outputs may be renamed; everything else is kept as it was read.</summary>
internal sealed class OnnxNode
{
    private readonly Dictionary<string, OnnxAttribute> _attributes;
    private readonly WireMessage _rest;

    private OnnxNode(string name, string operation, string domain, List<string> inputs, List<string> outputs, Dictionary<string, OnnxAttribute> attributes, WireMessage rest)
    {
        Name = name;
        Operation = operation;
        Domain = domain is "ai.onnx" ? "" : domain;
        Inputs = inputs;
        Outputs = outputs;
        _attributes = attributes;
        _rest = rest;
    }

    public string Name { get; }

    /// <summary>The operator, for example <c>MatMul</c>.</summary>
    public string Operation { get; }

    /// <summary>Whose operator it is; empty: of the ONNX standard.</summary>
    public string Domain { get; }

    /// <summary>Names of its inputs; an empty name stands for one that is left out.</summary>
    public List<string> Inputs { get; }

    public List<string> Outputs { get; }

    /// <summary>Graphs within the node.</summary>
    public IEnumerable<ReadOnlyMemory<byte>> Graphs => _attributes.Values.SelectMany(attribute => attribute.Graphs);

    public static OnnxNode Read(ReadOnlyMemory<byte> message)
    {
        var (name, operation, domain) = ("", "", "");
        var (inputs, outputs) = (new List<string>(), new List<string>());
        var attributes = new Dictionary<string, OnnxAttribute>(StringComparer.Ordinal);
        var rest = new WireMessage();
        foreach (var field in Wire.Read(message))
        {
            switch (field.Number)
            {
                case 1:
                    inputs.Add(field.Text);
                    continue;
                case 2:
                    outputs.Add(field.Text);
                    continue;
                case 3:
                    name = field.Text;
                    break;
                case 4:
                    operation = field.Text;
                    break;
                case 5:
                    var attribute = OnnxAttribute.Read(field.Bytes);
                    attributes[attribute.Name] = attribute;
                    break;
                case 7:
                    domain = field.Text;
                    break;
            }

            rest.Raw(field.Raw);
        }

        return new(name, operation, domain, inputs, outputs, attributes, rest);
    }

    public static OnnxNode Make(string operation, IEnumerable<string> inputs, IEnumerable<string> outputs, params (string Name, object Value)[] attributes) =>
        Make("", operation, "", inputs, outputs, attributes);

    public static OnnxNode Make(string name, string operation, string domain, IEnumerable<string> inputs, IEnumerable<string> outputs, params (string Name, object Value)[] attributes)
    {
        var rest = new WireMessage().Text(3, name).Text(4, operation);
        var read = new Dictionary<string, OnnxAttribute>(StringComparer.Ordinal);
        foreach (var (attribute, value) in attributes)
        {
            var message = OnnxAttribute.Write(attribute, value).ToArray();
            rest.Bytes(5, message);
            read[attribute] = OnnxAttribute.Read(message);
        }

        if (domain.Length > 0)
        {
            rest.Text(7, domain);
        }

        return new(name, operation, domain, [.. inputs], [.. outputs], read, rest);
    }

    /// <summary>A copy, so that a graph can be changed without the one that it was made from.</summary>
    public OnnxNode Copy() => new(Name, Operation, Domain, [.. Inputs], [.. Outputs], _attributes, _rest);

    /// <summary>A copy with one attribute more, or another value of it.</summary>
    public OnnxNode With(string attribute, long value)
    {
        // The last value of a field that is there twice counts, but runtimes refuse an attribute named twice.
        var rest = new WireMessage();
        foreach (var field in Wire.Read(_rest.ToArray()))
        {
            if (field.Number != 5 || OnnxAttribute.Read(field.Bytes).Name != attribute)
            {
                rest.Raw(field.Raw);
            }
        }

        var message = OnnxAttribute.Write(attribute, value).ToArray();
        return new(Name, Operation, Domain, [.. Inputs], [.. Outputs], new(_attributes, StringComparer.Ordinal) { [attribute] = OnnxAttribute.Read(message) }, rest.Bytes(5, message));
    }

    public string? Input(int index) => index < Inputs.Count && Inputs[index].Length > 0 ? Inputs[index] : null;

    public bool Has(string attribute) => _attributes.ContainsKey(attribute);

    public OnnxAttribute? Attribute(string name) => _attributes.GetValueOrDefault(name);

    public long Integer(string attribute, long absent) => _attributes.TryGetValue(attribute, out var found) ? found.Integer : absent;

    public float Single(string attribute, float absent) => _attributes.TryGetValue(attribute, out var found) ? found.Single : absent;

    public long[]? Integers(string attribute) => _attributes.TryGetValue(attribute, out var found) ? found.Integers : null;

    public WireMessage Write()
    {
        var message = new WireMessage();
        Inputs.ForEach(input => message.Text(1, input));
        Outputs.ForEach(output => message.Text(2, output));
        return message.Raw(_rest.ToArray());
    }
}
