using Heed.Mixers;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class MambaMixerTests
{
    [Fact]
    public void Mamba_is_causal_and_Vim_is_not()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var mamba = new MambaMixer(new() { Width = 10, States = 3 });
        using var vim = new VimMixer(new() { Width = 10, States = 3 });
        var tokens = randn(1, 12, 10);
        var changed = tokens.clone();
        changed.select(1, 7).add_(1);
        Assertions.Close(mamba.forward(tokens).narrow(1, 0, 7), mamba.forward(changed).narrow(1, 0, 7), 1e-6);
        Assert.False(mamba.forward(tokens).narrow(1, 7, 5).allclose(mamba.forward(changed).narrow(1, 7, 5)));
        Assert.False(vim.forward(tokens).narrow(1, 0, 7).allclose(vim.forward(changed).narrow(1, 0, 7)));
    }

    [Theory]
    [InlineData(BackwardScan.OwnBranch)]
    [InlineData(BackwardScan.SharedMaps)]
    public void With_equal_branches_and_taps_reversing_the_tokens_reverses_the_output(BackwardScan backward)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        // A single tap: a causal convolution of several sees other neighbours after the reversal.
        using var mixer = new VimMixer(new() { Width = 8, States = 3, Kernel = 1 }, backward, divideOutput: true, layerScale: 0.5);
        var state = mixer.state_dict();
        foreach (var name in state.Keys.Where(name => name.Contains("_b", StringComparison.Ordinal)))
        {
            state[name].copy_(state[name.Replace("_b", "", StringComparison.Ordinal)]);
        }

        var tokens = randn(2, 9, 8);
        Assertions.Close(mixer.forward(tokens).flip(1), mixer.forward(tokens.flip(1)), 1e-5);
    }

    [Fact]
    public void Only_two_branches_are_halved_and_every_form_may_be_scaled()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var tokens = randn(1, 6, 8);
        foreach (var (backward, factor) in new[] { (BackwardScan.OwnBranch, 0.5), (BackwardScan.SharedMaps, 1), (BackwardScan.None, 1) })
        {
            using var plain = new VimMixer(new() { Width = 8 }, backward);
            using var divided = new VimMixer(new() { Width = 8 }, backward, divideOutput: true, layerScale: 3);
            foreach (var (name, value) in plain.state_dict())
            {
                divided.state_dict()[name].copy_(value);
            }

            Assertions.Close(plain.forward(tokens) * (3 * factor), divided.forward(tokens), 1e-6, $"{backward}");
        }
    }

    [Fact]
    public void A_forward_mixer_of_either_kind_is_the_same()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var mamba = new MambaMixer(new() { Width = 8, States = 3, Bias = true });
        using var vim = new VimMixer(new() { Width = 8, States = 3, Bias = true }, BackwardScan.None);
        vim.load_state_dict(mamba.state_dict());
        var tokens = randn(2, 3, 8);
        Assertions.Close(mamba.forward(tokens), vim.forward(tokens), 1e-7);
    }

    [Fact]
    public void Steps_begin_between_a_thousandth_and_a_tenth_and_states_decay_at_whole_rates()
    {
        using var scope = NewDisposeScope();
        using var mixer = new MambaMixer(new() { Width = 200, States = 4 });
        var state = mixer.state_dict();
        var steps = nn.functional.softplus(state["dt_proj.bias"]);
        Assert.InRange(steps.min().item<float>(), 0.000999f, 0.003f);
        Assert.InRange(steps.max().item<float>(), 0.05f, 0.1001f);
        Assertions.Close(tensor([1f, 2, 3, 4]).expand(400, 4), state["A_log"].exp(), 1e-6);
        Assert.Equal([400L, 13], state["dt_proj.weight"].shape);
        Assert.True(state["dt_proj.weight"].abs().max().item<float>() <= 1 / Math.Sqrt(13));
    }

    [Fact]
    public void Maps_show_the_response_and_the_steps_of_both_directions_without_the_class_token()
    {
        using var scope = NewDisposeScope();
        using var mixer = new VimMixer(new() { Width = 8, States = 3, Grid = new(2, 3) { Others = [3] } });
        var tokens = randn(2, 7, 8);
        var expected = mixer.forward(tokens);
        using var model = nn.Sequential(("mixer", mixer));
        using (var recorder = MapRecorder.Install(model))
        {
            Assertions.Close(expected, mixer.forward(tokens), 1e-7);
            Assert.Equal(["response", "step"], recorder.Maps.Select(map => map.Name));
            Assert.Equal(["response, forward", "response, backward"], recorder.Maps[0].Labels);
            Assert.All(recorder.Maps, map => Assert.Equal([2L, 2, 2, 3], map.Values.shape));
            Assert.True(recorder.Maps[1].Values.min().item<float>() > 0);

            // Only the last place of the picture changes: forward, nothing before it answers otherwise; backward, all may.
            var first = recorder.Maps[0].Values.clone();
            var changed = tokens.clone();
            using (no_grad())
            {
                changed.select(1, 6).mul_(4);
            }

            mixer.forward(changed);
            var difference = (recorder.Maps[2].Values - first).abs().flatten(2).sum([0L]);
            Assert.True(difference[0].narrow(0, 0, 5).max().item<float>() < 1e-6);
            Assert.True(difference[1].narrow(0, 0, 5).max().item<float>() > 1e-6);
        }

        Assert.Null(mixer.Recorder);
    }

    [Fact]
    public void Mistakes_are_refused()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("positive width", Assert.Throws<ArgumentException>(() => new MambaMixer(new() { Width = 0 })).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => new VimMixer(new() { Width = 8, Expand = 0 }));
        using var mixer = new VimMixer(new() { Width = 8, Grid = new(2, 2) });
        Assert.Contains("[batch, length, 8]", Assert.Throws<ArgumentException>(() => mixer.forward(zeros(1, 4, 9))).Message, StringComparison.Ordinal);
        Assert.Contains("length 1 or more", Assert.Throws<ArgumentException>(() => mixer.forward(zeros(1, 0, 8))).Message, StringComparison.Ordinal);
        using var model = nn.Sequential(("mixer", mixer));
        using var recorder = MapRecorder.Install(model);
        Assert.Contains("2 x 2 places", Assert.Throws<ArgumentException>(() => mixer.forward(zeros(1, 5, 8))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Training_steps_leave_no_tensor_behind()
    {
        using var mixer = new VimMixer(new() { Width = 8, States = 3 });
        using var tokens = randn(2, 9, 8);
        long live = 0;
        for (var step = 0; step < 60; step++)
        {
            using (var output = mixer.forward(tokens))
            using (var loss = output.sum())
            {
                loss.backward();
            }

            mixer.zero_grad();
            if (step == 20)
            {
                live = TorchSharp.DisposeScopeManager.Statistics.ThreadTotalLiveCount;
            }
        }

        Assert.Equal(live, TorchSharp.DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }
}
