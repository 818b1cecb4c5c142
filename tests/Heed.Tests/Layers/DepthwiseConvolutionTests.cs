using Heed.Layers;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Layers;

public sealed class DepthwiseConvolutionTests
{
    // Sums of up to 361 products of standard normal numbers in float32.
    private const double Tolerance = 361 * 6e-8;

    [Theory]
    [InlineData(7, 14, 14, false)]
    [InlineData(7, 14, 14, true)]
    [InlineData(3, 5, 9, true)]
    [InlineData(17, 7, 3, false)]
    [InlineData(19, 12, 20, true)]
    [InlineData(3, 12, 20, true)]
    public void It_agrees_with_libtorch_in_float64_with_all_gradients(int side, int height, int width, bool channelsLast)
    {
        using var scope = NewDisposeScope();
        manual_seed(side + height);
        var input = channelsLast ? randn(2, height, width, 20).permute(0, 3, 1, 2) : randn(2, 20, height, width);
        Tensor[] given = [input, randn(20, 1, side, side), randn(20)];
        var gradient = randn(2, 20, height, width);
        Agrees(given, gradient, tensors => DepthwiseConvolution.Apply(tensors[0], tensors[1], tensors[2]), tensors => nn.functional.conv2d(tensors[0], tensors[1], tensors[2], padding: [side / 2, side / 2], groups: 20));
    }

    [Theory]
    [InlineData(4, 50, false)]
    [InlineData(4, 50, true)]
    [InlineData(3, 2, true)]
    [InlineData(1, 7, false)]
    public void The_causal_one_agrees_with_libtorch_in_float64_with_all_gradients(int taps, int length, bool channelsLast)
    {
        using var scope = NewDisposeScope();
        manual_seed(taps + length);
        var input = channelsLast ? randn(2, length, 18).transpose(1, 2) : randn(2, 18, length);
        Agrees(
            [input, randn(18, 1, taps), randn(18)], randn(2, 18, length), tensors => DepthwiseConvolution.ApplyCausal(tensors[0], tensors[1], tensors[2]),
            tensors => nn.functional.conv1d(nn.functional.pad(tensors[0], [taps - 1, 0]), tensors[1], tensors[2], groups: 18));
    }

    [Fact]
    public void Dilated_taps_and_slices_of_wider_maps_are_read_as_they_lie()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        var wide = randn(2, 9, 8, 50);
        var slice = wide.narrow(3, 13, 24).permute(0, 3, 1, 2);
        var weight = randn(24, 1, 5, 5);
        Assertions.Close(nn.functional.conv2d(slice, weight, padding: [2, 2], groups: 24), DepthwiseConvolution.Apply(slice, weight), Tolerance);
        Assertions.Close(nn.functional.conv2d(slice, weight, padding: [6, 6], dilation: [3, 3], groups: 24), DepthwiseConvolution.Apply(slice, weight, dilation: 3), Tolerance);
    }

    [Fact]
    public void The_result_lies_in_memory_as_the_input_does()
    {
        using var scope = NewDisposeScope();
        var weight = randn(20, 1, 7, 7);
        Assert.Equal(1, DepthwiseConvolution.Apply(randn(2, 9, 9, 20).permute(0, 3, 1, 2), weight).stride(1));
        Assert.Equal(1, DepthwiseConvolution.Apply(randn(2, 20, 9, 9), weight).stride(3));
    }

    [Fact]
    public void A_gradient_of_a_gradient_is_that_of_libtorch()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        Tensor[] given = [randn(1, 3, 6, 5).requires_grad_(), randn(3, 1, 3, 3).requires_grad_()];
        Tensor Penalty(Func<Tensor, Tensor, Tensor> work) => autograd.grad([work(given[0], given[1]).square().sum()], given, retain_graph: true, create_graph: true).Aggregate(zeros(1), (sum, gradient) => sum + gradient.square().sum());
        var ours = autograd.grad([Penalty((input, weight) => DepthwiseConvolution.Apply(input, weight))], given);
        var theirs = autograd.grad([Penalty((input, weight) => nn.functional.conv2d(input, weight, padding: [1, 1], groups: 3))], given);
        for (var i = 0; i < given.Length; i++)
        {
            // The penalty's gradients are sums of products of four numbers over the map.
            Assertions.Close(theirs[i], ours[i], 1e-4);
        }
    }

    [Fact]
    public void The_future_of_a_sequence_changes_nothing()
    {
        using var scope = NewDisposeScope();
        var (input, weight) = (randn(1, 4, 20), randn(4, 1, 4));
        var before = DepthwiseConvolution.ApplyCausal(input, weight);
        var changed = input.clone();
        changed.narrow(2, 12, 8).fill_(9);
        Assert.True(before.narrow(2, 0, 12).equal(DepthwiseConvolution.ApplyCausal(changed, weight).narrow(2, 0, 12)).all().item<bool>());
    }

    [Fact]
    public void What_does_not_fit_is_refused()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("[C, 1, odd, odd]", Assert.Throws<ArgumentException>(() => DepthwiseConvolution.Apply(randn(1, 2, 5, 5), randn(2, 1, 4, 3))).Message, StringComparison.Ordinal);
        Assert.Contains("[C, 1, odd, odd]", Assert.Throws<ArgumentException>(() => DepthwiseConvolution.Apply(randn(1, 2, 5, 5), randn(3, 1, 3, 3))).Message, StringComparison.Ordinal);
        Assert.Contains("must be [2]", Assert.Throws<ArgumentException>(() => DepthwiseConvolution.Apply(randn(1, 2, 5, 5), randn(2, 1, 3, 3), randn(3))).Message, StringComparison.Ordinal);
        Assert.Contains("[C, 1, k]", Assert.Throws<ArgumentException>(() => DepthwiseConvolution.ApplyCausal(randn(1, 2, 5), randn(2, 3))).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => DepthwiseConvolution.Apply(randn(1, 2, 5, 5), randn(2, 1, 3, 3), dilation: 0));
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        using var input = randn(2, 8, 9, 9).requires_grad_();
        using var weight = randn(8, 1, 7, 7).requires_grad_();
        long after = 0;
        for (var step = 0; step < 25; step++)
        {
            using (NewDisposeScope())
            {
                DepthwiseConvolution.Apply(input, weight).sum().backward();
                input.grad!.zero_();
                weight.grad!.zero_();
            }

            after = step == 5 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : after;
        }

        Assert.Equal(after, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    private static void Agrees(Tensor[] given, Tensor gradient, Func<Tensor[], Tensor> work, Func<Tensor[], Tensor> reference)
    {
        // A view keeps its strides; a converted copy of it need not.
        Tensor[] tracked = [.. given.Select(tensor => tensor.detach().requires_grad_())];
        Tensor[] wide = [.. given.Select(tensor => tensor.to(float64).detach().requires_grad_())];
        var (output, expected) = (work(tracked), reference(wide));
        Assertions.Close(expected, output, Tolerance);
        using (no_grad())
        {
            Assertions.Close(expected, work(tracked), Tolerance);
        }

        var (ours, theirs) = (autograd.grad([output], tracked, [gradient]), autograd.grad([expected], wide, [gradient.to(float64)]));
        for (var i = 0; i < given.Length; i++)
        {
            Assertions.Close(theirs[i], ours[i], 4 * Tolerance, $"gradient {i}");
        }
    }
}
