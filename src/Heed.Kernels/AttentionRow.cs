using System.Numerics.Tensors;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>One query row over a run of keys, in parts: its scores, and weighted sums of values. For whoever changes a few weights of a row that is otherwise computed by <see cref="FusedAttention"/>.</summary>
/// <remarks>Nothing is checked: the views are those of a call that was, and rows, heads and keys lie in them.</remarks>
public static unsafe class AttentionRow
{
    /// <summary>scores[j] = scale q . k_(first + j).</summary>
    /// <param name="query">Queries, float32.</param>
    /// <param name="key">Keys of any element type.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Query head; its key head is found by the ratio of the numbers of heads.</param>
    /// <param name="row">Query row.</param>
    /// <param name="scale">Factor of the product.</param>
    /// <param name="first">First key.</param>
    /// <param name="scores">Receives the scores of as many keys as it has places.</param>
    public static void Scores(in TensorView query, in TensorView key, long batch, long head, long row, float scale, long first, Span<float> scores)
    {
        switch (key.Type)
        {
            case ElementType.Float32:
                Scores<Float32Element>(query, key, batch, head, row, first, scores);
                break;
            case ElementType.Float16:
                Scores<Float16Element>(query, key, batch, head, row, first, scores);
                break;
            default:
                Scores<BFloat16Element>(query, key, batch, head, row, first, scores);
                break;
        }

        TensorPrimitives.Multiply(scores, scale, scores);
    }

    /// <summary>output += sum over j of weights[j] v_(first + j).</summary>
    /// <param name="value">Values of any element type.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="keyHead">Key/value head.</param>
    /// <param name="first">First key.</param>
    /// <param name="weights">The weights, one per key.</param>
    /// <param name="output">What is added to, as wide as a value.</param>
    public static void Add(in TensorView value, long batch, long keyHead, long first, ReadOnlySpan<float> weights, Span<float> output)
    {
        switch (value.Type)
        {
            case ElementType.Float32:
                Add<Float32Element>(value, batch, keyHead, first, weights, output);
                break;
            case ElementType.Float16:
                Add<Float16Element>(value, batch, keyHead, first, weights, output);
                break;
            default:
                Add<BFloat16Element>(value, batch, keyHead, first, weights, output);
                break;
        }
    }

    private static void Scores<TElement>(in TensorView query, in TensorView key, long batch, long head, long row, long first, Span<float> scores)
        where TElement : struct, IElement
    {
        var width = (int)query.Width;
        var q = query.Row(batch, head, row);
        var keys = Start<TElement>(key, batch, head / (query.Heads / key.Heads), first);
        var stride = (nint)(key.RowStride * TElement.Size);
        fixed (float* into = scores)
        {
            if (Vector512.IsHardwareAccelerated && width % Vector512<float>.Count == 0)
            {
                DecodingKernel<Vector512<float>, Vector512Operations>.ScoresOfOne<TElement>(q, keys, stride, into, scores.Length, width, default);
            }
            else if (Vector256.IsHardwareAccelerated && width % Vector256<float>.Count == 0)
            {
                DecodingKernel<Vector256<float>, Vector256Operations>.ScoresOfOne<TElement>(q, keys, stride, into, scores.Length, width, default);
            }
            else if (width % Vector128<float>.Count == 0)
            {
                DecodingKernel<Vector128<float>, Vector128Operations>.ScoresOfOne<TElement>(q, keys, stride, into, scores.Length, width, default);
            }
            else
            {
                for (var j = 0; j < scores.Length; j++, keys += stride)
                {
                    var sum = 0f;
                    for (var d = 0; d < width; d++)
                    {
                        sum += q[d] * TElement.Read(keys + (d * TElement.Size));
                    }

                    into[j] = sum;
                }
            }
        }
    }

    private static void Add<TElement>(in TensorView value, long batch, long keyHead, long first, ReadOnlySpan<float> weights, Span<float> output)
        where TElement : struct, IElement
    {
        var width = output.Length;
        var values = Start<TElement>(value, batch, keyHead, first);
        var stride = (nint)(value.RowStride * TElement.Size);
        fixed (float* factors = weights, into = output)
        {
            if (Vector512.IsHardwareAccelerated && width % Vector512<float>.Count == 0)
            {
                DecodingKernel<Vector512<float>, Vector512Operations>.AccumulateOne<TElement>(factors, values, stride, into, weights.Length, width, default);
            }
            else if (Vector256.IsHardwareAccelerated && width % Vector256<float>.Count == 0)
            {
                DecodingKernel<Vector256<float>, Vector256Operations>.AccumulateOne<TElement>(factors, values, stride, into, weights.Length, width, default);
            }
            else if (width % Vector128<float>.Count == 0)
            {
                DecodingKernel<Vector128<float>, Vector128Operations>.AccumulateOne<TElement>(factors, values, stride, into, weights.Length, width, default);
            }
            else
            {
                for (var j = 0; j < weights.Length; j++, values += stride)
                {
                    for (var d = 0; d < width; d++)
                    {
                        into[d] += factors[j] * TElement.Read(values + (d * TElement.Size));
                    }
                }
            }
        }
    }

    private static byte* Start<TElement>(in TensorView view, long batch, long head, long row)
        where TElement : struct, IElement => (byte*)view.Data + (((batch * view.BatchStride) + (head * view.HeadStride) + (row * view.RowStride)) * TElement.Size);
}
