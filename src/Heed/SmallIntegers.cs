using static TorchSharp.torch;

namespace Heed;

/// <summary>Short integer tensors (lengths, offsets) as arrays.</summary>
internal static class SmallIntegers
{
    /// <summary>The elements of an int64 tensor <c>[n]</c> of any device and stride.</summary>
    public static long[] Read(Tensor tensor)
    {
        using var near = tensor.cpu();
        using var dense = near.contiguous();
        using var elements = dense.data<long>();
        return elements.ToArray();
    }
}
