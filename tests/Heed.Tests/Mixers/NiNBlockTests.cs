using Heed.Heads;
using Heed.Mixers;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class NiNBlockTests
{
    [Fact]
    public void The_unit_is_the_projection_times_the_gate_and_in_the_ablation_plus_it()
    {
        using var scope = NewDisposeScope();
        var input = randn(2, 9, 6);
        foreach (var combination in new[] { GateCombination.Multiply, GateCombination.Add })
        {
            using var unit = new MixerGatingUnit(6, 9, 5, 7, combination: combination);
            var state = unit.state_dict();
            var projected = nn.functional.linear(input, state["proj.weight"], state["proj.bias"]);
            Assertions.Close(combination == GateCombination.Multiply ? projected * unit.Gate(input) : projected + unit.Gate(input), unit.forward(input), 1e-6);
        }
    }

    [Fact]
    public void One_norm_serves_both_halves()
    {
        using var scope = NewDisposeScope();
        using var block = new NiNBlock(6, 5, 4);
        Assert.Single(block.state_dict().Keys, name => name == "norm.weight");
        var input = randn(1, 4, 6);
        var state = block.state_dict();
        Tensor Norm(Tensor tokens) => nn.functional.layer_norm(tokens, [6], state["norm.weight"], state["norm.bias"]);
        using var still = no_grad();
        state["norm.weight"].copy_(randn(6));
        var mixed = input + block.Mixer.forward(Norm(input));
        var hidden = nn.functional.gelu(nn.functional.linear(Norm(mixed), state["ffn.net.0.weight"], state["ffn.net.0.bias"]));
        Assertions.Close(mixed + nn.functional.linear(hidden, state["ffn.net.3.weight"], state["ffn.net.3.bias"]), block.forward(input), 1e-5);
        Assertions.Close(block.Mixer.Gate(Norm(input)), block.Gate(input), 1e-6);
    }

    [Fact]
    public void Gradients_are_the_slopes_of_the_output()
    {
        using var scope = NewDisposeScope();
        using var block = new NiNBlock(4, 3, 4);
        block.to(float64);
        var (input, direction, outgoing) = (randn(1, 4, 4, dtype: float64).requires_grad_(true), randn(1, 4, 4, dtype: float64), randn(1, 4, 4, dtype: float64));
        (block.forward(input) * outgoing).sum().backward();
        using var still = no_grad();
        const double Step = 1e-5;
        double At(double step) => (block.forward(input + (direction * step)) * outgoing).sum().item<double>();
        // The central difference is off by the third derivative times the step squared.
        Assert.Equal((At(Step) - At(-Step)) / (2 * Step), (input.grad! * direction).sum().item<double>(), 1e-6);
    }

    [Fact]
    public void Dropout_acts_in_training_only()
    {
        using var scope = NewDisposeScope();
        using var block = new NiNBlock(8, 8, 4, dropout: 0.5);
        var input = randn(1, 4, 8);
        block.train();
        Assert.False(block.forward(input).equal(block.forward(input)).all().item<bool>());
        block.eval();
        Assert.True(block.forward(input).equal(block.forward(input)).all().item<bool>());
    }

    [Fact]
    public void The_gate_is_shown_over_the_picture_where_tokens_make_a_square()
    {
        using var scope = NewDisposeScope();
        foreach (var (tokens, height, width) in new[] { (9, 3, 3), (6, 1, 6) })
        {
            using var block = new NiNBlock(8, 4, tokens);
            using var recorder = MapRecorder.Install(block);
            var input = randn(2, tokens, 8);
            block.forward(input);
            var maps = Assert.Single(recorder.Maps);
            Assert.Equal([2L, 6, height, width], maps.Values.shape);
            Assertions.Close(block.Gate(input).mean([2L]).reshape(2, height, width).detach(), maps.Values.select(1, 0), 1e-6);
        }
    }

    [Fact]
    public void Mistakes_are_refused()
    {
        using var scope = NewDisposeScope();
        using var block = new NiNBlock(8, 4, 9);
        Assert.Contains("[batch, 9, 8], not [1, 16, 8]", Assert.Throws<ArgumentException>(() => block.forward(zeros(1, 16, 8))).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => new NiNBlock(0, 4, 9));
        Assert.Throws<ArgumentOutOfRangeException>(() => new NiNBlock(8, 0, 9));
        Assert.Throws<ArgumentOutOfRangeException>(() => new NiNBlock(8, 4, 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => new NiNBlock(8, 4, 9, dropout: 1));
        using var perceptron = new TokenPerceptron(9, 4);
        Assert.Contains("[batch, 9, width]", Assert.Throws<ArgumentException>(() => perceptron.forward(zeros(1, 16, 8))).Message, StringComparison.Ordinal);
    }
}
