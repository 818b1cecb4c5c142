using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Checks of what scans are given.</summary>
internal static class ScanShapes
{
    /// <summary>A shape in words.</summary>
    public static string Of(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";

    /// <summary>Throws where a tensor that is given has another shape.</summary>
    public static void Require(Tensor? tensor, string name, params ReadOnlySpan<long> shape)
    {
        if (tensor is not null && !tensor.shape.AsSpan().SequenceEqual(shape))
        {
            throw new ArgumentException($"{name} must be [{string.Join(", ", shape.ToArray())}], not {Of(tensor)}.", name);
        }
    }
}
