namespace Heed.Onnx.Graphs;

/// <summary>What is known of a value before anything runs.</summary>
/// <param name="Shape">Sizes, null where a size is not known; null: not even their number is known.</param>
/// <param name="Type">Type of its elements.</param>
/// <param name="Integers">Its values, where it is a short list of whole numbers such as a shape, null where one is not known; null: none is known.</param>
/// <param name="IsActivation">Whether it depends on what the model is given, beyond the given's shape.</param>
internal sealed record TensorFact(long?[]? Shape, OnnxElementType Type, long?[]? Integers = null, bool IsActivation = false)
{
    public static readonly TensorFact Nothing = new(null, OnnxElementType.Unknown);

    public int? Rank => Shape?.Length;

    public long? Last => Shape is { Length: > 0 } shape ? shape[^1] : null;
}
