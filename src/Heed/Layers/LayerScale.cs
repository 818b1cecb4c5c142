using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A learned factor and offset per channel of <c>[B, C, H, W]</c>, stored as a depth-wise 1 x 1 convolution: <c>weight</c> <c>[C, 1, 1, 1]</c> and <c>bias</c> <c>[C]</c>.</summary>
public sealed class LayerScale : nn.Module<Tensor, Tensor>
{
    private readonly Parameter weight;
    private readonly Parameter bias;

    /// <summary>Makes a scale of <paramref name="channels"/> channels.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="initial">The factors at first; the offsets start at zero.</param>
    /// <exception cref="ArgumentOutOfRangeException">The channels are below 1.</exception>
    public LayerScale(long channels, double initial)
        : base(nameof(LayerScale))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        weight = Parameters.Make([channels, 1, 1, 1], tensor => tensor.fill_(initial));
        bias = Parameters.Make([channels], tensor => tensor.zero_());
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return ((input * weight.view(1, -1, 1, 1)) + bias.view(1, -1, 1, 1)).MoveToOuterDisposeScope();
    }
}
