using Heed.Mixers;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class DynamicConvolutionTests
{
    [Theory]
    [InlineData(2, 2, 3, 9, 8, 3, 7)]
    [InlineData(1, 3, 5, 5, 11, 5, 5)]
    [InlineData(2, 1, 17, 6, 6, 1, 3)]
    public void The_kernel_gives_the_plain_output_and_gradients(int batch, int groups, int channels, int height, int width, int small, int large)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(batch, groups, channels, height, width, small, large, float32);
        var exact = inputs.Select(input => input.detach().to(float64).requires_grad_()).ToArray();
        var output = Apply(inputs);
        var expected = Apply(exact);
        var arriving = randn_like(expected);

        (output * arriving.to(float32)).sum().backward();
        (expected * arriving).sum().backward();

        Assertions.Close(expected, output, 1e-5);
        foreach (var (wanted, found) in exact.Zip(inputs))
        {
            // A bias gradient is a sum over all positions and maps.
            Assertions.Close(wanted.grad!, found.grad!, 5e-5);
        }
    }

    [Fact]
    public void Gradients_of_gradients_are_those_of_the_plain_form()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 2, 2, 5, 6, 3, 5, float32);
        var exact = inputs.Select(input => input.detach().to(float64).requires_grad_()).ToArray();

        Assertions.Close(Penalty(exact), Penalty(inputs), 1e-4);

        static Tensor Penalty(Tensor[] leaves)
        {
            var first = autograd.grad([Apply(leaves).square().sum()], leaves, retain_graph: true, create_graph: true);
            return autograd.grad([first.Aggregate(zeros(1, leaves[0].dtype), (sum, gradient) => sum + gradient.square().sum())], leaves)[3];
        }
    }

    [Fact]
    public void Plain_gradients_are_those_of_finite_differences()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 1, 2, 4, 5, 1, 3, float64);
        var arriving = randn([1, 4, 4, 5], float64);
        (Apply(inputs) * arriving).sum().backward();
        using var quiet = no_grad();
        foreach (var input in inputs)
        {
            var direction = randn_like(input);
            double At(double step) => (Apply([.. inputs.Select(other => ReferenceEquals(other, input) ? other + (direction * step) : other)]) * arriving).sum().item<double>();
            Assert.Equal((At(1e-5) - At(-1e-5)) / 2e-5, (input.grad! * direction).sum().item<double>(), 1e-6);
        }
    }

    [Fact]
    public void Equal_logits_average_a_window_that_is_shifted_inwards()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var value = arange(2 * 25, dtype: float32).view(1, 2, 5, 5);

        var output = DynamicConvolution.Apply(zeros([1, 1, 5, 5, 1 + 9]), zeros(1, 1, 1), zeros(1, 5, 5), value);

        // The small kernel has one tap: the position itself.
        Assertions.Close(value[0, 0], output[0, 0], 1e-6);
        // The corner's window is that of its inner neighbour, not one with zeros in it.
        Assert.Equal(output[0, 1, 1, 1].item<float>(), output[0, 1, 0, 0].item<float>(), 1e-4);
        Assert.Equal(25 + 6, output[0, 1, 0, 0].item<float>(), 1e-4);
    }

    [Fact]
    public void Half_precision_and_other_memory_orders_are_taken_as_they_come()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var inputs = Inputs(1, 2, 4, 6, 7, 3, 5, float32);
        var expected = Apply(inputs);
        var last = inputs[3].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2);

        Assertions.Close(expected, DynamicConvolution.Apply(inputs[0], inputs[1], inputs[2], last), 1e-7);
        var half = DynamicConvolution.Apply(inputs[0], inputs[1], inputs[2], inputs[3].to(bfloat16));
        Assert.Equal(bfloat16, half.dtype);
        Assertions.Close(expected, half, 1.0 / 64);
    }

    [Fact]
    public void Kernels_sum_to_one_and_their_mass_goes_somewhere()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var inputs = Inputs(2, 3, 1, 6, 7, 3, 5, float32);

        var (small, large) = DynamicConvolution.Kernels(inputs[0], inputs[1], inputs[2]);

        Assert.Equal([2, 3, 6, 7, 9], small.shape);
        Assertions.Close(ones(2, 3, 6, 7), large.sum(-1), 1e-6);
        Assertions.Close(full([2, 3], 42f), DynamicConvolution.ReceivedMass(large).sum([2L, 3L]), 1e-6);
        var corner = DynamicConvolution.KernelAt(large, 0, 0);
        Assertions.Close(large[1, 2, 0, 0].view(5, 5), corner[1, 2, ..5, ..5], 1e-7);
        Assert.Equal(1, corner[1, 2].sum().item<float>(), 1e-5);
    }

    [Fact]
    public void Shapes_that_do_not_fit_are_told()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 2, 3, 6, 7, 3, 5, float32);
        string Error(Tensor logits, Tensor small, Tensor large, Tensor value) => Assert.Throws<ArgumentException>(() => DynamicConvolution.Apply(logits, small, large, value)).Message;

        Assert.Contains("Kernel sides must be odd and the small one at most the large one, not 5 and 3", Error(inputs[0], inputs[2], inputs[1], inputs[3]), StringComparison.Ordinal);
        Assert.Contains("not 2 and 5", Error(inputs[0], zeros(2, 3, 3), inputs[2], inputs[3]), StringComparison.Ordinal);
        Assert.Contains("need logits of 34 taps", Error(inputs[0][.., .., .., .., ..33], inputs[1], inputs[2], inputs[3]), StringComparison.Ordinal);
        Assert.Contains("4 x 7 positions has no window of side 5", Error(inputs[0][.., .., ..4], inputs[1], inputs[2], inputs[3][.., .., ..4]), StringComparison.Ordinal);
        Assert.Contains("a multiple of 4 channels", Error(inputs[0], inputs[1], inputs[2], inputs[3][.., ..10]), StringComparison.Ordinal);
        Assert.Contains("Logits must be [batch, groups, height, width, taps]", Error(inputs[0][0], inputs[1], inputs[2], inputs[3]), StringComparison.Ordinal);
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        var inputs = Inputs(1, 2, 3, 6, 6, 3, 5, float32);
        long live = 0;
        for (var step = 0; step < 60; step++)
        {
            using (var output = Apply(inputs))
            {
                using var loss = output.sum();
                loss.backward();
            }

            foreach (var input in inputs)
            {
                using (input.grad)
                {
                    input.grad = null;
                }
            }

            if (step == 10)
            {
                live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            }
        }

        Assert.Equal(live, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
        foreach (var input in inputs)
        {
            input.Dispose();
        }
    }

    private static Tensor Apply(Tensor[] inputs) => DynamicConvolution.Apply(inputs[0], inputs[1], inputs[2], inputs[3]);

    private static Tensor[] Inputs(int batch, int groups, int channels, int height, int width, int small, int large, ScalarType type)
    {
        using var generator = new Generator(3);
        Tensor Make(params long[] shape)
        {
            using var scope = NewDisposeScope();
            return randn(shape, generator: generator).to(type).requires_grad_().MoveToOuterDisposeScope();
        }

        return [
            Make(batch, groups, height, width, (small * small) + (large * large)), Make(groups, (2 * small) - 1, (2 * small) - 1), Make(groups, (2 * large) - 1, (2 * large) - 1),
            Make(batch, 2 * groups * channels, height, width),
        ];
    }
}
