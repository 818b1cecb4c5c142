using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Weighs channels by what the whole picture holds: <c>x sigmoid(W2 GELU(W1 mean(LN(x))))</c>, the mean over all positions. LocalMamba (arXiv 2403.09338) weighs its directions so, EfficientVMamba (2403.09977) its
/// branches. Parameter names <c>norm</c>, <c>global_reduce</c>, <c>channel_select</c>.</summary>
public sealed class ChannelGate : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm;
    private readonly Linear global_reduce;
    private readonly Linear channel_select;

    /// <summary>Makes a gate.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="reduction">Width of the hidden layer is C over this, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">There would be no channel or no hidden unit.</exception>
    public ChannelGate(int channels, int reduction = 8)
        : base(nameof(ChannelGate))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(reduction, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, reduction);
        norm = nn.LayerNorm(channels);
        global_reduce = nn.Linear(channels, channels / reduction);
        channel_select = nn.Linear(channels / reduction, channels);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The input, weighed.</summary>
    /// <param name="input"><c>[B, ..., C]</c>.</param>
    /// <returns>The same shape.</returns>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return (input * Gate(input)).MoveToOuterDisposeScope();
    }

    /// <summary>The weights alone.</summary>
    /// <param name="input"><c>[B, ..., C]</c>.</param>
    /// <returns><c>[B, 1 ..., C]</c>, each from 0 to 1.</returns>
    public Tensor Gate(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        var positions = Enumerable.Range(1, (int)input.dim() - 2).Select(axis => (long)axis).ToArray();
        var whole = norm.forward(input).mean(positions, keepdim: true);
        return channel_select.forward(nn.functional.gelu(global_reduce.forward(whole))).sigmoid().MoveToOuterDisposeScope();
    }
}
