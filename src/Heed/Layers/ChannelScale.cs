using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A learned factor per channel on what a branch adds to the residual stream (arXiv 2103.17239, LayerScale), for tokens <c>[..., C]</c>: parameter <c>gamma</c> <c>[C]</c>. Of pictures <c>[B, C, H, W]</c>: <see cref="LayerScale"/>.</summary>
public sealed class ChannelScale : nn.Module<Tensor, Tensor>
{
    private readonly Parameter gamma;

    /// <summary>Makes a scale.</summary>
    /// <param name="width">Channels C, at least 1.</param>
    /// <param name="initial">The factors at first.</param>
    /// <exception cref="ArgumentOutOfRangeException">The channels are below 1.</exception>
    public ChannelScale(long width, double initial)
        : base(nameof(ChannelScale))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        gamma = Parameters.Make([width], tensor => tensor.fill_(initial));
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => input * gamma;
}
