namespace Heed.Onnx.Graphs;

/// <summary>Tells whether what is added to scores, or chosen between, is a causal mask.</summary>
internal sealed class CausalMasks(OnnxGraph graph, IReadOnlyDictionary<string, OnnxNode> producers)
{
    private const int MostNodes = 200;

    // A mask is made by these; whatever multiplies matrices or normalises belongs to the network.
    private static readonly HashSet<string> Ends = new(StringComparer.Ordinal) { "MatMul", "Gemm", "Einsum", "Softmax", "Conv", "LayerNormalization", "FusedMatMul" };

    private readonly Dictionary<string, bool> _known = new(StringComparer.Ordinal);

    public bool IsCausal(string name)
    {
        if (!_known.TryGetValue(name, out var causal))
        {
            _known[name] = causal = Search(name);
        }

        return causal;
    }

    private bool Search(string name)
    {
        var waiting = new Stack<string>([name]);
        var seen = new HashSet<string>(StringComparer.Ordinal);
        while (waiting.TryPop(out var at) && seen.Count < MostNodes)
        {
            if (!seen.Add(at))
            {
                continue;
            }

            if (graph.Constants.TryGetValue(at, out var constant) && IsTriangle(constant))
            {
                return true;
            }

            if (producers.GetValueOrDefault(at) is not { } node)
            {
                continue;
            }

            if (node.Operation is "Trilu" || (node.Attribute("value")?.Tensor is { } value && IsTriangle(value))
                || (node.Operation is "Less" or "LessOrEqual" or "Greater" or "GreaterOrEqual" && node.Inputs.All(ComesFromPositions)))
            {
                return true;
            }

            if (Ends.Contains(node.Operation))
            {
                // What leads through the network is no mask: the scores themselves come this way.
                return false;
            }

            if (node.Operation is not ("Shape" or "Size"))
            {
                node.Inputs.ForEach(waiting.Push);
            }
        }

        return false;
    }

    private bool ComesFromPositions(string name)
    {
        for (var step = 0; step < 12; step++)
        {
            if (graph.Constants.TryGetValue(name, out var constant))
            {
                return IsCounting(constant);
            }

            if (producers.GetValueOrDefault(name) is not { Inputs.Count: > 0 } node)
            {
                return producers.GetValueOrDefault(name)?.Attribute("value")?.Tensor is { } value && IsCounting(value);
            }

            if (node.Operation is "Range" or "CumSum")
            {
                return true;
            }

            name = node.Inputs[0];
        }

        return false;
    }

    private static bool IsCounting(OnnxConstant constant) =>
        constant.Count >= 2 && constant.Count < 1 << 20 && constant.Shape.Count(size => size > 1) == 1 && constant.Singles() is { } values
        && Enumerable.Range(1, values.Length - 1).All(i => values[i] == values[i - 1] + 1);

    private static bool IsTriangle(OnnxConstant constant)
    {
        if (constant.Shape is not [.., var rows, var columns] || rows != columns || rows < 2 || rows > 1 << 14 || constant.Singles() is not { } values)
        {
            return false;
        }

        var (below, above) = (values[0], values[1]);
        if (below == above)
        {
            return false;
        }

        for (var row = 0; row < rows; row++)
        {
            for (var column = 0; column < columns; column++)
            {
                if (values[(row * columns) + column] != (column > row ? above : below))
                {
                    return false;
                }
            }
        }

        return true;
    }
}
