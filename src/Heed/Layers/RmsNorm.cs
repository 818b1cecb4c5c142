using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Root-mean-square normalisation of the last dimension, <c>x / sqrt(mean(x^2) + eps) * weight</c> (arXiv 1910.07467, equation 4), with the
/// parameter name <c>weight</c>. Computed in float32 or wider whatever the input's type.</summary>
public sealed class RmsNorm : nn.Module<Tensor, Tensor>
{
    private readonly Parameter weight;
    // Held, not converted on the fly: TorchSharp may free a temporary scalar while libtorch still reads it, when another thread collects garbage.
    private readonly Scalar _epsilon;

    /// <summary>Makes a normalisation of vectors of <paramref name="width"/> elements; the weight starts at one.</summary>
    /// <param name="width">Size of the last dimension, at least 1.</param>
    /// <param name="epsilon">Added to the mean square; not negative.</param>
    /// <exception cref="ArgumentOutOfRangeException">The width is below 1, or epsilon negative.</exception>
    public RmsNorm(long width, double epsilon = 1e-6)
        : base(nameof(RmsNorm))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfNegative(epsilon);
        _epsilon = epsilon;
        weight = Parameters.Make([width], tensor => tensor.fill_(1));
        RegisterComponents();
    }

    /// <summary>The weight, <c>[width]</c>.</summary>
    public Parameter Weight => weight;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var narrow = input.dtype is ScalarType.BFloat16 or ScalarType.Float16;
        var wide = narrow ? input.to(float32) : input;
        var normal = wide * wide.square().mean([-1L], keepdim: true).add_(_epsilon).rsqrt_();
        return ((narrow ? normal.to(input.dtype) : normal) * weight).MoveToOuterDisposeScope();
    }
}
