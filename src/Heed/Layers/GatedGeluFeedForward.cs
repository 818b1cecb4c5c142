using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>A perceptron with a gate, <c>fc2(a GELU(b))</c> where a and b are the halves of <c>fc1(x)</c>, along the last dimension, with the parameter names <c>fc1</c> and <c>fc2</c>.</summary>
public sealed class GatedGeluFeedForward : nn.Module<Tensor, Tensor>
{
    private readonly Linear fc1;
    private readonly Linear fc2;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Width of the input and the output, at least 1.</param>
    /// <param name="hidden">Width between the layers, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A width is below 1.</exception>
    public GatedGeluFeedForward(long width, long hidden)
        : base(nameof(GatedGeluFeedForward))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(hidden, 1);
        fc1 = nn.Linear(width, 2 * hidden);
        fc2 = nn.Linear(hidden, width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var halves = fc1.forward(input).chunk(2, -1);
        return fc2.forward(halves[0] * nn.functional.gelu(halves[1])).MoveToOuterDisposeScope();
    }
}
