using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>Stochastic depth (arXiv 1603.09382): in training, the branch of a sample is left out with a probability, and the others are scaled up so that the mean stays; in evaluation, nothing.</summary>
public sealed class DropPath : nn.Module<Tensor, Tensor>
{
    private readonly double _probability;

    /// <summary>Makes the module.</summary>
    /// <param name="probability">Probability of leaving a sample's branch out, from 0 to below 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">The probability is out of range.</exception>
    public DropPath(double probability)
        : base(nameof(DropPath))
    {
        if (!(probability is >= 0 and < 1))
        {
            throw new ArgumentOutOfRangeException(nameof(probability), probability, "The probability of dropping a path must be from 0 to below 1.");
        }

        _probability = probability;
        RegisterComponents();
    }

    /// <summary>The probabilities of the branches of a stack, rising linearly from 0 to <paramref name="last"/>.</summary>
    public static double[] Schedule(double last, int depth) => [.. Enumerable.Range(0, depth).Select(layer => depth == 1 ? 0 : last * layer / (depth - 1))];

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (!training || _probability == 0)
        {
            return input.alias();
        }

        using var scope = NewDisposeScope();
        var shape = new long[input.dim()];
        Array.Fill(shape, 1);
        shape[0] = input.shape[0];
        using Scalar share = 1 - _probability;
        var kept = full(shape, 1 - _probability, dtype: input.dtype, device: input.device).bernoulli_(1 - _probability).div_(share);
        return (input * kept).MoveToOuterDisposeScope();
    }
}
