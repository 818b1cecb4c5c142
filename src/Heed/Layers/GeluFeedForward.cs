using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>The two-layer perceptron of vision transformers: <c>fc2(GELU(fc1(x)))</c> along the last dimension, with the exact GELU or its tanh form, and the parameter names <c>fc1</c> and <c>fc2</c>.</summary>
public sealed class GeluFeedForward : nn.Module<Tensor, Tensor>
{
    private readonly Linear fc1;
    private readonly Linear fc2;
    private readonly bool _tanh;
    private readonly double _dropout;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Width of the input, at least 1.</param>
    /// <param name="hidden">Width between the layers, at least 1.</param>
    /// <param name="output">Width of the output; 0: as the input.</param>
    /// <param name="tanhGelu">Whether GELU is computed by its tanh form.</param>
    /// <param name="dropout">Share of activations dropped after each layer in training.</param>
    /// <exception cref="ArgumentOutOfRangeException">A width is below 1.</exception>
    public GeluFeedForward(long width, long hidden, long output = 0, bool tanhGelu = false, double dropout = 0)
        : base(nameof(GeluFeedForward))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(hidden, 1);
        (_tanh, _dropout) = (tanhGelu, dropout);
        fc1 = nn.Linear(width, hidden);
        fc2 = nn.Linear(hidden, output == 0 ? width : output);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var hidden = Activate(fc1.forward(input), _tanh);
        if (training && _dropout > 0)
        {
            hidden = nn.functional.dropout(hidden, _dropout);
        }

        var output = fc2.forward(hidden);
        return (training && _dropout > 0 ? nn.functional.dropout(output, _dropout) : output).MoveToOuterDisposeScope();
    }

    /// <summary>GELU, exact or by tanh.</summary>
    internal static Tensor Activate(Tensor input, bool tanhForm) => tanhForm ? TanhGelu(input) : nn.functional.gelu(input);

    private static Tensor TanhGelu(Tensor input)
    {
        using TorchSharp.Scalar cubic = 0.044715;
        using TorchSharp.Scalar root = Math.Sqrt(2 / Math.PI);
        using TorchSharp.Scalar one = 1;
        using TorchSharp.Scalar half = 0.5;
        var inner = (input + (input * input * input * cubic)) * root;
        return input * half * (inner.tanh() + one);
    }
}
