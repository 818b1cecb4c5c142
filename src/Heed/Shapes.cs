using TorchSharp;

namespace Heed;

/// <summary>Shapes in error messages.</summary>
internal static class Shapes
{
    /// <summary>For example <c>[2, 8, 16, 64]</c>.</summary>
    public static string Text(torch.Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";
}
