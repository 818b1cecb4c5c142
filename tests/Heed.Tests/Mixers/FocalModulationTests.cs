using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class FocalModulationTests
{
    [Theory]
    [InlineData(2, 3, 2, 7)]
    [InlineData(3, 3, 2, 13)]
    [InlineData(3, 5, 2, 19)]
    [InlineData(4, 3, 2, 21)]
    [InlineData(2, 9, 4, 21)]
    public void A_level_sees_exactly_its_receptive_field(int levels, int window, int factor, int expected)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        const int side = 31, middle = side / 2;
        var options = new FocalModulationOptions { Levels = levels, Window = window, Factor = factor, GlobalLevel = false };
        Assert.Equal(expected, options.ReceptiveField(levels - 1));
        using var module = new FocalModulation(4, options);
        module.to(float64);
        var input = randn(1, side, side, 4, dtype: float64).requires_grad_();
        module.forward(input)[0, middle, middle].sum().backward();
        var seen = input.grad!.abs().sum([0, 3]).gt(0);
        var reach = expected / 2;
        Assert.Equal(expected * expected, seen.sum().item<long>());
        Assert.True(seen[TensorIndex.Slice(middle - reach, middle + reach + 1), TensorIndex.Slice(middle - reach, middle + reach + 1)].all().item<bool>());
    }

    [Fact]
    public void The_global_level_sees_everything()
    {
        using var scope = NewDisposeScope();
        using var module = new FocalModulation(4);
        var input = randn(1, 25, 25, 4).requires_grad_();
        module.forward(input)[0, 0, 0].sum().backward();
        Assert.True(input.grad!.abs().sum([0, 3]).gt(0).all().item<bool>());
    }

    [Fact]
    public void Without_gates_nor_global_level_one_level_is_the_query_times_a_convolution()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        using var module = new FocalModulation(6, new() { Levels = 1, Window = 5, Gates = false, GlobalLevel = false });
        module.to(float64);
        var state = module.state_dict();
        var input = randn(2, 7, 5, 6, dtype: float64);
        var both = nn.functional.linear(input, state["f.weight"], state["f.bias"]);
        Assert.Equal(12, both.shape[3]);
        var level = nn.functional.gelu(nn.functional.conv2d(both.narrow(3, 6, 6).permute(0, 3, 1, 2), state["focal_layers.0.0.weight"], padding: [2, 2], groups: 6));
        var modulator = nn.functional.conv2d(level, state["h.weight"], state["h.bias"]).permute(0, 2, 3, 1);
        Assertions.Close(nn.functional.linear(both.narrow(3, 0, 6) * modulator, state["proj.weight"], state["proj.bias"]), module.forward(input), 1e-12);
    }

    [Fact]
    public void A_gate_of_zero_takes_its_level_out()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        using var module = new FocalModulation(4, new() { Levels = 2 });
        var state = module.state_dict();
        using var quiet = no_grad();

        // The last three rows of f are the gates of both levels and the global one: only level 1 stays.
        state["f.weight"].narrow(0, 9, 2).zero_();
        state["f.bias"].narrow(0, 9, 2).zero_();
        var input = randn(1, 20, 20, 4);
        var changed = input.clone();
        changed[0, 12, 12] = 5f;

        // Three by three around the change, everywhere else nothing.
        Assert.Equal(9, module.forward(changed).sub(module.forward(input)).abs().sum(3).gt(0).sum().item<long>());
    }

    [Fact]
    public void Gates_have_any_sign_and_the_context_comes_channels_first()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        using var module = new FocalModulation(8);
        var (output, context) = module.WithContext(randn(2, 6, 5, 8));
        Assert.Equal([2, 6, 5, 8], output.shape);
        Assert.Equal([2, 3, 6, 5], context.Gates.shape);
        Assert.Equal([2, 8, 6, 5], context.Modulator.shape);
        Assert.True(context.Gates.min().item<float>() < 0);
        Assert.True(context.Gates.max().item<float>() > 0);
    }

    [Theory]
    [InlineData(true, true, true, true)]
    [InlineData(false, false, false, true)]
    [InlineData(true, false, true, false)]
    public void Gradients_are_those_of_finite_differences(bool bias, bool postNorm, bool normalize, bool gates)
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        using var module = new FocalModulation(3, new() { Bias = bias, PostNorm = postNorm, Normalize = normalize, Gates = gates });
        module.to(float64);
        var input = randn(1, 4, 3, 3, dtype: float64).requires_grad_();
        var direction = randn_like(input);
        var weights = randn(1, 4, 3, 3, dtype: float64);
        Tensor Loss(Tensor at) => (module.forward(at) * weights).sum();
        var slope = (autograd.grad([Loss(input)], [input])[0] * direction).sum().item<double>();
        const double step = 1e-5;
        var measured = (Loss(input + (direction * step)) - Loss(input - (direction * step))).item<double>() / (2 * step);
        Assert.Equal(measured, slope, 1e-7 * (1 + Math.Abs(slope)));
    }

    [Fact]
    public void A_recorder_gets_the_modulator_and_a_map_of_every_gate()
    {
        using var module = new FocalModulation(8, new() { Levels = 3 });
        using var model = nn.Sequential(module);
        using var recorder = MapRecorder.Install(model);
        using var input = randn(2, 6, 5, 8);
        module.forward(input).Dispose();
        Assert.Equal(["modulator", "gate"], recorder.Maps.Select(maps => maps.Name));
        Assert.Equal([2, 1, 6, 5], recorder.Maps[0].Values.shape);
        Assert.Equal(["level 1 (3)", "level 2 (7)", "level 3 (13)", "global"], recorder.Maps[1].Labels);
    }

    [Fact]
    public void What_cannot_be_is_refused()
    {
        Assert.Contains("side 4", Assert.Throws<ArgumentException>(() => new FocalModulation(8, new() { Window = 4 })).Message, StringComparison.Ordinal);
        Assert.Contains("level 1", Assert.Throws<ArgumentException>(() => new FocalModulation(8, new() { Factor = 1 })).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => new FocalModulation(8, new() { Levels = 0 }));
        Assert.Throws<ArgumentOutOfRangeException>(() => new FocalModulation(0));
        using var module = new FocalModulation(8);
        using var wrong = randn(1, 8, 4, 4);
        Assert.Contains("[batch, height, width, 8]", Assert.Throws<ArgumentException>(() => module.forward(wrong)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        using var module = new FocalModulation(8);
        using var input = randn(1, 6, 6, 8);
        long after = 0;
        for (var step = 0; step < 25; step++)
        {
            using (var scope = NewDisposeScope())
            {
                module.forward(input).sum().backward();
                module.zero_grad();
            }

            after = step == 5 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : after;
        }

        Assert.Equal(after, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }
}
