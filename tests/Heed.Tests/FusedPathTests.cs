using System.Runtime.InteropServices;
using CsCheck;
using Heed.Biases;
using Heed.Kernels;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class FusedPathTests
{
    private const double Unit = 1.0 / (1 << 24);

    // Problems this small gain nothing from threads, and wait for them where processors are busy. Calls that name a number of threads still
    // get it.
    public FusedPathTests() => set_num_threads(1);

    [Fact]
    public void Any_call_equals_the_plain_form_in_float64() => Gen.Int.Sample(seed =>
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var call = new RandomCall(seed);
        var exact = Plain(call.Inputs(t => t.to(float64), out var wide), wide);
        var rounded = Plain(call.Inputs(t => t, out var narrow), narrow);
        var output = Attention.Compute(call.Query, call.Key, call.Value, call.Options);
        Compare(exact, rounded, output, call, "output");
    }, iter: 300);

    [Fact]
    public void Gradients_of_any_call_equal_those_of_the_plain_form_in_float64() => Gen.Int.Sample(seed =>
    {
        using var scope = NewDisposeScope();
        using var call = new RandomCall(seed);
        using var generator = new Generator((ulong)(uint)seed);
        var direction = randn([call.Batch, call.Heads, call.Queries, call.Value.shape[^1]], generator: generator);
        var wanted = new Random(seed);
        var skipped = Enumerable.Range(0, 10).Select(_ => wanted.Next(5) == 0).ToArray();
        var exact = Gradients(call, direction.to(float64), skipped, (inputs, options) => Plain(inputs, options), t => t.to(float64));
        var rounded = Gradients(call, direction, skipped, (inputs, options) => Plain(inputs, options), t => t);
        var found = Gradients(
            call, direction, skipped, (inputs, options) => Attention.Compute(inputs["query"], inputs["key"], inputs["value"], options), t => t);
        Assert.Equal(exact.Keys, found.Keys);

        // What cancels in a gradient is the product of an output's gradient and a value, a sum over the width; a slope's gradient sums it
        // over all rows, times distances in tokens.
        var products = Math.Sqrt(call.Value.shape[^1]);
        var distances = products * (call.Keys + call.Queries) * Math.Sqrt(call.Batch * call.Queries);
        foreach (var name in exact.Keys)
        {
            Compare(exact[name], rounded[name], found[name], call, $"gradient of {name}", name == "slopes" ? distances : products);
        }
    }, iter: 200);

    [Fact]
    public void Statistics_of_any_call_equal_those_of_its_map_in_float64() => Gen.Int.Sample(seed =>
    {
        using var scope = NewDisposeScope();
        using var call = new RandomCall(seed);
        if (call.Options.Normalizer != Normalizer.Softmax)
        {
            return;
        }

        using var generator = new Generator((ulong)(uint)seed);
        var site = new AttentionSite(0, AttentionKind.Self, "site");
        using var set = rand([1 + (seed & 1) * (call.Batch - 1), call.Keys], generator: generator) < 0.3;
        var request = new AttentionStatisticsRequest { Entropy = true, Maximum = true, MeanDistance = true, KeySet = set, TopCount = 1 + (seed & 7), MassPerKey = true, KeyEntropy = true };
        using var probe = new AttentionStatisticsProbe(request);
        using var exactProbe = new AttentionStatisticsProbe(request);
        using var roundedProbe = new AttentionStatisticsProbe(request);
        Observe(probe, call.Inputs(t => t, out var options), options, fused: true);
        Observe(exactProbe, call.Inputs(t => t.to(float64), out options), options, fused: false);
        Observe(roundedProbe, call.Inputs(t => t, out options), options, fused: false);
        var (found, exact, rounded) = (probe[site], exactProbe[site], roundedProbe[site]);
        var distances = call.Keys + call.Queries;
        Compare(exact.Entropy!.to(float64), rounded.Entropy!, found.Entropy!, call, "entropy");
        Compare(exact.Maximum!.to(float64), rounded.Maximum!, found.Maximum!, call, "maximum");
        Compare(exact.MeanDistance!.to(float64), rounded.MeanDistance!, found.MeanDistance!, call, "mean distance", distances);
        Compare(exact.SetMass!.to(float64), rounded.SetMass!, found.SetMass!, call, "mass on the set");
        Compare(exact.TopWeights!.to(float64), rounded.TopWeights!, found.TopWeights!, call, "top weights");
        Compare(exact.MassPerKey!.to(float64), rounded.MassPerKey!, found.MassPerKey!, call, "mass per key", call.Queries);
        Compare(exact.KeyEntropy!.to(float64), rounded.KeyEntropy!, found.KeyEntropy!, call, "entropy per key", call.Queries);
        Compare(Finite(exact.LogSumExp!.to(float64)), Finite(rounded.LogSumExp!), Finite(found.LogSumExp!), call, "log-sum-exp");

        // Keys may swap where weights are equal but for rounding: the weight at the key is what counts.
        var map = new AttentionCall(site, call.Query.to(float64), call.Key.to(float64), call.Value, call.Options).Weights(null);
        var places = cat([found.MaximumKey!.unsqueeze(-1), found.TopKeys!], -1).to(int64);
        var atPlaces = map.gather(-1, places.clamp(min: 0)).masked_fill(places.lt(0), 0);
        var largest = cat([exact.Maximum!.unsqueeze(-1), exact.TopWeights!], -1).to(float64);
        Compare(largest, largest.to(float32), atPlaces, call, "weights at the keys of the largest", 8);

        void Observe(AttentionStatisticsProbe observer, Dictionary<string, Tensor> inputs, AttentionOptions choice, bool fused)
        {
            var hooks = new AttentionHooks();
            hooks.Install(observer);
            var attention = new AttentionCall(site, inputs["query"], inputs["key"], inputs["value"], choice);
            if (fused)
            {
                Attention.Compute(inputs["query"], inputs["key"], inputs["value"], choice, site, hooks);
            }
            else
            {
                PlainAttention.Compute(attention, hooks, ObserverStages.Requests(site, hooks));
            }
        }

        static Tensor Finite(Tensor values) => values.masked_fill(values.isinf(), -1e3);
    }, iter: 150);

    [Fact]
    public void Gradients_of_gradients_equal_those_of_the_plain_form()
    {
        using var scope = NewDisposeScope();
        foreach (var seed in new[] { 1, 2, 3, 4, 5, 6, 7, 8 })
        {
            using var call = new RandomCall(seed);
            var found = Second((inputs, options) => Attention.Compute(inputs["query"], inputs["key"], inputs["value"], options));
            foreach (var (name, expected) in Second(Plain))
            {
                Assertions.Close(expected, found[name], 2e-3, $"second gradient of {name} of {call}");
            }

            Dictionary<string, Tensor> Second(Func<Dictionary<string, Tensor>, AttentionOptions, Tensor> compute)
            {
                var inputs = call.Inputs(t => t.detach().requires_grad_(), out var options);
                var first = autograd.grad([compute(inputs, options).pow(2).sum()], [inputs["query"], inputs["value"]], retain_graph: true, create_graph: true);
                (first[0].pow(2).sum() + first[1].sum()).backward();
                return inputs.Where(input => input.Value.grad is not null).ToDictionary(input => input.Key, input => input.Value.grad!);
            }
        }
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Under_create_graph_inputs_that_follow_from_each_other_get_their_own_parts_of_the_gradient(bool keysAreValues)
    {
        using var scope = NewDisposeScope();
        Tensor[] Gradients(ScalarType type)
        {
            manual_seed(3);
            var (query, key) = (randn(1, 2, 12, 8).to(type).requires_grad_(), randn(1, 2, 12, 8).to(type).requires_grad_());
            var output = Attention.Compute(query, key, keysAreValues ? key : key.square());
            var first = autograd.grad([output.square().sum()], [query, key], retain_graph: true, create_graph: true);
            var second = autograd.grad([first[0].square().sum() + first[1].square().sum()], [query, key], retain_graph: true);
            return [first[0], first[1], second[0], second[1]];
        }

        foreach (var (i, (expected, actual)) in Gradients(float64).Zip(Gradients(float32)).Index())
        {
            Assertions.Close(expected, actual, 1e-4, $"{(i < 2 ? "first" : "second")} gradient of the {(i % 2 == 0 ? "query" : "key")}");
        }
    }

    [Theory]
    [InlineData(ScalarType.BFloat16, 40)]
    [InlineData(ScalarType.BFloat16, 3)]
    [InlineData(ScalarType.Float16, 40)]
    public void Half_precision_has_the_same_meaning(ScalarType type, int length)
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(2, 4, length, 16).to(type), randn(2, 2, length, 16).to(type), randn(2, 2, length, 16).to(type));
        var sinks = randn(4).to(type);
        foreach (var options in new[]
        {
            AttentionOptions.Default, AttentionOptions.CausalSelf, new() { WindowBefore = 3 }, new() { Sinks = sinks, Scale = 0.4 },
            new() { Gate = randn(1, 4, 1, 16).to(type) }, new() { Biases = [new AlibiBias(sinks)] },
        })
        {
            var leaves = new[] { q, k, v }.Select(t => t.detach().requires_grad_()).ToArray();
            var wide = new[] { q, k, v }.Select(t => t.to(float64).requires_grad_()).ToArray();
            var output = Attention.Compute(leaves[0], leaves[1], leaves[2], options);
            var expected = Attention.Compute(wide[0], wide[1], wide[2], options);
            Assert.Equal(type, output.dtype);
            var unit = type == ScalarType.BFloat16 ? 1.0 / 256 : 1.0 / 2048;
            Assertions.Close(expected, output, 4 * unit, $"{type} output");
            output.sum().backward();
            expected.sum().backward();
            for (var i = 0; i < 3; i++)
            {
                Assert.Equal(type, leaves[i].grad!.dtype);
                Assertions.Close(wide[i].grad!, leaves[i].grad!, 16 * unit, $"{type} gradient {i}");
            }
        }
    }

    [Fact]
    public void The_number_of_threads_changes_no_bit()
    {
        using var scope = NewDisposeScope();
        foreach (var seed in Enumerable.Range(1, 20))
        {
            using var call = new RandomCall(seed);
            var results = new[] { 1, 2, 3, 7 }.Select(threads =>
            {
                var inputs = call.Inputs(t => t.detach().requires_grad_(), out var options);
                var output = Attention.Compute(inputs["query"], inputs["key"], inputs["value"], options with { Threads = threads });
                output.pow(2).sum().backward();
                return inputs.Values.Select(input => input.grad).Append(output).ToArray();
            }).ToArray();
            foreach (var other in results.Skip(1))
            {
                foreach (var (one, two) in results[0].Zip(other))
                {
                    Assert.True((one is null) == (two is null) && (one is null || one.Equals(two!)), $"{call}");
                }
            }
        }
    }

    [Fact]
    public void An_input_that_was_overwritten_before_the_backward_pass_is_an_error_and_not_a_crash()
    {
        using var scope = NewDisposeScope();
        var leaf = randn(1, 2, 5, 4).requires_grad_();
        var query = leaf * 1;
        var loss = Attention.Compute(query, leaf, leaf).sum();
        query.add_(1);
        Assert.Throws<ExternalException>(() => loss.backward());

        // The next call is none the worse for it.
        Attention.Compute(leaf, leaf, leaf).sum().backward();
        Assert.Equal(leaf.shape, leaf.grad!.shape);
    }

    [Fact]
    public void The_output_lies_in_memory_as_the_query_does()
    {
        using var scope = NewDisposeScope();
        var tokens = randn(2, 5, 3, 8);
        var (q, k, v) = (tokens.transpose(1, 2), randn(2, 3, 7, 8), randn(2, 3, 7, 6));
        using (no_grad())
        {
            var output = Attention.Compute(q, k, v);
            Assert.Equal([2, 3, 5, 6], output.shape);
            Assert.True(output.transpose(1, 2).is_contiguous());
            Assert.True(Attention.Compute(q.contiguous(), k, v).is_contiguous());
        }
    }

    private static Dictionary<string, Tensor> Gradients(
        RandomCall call, Tensor direction, bool[] skipped, Func<Dictionary<string, Tensor>, AttentionOptions, Tensor> compute, Func<Tensor, Tensor> change)
    {
        var next = 0;
        var inputs = call.Inputs(t => change(t).detach().requires_grad_(!skipped[next++]), out var options);
        if (!inputs.Values.Any(input => input.requires_grad))
        {
            return [];
        }

        (compute(inputs, options) * direction).sum().backward();
        return inputs.Where(input => input.Value.requires_grad).ToDictionary(input => input.Key, input => input.Value.grad ?? zeros_like(input.Value));
    }

    /// <summary>Rounding is judged by what libtorch's float32 makes of the same problem, and by the roundings of a sum over keys or
    /// queries.</summary>
    /// <param name="exact">The result in float64.</param>
    /// <param name="rounded">libtorch's in float32.</param>
    /// <param name="actual">The result that is judged.</param>
    /// <param name="call">The call.</param>
    /// <param name="what">What the result is.</param>
    /// <param name="weight">How much the terms of the result's sums are magnified before they cancel.</param>
    private static void Compare(Tensor exact, Tensor rounded, Tensor actual, RandomCall call, string what, double weight = 1)
    {
        Assert.True(exact.shape.SequenceEqual(actual.shape), $"{what} of {call}: shape");
        if (exact.numel() == 0)
        {
            return;
        }

        var largest = exact.abs().max().item<double>();
        var yardstick = (rounded.to(float64) - exact).abs().max().item<double>();
        var allowed = (8 * yardstick) + (8 * ((4 * Math.Sqrt(call.Keys + call.Queries)) + 8) * Unit * (weight + largest));
        var error = (actual.to(float64) - exact).abs().max().item<double>();
        Assert.True(error <= allowed, $"{what} of {call}: off by {error:E2}, allowed {allowed:E2}");
    }

    private static Tensor Plain(Dictionary<string, Tensor> inputs, AttentionOptions options) =>
        PlainAttention.Compute(new(default, inputs["query"], inputs["key"], inputs["value"], options));
}
