using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Partial results over disjoint keys merge into the result over all of them.</summary>
public unsafe class MergeTests
{
    [Fact]
    public void Two_halves_of_the_keys_make_the_whole() => ProblemSpec.Any(30, 60, 10).Sample(
        spec =>
        {
            spec = spec with
            {
                Normalizer = Normalizer.Softmax, Sinks = false, Causal = Causality.None, WindowBefore = -1, WindowAfter = -1, Lengths = false, Sequences = 0,
                QueryBlock = 0, Alibi = false, Modified = false, Predicated = false, Rank = 0, KeyBias = null, Bias = spec.Bias & ~Repeats.Keys, Keys = spec.Keys + 1,
            };
            using var whole = new AttentionProblem(spec);
            using var left = new AttentionProblem(spec);
            using var right = new AttentionProblem(spec);
            var cut = spec.Seed % spec.Keys;
            left.Arguments.Key = left.Arguments.Key with { Length = cut };
            left.Arguments.Value = left.Arguments.Value with { Length = cut };
            ref var rest = ref right.Arguments;
            var (keySize, valueSize) = (rest.Key.Type == ElementType.Float32 ? 4 : 2, rest.Value.Type == ElementType.Float32 ? 4 : 2);
            rest.Key = rest.Key with { Length = spec.Keys - cut, Data = rest.Key.Data + (nint)(cut * rest.Key.RowStride * keySize) };
            rest.Value = rest.Value with { Length = spec.Keys - cut, Data = rest.Value.Data + (nint)(cut * rest.Value.RowStride * valueSize) };
            if (rest.Bias.IsGiven)
            {
                rest.Bias = rest.Bias with { Data = rest.Bias.Data + (cut * sizeof(float)) };
            }

            left.Forward();
            right.Forward();
            FusedAttention.Merge(left.Arguments.Output, left.Arguments.LogSumExp, rest.Output, rest.LogSumExp);

            // The merge adds a few roundings to those of the parts.
            var expected = whole.Reference();
            var largest = 1 + Enumerable.Range(0, expected.Output.Value.Length).Max(i => Math.Abs(expected.Output.Value[i]));
            expected.Output.Bound.AsSpan().Enlarge(1e-6 * largest);
            expected.LogSumExp.Bound.AsSpan().Enlarge(1e-6 * 20);
            expected.Output.AssertClose(left.Arguments.Output, "merged output");
            expected.LogSumExp.AssertClose(left.LogSumExp, "merged log-sum-exp");
        },
        iter: 200,
        threads: 1);

    [Fact]
    public void Results_of_different_shapes_are_refused()
    {
        var thrown = Assert.Throws<ArgumentException>(Refused);
        Assert.Contains("same shape", thrown.Message);

        static void Refused()
        {
            var here = stackalloc float[64];
            FusedAttention.Merge(new TensorView(here, 1, 1, 4, 4), here, new TensorView(here, 1, 1, 4, 5), here);
        }
    }
}

file static class Bounds
{
    public static void Enlarge(this Span<double> bounds, double by)
    {
        foreach (ref var bound in bounds)
        {
            bound += by;
        }
    }
}
