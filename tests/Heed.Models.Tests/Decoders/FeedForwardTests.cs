using Heed.Models.Decoders;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

public class FeedForwardTests
{
    [Theory]
    [InlineData("silu")]
    [InlineData("relu")]
    [InlineData("gelu")]
    [InlineData("gelu_new")]
    [InlineData("gelu_pytorch_tanh")]
    public void ActivationsAreTheirFormulas(string name)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var layer = new FeedForward(SmallModels.Llama with { HiddenSize = 1, IntermediateSize = 1, Activation = name }, null, initialize: true);
        layer.to(float64);
        foreach (var parameter in layer.parameters())
        {
            parameter.fill_(1);
        }

        foreach (var x in new[] { -2.5, -0.3, 0, 0.7, 3 })
        {
            var active = name switch
            {
                "silu" => x / (1 + Math.Exp(-x)),
                "relu" => Math.Max(x, 0),
                "gelu" => x * NormalDistribution(x),
                _ => x / 2 * (1 + Math.Tanh(Math.Sqrt(2 / Math.PI) * (x + (0.044715 * x * x * x)))),
            };
            Assert.Equal(active * x, layer.forward(tensor(new[] { x })).item<double>(), 1e-12);
        }
    }

    /// <summary>By Simpson's rule from zero: exact to far below the tolerance on this interval.</summary>
    private static double NormalDistribution(double x)
    {
        const int Steps = 4000;
        double Density(double t) => Math.Exp(-t * t / 2) / Math.Sqrt(2 * Math.PI);
        var step = x / Steps;
        var sum = Density(0) + Density(x);
        for (var i = 1; i < Steps; i++)
        {
            sum += Density(i * step) * (i % 2 == 0 ? 2 : 4);
        }

        return 0.5 + (sum * step / 3);
    }
}
