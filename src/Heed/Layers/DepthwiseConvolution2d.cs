using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A learned depth-wise convolution of <c>[B, C, H, W]</c> with stride 1 and zero padding that keeps the size; optionally the input is added to the result. Parameter names <c>weight</c>
/// <c>[C, 1, k, k]</c> and <c>bias</c> <c>[C]</c>.</summary>
public sealed class DepthwiseConvolution2d : nn.Module<Tensor, Tensor>
{
    private readonly Parameter weight;
    private readonly Parameter? bias;
    private readonly int _dilation;
    private readonly bool _residual;

    /// <summary>Makes a convolution with libtorch's initialisation: uniform within 1 / k.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="size">Side k of the filters, odd.</param>
    /// <param name="dilation">Distance of neighbouring taps, at least 1.</param>
    /// <param name="hasBias">Whether a bias per channel is added.</param>
    /// <param name="residual">Whether the input is added to the result.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    /// <exception cref="ArgumentException">The side is even.</exception>
    public DepthwiseConvolution2d(long channels, int size, int dilation = 1, bool hasBias = true, bool residual = false)
        : base(nameof(DepthwiseConvolution2d))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(size, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(dilation, 1);
        if (size % 2 == 0)
        {
            throw new ArgumentException($"A depth-wise filter must have an odd side, not {size}.", nameof(size));
        }

        (_dilation, _residual) = (dilation, residual);
        var bound = 1.0 / size;
        weight = Parameters.Make([channels, 1, size, size], tensor => nn.init.uniform_(tensor, -bound, bound));
        bias = hasBias ? Parameters.Make([channels], tensor => nn.init.uniform_(tensor, -bound, bound)) : null;
        RegisterComponents();
    }

    /// <summary>The filters <c>[C, 1, k, k]</c>.</summary>
    public Parameter Weight => weight;

    /// <summary>The biases <c>[C]</c>; null: none.</summary>
    public Parameter? Bias => bias;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        var result = DepthwiseConvolution.Apply(input, weight, bias, _dilation);
        return (_residual ? input + result : result).MoveToOuterDisposeScope();
    }
}
