namespace Heed.Onnx.Graphs;

/// <summary>Operators that hold a whole attention: what they are, and the same attention in plain operators, whose weights can be shown and changed.</summary>
internal static class FusedAttention
{
    private const string Microsoft = "com.microsoft";

    private static readonly HashSet<string> Opaque = new(StringComparer.Ordinal)
    {
        "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention", "QAttention", "QOrderedAttention", "DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "LongformerAttention",
        "QOrderedLongformerAttention", "SparseAttention", "PagedAttention", "MultiScaleDeformableAttention", "LinearAttention",
    };

    /// <summary>Whether a node is a fused attention that can be shown.</summary>
    public static bool Is(OnnxNode node) => node is { Domain: Microsoft, Operation: "Attention" or "MultiHeadAttention" } or { Domain: "", Operation: "Attention" };

    /// <summary>The sentence that says why a node's attention cannot be shown; null: it is none, or can be.</summary>
    public static string? IsUnsupported(OnnxNode node) => node.Domain == Microsoft && Opaque.Contains(node.Operation)
        ? $"The {node.Operation} '{(node.Name.Length > 0 ? node.Name : node.Outputs[0])}' keeps its weights to itself, and heed does not know it in plain operators: export the model without that fusion to see its attention."
        : null;

    public static bool IsCausal(OnnxNode node) => node.Integer("unidirectional", 0) != 0 || node.Integer("is_causal", 0) != 0;

    public static int? Heads(OnnxNode node, TensorFact query) =>
        node.Integer("num_heads", node.Integer("q_num_heads", 0)) is > 0 and var heads ? (int)heads
        : node.Domain.Length == 0 && query.Shape is [_, var count, _, _] ? (int?)count
        : null;

    /// <summary>Asks the operator itself for its weights, where it can hand them over (Attention of the standard, from version 23 on).</summary>
    /// <returns>The node with one output more; null where it cannot.</returns>
    public static OnnxNode? Exposed(OnnxNode node, string weights)
    {
        if (node.Domain.Length > 0 || (node.Outputs.Count > 3 && node.Outputs[3].Length > 0))
        {
            return null;
        }

        const long AfterSoftmax = 3;
        var exposed = node.With("qk_matmul_output_mode", AfterSoftmax);
        while (exposed.Outputs.Count < 4)
        {
            exposed.Outputs.Add("");
        }

        exposed.Outputs[3] = weights;
        return exposed;
    }

    /// <summary>The same attention in plain operators.</summary>
    /// <param name="node">The operator.</param>
    /// <param name="facts">What is known of the graph's values.</param>
    /// <param name="opset">Version of the operators.</param>
    /// <param name="weights">Name that the weights, <c>[B, H, Nq, Nk]</c>, get.</param>
    /// <exception cref="NotSupportedException">The operator is used in a way that has no plain form here.</exception>
    public static List<OnnxNode> Plain(OnnxNode node, IReadOnlyDictionary<string, TensorFact> facts, long opset, string weights)
    {
        var build = new GraphBuilder(opset, $"{weights}_");
        TensorFact Fact(int input) => node.Input(input) is { } name ? facts.GetValueOrDefault(name) ?? TensorFact.Nothing : TensorFact.Nothing;
        var type = Fact(0).Type == OnnxElementType.Unknown ? OnnxElementType.Float32 : Fact(0).Type;
        if (node.Outputs.Skip(1).Any(output => output.Length > 0))
        {
            throw Unsupported(node, "hands over keys and values of a cache");
        }

        var parts = node.Domain == Microsoft
            ? node.Operation is "Attention" ? Packed(node, build, Fact) : MultiHead(node, build, Fact)
            : Standard(node, build, Fact);

        var scores = build.Add("MatMul", [parts.Query, build.Transpose(parts.Key, 0, 1, 3, 2)]);
        scores = build.Add("Mul", [scores, parts.Scale is { } scale ? build.Number(type, scale) : Scale(build, parts.Query, type)]);
        if (parts.Mask is { } mask && node.Domain == Microsoft)
        {
            scores = build.Add("Add", [scores, mask]);
        }

        if (parts.Softcap > 0)
        {
            scores = build.Add("Mul", [build.Add("Tanh", [build.Add("Div", [scores, build.Number(type, parts.Softcap)])]), build.Number(type, parts.Softcap)]);
        }

        if (parts.Mask is { } bias && node.Domain.Length == 0)
        {
            scores = build.Add("Add", [scores, bias]);
        }

        var lowest = type == OnnxElementType.Float16 ? -65504f : float.MinValue;
        if (IsCausal(node))
        {
            // A fused operator of Microsoft's aligns queries to the last keys; the standard's to the first.
            var (queries, keys) = (build.Size(scores, 2), build.Size(scores, 3));
            var start = node.Domain == Microsoft ? build.Add("Sub", [keys, queries]) : build.Integer(0);
            var rows = build.Unsqueeze(build.Add("Range", [start, build.Add("Add", [start, queries]), build.Integer(1)]), 1);
            var hidden = build.Add("Greater", [build.Add("Range", [build.Integer(0), keys, build.Integer(1)]), rows]);
            scores = build.Add("Where", [hidden, build.Number(type, lowest), scores]);
        }

        build.AddAs(weights, "Softmax", [scores], ("axis", opset < 13 ? 3L : -1L));
        var context = build.Add("MatMul", [weights, parts.Value]);
        if (parts.KeepsHeads)
        {
            build.AddAs(node.Outputs[0], "Identity", [context]);
        }
        else
        {
            build.AddAs(node.Outputs[0], "Reshape", [build.Transpose(context, 0, 2, 1, 3), build.Integers(0, 0, -1)]);
        }

        return build.Nodes;
    }

    private static NotSupportedException Unsupported(OnnxNode node, string why) => new(
        $"The {node.Operation} '{(node.Name.Length > 0 ? node.Name : node.Outputs[0])}' {why}: it cannot be written in plain operators, so its weights cannot be shown or changed.");

    private static string Scale(GraphBuilder build, string query, OnnxElementType type) =>
        build.Cast(build.Add("Div", [build.Number(OnnxElementType.Float32, 1), build.Add("Sqrt", [build.Add("Cast", [build.Size(query, 3)], ("to", (long)OnnxElementType.Float32))])]), OnnxElementType.Float32, type);

    private static string Heads(GraphBuilder build, string value, long heads) => build.Transpose(build.Reshape(value, 0, 0, heads, -1), 0, 2, 1, 3);

    /// <summary>Attention of com.microsoft: one projection makes queries, keys and values.</summary>
    private static Parts Packed(OnnxNode node, GraphBuilder build, Func<int, TensorFact> fact)
    {
        var heads = node.Integer("num_heads", 0);
        if (node.Input(4) is not null || node.Integer("do_rotary", 0) != 0)
        {
            throw Unsupported(node, node.Input(4) is not null ? "reads a cache of earlier keys" : "turns its queries and keys by their positions");
        }

        var width = fact(1).Last ?? fact(2).Last ?? throw Unsupported(node, "has weights whose width is not in the graph");
        var sizes = node.Integers("qkv_hidden_sizes") is { Length: 3 } given ? given : [width / 3, width / 3, width / 3];
        var all = build.Add("MatMul", [node.Inputs[0], node.Inputs[1]]);
        all = node.Input(2) is { } bias ? build.Add("Add", [all, bias]) : all;
        var parts = build.Split(all, 2, sizes);
        return new(
            Heads(build, parts[0], heads), Heads(build, parts[1], heads), Heads(build, parts[2], heads), node.Single("scale", 0) is > 0 and var scale ? scale : null,
            Masks(node, build, fact, 3, 5, node.Inputs[0]), 0, false);
    }

    /// <summary>MultiHeadAttention of com.microsoft: queries, keys and values apart or packed.</summary>
    private static Parts MultiHead(OnnxNode node, GraphBuilder build, Func<int, TensorFact> fact)
    {
        var heads = node.Integer("num_heads", 0);
        if (node.Inputs.Skip(6).Any(input => input.Length > 0))
        {
            throw Unsupported(node, "reads a cache of earlier keys");
        }

        string Part(string packed, long index) => build.Transpose(build.Add("Gather", [packed, build.Integer(index)], ("axis", 3L)), 0, 2, 1, 3);
        var (query, key, value) = (node.Inputs[0], node.Input(1), node.Input(2));
        string[] biases = ["", "", ""];
        if (node.Input(3) is { } bias)
        {
            var total = fact(3).Last ?? throw Unsupported(node, "has a bias whose width is not in the graph");
            var width = fact(0).Last is { } known && fact(0).Rank == 3 ? known : total / 3;
            biases = build.Split(bias, 0, width, width, total - (2 * width));
        }

        string Biased(string name, int index) => biases[index].Length == 0 ? name : build.Add("Add", [name, biases[index]]);
        if (key is null)
        {
            return biases[0].Length > 0 || fact(0).Rank is not 5
                ? throw Unsupported(node, "packs queries, keys and values with a bias, or in a shape that is not in the graph")
                : new(Part(query, 0), Part(query, 1), Part(query, 2), GivenScale(node), Masks(node, build, fact, 4, 5, query), 0, false);
        }

        if (value is null)
        {
            return biases[0].Length > 0 || fact(1).Rank is not 5
                ? throw Unsupported(node, "packs keys and values with a bias, or in a shape that is not in the graph")
                : new(Heads(build, query, heads), Part(key, 0), Part(key, 1), GivenScale(node), Masks(node, build, fact, 4, 5, query), 0, false);
        }

        var hasHeads = fact(1).Rank == 4;
        return new(
            Heads(build, Biased(query, 0), heads),
            hasHeads ? key : Heads(build, Biased(key, 1), heads),
            hasHeads ? value : Heads(build, Biased(value, 2), heads),
            GivenScale(node), Masks(node, build, fact, 4, 5, query), 0, false);
    }

    /// <summary>Attention of the ONNX standard.</summary>
    private static Parts Standard(OnnxNode node, GraphBuilder build, Func<int, TensorFact> fact)
    {
        if (node.Inputs.Skip(4).Any(input => input.Length > 0))
        {
            throw Unsupported(node, "reads a cache of earlier keys");
        }

        var hasHeads = fact(0).Rank == 4;
        if (!hasHeads && node.Integer("q_num_heads", 0) == 0)
        {
            throw Unsupported(node, "does not say how many heads it has");
        }

        var queryHeads = hasHeads ? fact(0).Shape![1] : node.Integer("q_num_heads", 0);
        var keyHeads = hasHeads ? fact(1).Shape is [_, var count, _, _] ? count : null : node.Integer("kv_num_heads", 0);
        string Split(string name, long heads) => hasHeads ? name : Heads(build, name, heads);
        var (key, value) = (Split(node.Inputs[1], keyHeads ?? 0), Split(node.Inputs[2], keyHeads ?? 0));
        if (queryHeads is { } queries && keyHeads is { } keys)
        {
            if (queries != keys)
            {
                var each = build.Integers([.. Enumerable.Range(0, (int)queries).Select(head => head / (queries / keys))]);
                key = build.Add("Gather", [key, each], ("axis", 1L));
                value = build.Add("Gather", [value, each], ("axis", 1L));
            }
        }
        else
        {
            throw Unsupported(node, "has a number of heads that is not in the graph");
        }

        string? mask = null;
        if (node.Input(3) is { } given)
        {
            var type = fact(0).Type == OnnxElementType.Unknown ? OnnxElementType.Float32 : fact(0).Type;
            mask = fact(3).Type switch
            {
                OnnxElementType.Boolean => build.Add("Where", [given, build.Number(type, 0), build.Number(type, float.NegativeInfinity)]),
                OnnxElementType.Unknown => throw Unsupported(node, "has a mask of a type that is not in the graph"),
                _ => given,
            };
        }

        return new(Split(node.Inputs[0], queryHeads.Value), key, value, GivenScale(node), mask, node.Single("softcap", 0), hasHeads);
    }

    private static float? GivenScale(OnnxNode node) => node.Single("scale", 0) is not 0 and var scale ? scale : null;

    /// <summary>What Microsoft's operators add to scores: a mask of keys as numbers, and a bias.</summary>
    private static string? Masks(OnnxNode node, GraphBuilder build, Func<int, TensorFact> fact, int maskInput, int biasInput, string query)
    {
        var type = fact(0).Type == OnnxElementType.Unknown ? OnnxElementType.Float32 : fact(0).Type;
        var bias = node.Input(biasInput);
        if (node.Input(maskInput) is not { } mask)
        {
            return bias;
        }

        var filter = build.Number(type, node.Single("mask_filter_value", -10000));
        var sees = fact(maskInput).Rank switch
        {
            2 => build.Unsqueeze(mask, 1, 2),
            3 => build.Unsqueeze(mask, 1),
            1 when fact(maskInput).Shape![0] is { } count && count == (fact(0).Shape?[0] ?? 1) => Lengths(build, mask, query),
            _ => throw Unsupported(node, "has a mask of a kind that heed does not know"),
        };
        var numbers = build.Add("Mul", [build.Add("Sub", [build.Number(type, 1), build.Add("Cast", [sees], ("to", (long)type))]), filter]);
        return bias is null ? numbers : build.Add("Add", [numbers, bias]);
    }

    /// <summary>Which keys are seen where a number per sequence says how many.</summary>
    private static string Lengths(GraphBuilder build, string lengths, string query)
    {
        var places = build.Add("Range", [build.Integer(0), build.Size(query, 1), build.Integer(1)]);
        return build.Unsqueeze(build.Add("Less", [places, build.Unsqueeze(build.Add("Cast", [lengths], ("to", (long)OnnxElementType.Int64)), 1)]), 1, 2);
    }

    /// <summary>Queries, keys and values with heads, <c>[B, H, N, D]</c>.</summary>
    private sealed record Parts(string Query, string Key, string Value, float? Scale, string? Mask, float Softcap, bool KeepsHeads);
}
