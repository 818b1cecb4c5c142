using Heed.Heads;
using Heed.Kernels;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class RoutedHeadsTests
{
    // Sums of at most a few hundred float32 products, in another order.
    private const double Rounding = 2e-5;

    public static TheoryData<int, int, int, int, int, string> Problems => new()
    {
        { 1, 4, 4, 70, 70, "plain" }, { 3, 6, 6, 33, 33, "plain" }, { 2, 8, 2, 40, 40, "causal" }, { 1, 4, 1, 130, 130, "causal" }, { 2, 4, 2, 1, 90, "causal" },
        { 1, 4, 4, 5, 200, "causal" }, { 2, 4, 4, 64, 64, "causal from the start" }, { 2, 4, 2, 60, 60, "window" }, { 1, 4, 4, 50, 50, "relu" }, { 2, 3, 3, 20, 31, "plain" },
    };

    [Theory]
    [MemberData(nameof(Problems))]
    public void Chosen_heads_alone_give_what_all_heads_give_and_the_same_gradients(int batch, int heads, int keyHeads, int tokens, int keys, string kind)
    {
        using var scope = NewDisposeScope();
        var options = kind switch
        {
            "causal" => AttentionOptions.CausalSelf,
            "causal from the start" => new AttentionOptions { Causal = Causality.AlignedToStart },
            "window" => AttentionOptions.CausalSelf with { WindowBefore = 9, Softcap = 5, Scale = 0.7 },
            "relu" => AttentionOptions.CausalSelf with { Normalizer = Normalizer.ReluOverPosition },
            _ => AttentionOptions.Default,
        };
        var routing = Routing(batch, tokens, heads, 0.6);
        Tensor[] Leaves() =>
        [
            Random(1, batch, tokens, heads, 24).requires_grad_(), Random(2, batch, keys, keyHeads, 24).requires_grad_(), Random(3, batch, keys, keyHeads, 20).requires_grad_(),
            routing.Gates.detach().clone().requires_grad_(),
        ];
        var (outer, ours, theirs) = (Random(4, batch, heads, tokens, 20), Leaves(), Leaves());
        Tensor Run(Tensor[] leaves, RoutedComputation computation) => RoutedHeads.Compute(
            leaves[0].transpose(1, 2), leaves[1].transpose(1, 2), leaves[2].transpose(1, 2), routing with { Gates = leaves[3] * routing.Chosen.to(float32) }, options, computation: computation);
        var (chosen, all) = (Run(ours, RoutedComputation.ChosenHeads), Run(theirs, RoutedComputation.AllHeads));
        Assertions.Close(all, chosen, Rounding);
        (chosen * outer).sum().backward();
        (all * outer).sum().backward();
        foreach (var (i, name) in new[] { "query", "key", "value", "gates" }.Index())
        {
            Assertions.Close(theirs[i].grad!, ours[i].grad!, Rounding, $"the gradient of the {name}");
        }
    }

    [Fact]
    public void The_oracle_in_float64_agrees()
    {
        using var scope = NewDisposeScope();
        var routing = Routing(2, 37, 4, 0.5);
        var (query, key, value) = (Random(1, 2, 4, 37, 16), Random(2, 2, 4, 37, 16), Random(3, 2, 4, 37, 16));
        var weights = nn.functional.softmax(matmul(query.to(float64), key.to(float64).transpose(2, 3)) / 4, -1);
        var expected = matmul(weights, value.to(float64)) * routing.Gates.to(float64).transpose(1, 2).unsqueeze(-1);
        Assertions.Close(expected, RoutedHeads.Compute(query, key, value, routing, computation: RoutedComputation.ChosenHeads), Rounding);
        Assertions.Close(expected, RoutedHeads.Compute(query.to(float64), key.to(float64), value.to(float64), routing with { Gates = routing.Gates.to(float64) }), 1e-12);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Gradients_of_gradients_agree_with_the_plain_form_in_float64(bool keysAreValues)
    {
        using var scope = NewDisposeScope();
        var routing = Routing(1, 12, 2, 0.5);
        Tensor[] Second(RoutedComputation computation, ScalarType type)
        {
            var (query, key) = (Random(1, 1, 2, 12, 8).to(type).requires_grad_(), Random(2, 1, 2, 12, 8).to(type).requires_grad_());
            var value = keysAreValues ? key : Random(3, 1, 2, 12, 8).to(type).requires_grad_();
            var gates = routing.Gates.detach().to(type, copy: true).requires_grad_();
            var output = RoutedHeads.Compute(query, key, value, routing with { Gates = gates }, computation: computation);
            var first = autograd.grad([output.square().sum()], [query, key, value], retain_graph: true, create_graph: true);
            var second = autograd.grad([first[0].square().sum() + first[1].square().sum() + first[2].square().sum()], [query, key, value, gates], retain_graph: true);
            return [.. first, second[0], second[1], second[2], second[3] * routing.Chosen.to(type)];
        }

        var exact = Second(RoutedComputation.AllHeads, float64);
        foreach (var computation in new[] { RoutedComputation.AllHeads, RoutedComputation.ChosenHeads })
        {
            foreach (var (i, (expected, actual)) in exact.Zip(Second(computation, float32)).Index())
            {
                Assertions.Close(expected, actual, 1e-4, $"{computation}: {(i < 3 ? "first" : "second")} gradient, input {i % 3}");
            }
        }
    }

    [Fact]
    public void Results_are_the_same_bits_for_any_number_of_threads()
    {
        using var scope = NewDisposeScope();
        var routing = Routing(2, 200, 4, 0.5);
        var (query, key, value) = (Random(1, 2, 4, 200, 32), Random(2, 2, 4, 200, 32), Random(3, 2, 4, 200, 32));
        Tensor Run(int threads) => RoutedHeads.Compute(query, key, value, routing, AttentionOptions.CausalSelf with { Threads = threads }, computation: RoutedComputation.ChosenHeads);
        Assert.True(Run(1).Equals(Run(3)));
    }

    [Fact]
    public void A_causal_mixture_does_not_see_the_future()
    {
        using var scope = NewDisposeScope();
        var routing = Routing(1, 40, 4, 0.5);
        var (query, key, value) = (Random(1, 1, 4, 40, 16), Random(2, 1, 4, 40, 16), Random(3, 1, 4, 40, 16));
        Tensor Run() => RoutedHeads.Compute(query, key, value, routing, AttentionOptions.CausalSelf, computation: RoutedComputation.ChosenHeads);
        var before = Run();
        key.narrow(2, 25, 15).add_(1);
        value.narrow(2, 25, 15).fill_(double.NaN);
        Assertions.Close(before.narrow(2, 0, 25), Run().narrow(2, 0, 25), 0);
    }

    [Fact]
    public void Heads_that_nobody_chose_give_zeros_even_where_their_keys_are_not_numbers()
    {
        using var scope = NewDisposeScope();
        var chosen = zeros(1, 9, 3, dtype: @bool);
        chosen.select(2, 1).fill_(true);
        var (query, key, value) = (Random(1, 1, 3, 9, 8), Random(2, 1, 3, 9, 8), Random(3, 1, 3, 9, 8));
        value.select(1, 0).fill_(double.NaN);
        var output = RoutedHeads.Compute(query, key, value, new(chosen.to(float32), chosen, null), computation: RoutedComputation.ChosenHeads);
        Assert.Equal(0, output.select(1, 0).abs().sum().item<float>());
        Assert.Equal(0, output.select(1, 2).abs().sum().item<float>());
        Assert.True(output.select(1, 1).abs().sum().item<float>() > 0);
    }

    [Fact]
    public void Half_precision_stays_half_precision()
    {
        using var scope = NewDisposeScope();
        var routing = Routing(1, 20, 2, 0.5);
        var (query, key, value) = (Random(1, 1, 2, 20, 16).to(bfloat16), Random(2, 1, 2, 20, 16).to(bfloat16), Random(3, 1, 2, 20, 16).to(bfloat16));
        var half = routing with { Gates = routing.Gates.to(bfloat16) };
        var output = RoutedHeads.Compute(query, key, value, half, computation: RoutedComputation.ChosenHeads);
        Assert.Equal(ScalarType.BFloat16, output.dtype);

        // bfloat16 has 8 bits.
        Assertions.Close(RoutedHeads.Compute(query, key, value, half, computation: RoutedComputation.AllHeads), output, 1 / 64.0);
    }

    [Fact]
    public void A_probe_sees_the_maps_of_all_heads()
    {
        using var scope = NewDisposeScope();
        var routing = Routing(1, 10, 4, 0.5);
        var hooks = new AttentionHooks();
        using var probe = new AttentionMapProbe();
        using (hooks.Install(probe))
        {
            RoutedHeads.Compute(Random(1, 1, 4, 10, 8), Random(2, 1, 4, 10, 8), Random(3, 1, 4, 10, 8), routing, site: new(0, AttentionKind.Self, "a"), hooks: hooks);
        }

        Assert.Equal([1, 4, 10, 10], probe[probe.Sites[0]].shape);
    }

    [Fact]
    public void A_gate_and_a_routing_of_other_tokens_are_refused()
    {
        using var scope = NewDisposeScope();
        var (query, gate) = (Random(1, 1, 4, 10, 8), ones(1, 4, 10, 1));
        Assert.Contains(
            "AttentionOptions.Gate", Assert.Throws<ArgumentException>(() => RoutedHeads.Compute(query, query, query, Routing(1, 10, 4, 0.5), new() { Gate = gate })).Message, StringComparison.Ordinal);
        Assert.Contains("[1, 9, 4]", Assert.Throws<ArgumentException>(() => RoutedHeads.Compute(query, query, query, Routing(1, 9, 4, 0.5))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Positions_of_queries_mean_the_same_to_the_kernels_and_to_the_plain_path()
    {
        using var scope = NewDisposeScope();
        var positions = tensor(new long[] { 0, 0, 3, 7, 7, 20, 31, 2, 2, 2, 5, 9, 9, 9 }).view(2, 7);
        var (query, key, value) = (Random(1, 2, 4, 7, 16), Random(2, 2, 2, 32, 16), Random(3, 2, 2, 32, 16));
        foreach (var options in new AttentionOptions[]
        {
            new() { Causal = Causality.AlignedToEnd, QueryPositions = positions },
            new() { Causal = Causality.AlignedToEnd, WindowBefore = 4, QueryPositions = positions, Sinks = Random(4, 4) },
            new() { WindowBefore = 3, WindowAfter = 2, QueryPositions = positions, QueryLengths = tensor(new long[] { 5, 7 }) },
        })
        {
            var exact = Attention.Compute(query.to(float64), key.to(float64), value.to(float64), options with { Sinks = options.Sinks?.to(float64) });
            Assertions.Close(exact, Attention.Compute(query, key, value, options), Rounding);
        }
    }

    [Theory]
    [InlineData(new long[] { 0, 2, 1 }, "does not decrease")]
    [InlineData(new long[] { 0, 1, 9 }, "from 0 to 4")]
    public void Positions_out_of_order_or_range_are_refused(long[] positions, string reason)
    {
        using var scope = NewDisposeScope();
        var (query, key) = (Random(1, 1, 2, 3, 8), Random(2, 1, 2, 4, 8));
        Assert.Contains(reason, Assert.Throws<ArgumentException>(
            () => Attention.Compute(query, key, key, new() { Causal = Causality.AlignedToEnd, QueryPositions = tensor(positions).view(1, 3) })).Message, StringComparison.Ordinal);
    }

    private static Tensor Random(long seed, params long[] shape)
    {
        using var generator = new Generator((ulong)seed);
        return randn(shape, generator: generator);
    }

    private static HeadRouting Routing(long batch, long tokens, long heads, double share)
    {
        using var generator = new Generator(7);
        var chosen = rand([batch, tokens, heads], generator: generator) < share;
        return new(chosen.to(float32) * rand([batch, tokens, heads], generator: generator), chosen, null);
    }
}
