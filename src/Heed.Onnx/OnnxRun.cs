namespace Heed.Onnx;

/// <summary>One of the model's inputs or outputs.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Type">Type of its elements.</param>
/// <param name="Shape">Its sizes, null where a size is free; null: the file does not say.</param>
public sealed record OnnxPort(string Name, OnnxElementType Type, IReadOnlyList<long?>? Shape)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Name} [{(Shape is null ? "?" : string.Join(", ", Shape.Select(size => size?.ToString(System.Globalization.CultureInfo.InvariantCulture) ?? "?")))}] {Type}";
}

/// <summary>The weights of one attention in one run, <c>[B, H, Nq, Nk]</c>.</summary>
/// <param name="Attention">Which attention.</param>
/// <param name="Values">The weights, row by row.</param>
/// <param name="Batch">Size of the batch (windows and the like count into it).</param>
/// <param name="Heads">Number of heads.</param>
/// <param name="Queries">Number of queries.</param>
/// <param name="Keys">Number of keys.</param>
public sealed record OnnxMap(OnnxAttention Attention, float[] Values, int Batch, int Heads, int Queries, int Keys)
{
    /// <summary>The map of one head.</summary>
    /// <param name="batch">The element of the batch.</param>
    /// <param name="head">The head.</param>
    /// <returns><c>[Nq, Nk]</c>, row by row.</returns>
    public ReadOnlySpan<float> Head(int batch, int head)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(batch);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(batch, Batch);
        ArgumentOutOfRangeException.ThrowIfNegative(head);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(head, Heads);
        return Values.AsSpan(((batch * Heads) + head) * Queries * Keys, Queries * Keys);
    }
}

/// <summary>How a model is run.</summary>
public sealed record OnnxRunOptions
{
    /// <summary>Bytes that maps may take at once where nothing else is said.</summary>
    public const long DefaultMapBudget = 1L << 30;

    /// <summary>The attentions whose maps are wanted, <see cref="OnnxAttention.Layer"/>; null: all.</summary>
    public IReadOnlySet<int>? Layers { get; init; }

    /// <summary>Bytes that maps may take at once. Where they take more, the model runs several times, each time with the maps that fit.</summary>
    public long MapBudget { get; init; } = DefaultMapBudget;

    /// <summary>Number of threads; 0: the runtime's choice.</summary>
    public int Threads { get; init; }
}

/// <summary>What a run gave.</summary>
/// <param name="Outputs">The model's own outputs, those of them that are tensors of numbers.</param>
/// <param name="Maps">The maps, in the order of the graph; none where they were handed on one by one.</param>
public sealed record OnnxRun(IReadOnlyDictionary<string, OnnxTensor> Outputs, IReadOnlyList<OnnxMap> Maps);
