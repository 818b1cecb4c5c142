using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Layer normalisation over the channels of every pixel of <c>[B, C, H, W]</c>, with the parameter names <c>weight</c> and <c>bias</c> <c>[C]</c>.</summary>
public sealed class LayerNorm2d : nn.Module<Tensor, Tensor>
{
    private readonly Parameter weight;
    private readonly Parameter bias;
    private readonly double _epsilon;

    /// <summary>Makes a normalisation of <paramref name="channels"/> channels; weight one and bias zero at first.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="epsilon">Added to the variance; not negative.</param>
    /// <exception cref="ArgumentOutOfRangeException">The channels are below 1, or epsilon negative.</exception>
    public LayerNorm2d(long channels, double epsilon = 1e-6)
        : base(nameof(LayerNorm2d))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfNegative(epsilon);
        _epsilon = epsilon;
        weight = Parameters.Make([channels], tensor => tensor.fill_(1));
        bias = Parameters.Make([channels], tensor => tensor.zero_());
        RegisterComponents();
    }

    /// <summary>The normalised map.</summary>
    /// <param name="input"><c>[B, C, H, W]</c>; a map that lies channels-last in memory (strides) costs no copy.</param>
    /// <returns><c>[B, C, H, W]</c>.</returns>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        return nn.functional.layer_norm(input.permute(0, 2, 3, 1), [weight.shape[0]], weight, bias, _epsilon).permute(0, 3, 1, 2).MoveToOuterDisposeScope();
    }
}
