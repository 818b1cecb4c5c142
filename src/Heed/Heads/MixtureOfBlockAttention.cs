using Heed.Interop;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention in which every query attends to its own block of keys and to blocks selected by content: MoBA, and VMoBA (arXiv 2506.23858), which selects from one pool per head by a share of similarity.</summary>
/// <remarks>
/// <para>Exact softmax over all keys of the selected blocks. Selection has no gradient; gradients flow through the selected pairs. Not causal: for causal models there is <see cref="MixtureOfBlocksSelector"/>.</para>
/// <para>On the CPU in float32 and half precision, the queries of each block are gathered, so that work follows what is selected. Other types and devices materialise the map.</para>
/// </remarks>
public static class MixtureOfBlockAttention
{
    /// <summary>Selects and attends.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>. Every batch item selects on its own.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>, Hkv a divisor of H.</param>
    /// <param name="value"><c>[B, Hkv, N, Dv]</c>.</param>
    /// <param name="options">Block size and selection.</param>
    /// <param name="sequenceOffsets">Where packed sequences begin, and the end of the last: blocks and attention stay within them. Null: one sequence.</param>
    /// <param name="scale">Factor of the products in the softmax; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, N, Dv]</c> in the query's dtype.</returns>
    /// <exception cref="ArgumentException">Shapes, options or offsets do not fit together.</exception>
    public static Tensor Forward(
        Tensor query, Tensor key, Tensor value, MixtureOfBlocksOptions options, IReadOnlyList<long>? sequenceOffsets = null, double? scale = null)
    {
        using var selection = MixtureOfBlocks.Select(query, key, options, sequenceOffsets);
        return Apply(query, key, value, selection, scale);
    }

    /// <summary>Attends to what was selected before.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, N, Dv]</c>.</param>
    /// <param name="selection">The selection, of as many heads and tokens.</param>
    /// <param name="scale">Factor of the products in the softmax; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, N, Dv]</c> in the query's dtype.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public static Tensor Apply(Tensor query, Tensor key, Tensor value, BlockSelection selection, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(selection);
        var shape = AttentionShape.Read(query, key, value);
        if (shape.Batch != selection.Batches || shape.Heads != selection.Heads || shape.Queries != selection.Queries || shape.Keys != selection.Keys || selection.IsCausal)
        {
            throw new ArgumentException(
                $"The selection is one of {selection.Batches} batch items, {selection.Heads} heads and {selection.Queries} tokens, not causal; "
                + $"queries {AttentionShape.Text(query)} and keys {AttentionShape.Text(key)} were given{(selection.IsCausal ? " with a causal one" : "")}.", nameof(selection));
        }

        using var scope = NewDisposeScope();
        if (!FusedPath.Takes(query))
        {
            return Attention.Compute(query, key, value, new() { Scale = scale, BlockMask = selection.ToBlockMask() }).MoveToOuterDisposeScope();
        }

        Tensor Prepared(Tensor tensor)
        {
            var wide = TensorMemory.As(ScalarType.Float32, tensor);
            return TensorMemory.WithContiguousRows(wide.size(1) == shape.Heads ? wide : wide.repeat_interleave(shape.Heads / shape.KeyHeads, 1));
        }

        var factor = scale ?? 1 / Math.Sqrt(Math.Max(1, shape.Width));
        var output = GatheredBlocksFunction.Compute(
            new(selection, factor), (q, k, v) => Attention.Compute(q, k, v, new() { Scale = factor, BlockMask = selection.ToBlockMask() }), Prepared(query), Prepared(key), Prepared(value));
        return TensorMemory.As(query.dtype, output).MoveToOuterDisposeScope();
    }
}
