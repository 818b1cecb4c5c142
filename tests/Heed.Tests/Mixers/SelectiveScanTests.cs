using CsCheck;
using Heed.Mixers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class SelectiveScanTests
{
    [Fact]
    public void Float32_is_the_plain_recurrence_in_float64_with_all_gradients_in_every_memory_order() =>
        Gen.Select(Gen.Int[0, 2], Gen.Int[0, 2], Gen.Bool, Gen.Bool, Gen.Bool, Gen.Int[1, 75], Gen.Int[1, 6]).Sample(
            (b, c, parts, softplus, tokensFirst, length, states) =>
            {
                using var scope = NewDisposeScope();
                var wide = Inputs(2, 24, states, length, b, c, parts, float64, tokensFirst: false);
                // The same numbers, side by side by channel or by time.
                var narrow = wide.Select(tensor => tensor is null ? null
                    : (tensor.dim() == 3 && tokensFirst ? tensor.detach().transpose(1, 2).contiguous().transpose(1, 2) : tensor.detach()).to(float32).requires_grad_()).ToArray();
                var (expected, expectedState) = Apply(wide, softplus);
                var (output, state) = Apply(narrow, softplus);
                Assertions.Close(expected, output, 2e-5, "output");
                Assertions.Close(expectedState, state, 2e-5, "last state");
                Assert.False(state.requires_grad);
                var gradient = randn_like(expected);
                expected.backward([gradient]);
                output.backward([gradient.to(float32)]);
                foreach (var (name, first, second) in Names.Zip(wide, narrow))
                {
                    if (first is not null)
                    {
                        Assertions.Close(first.grad!, second!.grad!, 2e-4, name);
                    }
                }
            },
            iter: 25,
            threads: 1);

    [Fact]
    public void The_output_lies_in_memory_as_the_input_does()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 20, 3, 11, 1, 1, true, float32, tokensFirst: true);
        var (output, _) = Apply(inputs, true);
        Assert.True(output.transpose(1, 2).is_contiguous());
        output.sum().backward();
        Assert.True(inputs[0]!.grad!.transpose(1, 2).is_contiguous());
    }

    [Fact]
    public void States_that_die_out_and_steps_that_jump_give_no_NaN()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 3, 2, 300, 1, 1, false, float32, tokensFirst: false);
        using (no_grad())
        {
            // A cumulative decay of exp(-15,000): whatever divides by it is lost.
            inputs[1]!.fill_(5);
            inputs[2]!.fill_(-10);
        }

        var (output, _) = Apply(inputs, softplus: false);
        output.sum().backward();
        Assert.All(inputs.OfType<Tensor>().Select(tensor => tensor.grad!).Append(output), tensor => Assert.True(tensor.isfinite().all().item<bool>()));
    }

    [Fact]
    public void Any_number_of_threads_gives_the_same_bits()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 70, 5, 140, 1, 2, true, float32, tokensFirst: true);
        var before = get_num_threads();
        var runs = new List<Tensor[]>();
        try
        {
            foreach (var threads in new[] { 1, 3 })
            {
                set_num_threads(threads);
                var (output, state) = Apply(inputs, true);
                output.backward([ones_like(output)]);
                runs.Add([output, state, .. inputs.OfType<Tensor>().Select(tensor => tensor.grad!.clone())]);
                foreach (var tensor in inputs.OfType<Tensor>())
                {
                    tensor.grad = null;
                }
            }
        }
        finally
        {
            set_num_threads(before);
        }

        Assert.All(runs[0].Zip(runs[1]), pair => Assert.True(pair.First.equal(pair.Second).all().item<bool>()));
    }

    [Fact]
    public void Later_tokens_change_nothing_before_them_and_a_scan_goes_on_from_nothing_but_its_state()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var inputs = Inputs(1, 17, 4, 50, 1, 1, true, float32, tokensFirst: false);
        Tensor?[] Part(long from, long count) => [.. inputs.Select(tensor => tensor is { } given && given.dim() == 3 ? given.narrow(2, from, count) : tensor)];
        var whole = Apply(inputs, true);
        var first = Apply(Part(0, 20), true);
        Assertions.Close(whole.Output.narrow(2, 0, 20), first.Output, 1e-6);

        // The rest, with what the first part left: C_t exp(sum of dt A) h is added, ungated parts apart.
        var ungated = (Tensor?[])inputs.Clone();
        (ungated[5], ungated[6]) = (null, null);
        var rest = Part(20, 30);
        (rest[5], rest[6]) = (null, null);
        var step = nn.functional.softplus(rest[1]! + inputs[7]!.unsqueeze(1));
        var decay = (step.cumsum(2).unsqueeze(2) * inputs[2]!.unsqueeze(2)).exp();
        var carried = (decay * first.LastState.unsqueeze(3) * rest[4]!.unsqueeze(1)).sum(2);
        Assertions.Close(Apply(ungated, true).Output.narrow(2, 20, 30), Apply(rest, true).Output + carried, 1e-5);
    }

    [Fact]
    public void Gradients_of_gradients_are_those_of_the_plain_form()
    {
        using var scope = NewDisposeScope();
        var narrow = Inputs(1, 5, 2, 9, 1, 1, true, float32, tokensFirst: false);
        var wide = narrow.Select(tensor => tensor?.detach().to(float64).requires_grad_()).ToArray();
        Tensor Second(Tensor?[] inputs)
        {
            var first = autograd.grad([Apply(inputs, true).Output.square().sum()], [inputs[0]!], retain_graph: true, create_graph: true)[0];
            first.square().sum().backward();
            return inputs[1]!.grad!;
        }

        Assertions.Close(Second(wide), Second(narrow), 1e-4);
    }

    [Fact]
    public void Under_create_graph_a_step_that_follows_from_the_input_is_counted_once()
    {
        using var scope = NewDisposeScope();
        var narrow = Inputs(1, 5, 2, 9, 1, 1, true, float32, tokensFirst: false);
        var wide = narrow.Select(tensor => tensor?.detach().to(float64).requires_grad_()).ToArray();
        Tensor First(Tensor?[] inputs)
        {
            Tensor?[] tied = [inputs[0], nn.functional.softplus(inputs[0]!), .. inputs[2..]];
            return autograd.grad([Apply(tied, true).Output.square().sum()], [inputs[0]!], retain_graph: true, create_graph: true)[0];
        }

        Assertions.Close(First(wide), First(narrow), 1e-4);
    }

    [Theory]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float16)]
    public void Half_precision_keeps_its_states_in_float32(ScalarType type)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 4, 3, 40, 1, 1, true, type, tokensFirst: false);
        var (output, state) = Apply(inputs, true);
        var (expected, expectedState) = Apply([.. inputs.Select(tensor => tensor?.detach().to(float32))], true);
        Assert.Equal(type, output.dtype);
        Assert.Equal(float32, state.dtype);
        Assertions.Close(expectedState, state, 1e-6);
        Assert.True(expected.to(type).equal(output).all().item<bool>());
        output.sum().backward();
        Assert.Equal(type, inputs[0]!.grad!.dtype);
    }

    [Fact]
    public void An_empty_batch_gives_an_empty_output_and_gradients_of_zero()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(0, 5, 2, 9, 0, 1, true, float32, tokensFirst: false);
        var (output, state) = Apply(inputs, true);
        output.sum().backward();
        Assert.Equal([0L, 5, 9], output.shape);
        Assert.Equal([0L, 5, 2], state.shape);
        Assert.Equal(0, inputs[2]!.grad!.abs().sum().item<float>());
    }

    [Fact]
    public void What_does_not_fit_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        Tensor u = zeros(2, 6, 5), delta = zeros(2, 6, 5), a = zeros(6, 3), map = zeros(2, 3, 5);
        static void Refused(string sentence, Func<object> call) => Assert.Contains(sentence, Assert.ThrowsAny<ArgumentException>(call).Message, StringComparison.Ordinal);
        Refused("u must be [batch, channels, length] with channels and a length from 1, not [2, 6, 0]", () => SelectiveScan.Apply(zeros(2, 6, 0), zeros(2, 6, 0), a, zeros(2, 3, 0), zeros(2, 3, 0)));
        Refused("u must be", () => SelectiveScan.Apply(zeros(6, 5), delta, a, map, map));
        Refused("delta must be [2, 6, 5], not [2, 5, 6]", () => SelectiveScan.Apply(u, zeros(2, 5, 6), a, map, map));
        Refused("a must be [6, states]", () => SelectiveScan.Apply(u, delta, zeros(5, 3), map, map));
        Refused("b must be [6, 3] (constant), [2, 3, 5] or [2, groups, 3, 5], not [2, 4, 5]", () => SelectiveScan.Apply(u, delta, a, zeros(2, 4, 5), map));
        Refused("c must be [6, 3] (constant)", () => SelectiveScan.Apply(u, delta, a, map, zeros(3)));
        Refused("b has 4 groups, which do not divide 6 channels", () => SelectiveScan.Apply(u, delta, a, zeros(2, 4, 3, 5), map));
        Refused("skip must be [6], not [5]", () => SelectiveScan.Apply(u, delta, a, map, map, skip: zeros(5)));
        Refused("gate must be [2, 6, 5], not [2, 6, 4]", () => SelectiveScan.Apply(u, delta, a, map, map, gate: zeros(2, 6, 4)));
        Refused("deltaBias must be [6], not [3]", () => SelectiveScan.Apply(u, delta, a, map, map, deltaBias: zeros(3)));
        Assert.Throws<ArgumentNullException>(() => SelectiveScan.Apply(u, delta, a, map, null!));
    }

    private static readonly string[] Names = ["u", "delta", "a", "b", "c", "skip", "gate", "bias"];

    private static (Tensor Output, Tensor LastState) Apply(Tensor?[] inputs, bool softplus) =>
        SelectiveScan.Apply(inputs[0]!, inputs[1]!, inputs[2]!, inputs[3]!, inputs[4]!, inputs[5], inputs[6], inputs[7], softplus);

    /// <summary>Random inputs that want gradients; maps: 0 constant, 1 per batch item, 2 in two groups.</summary>
    private static Tensor?[] Inputs(int batch, int channels, int states, int length, int b, int c, bool parts, ScalarType type, bool tokensFirst)
    {
        Tensor Sequence() => tokensFirst ? randn(batch, length, channels).to(type).transpose(1, 2) : randn(batch, channels, length).to(type);
        Tensor Map(int kind) => (kind switch { 0 => randn(channels, states), 1 => randn(batch, states, length), _ => randn(batch, 2, states, length) }).to(type);
        Tensor?[] inputs =
        [
            Sequence(), Sequence().abs(), -(rand(channels, states) + 0.2).to(type), Map(b), Map(c), parts ? randn(channels).to(type) : null, parts ? Sequence() : null, parts ? rand(channels).to(type) : null,
        ];
        foreach (var input in inputs)
        {
            input?.requires_grad_();
        }

        return inputs;
    }
}
