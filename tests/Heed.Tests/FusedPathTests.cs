using CsCheck;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class FusedPathTests
{
    private const double Unit = 1.0 / (1 << 24);

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
        var skipped = Enumerable.Range(0, 9).Select(_ => wanted.Next(5) == 0).ToArray();
        var exact = Gradients(call, direction.to(float64), skipped, (inputs, options) => Plain(inputs, options), t => t.to(float64));
        var rounded = Gradients(call, direction, skipped, (inputs, options) => Plain(inputs, options), t => t);
        var found = Gradients(
            call, direction, skipped, (inputs, options) => Attention.Compute(inputs["query"], inputs["key"], inputs["value"], options), t => t);
        Assert.Equal(exact.Keys, found.Keys);

        // A slope's gradient sums, over all rows, differences of weights times distances in tokens.
        var distances = (call.Keys + call.Queries) * Math.Sqrt(call.Batch * call.Queries);
        foreach (var name in exact.Keys)
        {
            Compare(exact[name], rounded[name], found[name], call, $"gradient of {name}", name == "slopes" ? distances : 1);
        }
    }, iter: 200);

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

    /// <summary>Rounding is judged by what libtorch's float32 makes of the same problem, and by the roundings of a sum over keys or queries.</summary>
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
