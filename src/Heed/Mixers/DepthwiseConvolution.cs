using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Depth-wise convolution: every channel has a filter of its own. Stride 1, zero padding that keeps the size.</summary>
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

        return nn.functional.conv2d(input, weight, bias, padding: [weight.shape[2] / 2 * dilation, weight.shape[3] / 2 * dilation], dilation: [dilation, dilation], groups: weight.shape[0]);
    }

    /// <summary>Convolves sequences causally: position t sees t - k + 1 to t, zeros before the start. With gradients for all three tensors.</summary>
    /// <param name="input"><c>[B, C, T]</c>, in either memory order.</param>
    /// <param name="weight"><c>[C, 1, k]</c>; the last tap is the current position.</param>
    /// <param name="bias"><c>[C]</c>; null: none.</param>
    /// <returns><c>[B, C, T]</c>.</returns>
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

        using var scope = NewDisposeScope();
        return nn.functional.conv1d(nn.functional.pad(input, [weight.shape[2] - 1, 0]), weight, bias, groups: weight.shape[0]).MoveToOuterDisposeScope();
    }
}
