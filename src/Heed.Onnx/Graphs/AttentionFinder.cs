namespace Heed.Onnx.Graphs;

/// <summary>
/// Finds attention by what it is, not by how one exporter writes it: a softmax along an axis that a product of two operands gave it, the operand of that axis (the keys) coming from the input, and its
/// weights meeting other values of the input in a product that sums over the same axis. A classifier's softmax has weights of the model for keys, and meets no such product.
/// </summary>
internal sealed class AttentionFinder
{
    private const int MostSteps = 64;

    private static readonly HashSet<string> Products = new(StringComparer.Ordinal) { "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger", "Gemm", "Einsum" };

    // What may stand between the product of queries and keys and its softmax.
    private static readonly HashSet<string> ScoreSteps = new(StringComparer.Ordinal)
    {
        "Mul", "Div", "Add", "Sub", "Sum", "Where", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Clip", "Max", "Min", "Tanh", "Slice", "Concat", "Pad", "Expand",
        "QuantizeLinear", "DequantizeLinear", "GatherElements", "ScatterElements", "ScatterND", "CastLike",
    };

    // What may stand between a softmax and the product with the values; of these, the ones that change the weights.
    private static readonly HashSet<string> WeightSteps = new(StringComparer.Ordinal)
    {
        "Cast", "Dropout", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "QuantizeLinear", "DequantizeLinear", "CastLike",
        "Where", "Mul", "Div", "Add", "Sub", "Slice", "Clip", "ScatterElements", "ScatterND",
    };

    private static readonly HashSet<string> WeightChanges = new(StringComparer.Ordinal) { "Where", "Mul", "Div", "Add", "Sub", "Slice", "Clip", "ScatterElements", "ScatterND" };

    // What leads from a sequence to its queries or keys.
    private static readonly HashSet<string> Projections = new(StringComparer.Ordinal)
    {
        "MatMul", "Gemm", "Conv", "FusedMatMul", "MatMulInteger", "MatMulNBits", "DynamicQuantizeMatMul", "Einsum", "Add", "Sub", "Mul", "Div", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather",
        "Cast", "Identity", "Dropout", "Concat", "Neg", "Expand", "RotaryEmbedding", "Pad", "DequantizeLinear", "QuantizeLinear", "Tile",
    };

    private readonly OnnxGraph _graph;
    private readonly Dictionary<string, TensorFact> _facts;
    private readonly Dictionary<string, OnnxNode> _producers = new(StringComparer.Ordinal);
    private readonly Dictionary<string, List<OnnxNode>> _consumers = new(StringComparer.Ordinal);
    private readonly CausalMasks _masks;

    private AttentionFinder(OnnxGraph graph, Dictionary<string, TensorFact> facts)
    {
        _graph = graph;
        _facts = facts;
        foreach (var node in graph.Nodes)
        {
            foreach (var output in node.Outputs.Where(output => output.Length > 0))
            {
                _producers[output] = node;
            }

            foreach (var input in node.Inputs.Where(input => input.Length > 0).Distinct(StringComparer.Ordinal))
            {
                _consumers.TryAdd(input, []);
                _consumers[input].Add(node);
            }
        }

        _masks = new(graph, _producers);
    }

    /// <summary>The attentions of a graph.</summary>
    /// <param name="graph">The graph.</param>
    /// <param name="facts">What is known of its values.</param>
    /// <param name="notices">Receives sentences about attention that cannot be shown.</param>
    public static List<OnnxAttention> Find(OnnxGraph graph, Dictionary<string, TensorFact> facts, List<string> notices)
    {
        var finder = new AttentionFinder(graph, facts);
        var found = new List<OnnxAttention>();
        foreach (var node in graph.Nodes)
        {
            if (FusedAttention.IsUnsupported(node) is { } why)
            {
                notices.Add(why);
            }
            else if (FusedAttention.Is(node))
            {
                found.Add(finder.Fused(node, found.Count));
            }
            else if (finder.Softmax(node) is { } softmax && finder.Attention(node, softmax, found.Count) is { } attention && found.All(other => other.Place.Weights != attention.Place.Weights))
            {
                found.Add(attention);
            }
            else if (node.Graphs.Any(body => HoldsAttention(OnnxGraph.NodesOf(body))))
            {
                notices.Add($"The {node.Operation} '{Name(node)}' holds products and a softmax in its body: attention within If, Loop and Scan cannot be shown.");
            }
            else if (graph.Functions.TryGetValue($"{node.Domain}:{node.Operation}", out var function) && HoldsAttention(OnnxGraph.NodesOfFunction(function)))
            {
                notices.Add($"'{Name(node)}' calls the model's function {node.Operation}, which holds products and a softmax: inline the model's functions first (onnx.inliner does), then its attention can be shown.");
            }
        }

        return found;
    }

    private static bool HoldsAttention(IEnumerable<OnnxNode> nodes)
    {
        var (products, softmax) = (0, false);
        foreach (var node in nodes)
        {
            products += Products.Contains(node.Operation) ? 1 : 0;
            softmax |= node.Operation is "Softmax";
            if (FusedAttention.Is(node) || (softmax && products >= 2))
            {
                return true;
            }
        }

        return false;
    }

    private static string Name(OnnxNode node) => node.Name.Length > 0 ? node.Name : node.Outputs[0];

    private TensorFact Fact(string name) => _facts.GetValueOrDefault(name) ?? TensorFact.Nothing;

    /// <summary>What a node normalises: the scores and the axis; null where it is no softmax.</summary>
    private (string Scores, long Axis, string Operation)? Softmax(OnnxNode node)
    {
        if (node is { Operation: "Softmax", Domain: "", Inputs: [var scores, ..] })
        {
            if (_graph.Opset >= 13)
            {
                return (scores, node.Integer("axis", -1), "Softmax");
            }

            // Before version 13 a softmax ran over all axes from this one on.
            var axis = node.Integer("axis", 1);
            var shape = Fact(scores).Shape;
            var at = axis < 0 && shape is not null ? axis + shape.Length : axis;
            return axis == -1 || shape is null || shape.Skip((int)at + 1).All(size => size == 1) ? (scores, axis, "Softmax") : null;
        }

        // Exponentials over their sum, as some exporters write it.
        if (node is { Operation: "Div" or "Mul", Inputs: [var a, var b] })
        {
            foreach (var (share, whole) in new[] { (a, b), (b, a) })
            {
                var divisor = node.Operation is "Div" ? whole : Producer(whole) is { Operation: "Reciprocal", Inputs: [var inverse] } ? inverse : null;
                if ((node.Operation is "Div" && share != a) || divisor is null || Producer(share) is not { Operation: "Exp", Inputs: [var exponent] } || SumOf(share, divisor) is not { } axis)
                {
                    continue;
                }

                return (exponent, axis, "Exp");
            }
        }

        return null;
    }

    private OnnxNode? Producer(string? name) => name is null ? null : _producers.GetValueOrDefault(name);

    /// <summary>The axis along which one value is the sum of another (a constant that keeps it from zero may be added); null: it is not.</summary>
    private long? SumOf(string value, string sum)
    {
        for (var step = 0; step < 4 && Producer(sum) is { } node; step++)
        {
            if (node is { Operation: "ReduceSum" or "ReduceL1" } && node.Inputs[0] == value)
            {
                return (node.Integers("axes") ?? (node.Input(1) is { } axes ? Fact(axes).Integers?.Select(axis => axis ?? 0).ToArray() : null)) is [var axis] ? axis : null;
            }

            if (node.Operation is not ("Add" or "Clip" or "Max" or "Cast" or "Identity"))
            {
                return null;
            }

            sum = node.Inputs.FirstOrDefault(input => Fact(input).IsActivation) ?? "";
        }

        return null;
    }

    private OnnxAttention? Attention(OnnxNode node, (string Scores, long Axis, string Operation) softmax, int layer)
    {
        foreach (var path in ProductsBefore(softmax.Scores, [], new(StringComparer.Ordinal)))
        {
            var product = path[^1];
            if (ProductRoles(product, (int)softmax.Axis) is not { } roles)
            {
                continue;
            }

            var at = product.Outputs[0];
            for (var i = path.Count - 2; i >= 0 && roles is not null; i--)
            {
                roles = Through(path[i], at, roles);
                at = path[i].Outputs[0];
            }

            var axis = softmax.Axis < 0 ? softmax.Axis + (roles?.Length ?? 0) : softmax.Axis;
            if (roles is null || axis < 0 || axis >= roles.Length || roles[axis] == AxisRole.Batch || roles.Count(role => role == roles[axis]) != 1)
            {
                continue;
            }

            var key = roles[axis];
            var (query, keys) = key == AxisRole.Right ? (product.Inputs[0], product.Inputs[1]) : (product.Inputs[1], product.Inputs[0]);
            if (!AreQueriesAndKeys(product, query, keys) || Values(node.Outputs[0], roles, key, Fact(keys).IsActivation) is not { } meeting)
            {
                continue;
            }

            var place = Place(node, meeting, key, query);
            return new()
            {
                Layer = layer,
                Name = NameOf(node),
                Operator = softmax.Operation,
                Kind = Sources(query, 0).Overlaps(Sources(keys, 0)) ? OnnxAttentionKind.Self : OnnxAttentionKind.Cross,
                IsCausal = path.SkipLast(1).Any(step => step.Inputs.Any(_masks.IsCausal)),
                Heads = HeadsOf(place),
                Place = place,
            };
        }

        return null;
    }

    /// <summary>
    /// Keys come from the input. Queries may be learned, and then are no weights of a linear layer, which stand on the right of a product or have two axes. Where both are learned (a first layer over learned
    /// queries), it is attention as well.
    /// </summary>
    private bool AreQueriesAndKeys(OnnxNode product, string query, string keys)
    {
        if (Fact(query).IsActivation || !Fact(keys).IsActivation)
        {
            return Fact(query).IsActivation == Fact(keys).IsActivation;
        }

        return product.Operation is "Einsum"
            ? EinsumEquation.Parse(product) is { } equation && equation.Left.Intersect(equation.Right).Intersect(equation.Output).Any()
            : product.Inputs[0] == query || Fact(query).Rank > 2;
    }

    private OnnxAttention Fused(OnnxNode node, int layer)
    {
        var heads = FusedAttention.Heads(node, Fact(node.Inputs[0]));
        var type = Fact(node.Inputs[0]).Type;
        var place = new MapPlace(node.Outputs[0], $"{node.Outputs[0]}_weights", type == OnnxElementType.Unknown ? OnnxElementType.Float32 : type, [0], [1], [2], 3, null, true);
        return new()
        {
            Layer = layer,
            Name = NameOf(node),
            Operator = node.Domain.Length == 0 ? node.Operation : $"{node.Domain}.{node.Operation}",
            Kind = node.Domain.Length > 0 && node.Operation is "Attention" || node.Input(1) is null || Sources(node.Inputs[0], 0).Overlaps(Sources(node.Inputs[1], 0)) ? OnnxAttentionKind.Self : OnnxAttentionKind.Cross,
            IsCausal = FusedAttention.IsCausal(node) || node.Inputs.Skip(3).Any(_masks.IsCausal),
            Heads = heads,
            Place = place,
        };
    }

    private static string NameOf(OnnxNode node)
    {
        if (node.Name.Length == 0)
        {
            return node.Outputs[0];
        }

        var name = node.Name.Trim('/');
        var slash = name.LastIndexOf('/');
        return slash > 0 ? name[..slash] : name;
    }

    private int? HeadsOf(MapPlace place)
    {
        if (place.Merged is { } merged)
        {
            return merged;
        }

        long? product = 1;
        foreach (var axis in place.Heads)
        {
            product *= Fact(place.Weights).Shape is { } shape && axis < shape.Length ? shape[axis] : null;
        }

        return (int?)product;
    }

    /// <summary>The ways back from scores to products: each a list of nodes from the last one before the softmax to the product.</summary>
    private IEnumerable<List<OnnxNode>> ProductsBefore(string name, List<OnnxNode> way, HashSet<string> seen)
    {
        if (way.Count >= MostSteps || !seen.Add(name) || Producer(name) is not { } node)
        {
            yield break;
        }

        List<OnnxNode> further = [.. way, node];
        if (Products.Contains(node.Operation) && node.Inputs.Count >= 2)
        {
            yield return further;
            yield break;
        }

        var learned = !node.Inputs.Any(input => Fact(input).IsActivation);
        foreach (var input in ScoreSteps.Contains(node.Operation) ? node.Inputs.Where(input => learned || Fact(input).IsActivation) : [])
        {
            foreach (var found in ProductsBefore(input, further, seen))
            {
                yield return found;
            }
        }
    }

    /// <summary>The axes of a product: which come from its left operand, which from its right, which from both; null where it is none of queries and keys.</summary>
    private AxisRole[]? ProductRoles(OnnxNode product, int softmaxAxis)
    {
        if (product.Operation is "Einsum")
        {
            return EinsumEquation.Parse(product)?.Expand(Fact(product.Inputs[0]).Rank, Fact(product.Inputs[1]).Rank) is not { } equation ? null
                : [.. equation.Output.Select(label => (equation.Left.Contains(label, StringComparison.Ordinal), equation.Right.Contains(label, StringComparison.Ordinal)) switch
                {
                    (true, false) => AxisRole.Left,
                    (false, true) => AxisRole.Right,
                    _ => AxisRole.Batch,
                })];
        }

        // Where nothing tells the number of axes, the softmax's own axis does: it is the last one of exporters that count from the front.
        var rank = Fact(product.Outputs[0]).Rank ?? Math.Max(Fact(product.Inputs[0]).Rank ?? 0, Fact(product.Inputs[1]).Rank ?? 0);
        rank = rank >= 2 ? rank : softmaxAxis >= 1 ? softmaxAxis + 1 : 4;
        return [.. Enumerable.Repeat(AxisRole.Batch, rank - 2), AxisRole.Left, AxisRole.Right];
    }

    /// <summary>The axes of a value after a step; null where they cannot be told apart any more.</summary>
    private AxisRole[]? Through(OnnxNode node, string from, AxisRole[] roles)
    {
        var output = Fact(node.Outputs[0]);
        switch (node.Operation)
        {
            case "Transpose":
                return node.Integers("perm") is { } order ? (order.Length == roles.Length ? [.. order.Select(axis => roles[axis])] : null) : [.. roles.Reverse()];
            case "Reshape" or "Flatten":
                return AxisRoles.Reshape(roles, Fact(from).Shape, output.Shape);
            case "Squeeze" or "Unsqueeze":
                return AxisRoles.Reshape(roles, Fact(from).Shape ?? new long?[roles.Length], output.Shape, Axes(node), node.Operation is "Squeeze");
            default:
                var missing = (output.Rank ?? roles.Length) - roles.Length;
                return missing < 0 ? null : [.. Enumerable.Repeat(AxisRole.Batch, missing), .. roles];
        }
    }

    private long[]? Axes(OnnxNode node) =>
        node.Integers("axes") ?? (node.Input(1) is { } given && Fact(given).Integers is { } axes && axes.All(axis => axis is not null) ? [.. axes.Select(axis => axis!.Value)] : null);

    /// <summary>Where weights meet values: follows them from the softmax to a product that sums over the keys and whose other operand comes from the input.</summary>
    private (string Weights, AxisRole[] Roles, OnnxNode Product)? Values(string softmax, AxisRole[] roles, AxisRole key, bool fromInput)
    {
        var waiting = new Queue<(string At, AxisRole[] Roles, string Weights, AxisRole[] WeightRoles)>([(softmax, roles, softmax, roles)]);
        var seen = new HashSet<string>(StringComparer.Ordinal) { softmax };
        for (var step = 0; step < MostSteps && waiting.TryDequeue(out var here); step++)
        {
            foreach (var node in _consumers.GetValueOrDefault(here.At, []))
            {
                if (MeetsValues(node, here.At, here.Roles, key, fromInput))
                {
                    return (here.Weights, here.WeightRoles, node);
                }

                if (WeightSteps.Contains(node.Operation) && node.Outputs.Count > 0 && seen.Add(node.Outputs[0]) && Through(node, here.At, here.Roles) is { } next)
                {
                    var changes = WeightChanges.Contains(node.Operation);
                    waiting.Enqueue((node.Outputs[0], next, changes ? node.Outputs[0] : here.Weights, changes ? next : here.WeightRoles));
                }
            }
        }

        return null;
    }

    private bool MeetsValues(OnnxNode node, string weights, AxisRole[] roles, AxisRole key, bool fromInput)
    {
        var index = node.Inputs.IndexOf(weights);
        if (index is not (0 or 1) || node.Inputs.Count < 2 || (fromInput && !Fact(node.Inputs[1 - index]).IsActivation) || node.Inputs[0] == node.Inputs[1])
        {
            return false;
        }

        if (node.Operation is "Mul")
        {
            // Values weighed one by one and added up: the product written out.
            return _consumers.GetValueOrDefault(node.Outputs[0], []).Any(sum => sum.Operation is "ReduceSum" && Axes(sum) is [var axis] && Through(node, weights, roles) is { } after
                && (axis < 0 ? axis + after.Length : axis) is >= 0 and var at && at < after.Length && after[at] == key);
        }

        if (!Products.Contains(node.Operation))
        {
            return false;
        }

        if (node.Operation is "Einsum")
        {
            var (own, other) = (Fact(weights).Rank ?? roles.Length, Fact(node.Inputs[1 - index]).Rank);
            if (EinsumEquation.Parse(node)?.Expand(index == 0 ? own : other, index == 0 ? other : own) is not { } equation)
            {
                return false;
            }

            var (labels, others) = index == 0 ? (equation.Left, equation.Right) : (equation.Right, equation.Left);
            var label = Array.IndexOf(roles, key) is >= 0 and var place && place < labels.Length ? labels[place] : default;
            return others.Contains(label, StringComparison.Ordinal) && !equation.Output.Contains(label, StringComparison.Ordinal);
        }

        var transposed = node.Integer(index == 0 ? "transA" : "transB", 0) != 0;
        return roles.Length >= 2 && roles[(index == 0) == transposed ? ^2 : ^1] == key;
    }

    private MapPlace Place(OnnxNode node, (string Weights, AxisRole[] Roles, OnnxNode Product) meeting, AxisRole key, string query)
    {
        var roles = meeting.Roles;
        int[] batch = [.. Enumerable.Range(0, roles.Length).Where(i => roles[i] == AxisRole.Batch)];
        int[] queries = [.. Enumerable.Range(0, roles.Length).Where(i => roles[i] != AxisRole.Batch && roles[i] != key)];
        var shape = Fact(meeting.Weights).Shape;
        long? Size(int axis) => shape is not null && axis < shape.Length ? shape[axis] : null;
        var heads = Growth(meeting.Product.Outputs[0], forward: true) ?? Growth(query, forward: false);
        int[] headAxes = batch.Length > 1 ? [batch[^1]] : [];
        int? merged = null;
        if (batch.Length == 1)
        {
            merged = heads > 1 && (Size(batch[0]) is not { } size || size % heads == 0) ? (int)heads : null;
        }
        else if (batch.Length > 1 && heads is { } count && Size(batch[^1]) is not null && Size(batch[^1]) != count)
        {
            // Heads in groups lie along two axes; some graphs keep heads before the batch.
            headAxes = Size(batch[^1]) * Size(batch[^2]) == count && batch.Length > 2 ? batch[^2..]
                : queries.Length > 1 && Size(batch[^1]) * Size(queries[0]) == count ? [batch[^1], queries[0]]
                : batch.FirstOrDefault(axis => Size(axis) == count, -1) is >= 0 and var other ? [other]
                : headAxes;
        }

        var type = Fact(meeting.Weights).Type;
        return new(node.Outputs[0], meeting.Weights, type == OnnxElementType.Unknown ? OnnxElementType.Float32 : type, [.. batch.Except(headAxes)], headAxes, [.. queries.Except(headAxes)], Array.IndexOf(roles, key), merged, false);
    }

    /// <summary>How many times wider a reshape makes the last axis on the way from the attention's output (heads are put beside each other again), or makes it narrower on the way to its queries.</summary>
    private long? Growth(string name, bool forward)
    {
        for (var step = 0; step < 12; step++)
        {
            var node = forward ? _consumers.GetValueOrDefault(name, []).FirstOrDefault(node => node.Outputs.Count > 0 && node.Operation is not ("Shape" or "Size")) : Producer(name);
            if (node is null)
            {
                return null;
            }

            var (narrow, wide) = forward ? (Fact(name).Last, Fact(node.Outputs[0]).Last) : (Fact(name).Last, Fact(node.Inputs.ElementAtOrDefault(0) ?? "").Last);
            if (node.Operation is "Reshape" or "Flatten" && narrow > 0 && wide > narrow && wide % narrow == 0)
            {
                return wide / narrow;
            }

            if (node.Operation is not ("Transpose" or "Reshape" or "Cast" or "Identity" or "Squeeze" or "Unsqueeze" or "Mul" or "Div" or "Add"))
            {
                return null;
            }

            name = forward ? node.Outputs[0] : node.Inputs.FirstOrDefault(input => Fact(input).IsActivation) ?? "";
        }

        return null;
    }

    /// <summary>The values that queries or keys are projected from.</summary>
    private HashSet<string> Sources(string name, int depth)
    {
        if (depth > MostSteps || Producer(name) is not { } node || !Projections.Contains(node.Operation))
        {
            return Producer(name)?.Operation is "Cos" or "Sin" ? [] : [name];
        }

        var inputs = node.Inputs.Where(input => Fact(input).IsActivation).Distinct(StringComparer.Ordinal).ToList();
        switch (inputs)
        {
            case []:
                return [name];
            case [var only]:
                return Sources(only, depth + 1);
            case var _ when Products.Contains(node.Operation):
                return [name];
            default:
                // A rotation adds parts of one value; a sum of two values is a value of its own.
                var sets = inputs.Select(input => Sources(input, depth + 1)).ToList();
                return node.Operation is not ("Add" or "Sub" or "Concat") || sets.Skip(1).All(set => set.Overlaps(sets[0])) ? [.. sets.SelectMany(set => set)] : [name];
        }
    }
}
