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

    /// <summary>Rounding is judged by what libtorch's float32 makes of the same problem, and by the roundings of a sum over the keys.</summary>
    private static void Compare(Tensor exact, Tensor rounded, Tensor actual, RandomCall call, string what)
    {
        Assert.True(exact.shape.SequenceEqual(actual.shape), $"{what} of {call}: shape");
        if (exact.numel() == 0)
        {
            return;
        }

        var largest = exact.abs().max().item<double>();
        var yardstick = (rounded.to(float64) - exact).abs().max().item<double>();
        var allowed = (8 * yardstick) + (8 * ((4 * Math.Sqrt(call.Keys + call.Queries)) + 8) * Unit * largest);
        var error = (actual.to(float64) - exact).abs().max().item<double>();
        Assert.True(error <= allowed, $"{what} of {call}: off by {error:E2}, allowed {allowed:E2}");
    }

    private static Tensor Plain(Dictionary<string, Tensor> inputs, AttentionOptions options) =>
        PlainAttention.Compute(new(default, inputs["query"], inputs["key"], inputs["value"], options));
}
