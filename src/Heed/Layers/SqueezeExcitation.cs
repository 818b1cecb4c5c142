using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Gates the channels of <c>[B, C, H, W]</c> by what the whole picture shows (arXiv 1709.01507): <c>x sigmoid(W2 GELU(W1 mean(x)))</c> with 1 x 1 convolutions <c>proj.1</c> (to max(16, C / 8) channels)
/// and <c>proj.3</c>, both with bias, as OverLoCK has it.</summary>
public sealed class SqueezeExcitation : nn.Module<Tensor, Tensor>
{
    private readonly Sequential proj;

    /// <summary>Makes a gate of <paramref name="channels"/> channels.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">The channels are below 1.</exception>
    public SqueezeExcitation(long channels)
        : base(nameof(SqueezeExcitation))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        var inner = Math.Max(16, channels / 8);
        proj = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.GELU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid());
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        return (input * proj.forward(input)).MoveToOuterDisposeScope();
    }
}
