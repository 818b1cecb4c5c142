using Heed.Mixers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class SsdChunkScanTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(8)]
    [InlineData(64)]
    public void It_is_the_selective_scan_with_one_A_for_a_head_however_it_is_cut(int chunk)
    {
        using var scope = NewDisposeScope();
        const int Batch = 2, Length = 23, Heads = 4, Width = 3, Groups = 2, States = 5;
        var (x, z) = (Leaf(Batch, Length, Heads, Width), Leaf(Batch, Length, Heads, Width));
        var (step, a, b, c) = (Leaf(Batch, Length, Heads), (-rand(Heads, dtype: float64)).requires_grad_(), Leaf(Batch, Length, Groups, States), Leaf(Batch, Length, Groups, States));
        var (skip, bias) = (Leaf(Heads, Width), Leaf(Heads));
        var (output, state) = SsdChunkScan.Apply(x, step, a, b, c, chunk, skip, z, bias, true);

        // Channels h * P + p of the scan.
        Tensor Channels(Tensor tokens) => tokens.reshape(Batch, Length, -1).transpose(1, 2);
        Tensor PerChannel(Tensor heads) => heads.unsqueeze(-1).expand([.. heads.shape, Width]);
        var (expected, expectedState) = SelectiveScan.Apply(
            Channels(x), Channels(PerChannel(step)), PerChannel(a).reshape(-1, 1).expand(-1, States), b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1), skip.reshape(-1), Channels(z), PerChannel(bias).reshape(-1), true);
        Assertions.Close(expected.transpose(1, 2).reshape(x.shape), output, 1e-12, "output");
        Assertions.Close(expectedState.reshape(Batch, Heads, Width, States), state, 1e-12, "state");

        Tensor[] leaves = [x, z, step, a, b, c, skip, bias];
        var gradient = randn_like(output);
        var found = autograd.grad([output], leaves, [gradient]);
        var wanted = autograd.grad([expected], leaves, [gradient.reshape(Batch, Length, -1).transpose(1, 2)]);
        Assert.All(wanted.Zip(found), pair => Assertions.Close(pair.First, pair.Second, 1e-11, "a gradient"));
    }

    [Fact]
    public void Decays_that_underflow_leave_gradients_finite()
    {
        using var scope = NewDisposeScope();
        var step = full([1, 60, 1], 20f).requires_grad_();
        var (output, _) = SsdChunkScan.Apply(randn(1, 60, 1, 2), step, tensor([-10f]), randn(1, 60, 1, 3), randn(1, 60, 1, 3), chunk: 16);
        output.sum().backward();
        Assert.True(output.isfinite().all().item<bool>() && step.grad!.isfinite().all().item<bool>());
    }

    [Fact]
    public void What_does_not_fit_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        Tensor x = zeros(1, 4, 6, 2), step = zeros(1, 4, 6), a = zeros(6), map = zeros(1, 4, 2, 3);
        static void Refused(string sentence, Func<object> call) => Assert.Contains(sentence, Assert.ThrowsAny<ArgumentException>(call).Message, StringComparison.Ordinal);
        Refused("a length from 1, not [1, 0, 6, 2]", () => SsdChunkScan.Apply(zeros(1, 0, 6, 2), step, a, map, map));
        Refused("delta must be [1, 4, 6], not [1, 4, 5]", () => SsdChunkScan.Apply(x, zeros(1, 4, 5), a, map, map));
        Refused("a must be [6], not [6, 3]", () => SsdChunkScan.Apply(x, step, zeros(6, 3), map, map));
        Refused("groups that divide 6 heads, not [1, 4, 4, 3]", () => SsdChunkScan.Apply(x, step, a, zeros(1, 4, 4, 3), map));
        Refused("c must be [1, 4, 2, 3], not [1, 4, 1, 3]", () => SsdChunkScan.Apply(x, step, a, map, zeros(1, 4, 1, 3)));
        Refused("skip must be [6, 2], not [5]", () => SsdChunkScan.Apply(x, step, a, map, map, skip: zeros(5)));
        Refused("gate must be", () => SsdChunkScan.Apply(x, step, a, map, map, gate: zeros(1)));
        Refused("deltaBias must be [6]", () => SsdChunkScan.Apply(x, step, a, map, map, deltaBias: zeros(1)));
        Assert.Throws<ArgumentOutOfRangeException>(() => SsdChunkScan.Apply(x, step, a, map, map, chunk: 0));
    }

    private static Tensor Leaf(params long[] shape) => randn(shape, dtype: float64).requires_grad_();
}
