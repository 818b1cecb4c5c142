using Heed.Kernels;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class PartialAttentionTests
{
    [Theory]
    [InlineData(ScalarType.Float32, 2e-5)]
    [InlineData(ScalarType.Float64, 1e-12)]
    public void Parts_merged_are_the_whole_and_so_are_their_gradients(ScalarType type, double tolerance)
    {
        using var scope = NewDisposeScope();
        var leaves = new[] { randn(2, 4, 9, 8, type), randn(2, 2, 20, 8, type), randn(2, 2, 20, 6, type), randn(4, type) }.Select(t => t.requires_grad_()).ToArray();
        var (q, k, v, sinks) = (leaves[0], leaves[1], leaves[2], leaves[3]);
        var mask = rand(2, 1, 9, 20) < 0.5;

        // The part with the sinks has a key in every row but one that has none at all; the other part lacks some rows.
        mask[.., .., .., 0] = true;
        mask[.., .., 3] = false;
        mask[.., .., 4, 12..] = false;
        var direction = randn(2, 4, 9, 6, type);
        var whole = Attention.ComputePart(q, k, v, new() { Mask = mask, Sinks = sinks });
        Tensor Loss((Tensor Output, Tensor LogSumExp) part) =>
            (part.Output * direction).sum() + part.LogSumExp.masked_fill(part.LogSumExp.isinf(), 0).sin().sum();
        Loss(whole).backward();
        var expected = leaves.Select(leaf => leaf.grad!.clone()).ToArray();
        foreach (var leaf in leaves)
        {
            leaf.grad = null;
        }

        var first = Attention.ComputePart(q, k.narrow(2, 0, 12), v.narrow(2, 0, 12), new() { Mask = mask.narrow(3, 0, 12), Sinks = sinks });
        var second = Attention.ComputePart(q, k.narrow(2, 12, 8), v.narrow(2, 12, 8), new() { Mask = mask.narrow(3, 12, 8) });
        var merged = Attention.Merge(first, second);
        Assertions.Close(whole.Output, merged.Output, tolerance, "output");

        Assertions.Close(whole.LogSumExp, merged.LogSumExp, tolerance, "log-sum-exp");
        Assert.Equal(double.NegativeInfinity, merged.LogSumExp[0, 0, 3].to(float64).item<double>());
        Loss(merged).backward();
        for (var i = 0; i < leaves.Length; i++)
        {
            Assertions.Close(expected[i], leaves[i].grad!, 20 * tolerance, $"gradient {i}");
        }
    }

    [Fact]
    public void Only_softmax_has_a_log_sum_exp()
    {
        using var scope = NewDisposeScope();
        var q = randn(1, 1, 2, 4);
        Assert.Contains("Normalizer.Sigmoid", Assert.Throws<ArgumentException>(() => Attention.ComputePart(q, q, q, new() { Normalizer = Normalizer.Sigmoid })).Message);
    }
}
