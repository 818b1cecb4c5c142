using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Interop;

/// <summary>Views of the memory of CPU tensors for the kernels. The caller keeps the tensors alive while the views are used.</summary>
internal static unsafe partial class TensorMemory
{
    /// <summary>The first element.</summary>
    public static nint Data(Tensor tensor) => THSTensor_data(tensor.Handle);

    /// <summary>A view of a tensor <c>[B, H, N, D]</c> whose rows are contiguous (see <see cref="WithContiguousRows"/>).</summary>
    public static TensorView View(Tensor tensor) => new(
        Data(tensor),
        tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3),
        tensor.stride(0), tensor.stride(1), tensor.stride(2),
        tensor.dtype switch
        {
            ScalarType.Float16 => ElementType.Float16,
            ScalarType.BFloat16 => ElementType.BFloat16,
            _ => ElementType.Float32,
        });

    /// <summary>A view of a bias <c>[b, h, q, k]</c> whose dimensions of size one broadcast.</summary>
    public static BiasView Bias(Tensor? bias) => bias is null
        ? default
        : new(Data(bias), BroadcastStride(bias, 0), BroadcastStride(bias, 1), BroadcastStride(bias, 2), BroadcastStride(bias, 3));

    /// <summary>A view of float32 maps <c>[B, C, H, W]</c>, whatever their strides.</summary>
    public static MapView Maps(Tensor maps) => new(
        Data(maps), maps.size(0), maps.size(1), maps.size(2), maps.size(3), maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3));

    /// <summary>The tensor, or a converted copy where its dtype is another one. Differentiable.</summary>
    public static Tensor As(ScalarType type, Tensor tensor) => tensor.dtype == type ? tensor : tensor.to(type);

    /// <summary>The tensor, or a copy where the elements of a row do not lie side by side. Differentiable.</summary>
    public static Tensor WithContiguousRows(Tensor tensor) => HasContiguousRows(tensor) ? tensor : tensor.contiguous();

    /// <summary>Whether the elements of a row lie side by side.</summary>
    public static bool HasContiguousRows(Tensor tensor) => tensor.stride(3) == 1 || tensor.size(3) <= 1;

    /// <summary>An uninitialized float32 tensor <c>[B, H, N, width]</c> that lies in memory as another does: with heads inside tokens where
    /// that one has them so, which makes the reshape to <c>[B, N, H * width]</c> that follows free.</summary>
    public static Tensor EmptyLike(Tensor like, long width)
    {
        var (batch, heads, length) = (like.size(0), like.size(1), like.size(2));
        return heads > 1 && length > 1 && like.stride(1) < like.stride(2) && like.stride(1) != 0
            ? empty_strided([batch, heads, length, width], [length * heads * width, width, heads * width, 1], ScalarType.Float32)
            : empty(batch, heads, length, width, ScalarType.Float32);
    }

    private static long BroadcastStride(Tensor tensor, int dimension) => tensor.size(dimension) == 1 ? 0 : tensor.stride(dimension);

    // TorchSharp's public accessors allocate, or refuse tensors that are not contiguous or larger than a span.
    [LibraryImport("LibTorchSharp")]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    [UnmanagedCallConv(CallConvs = [typeof(CallConvCdecl)])]
    private static partial nint THSTensor_data(nint tensor);
}
