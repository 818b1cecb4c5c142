using Heed.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Depth-wise convolution: every channel has a filter of its own. Stride 1, zero padding that keeps the size. float32 on the CPU goes through a kernel of Heed's own; other types and devices, and taps
/// that do not lie side by side, through libtorch.</summary>
public static class DepthwiseConvolution
{
    /// <summary>Convolves maps, with gradients for all three tensors.</summary>
    /// <param name="input"><c>[B, C, H, W]</c>, in either memory order: maps that lie channels-last (strides, as a permuted <c>[B, H, W, C]</c> has) stay so.</param>
    /// <param name="weight"><c>[C, 1, kh, kw]</c>, both odd.</param>
    /// <param name="bias"><c>[C]</c>; null: none.</param>
    /// <param name="dilation">Distance of the taps, at least 1.</param>
    /// <returns><c>[B, C, H, W]</c>, in the memory order of the input.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, or a kernel side is even.</exception>
    public static Tensor Apply(Tensor input, Tensor weight, Tensor? bias = null, int dilation = 1)
    {
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(weight);
        ArgumentOutOfRangeException.ThrowIfLessThan(dilation, 1);
        if (input.dim() != 4 || weight.dim() != 4 || weight.shape[0] != input.shape[1] || weight.shape[1] != 1 || weight.shape[2] % 2 == 0 || weight.shape[3] % 2 == 0)
        {
            throw new ArgumentException(
                $"A depth-wise convolution takes maps [B, C, H, W] and filters [C, 1, odd, odd], not [{string.Join(", ", input.shape)}] and [{string.Join(", ", weight.shape)}].", nameof(weight));
        }

        CheckBias(bias, weight);
        return dilation == 1 && IsFast(input, weight, bias) && !IsFasterInLibTorch(input, weight, bias)
            ? DepthwiseFunction.Compute(input, weight, bias, (int)weight.size(2) / 2, (int)weight.size(3) / 2, (maps, filters, offsets) => Plain(maps, filters, offsets, 1))
            : Plain(input, weight, bias, dilation);
    }

    /// <summary>Convolves sequences causally: position t sees t - k + 1 to t, zeros before the start. With gradients for all three tensors.</summary>
    /// <param name="input"><c>[B, C, T]</c>, in either memory order.</param>
    /// <param name="weight"><c>[C, 1, k]</c>; the last tap is the current position.</param>
    /// <param name="bias"><c>[C]</c>; null: none.</param>
    /// <returns><c>[B, C, T]</c>, in the memory order of the input.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static Tensor ApplyCausal(Tensor input, Tensor weight, Tensor? bias = null)
    {
        ArgumentNullException.ThrowIfNull(input);
        ArgumentNullException.ThrowIfNull(weight);
        if (input.dim() != 3 || weight.dim() != 3 || weight.shape[0] != input.shape[1] || weight.shape[1] != 1)
        {
            throw new ArgumentException(
                $"A causal depth-wise convolution takes sequences [B, C, T] and filters [C, 1, k], not [{string.Join(", ", input.shape)}] and [{string.Join(", ", weight.shape)}].", nameof(weight));
        }

        CheckBias(bias, weight);
        using var scope = NewDisposeScope();
        if (!IsFast(input, weight, bias))
        {
            return PlainCausal(input, weight, bias).MoveToOuterDisposeScope();
        }

        // A sequence is a map of one row.
        return DepthwiseFunction.Compute(
            input.unsqueeze(2), weight.unsqueeze(2), bias, 0, (int)weight.size(2) - 1, (maps, filters, offsets) => PlainCausal(maps.squeeze(2), filters.squeeze(2), offsets).unsqueeze(2))
            .squeeze(2).MoveToOuterDisposeScope();
    }

    private static bool IsFast(Tensor input, Tensor weight, Tensor? bias) =>
        input.device_type == DeviceType.CPU && weight.device_type == DeviceType.CPU && input.dtype == ScalarType.Float32 && weight.dtype == ScalarType.Float32
        && (bias is null || (bias.dtype == ScalarType.Float32 && bias.device_type == DeviceType.CPU));

    /// <summary>Where memory, not arithmetic, is the limit and the maps lie as libtorch's small filters want them (measured: <c>heed bench depthwise</c>): 3 x 3, and 5 x 5 without gradients on large maps.</summary>
    private static bool IsFasterInLibTorch(Tensor input, Tensor weight, Tensor? bias)
    {
        var (channels, height, width) = (input.size(1), input.size(2), input.size(3));
        var isDense = channels > 1 && input.stride(1) == 1 && input.stride(3) == channels && input.stride(2) == width * channels && input.stride(0) == height * width * channels;
        var hasGradient = is_grad_enabled() && (input.requires_grad || weight.requires_grad || bias is { requires_grad: true });
        return isDense && ((weight.size(2) * weight.size(3) <= 9 && height * width > 49) || (weight.size(2) * weight.size(3) <= 25 && height * width >= 784 && !hasGradient));
    }

    private static void CheckBias(Tensor? bias, Tensor weight)
    {
        if (bias is not null && (bias.dim() != 1 || bias.shape[0] != weight.shape[0]))
        {
            throw new ArgumentException($"The bias of {weight.shape[0]} filters must be [{weight.shape[0]}], not [{string.Join(", ", bias.shape)}].", nameof(bias));
        }
    }

    private static Tensor Plain(Tensor input, Tensor weight, Tensor? bias, int dilation) => nn.functional.conv2d(
        input, weight, bias, padding: [weight.shape[2] / 2 * dilation, weight.shape[3] / 2 * dilation], dilation: [dilation, dilation], groups: weight.shape[0]);

    private static Tensor PlainCausal(Tensor input, Tensor weight, Tensor? bias) =>
        nn.functional.conv1d(nn.functional.pad(input, [weight.shape[2] - 1, 0]), weight, bias, groups: weight.shape[0]);
}
