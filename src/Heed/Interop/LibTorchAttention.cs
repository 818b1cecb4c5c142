using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>libtorch's own fused attention, for the calls that it can express and computes faster: dense half precision, where it has matrix instructions that managed code lacks.</summary>
internal static class LibTorchAttention
{
    /// <summary>Below this many queries the work is reading keys, which the decoding kernel does at the speed of memory.</summary>
    private const long FewestQueries = 17;

    /// <summary>Whether a call goes this way.</summary>
    public static bool Takes(in AttentionShape shape, Tensor query, AttentionOptions options) =>
        query.dtype != ScalarType.Float32
        && shape.Queries >= FewestQueries && shape.Keys > 0 && shape.Batch > 0 && shape.Heads > 0
        && options.Causal switch
        {
            Causality.None => true,
            Causality.AlignedToStart => true,
            _ => shape.Queries == shape.Keys,
        }
        && options is
        {
            Scale: null, WindowBefore: null, WindowAfter: null, Softcap: null, Normalizer: Normalizer.Softmax, Sinks: null, Mask: null, BlockMask: null,
            Biases.Count: 0, QueryLengths: null, KeyLengths: null, QueryOffsets: null,
        };

    /// <summary>Computes the output, without gate.</summary>
    public static Tensor Compute(in AttentionShape shape, Tensor query, Tensor key, Tensor value, AttentionOptions options)
    {
        var group = shape.Heads / shape.KeyHeads;
        return nn.functional.scaled_dot_product_attention(
            query,
            group == 1 ? key : key.repeat_interleave(group, dim: 1),
            group == 1 ? value : value.repeat_interleave(group, dim: 1),
            is_casual: options.Causal != Causality.None);
    }
}
