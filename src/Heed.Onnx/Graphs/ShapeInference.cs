namespace Heed.Onnx.Graphs;

/// <summary>
/// Works out shapes, types and shape arithmetic of a graph's values, as far as this library needs them: which axes of a map are heads. An operator that it does not know gives a value of which nothing is known;
/// that is no error. Where the sizes of the inputs are given, almost everything is known.
/// </summary>
internal static class ShapeInference
{
    // Longer lists of whole numbers are data, not shapes.
    private const int MostIntegers = 64;

    private static readonly HashSet<string> SameShape = new(StringComparer.Ordinal)
    {
        "Identity", "Cast", "CastLike", "Softmax", "LogSoftmax", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Tanh", "Sigmoid", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Not", "Dropout", "LayerNormalization",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu",
        "Selu", "Celu", "Mish", "Softplus", "Softsign", "Reciprocal", "Sign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Trilu", "CumSum", "ScatterND", "ScatterElements", "DequantizeLinear", "QuantizeLinear", "Sin", "Cos",
        "RotaryEmbedding", "Hardmax", "ThresholdedRelu", "PRelu", "Swish",
    };

    private static readonly HashSet<string> Broadcast = new(StringComparer.Ordinal)
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Where", "Mod", "BitwiseAnd", "BitwiseOr",
    };

    private static readonly HashSet<string> Logical = new(StringComparer.Ordinal) { "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf" };

    /// <summary>What is known of every value of a graph.</summary>
    /// <param name="graph">The graph.</param>
    /// <param name="given">Shapes of inputs, where they are known better than the file says; null: as the file says.</param>
    public static Dictionary<string, TensorFact> Infer(OnnxGraph graph, IReadOnlyDictionary<string, long[]>? given = null)
    {
        var facts = new Dictionary<string, TensorFact>(StringComparer.Ordinal) { [""] = TensorFact.Nothing };
        foreach (var (name, constant) in graph.Constants)
        {
            facts[name] = Of(constant);
        }

        foreach (var input in graph.Inputs)
        {
            facts[input.Name] = new(given?.GetValueOrDefault(input.Name) is { } shape ? [.. shape.Select(size => (long?)size)] : input.Shape, input.Type, IsActivation: true);
        }

        var stated = graph.Values.Concat(graph.Outputs).GroupBy(value => value.Name, StringComparer.Ordinal).ToDictionary(group => group.Key, group => group.First(), StringComparer.Ordinal);
        foreach (var node in graph.Nodes)
        {
            TensorFact[] inputs = [.. node.Inputs.Select(name => facts.GetValueOrDefault(name) ?? TensorFact.Nothing)];
            TensorFact[] outputs;
            try
            {
                outputs = Infer(node, inputs, graph.Opset);
            }
            catch (Exception error) when (error is IndexOutOfRangeException or ArgumentException or OverflowException or DivideByZeroException or InvalidOperationException)
            {
                // The node's attributes contradict its inputs. The runtime will say so when the model is loaded; here it only means that nothing is known.
                outputs = [];
            }

            var activation = node.Operation is not ("Shape" or "Size") && (inputs.Any(input => input.IsActivation) || (inputs.Length == 0 && node.Graphs.Any()));
            for (var i = 0; i < node.Outputs.Count; i++)
            {
                var fact = (i < outputs.Length ? outputs[i] : TensorFact.Nothing) with { IsActivation = activation };
                if (stated.GetValueOrDefault(node.Outputs[i]) is { IsTensor: true } value)
                {
                    fact = fact with { Shape = Merge(fact.Shape, value.Shape, given is not null), Type = fact.Type == OnnxElementType.Unknown ? value.Type : fact.Type };
                }

                facts[node.Outputs[i]] = fact;
            }
        }

        return facts;
    }

    /// <summary>The shape that values of some shapes have together.</summary>
    internal static long?[]? BroadcastShape(params IEnumerable<long?[]?> shapes)
    {
        long?[]? result = null;
        foreach (var shape in shapes)
        {
            if (shape is null)
            {
                return null;
            }

            if (result is null)
            {
                result = shape;
                continue;
            }

            var rank = Math.Max(result.Length, shape.Length);
            var merged = new long?[rank];
            for (var i = 1; i <= rank; i++)
            {
                var a = i <= result.Length ? result[^i] : 1;
                var b = i <= shape.Length ? shape[^i] : 1;
                merged[^i] = a == 1 ? b : b == 1 ? a : a ?? b;
            }

            result = merged;
        }

        return result;
    }

    internal static TensorFact Of(OnnxConstant constant) => new(
        [.. constant.Shape.Select(size => (long?)size)], constant.Type,
        constant.Shape.Length <= 1 && constant.Count <= MostIntegers && constant.Integers() is { } integers ? [.. integers.Select(value => (long?)value)] : null);

    /// <summary>Where the file and the arithmetic both say something: the sizes that are known. With the inputs' true sizes the arithmetic is right where the file says what once was.</summary>
    private static long?[]? Merge(long?[]? inferred, long?[]? stated, bool trustInferred) =>
        stated is null ? inferred
        : inferred is null ? (trustInferred ? [.. stated.Select(_ => (long?)null)] : stated)
        : inferred.Length != stated.Length ? inferred
        : trustInferred ? inferred : [.. inferred.Zip(stated, (a, b) => a ?? b)];

    private static TensorFact[] Infer(OnnxNode node, TensorFact[] inputs, long opset)
    {
        var first = inputs.Length > 0 ? inputs[0] : TensorFact.Nothing;
        var type = Logical.Contains(node.Operation) ? OnnxElementType.Boolean : first.Type;
        if (node.Operation is "Cast")
        {
            return [first with { Type = (OnnxElementType)node.Integer("to", 0) }];
        }

        if (SameShape.Contains(node.Operation))
        {
            return [first with { Type = node.Operation is "CastLike" ? inputs[1].Type : type, Integers = node.Operation is "Identity" ? first.Integers : null }];
        }

        if (Broadcast.Contains(node.Operation))
        {
            type = node.Operation is "Where" ? (inputs[1].Type == OnnxElementType.Unknown ? inputs[2].Type : inputs[1].Type) : type == OnnxElementType.Unknown && inputs.Length > 1 ? inputs[^1].Type : type;
            return [new(BroadcastShape(inputs.Select(input => input.Shape)), type, Arithmetic(node.Operation, inputs))];
        }

        return node.Operation switch
        {
            "Constant" => [Constant(node)],
            "Shape" => [Shape(node, first)],
            "Size" => [new([], OnnxElementType.Int64)],
            "MatMul" or "FusedMatMul" or "TransposeMatMul" or "MatMulInteger" or "MatMulNBits" => [MatMul(node, inputs)],
            "Gemm" => [new([Size(first.Shape, node.Integer("transA", 0) == 0 ? 0 : 1), Size(inputs[1].Shape, node.Integer("transB", 0) == 0 ? 1 : 0)], first.Type)],
            "Einsum" => [new(EinsumEquation.Parse(node)?.OutputShape(inputs), first.Type)],
            "Transpose" => [Transpose(node, first)],
            "Reshape" => [Reshape(node, first, opset < 5 ? node.Integers("shape")?.Select(size => (long?)size).ToArray() : inputs[1].Integers, opset < 5 ? null : inputs[1].Shape)],
            "Flatten" => [new([null, null], first.Type)],
            "Squeeze" or "Unsqueeze" => [Squeeze(node, inputs, node.Operation is "Squeeze")],
            "Concat" => [Concat(node, inputs)],
            "Split" => Split(node, inputs),
            "Slice" => [Slice(node, inputs)],
            "Gather" => [Gather(node, inputs)],
            "Range" => [new([null], first.Type)],
            "ConstantOfShape" => [ConstantOfShape(node, first)],
            "Expand" => [new(BroadcastShape(first.Shape, inputs[1].Integers ?? UnknownOf(inputs[1])), first.Type)],
            "Tile" => [new(first.Shape is { } tiled ? [.. tiled.Select((size, i) => size * inputs[1].Integers?[i])] : UnknownOf(inputs[1]), first.Type)],
            "Pad" => [new(first.Shape is { } padded ? [.. padded.Select((size, i) => size + inputs[1].Integers?[i] + inputs[1].Integers?[i + padded.Length])] : null, first.Type)],
            "Conv" or "MaxPool" or "AveragePool" => [Convolution(node, inputs)],
            "GlobalAveragePool" or "GlobalMaxPool" => [new(first.Shape is { } pooled ? [.. pooled.Select((size, i) => i < 2 ? size : 1)] : null, first.Type)],
            "ReduceMean" or "ReduceSum" or "ReduceMax" or "ReduceMin" or "ReduceProd" or "ReduceL2" or "ArgMax" => [Reduce(node, inputs)],
            _ => [],
        };
    }

    private static long? Size(long?[]? shape, int axis) => shape is not null && axis < shape.Length ? shape[axis] : null;

    private static long?[]? UnknownOf(TensorFact shape) => shape.Shape is [{ } rank] && rank <= MostIntegers ? new long?[rank] : null;

    private static int Axis(long axis, int rank) => (int)(axis < 0 ? axis + rank : axis);

    private static TensorFact Constant(OnnxNode node) =>
        node.Attribute("value")?.Tensor is { } tensor ? Of(tensor)
        : node.Attribute("value_int") is { } integer ? new([], OnnxElementType.Int64, [integer.Integer])
        : node.Attribute("value_ints") is { } integers ? new([integers.Integers.Length], OnnxElementType.Int64, [.. integers.Integers.Select(value => (long?)value)])
        : node.Attribute("value_float") is not null ? new([], OnnxElementType.Float32)
        : TensorFact.Nothing;

    private static TensorFact Shape(OnnxNode node, TensorFact input)
    {
        if (input.Shape is not { } shape)
        {
            return new([null], OnnxElementType.Int64);
        }

        var start = Math.Clamp(Axis(node.Integer("start", 0), shape.Length), 0, shape.Length);
        var end = Math.Clamp(Axis(node.Integer("end", shape.Length), shape.Length), start, shape.Length);
        return new([end - start], OnnxElementType.Int64, shape[start..end]);
    }

    private static TensorFact MatMul(OnnxNode node, TensorFact[] inputs)
    {
        if (inputs[0].Shape is not { Length: >= 2 } a || inputs[1].Shape is not { Length: >= 2 } b)
        {
            // A vector drops its axis; where one rank is not known, nothing is.
            return inputs[0].Shape is { Length: >= 2 } left && inputs[1].Rank == 1 ? new(left[..^1], inputs[0].Type) : new(null, inputs[0].Type);
        }

        var rows = node.Integer("transA", 0) == 0 ? a[^2] : a[^1];
        var columns = node.Integer("transB", 0) == 0 ? b[^1] : b[^2];
        var batch = BroadcastShape(a[..^2], b[..^2])!;
        return new([.. batch, rows, columns], node.Operation is "MatMulInteger" ? OnnxElementType.Int32 : inputs[0].Type);
    }

    private static TensorFact Transpose(OnnxNode node, TensorFact input)
    {
        var order = node.Integers("perm");
        var shape = input.Shape ?? (order is null ? null : new long?[order.Length]);
        return new(shape is null ? null : order is null ? [.. shape.Reverse()] : [.. order.Select(axis => shape[axis])], input.Type);
    }

    private static TensorFact Reshape(OnnxNode node, TensorFact input, long?[]? target, long?[]? targetShape)
    {
        if (target is null)
        {
            return new(targetShape is [{ } rank] && rank <= MostIntegers ? new long?[rank] : null, input.Type);
        }

        var keepsZero = node.Integer("allowzero", 0) != 0;
        long?[] shape = [.. target.Select((size, i) => size == 0 && !keepsZero ? Size(input.Shape, i) : size)];
        var free = Array.IndexOf(shape, -1L);
        if (free >= 0)
        {
            // What is free is the rest, where the rest can be counted; sizes that are the same unknown on both sides cannot be told apart from others.
            long? all = input.Shape is { } from && from.All(size => size is not null) ? from.Aggregate(1L, (count, size) => count * size!.Value) : null;
            var others = shape.Where((_, i) => i != free).ToArray();
            shape[free] = all is { } count && others.All(size => size is > 0) ? count / others.Aggregate(1L, (product, size) => product * size!.Value) : null;
        }

        var integers = input.Integers is { } values && shape.Length <= 1 ? values : null;
        return new(shape, input.Type, integers);
    }

    private static TensorFact Squeeze(OnnxNode node, TensorFact[] inputs, bool removes)
    {
        var axes = node.Integers("axes") ?? (inputs.Length > 1 && inputs[1].Integers is { } given && given.All(axis => axis is not null) ? [.. given.Select(axis => axis!.Value)] : null);
        if (inputs[0].Shape is not { } shape || (axes is null && !(removes && inputs.Length < 2)))
        {
            return new(null, inputs[0].Type, inputs[0].Integers);
        }

        if (removes)
        {
            var gone = axes?.Select(axis => Axis(axis, shape.Length)).ToHashSet() ?? [.. Enumerable.Range(0, shape.Length).Where(i => shape[i] == 1)];
            return new([.. shape.Where((_, i) => !gone.Contains(i))], inputs[0].Type, inputs[0].Integers);
        }

        var rank = shape.Length + axes!.Length;
        var added = axes.Select(axis => Axis(axis, rank)).ToHashSet();
        var rest = new Queue<long?>(shape);
        return new([.. Enumerable.Range(0, rank).Select(i => added.Contains(i) ? 1 : rest.Dequeue())], inputs[0].Type, rank <= 1 ? inputs[0].Integers : null);
    }

    private static TensorFact Concat(OnnxNode node, TensorFact[] inputs)
    {
        var known = inputs.FirstOrDefault(input => input.Shape is not null);
        if (known?.Shape is not { } model)
        {
            return new(null, inputs[0].Type);
        }

        var axis = Axis(node.Integer("axis", 0), model.Length);
        long?[] shape = [.. model.Select((_, i) => i == axis
            ? inputs.Aggregate((long?)0, (sum, input) => sum + Size(input.Shape, i))
            : inputs.Select(input => Size(input.Shape, i)).FirstOrDefault(size => size is not null))];
        var integers = model.Length == 1 && inputs.All(input => input.Integers is not null || input.Shape is [<= MostIntegers])
            ? inputs.SelectMany(input => input.Integers ?? new long?[input.Shape![0]!.Value]).ToArray()
            : null;
        return new(shape, known.Type, integers?.Length <= MostIntegers ? integers : null);
    }

    private static TensorFact[] Split(OnnxNode node, TensorFact[] inputs)
    {
        var parts = node.Integers("split")?.Select(size => (long?)size).ToArray() ?? (inputs.Length > 1 ? inputs[1].Integers : null);
        return [.. Enumerable.Range(0, node.Outputs.Count).Select(part =>
        {
            if (inputs[0].Shape is not { } shape)
            {
                return new TensorFact(null, inputs[0].Type);
            }

            var axis = Axis(node.Integer("axis", 0), shape.Length);
            var size = parts is not null ? parts[part] : inputs.Length > 1 && node.Inputs[1].Length > 0 ? null : (shape[axis] + node.Outputs.Count - 1) / node.Outputs.Count;
            return new TensorFact([.. shape.Select((known, i) => i == axis ? size : known)], inputs[0].Type);
        })];
    }

    private static TensorFact Slice(OnnxNode node, TensorFact[] inputs)
    {
        long?[]? List(string attribute, int input) => node.Integers(attribute)?.Select(value => (long?)value).ToArray() ?? (input < inputs.Length ? inputs[input].Integers : null);
        if (inputs[0].Shape is not { } shape)
        {
            return new(null, inputs[0].Type);
        }

        var (starts, ends, steps) = (List("starts", 1), List("ends", 2), List("steps", 4));
        var axes = List("axes", 3) ?? (node.Input(3) is null && starts is not null ? [.. Enumerable.Range(0, starts.Length).Select(i => (long?)i)] : null);
        if (starts is null || ends is null || axes is null)
        {
            return new([.. shape.Select((size, i) => axes?.Any(axis => axis is { } known && Axis(known, shape.Length) == i) == false ? size : null)], inputs[0].Type);
        }

        var result = shape.ToArray();
        var integers = inputs[0].Integers;
        for (var i = 0; i < axes.Length; i++)
        {
            if (axes[i] is not { } axis)
            {
                return new(new long?[shape.Length], inputs[0].Type);
            }

            var at = Axis(axis, shape.Length);
            if (shape[at] is not { } size || starts[i] is not { } start || ends[i] is not { } end || (steps is null ? 1 : steps[i]) is not { } step || step == 0)
            {
                (result[at], integers) = (null, null);
                continue;
            }

            start = Math.Clamp(start < 0 ? start + size : start, 0, step > 0 ? size : size - 1);
            end = Math.Clamp(end < 0 && end > -size - 1 ? end + size : end, step > 0 ? 0 : -1, size);
            var count = Math.Max(0, (end - start + step - Math.Sign(step)) / step);
            result[at] = count;
            integers = integers is not null && shape.Length == 1 ? [.. Enumerable.Range(0, (int)count).Select(k => inputs[0].Integers![start + (k * step)])] : null;
        }

        return new(result, inputs[0].Type, integers);
    }

    private static TensorFact Gather(OnnxNode node, TensorFact[] inputs)
    {
        if (inputs[0].Shape is not { } shape || inputs[1].Shape is not { } index)
        {
            return new(null, inputs[0].Type);
        }

        var axis = Axis(node.Integer("axis", 0), shape.Length);
        var integers = inputs[0].Integers is { } from && inputs[1].Integers is { } places && shape.Length == 1
            ? places.Select(place => place is { } known ? from[Axis(known, from.Length)] : null).ToArray() : null;
        return new([.. shape[..axis], .. index, .. shape[(axis + 1)..]], inputs[0].Type, integers);
    }

    private static TensorFact ConstantOfShape(OnnxNode node, TensorFact shape)
    {
        var value = node.Attribute("value")?.Tensor;
        long?[]? integers = shape.Integers is [{ } count] && count <= MostIntegers && value?.Integers() is [var fill] ? [.. Enumerable.Repeat((long?)fill, (int)count)] : null;
        return new(shape.Integers ?? UnknownOf(shape), value?.Type ?? OnnxElementType.Float32, integers);
    }

    private static TensorFact Convolution(OnnxNode node, TensorFact[] inputs)
    {
        if (inputs[0].Shape is not { Length: > 2 } shape)
        {
            return new(null, inputs[0].Type);
        }

        var spatial = shape.Length - 2;
        var kernel = node.Integers("kernel_shape")?.Select(size => (long?)size).ToArray() ?? (inputs.Length > 1 ? inputs[1].Shape?[2..] : null);
        var (strides, dilations, pads) = (node.Integers("strides"), node.Integers("dilations"), node.Integers("pads"));
        var automatic = node.Attribute("auto_pad")?.Text is "SAME_UPPER" or "SAME_LOWER";
        long? Output(int i)
        {
            var stride = strides?[i] ?? 1;
            var size = automatic ? (shape[i + 2] + stride - 1) / stride : ((shape[i + 2] + (pads?[i] ?? 0) + (pads?[i + spatial] ?? 0) - ((dilations?[i] ?? 1) * (kernel?[i] - 1)) - 1) / stride) + 1;
            return node.Integer("ceil_mode", 0) != 0 ? null : size;
        }

        return new([shape[0], node.Operation is "Conv" ? Size(inputs[1].Shape, 0) : shape[1], .. Enumerable.Range(0, spatial).Select(Output)], inputs[0].Type);
    }

    private static TensorFact Reduce(OnnxNode node, TensorFact[] inputs)
    {
        var type = node.Operation is "ArgMax" ? OnnxElementType.Int64 : inputs[0].Type;
        if (inputs[0].Shape is not { } shape)
        {
            return new(null, type);
        }

        var given = node.Operation is "ArgMax" ? [node.Integer("axis", 0)] : node.Integers("axes") ?? (inputs.Length > 1 ? inputs[1].Integers?.Select(axis => axis ?? 0).ToArray() : null);
        var gone = given?.Select(axis => Axis(axis, shape.Length)).ToHashSet() ?? [.. Enumerable.Range(0, shape.Length)];
        var keeps = node.Integer("keepdims", 1) != 0;
        long?[]? product = node.Operation is "ReduceProd" && inputs[0].Integers is { } factors ? [factors.Aggregate((long?)1, (all, factor) => all * factor)] : null;
        return new([.. shape.Select((size, i) => gone.Contains(i) ? 1 : size).Where((_, i) => keeps || !gone.Contains(i))], type, product);
    }

    private static long?[]? Arithmetic(string operation, TensorFact[] inputs)
    {
        if (inputs.Any(input => input.Integers is null) || inputs.Length is < 2 or > 3 || (inputs.Length == 3) != (operation is "Where"))
        {
            return null;
        }

        var count = inputs.Max(input => input.Integers!.Length);
        long? At(TensorFact input, int i) => input.Integers!.Length == 1 ? input.Integers[0] : input.Integers[i];
        var values = new long?[count];
        for (var i = 0; i < count; i++)
        {
            var (a, b) = (At(inputs[0], i), At(inputs[1], i));
            values[i] = operation switch
            {
                "Add" => a + b,
                "Sub" => a - b,
                "Mul" => a * b,
                "Div" => b == 0 ? null : a / b,
                "Max" => a is { } x && b is { } y ? Math.Max(x, y) : null,
                "Min" => a is { } x && b is { } y ? Math.Min(x, y) : null,
                "Equal" => a is null || b is null ? null : a == b ? 1 : 0,
                "Where" => a is null ? null : a != 0 ? b : At(inputs[2], i),
                _ => null,
            };
        }

        return values;
    }
}
