using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class SubspaceAttentionTests
{
    [Theory]
    [InlineData(16, 4)]
    [InlineData(12, 1)]
    [InlineData(6, 6)]
    public void It_adds_what_one_map_per_subspace_weighs_with_5_parameters_a_channel_and_3_a_subspace(int channels, int splits)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = new SubspaceAttention(channels, splits);
        var input = randn(2, channels, 5, 7);

        var (output, attention) = module.ForwardWithMaps(input);

        Assert.Equal((5L * channels) + (3 * splits), module.parameters().Sum(parameter => parameter.numel()));
        Assert.Equal([2, splits, 5, 7], attention.shape);
        Assertions.Close(ones(2, splits), attention.sum([2L, 3L]), 1e-5);
        Assertions.Close(input * (1 + attention.repeat_interleave(channels / splits, 1)), output, 1e-6);
    }

    [Fact]
    public void A_map_that_is_rectified_away_weighs_all_positions_alike_and_learns_nothing()
    {
        using var scope = NewDisposeScope();
        using var module = new SubspaceAttention(4, 1);
        foreach (var (name, parameter) in module.named_parameters().Where(entry => entry.name.EndsWith("bn_point.bias", StringComparison.Ordinal)))
        {
            using var quiet = no_grad();
            parameter.fill_(-100);
        }

        var (output, attention) = module.ForwardWithMaps(randn(2, 4, 3, 5));
        output.square().sum().backward();

        Assertions.Close(full([2, 1, 3, 5], 1 / 15f), attention, 1e-6);
        Assert.All(module.parameters(), parameter => Assert.Equal(0, parameter.grad!.abs().max().item<float>()));
    }

    [Fact]
    public void Gradients_are_those_of_finite_differences()
    {
        using var scope = NewDisposeScope();
        using var module = new SubspaceAttention(6, 3).to(float64);
        var (input, arriving, direction) = (randn(2, 6, 4, 4, dtype: float64).requires_grad_(), randn(2, 6, 4, 4, dtype: float64), randn(2, 6, 4, 4, dtype: float64));
        (module.forward(input) * arriving).sum().backward();
        using var quiet = no_grad();
        double At(double step) => (module.forward(input + (direction * step)) * arriving).sum().item<double>();

        Assert.Equal((At(1e-6) - At(-1e-6)) / 2e-6, (input.grad! * direction).sum().item<double>(), 1e-5);
    }

    [Fact]
    public void Subspaces_must_divide_the_channels_and_the_input_must_have_them()
    {
        using var module = new SubspaceAttention(8);
        using var wrong = randn(1, 6, 4, 4);

        Assert.Contains("must divide the channels; 4 subspaces and 6 channels were given", Assert.Throws<ArgumentException>(() => new SubspaceAttention(6)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => new SubspaceAttention(6, 0));
        Assert.Contains("reads [batch, 8, height, width], not [1, 6, 4, 4]", Assert.Throws<ArgumentException>(() => module.forward(wrong)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Maps_are_handed_to_a_recorder_and_steps_leave_nothing_behind()
    {
        using var module = new SubspaceAttention(8, 2);
        using var input = randn(2, 8, 5, 5);
        using (var recorder = MapRecorder.Install(module))
        {
            using var output = module.forward(input);
            Assert.Equal([2, 2, 5, 5], Assert.Single(recorder.Maps).Values.shape);
        }

        long live = 0;
        for (var step = 0; step < 40; step++)
        {
            using (var output = module.forward(input))
            {
                using var loss = output.sum();
                loss.backward();
            }

            if (step == 10)
            {
                live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            }
        }

        Assert.Equal(live, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }
}
