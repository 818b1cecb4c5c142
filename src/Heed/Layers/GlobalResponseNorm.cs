using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Global response normalisation of <c>[B, C, H, W]</c> (arXiv 2301.00808, section 3): with the norm g of every channel over the picture and its share <c>n = g / (mean over channels of g + 1e-6)</c>,
/// <c>(gamma n + 1) x + beta</c>. Parameter names <c>gamma</c> and <c>beta</c> <c>[1, C, 1, 1]</c>, both zero at first.</summary>
public sealed class GlobalResponseNorm : nn.Module<Tensor, Tensor>
{
    private readonly Parameter gamma;
    private readonly Parameter beta;

    /// <summary>Makes a normalisation of <paramref name="channels"/> channels.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">The channels are below 1.</exception>
    public GlobalResponseNorm(long channels)
        : base(nameof(GlobalResponseNorm))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        gamma = Parameters.Make([1, channels, 1, 1], tensor => tensor.zero_());
        beta = Parameters.Make([1, channels, 1, 1], tensor => tensor.zero_());
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        using Scalar epsilon = 1e-6;
        using Scalar one = 1;
        var norm = linalg.norm(input, dims: [2, 3], keepdim: true);
        var share = norm / (norm.mean([1L], keepdim: true) + epsilon);
        return (((gamma * share) + one) * input).add(beta).MoveToOuterDisposeScope();
    }
}
