namespace Heed.Onnx.Graphs;

/// <summary>What an axis of a map is.</summary>
internal enum AxisRole
{
    /// <summary>Batch, heads, windows or groups.</summary>
    Batch,

    /// <summary>The left operand's side of the product of queries and keys.</summary>
    Left,

    /// <summary>The right operand's side.</summary>
    Right,
}

/// <summary>Where an attention's weights lie in a graph, and which of their axes is what.</summary>
/// <param name="Node">The node that makes them (the softmax, or the fused operator), by the name of its first output.</param>
/// <param name="Weights">Name of the value that meets the attention's values; for a fused operator a name that nothing has yet.</param>
/// <param name="Type">Type of its elements.</param>
/// <param name="Batch">Its batch axes.</param>
/// <param name="Heads">Its head axes, after the batch axes in order; none: one head.</param>
/// <param name="Queries">Its query axes.</param>
/// <param name="Key">Its key axis.</param>
/// <param name="Merged">Number of heads where batch and heads share the only batch axis, batch first; null: they do not.</param>
/// <param name="IsFused">Whether a fused operator holds it.</param>
internal sealed record MapPlace(string Node, string Weights, OnnxElementType Type, int[] Batch, int[] Heads, int[] Queries, int Key, int? Merged, bool IsFused)
{
    /// <summary>Axes in the order batch, heads, queries, key.</summary>
    public int[] Order => [.. Batch, .. Heads, .. Queries, Key];

    /// <summary>Whether the value already is <c>[B, H, Nq, Nk]</c>.</summary>
    public bool IsPlain => Merged is null && Batch.Length == 1 && Heads.Length == 1 && Queries.Length == 1 && Order.SequenceEqual([0, 1, 2, 3]);
}
