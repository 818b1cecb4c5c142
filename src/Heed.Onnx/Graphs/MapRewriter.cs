namespace Heed.Onnx.Graphs;

/// <summary>Puts maps among a graph's outputs, and edits into it.</summary>
internal static class MapRewriter
{
    /// <summary>Makes the maps of some attentions outputs of a graph, each as <c>[B, H, Nq, Nk]</c> whatever the graph does inside.</summary>
    /// <param name="graph">The graph; it changes.</param>
    /// <param name="attentions">Which.</param>
    /// <param name="facts">What is known of the graph's values.</param>
    /// <returns>The outputs' names.</returns>
    public static List<string> Expose(OnnxGraph graph, IEnumerable<OnnxAttention> attentions, IReadOnlyDictionary<string, TensorFact> facts)
    {
        var names = new List<string>();
        foreach (var attention in attentions)
        {
            var place = attention.Place;
            var at = graph.Nodes.FindIndex(node => node.Outputs.Contains(place.Node));
            if (place.IsFused && at >= 0 && FusedAttention.Is(graph.Nodes[at]))
            {
                if (FusedAttention.Exposed(graph.Nodes[at], place.Weights) is { } exposed)
                {
                    graph.Nodes[at] = exposed;
                }
                else
                {
                    Replace(graph, at, FusedAttention.Plain(graph.Nodes[at], facts, graph.Opset, place.Weights));
                }
            }

            var name = place.Weights;
            if (!place.IsPlain)
            {
                var build = new GraphBuilder(graph.Opset, Free(graph, $"{name}_map"));
                name = Plain(build, place, place.Weights);
                graph.Nodes.AddRange(build.Nodes);
            }

            graph.AddOutput(name, place.Type);
            names.Add(name);
        }

        return names;
    }

    /// <summary>Puts an edit into a graph: what makes the weights makes them under another name, and the edited ones take theirs, so that nothing else changes.</summary>
    public static void Edit(OnnxGraph graph, IReadOnlyList<OnnxAttention> attentions, OnnxEdit edit, IReadOnlyDictionary<string, TensorFact> facts)
    {
        foreach (var attention in attentions.Where(attention => edit.Layers?.Contains(attention.Layer) != false))
        {
            var place = attention.Place;
            if (edit.Heads?.FirstOrDefault(head => head < 0 || head >= (attention.Heads ?? int.MaxValue), -1) is >= 0 and var missing)
            {
                throw new ArgumentException($"The edit names head {missing}, and attention {attention.Layer} ({attention.Name}) has heads 0 to {attention.Heads - 1}.");
            }

            if (edit.Heads is not null && attention.Heads is null)
            {
                throw new NotSupportedException($"The number of heads of attention {attention.Layer} ({attention.Name}) is not in the graph, so none of its heads can be chosen: edit all of them, or give the inputs' sizes.");
            }

            var at = graph.Nodes.FindIndex(node => node.Outputs.Contains(place.Node));
            if (place.IsFused && FusedAttention.Is(graph.Nodes[at]))
            {
                Replace(graph, at, FusedAttention.Plain(graph.Nodes[at], facts, graph.Opset, place.Weights));
            }

            var free = Free(graph, $"{place.Weights}_edit");
            var build = new GraphBuilder(graph.Opset, free);
            var maker = graph.Nodes.FindIndex(node => node.Outputs.Contains(place.Weights));
            var before = $"{free}before";
            var output = graph.Nodes[maker].Outputs.IndexOf(place.Weights);
            graph.Nodes[maker].Outputs[output] = before;
            var map = place.IsPlain ? before : Plain(build, place, before);
            map = edit switch
            {
                OnnxHeadScaling => build.Add("Mul", [map, build.Numbers(place.Type, [1, attention.Heads ?? 1, 1, 1], HeadFactors(attention, edit))]),
                OnnxColumnScaling columns => Columns(build, place, attention, columns, map),
                _ => throw new ArgumentException($"There is no edit {edit.GetType().Name}.", nameof(edit)),
            };
            Back(build, place, map, before);
            graph.Nodes.InsertRange(maker + 1, build.Nodes);
        }
    }

    /// <summary>What names of new values may begin with, so that they are nobody else's.</summary>
    private static string Free(OnnxGraph graph, string name)
    {
        for (var number = 0; ; number++)
        {
            var prefix = $"{name}{number}_";
            if (!graph.Nodes.Any(node => node.Outputs.Any(output => output.StartsWith(prefix, StringComparison.Ordinal))))
            {
                return prefix;
            }
        }
    }

    private static void Replace(OnnxGraph graph, int at, List<OnnxNode> nodes)
    {
        graph.Nodes.RemoveAt(at);
        graph.Nodes.InsertRange(at, nodes);
    }

    /// <summary>A map as <c>[B, H, Nq, Nk]</c>.</summary>
    private static string Plain(GraphBuilder build, MapPlace place, string weights)
    {
        long[] order = [.. place.Order.Select(axis => (long)axis)];
        var ordered = order.SequenceEqual(Enumerable.Range(0, order.Length).Select(axis => (long)axis)) ? weights : build.Transpose(weights, order);
        if (place is { Merged: null, Batch.Length: 1, Heads.Length: 1, Queries.Length: 1 })
        {
            return ordered;
        }

        // Sizes that only the run knows are taken from the value itself.
        string[] sizes =
        [
            place.Merged is not null ? build.Integers(-1) : Product(build, weights, place.Batch),
            place.Merged is { } heads ? build.Integers(heads) : Product(build, weights, place.Heads),
            Product(build, weights, place.Queries),
            build.Sizes(weights, place.Key),
        ];
        return build.Add("Reshape", [ordered, build.Add("Concat", sizes, ("axis", 0L))]);
    }

    /// <summary>From <c>[B, H, Nq, Nk]</c> to the graph's own layout, under the name that the graph knows.</summary>
    private static void Back(GraphBuilder build, MapPlace place, string map, string before)
    {
        var order = place.Order;
        if (place.IsPlain)
        {
            build.AddAs(place.Weights, "Identity", [map]);
            return;
        }

        var sizes = build.Sizes(before, [.. order.Select(axis => (long)axis)]);
        var inverse = Enumerable.Range(0, order.Length).Select(axis => (long)Array.IndexOf(order, axis)).ToArray();
        build.AddAs(place.Weights, "Transpose", [build.Add("Reshape", [map, sizes])], ("perm", inverse));
    }

    private static string Product(GraphBuilder build, string value, int[] axes) => axes.Length switch
    {
        0 => build.Integers(1),
        1 => build.Sizes(value, axes[0]),
        _ => axes.Skip(1).Aggregate(build.Sizes(value, axes[0]), (product, axis) => build.Add("Mul", [product, build.Sizes(value, axis)])),
    };

    private static float[] HeadFactors(OnnxAttention attention, OnnxEdit edit) =>
        [.. Enumerable.Range(0, attention.Heads ?? 1).Select(head => edit.Heads?.Contains(head) != false ? (float)edit.Factor : 1)];

    /// <summary>Scales columns: 1 + chosen head x chosen column x (factor - 1).</summary>
    private static string Columns(GraphBuilder build, MapPlace place, OnnxAttention attention, OnnxColumnScaling edit, string map)
    {
        var type = place.Type;
        var one = build.Number(type, 1);
        long[] columns = [.. edit.Columns.Distinct().Select(column => (long)column)];
        var zeros = build.Add("ConstantOfShape", [build.Sizes(map, 3)], ("value", OnnxConstant.Of([1], 0f)));
        var ones = build.Numbers(OnnxElementType.Float32, [columns.Length], [.. columns.Select(_ => 1f)]);
        // The type of the map comes last: few runtimes scatter 16-bit numbers.
        var chosen = build.Cast(build.Add("ScatterElements", [zeros, build.Integers(columns), ones], ("axis", 0L)), OnnxElementType.Float32, type);
        var heads = build.Numbers(type, [1, attention.Heads ?? 1, 1, 1], [.. HeadFactors(attention, edit).Select((factor, head) => edit.Heads?.Contains(head) != false ? (float)(edit.Factor - 1) : 0)]);
        var scaled = build.Add("Mul", [map, build.Add("Add", [one, build.Add("Mul", [chosen, heads])])]);
        if (edit.FreedMass == OnnxFreedMass.Leave)
        {
            return scaled;
        }

        // A row that has nothing left to divide by, or nobody to give to, stays as the factor left it.
        string Ratio(string above, string below) => build.Add("Div", [above, build.Add("Max", [below, build.Number(type, type == OnnxElementType.Float16 ? 1e-7f : 1e-30f)])]);
        var sum = build.Sum(map, 3);
        var left = build.Sum(scaled, 3);
        if (edit.FreedMass == OnnxFreedMass.Renormalise)
        {
            return build.Add("Mul", [scaled, Ratio(sum, left)]);
        }

        var others = build.Add("Sub", [one, chosen]);
        var gain = Ratio(build.Add("Sub", [sum, left]), build.Sum(build.Add("Mul", [map, others]), 3));
        return build.Add("Mul", [scaled, build.Add("Add", [one, build.Add("Mul", [others, gain])])]);
    }
}
