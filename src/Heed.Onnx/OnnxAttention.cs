using Heed.Onnx.Graphs;

namespace Heed.Onnx;

/// <summary>Where an attention's keys come from.</summary>
public enum OnnxAttentionKind
{
    /// <summary>From the same values as its queries.</summary>
    Self,

    /// <summary>From others.</summary>
    Cross,
}

/// <summary>One attention of a graph: a softmax over products of queries and keys, whose weights multiply values.</summary>
public sealed record OnnxAttention
{
    internal OnnxAttention()
    {
    }

    /// <summary>Its place among the attentions, from 0, in the order in which the graph runs.</summary>
    public required int Layer { get; init; }

    /// <summary>What the graph calls it: the name of its softmax (or of its fused operator) without the operator, or the name of the value that it makes.</summary>
    public required string Name { get; init; }

    /// <summary>The operator that normalises: <c>Softmax</c>, <c>Exp</c> where exponentials are divided by their sum, or the fused operator.</summary>
    public required string Operator { get; init; }

    /// <summary>Whether keys and queries come from the same values.</summary>
    public required OnnxAttentionKind Kind { get; init; }

    /// <summary>Whether a causal mask was found in the graph: a triangle of constants, or one made by comparing positions.</summary>
    public required bool IsCausal { get; init; }

    /// <summary>Number of heads; null where the graph alone does not say it (it is known when the model runs).</summary>
    public required int? Heads { get; init; }

    /// <summary>Where its weights are.</summary>
    internal MapPlace Place { get; init; } = null!;

    /// <inheritdoc/>
    public override string ToString() => $"{Layer} {Name}: {(Heads is { } heads ? $"{heads} heads" : "heads not known")}, {(Kind == OnnxAttentionKind.Self ? "self" : "cross")}{(IsCausal ? ", causal" : "")}";

    /// <summary>Finds the attentions of a model file.</summary>
    /// <param name="path">The <c>.onnx</c> file.</param>
    /// <returns>The attentions in the order in which the graph runs; none where the graph has none.</returns>
    /// <exception cref="IOException">The file cannot be read.</exception>
    /// <exception cref="InvalidDataException">It is no ONNX model.</exception>
    public static IReadOnlyList<OnnxAttention> Find(string path)
    {
        using var model = OnnxModel.Load(path);
        return model.Attentions;
    }
}
