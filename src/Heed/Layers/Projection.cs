using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A linear map <c>y = x W^T + b</c> with the parameter names <c>weight</c> <c>[out, in]</c> and <c>bias</c> <c>[out]</c>.</summary>
/// <remarks>Unlike <see cref="Linear"/> it is initialised the way decoders are (normal with a standard deviation of 0.02, biases zero), from a generator of
/// the caller, or not at all where a checkpoint follows.</remarks>
public sealed class Projection : nn.Module<Tensor, Tensor>
{
    /// <summary>Standard deviation of initial weights.</summary>
    public const double InitialDeviation = 0.02;

    private readonly Parameter weight;
    private readonly Parameter? bias;

    /// <summary>Makes a projection of <paramref name="inputs"/> to <paramref name="outputs"/> features.</summary>
    /// <param name="inputs">Width of the input, at least 1.</param>
    /// <param name="outputs">Width of the output, at least 1.</param>
    /// <param name="hasBias">Whether a bias is added.</param>
    /// <param name="generator">Where initial weights are drawn from; null: libtorch's own generator.</param>
    /// <param name="initialize">False leaves the parameters as memory comes, for a checkpoint to fill.</param>
    /// <exception cref="ArgumentOutOfRangeException">A width is below 1.</exception>
    public Projection(long inputs, long outputs, bool hasBias, Generator? generator = null, bool initialize = true)
        : base(nameof(Projection))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(inputs, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(outputs, 1);
        weight = Parameters.Make([outputs, inputs], initialize ? tensor => tensor.normal_(0, InitialDeviation, generator) : null);
        bias = hasBias ? Parameters.Make([outputs], initialize ? tensor => tensor.zero_() : null) : null;
        RegisterComponents();
    }

    /// <summary>The weight, <c>[out, in]</c>.</summary>
    public Parameter Weight => weight;

    /// <summary>The bias, <c>[out]</c>; null: none.</summary>
    public Parameter? Bias => bias;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => nn.functional.linear(input, weight, bias!);
}
