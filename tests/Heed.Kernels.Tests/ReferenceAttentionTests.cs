using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The oracle against what can be worked out by hand, and its gradients against differences of its outputs.</summary>
public class ReferenceAttentionTests
{
    [Fact]
    public void Two_keys_by_hand()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 1, Keys = 2, Width = 1, ValueWidth = 1, Sinks = true });
        var inputs = new ReferenceInputs(problem.Arguments);
        inputs.Query[0] = 2;
        (inputs.Key[0], inputs.Key[1]) = (0.5, -1);
        (inputs.Value[0], inputs.Value[1]) = (3, 7);
        inputs.Sinks![0] = 0.25;
        var result = ReferenceAttention.Compute(inputs, default(UnmodifiedScore), default(AllPairs));
        var sum = Math.Exp(1) + Math.Exp(-2) + Math.Exp(0.25);
        Assert.Equal(((3 * Math.Exp(1)) + (7 * Math.Exp(-2))) / sum, result.Output.Value[0], 1e-14);
        Assert.Equal(Math.Log(sum), result.LogSumExp.Value[0], 1e-14);
        Assert.Equal(Math.Exp(0.25) / sum, result.SinkWeights[0], 1e-14);
    }

    [Theory]
    [InlineData(Causality.AlignedToEnd, 3, 5, new[] { 0b00111, 0b01111, 0b11111 })]
    [InlineData(Causality.AlignedToEnd, 4, 2, new[] { 0, 0, 0b01, 0b11 })]
    [InlineData(Causality.AlignedToStart, 3, 5, new[] { 0b00001, 0b00011, 0b00111 })]
    [InlineData(Causality.None, 2, 3, new[] { 0b111, 0b111 })]
    public void Causal_rows_see_the_keys_up_to_their_position(Causality causal, int queries, int keys, int[] seen)
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = queries, Keys = keys, Causal = causal });
        var result = problem.Reference();
        for (var i = 0; i < queries; i++)
        {
            Assert.Equal(seen[i], Enumerable.Range(0, keys).Sum(j => result.Weights[(i * keys) + j] > 0 ? 1 << j : 0));
            Assert.Equal(seen[i] == 0, double.IsNegativeInfinity(result.LogSumExp.Value[i]));
        }
    }

    [Fact]
    public void Weights_and_the_sink_sum_to_one_and_mass_is_their_sum() => ProblemSpec.Any(12, 20, 6).Where(spec => spec.Normalizer == Normalizer.Softmax).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            problem.WantStatistics();
            var result = problem.Reference();
            var mass = result.MassPerKey();
            Assert.Equal(result.Weights.Sum(), mass.Value.Sum(), 1e-9);
            for (var row = 0; row < result.LogSumExp.Value.Length; row++)
            {
                var sum = result.Weights.AsSpan(row * spec.Keys, spec.Keys).ToArray().Sum() + result.SinkWeights[row];
                Assert.Equal(double.IsNegativeInfinity(result.LogSumExp.Value[row]) ? 0 : 1, sum, 1e-12);
            }
        },
        iter: 100,
        threads: 1);

    [Fact]
    public void Gradients_are_the_differences_of_the_loss() => ProblemSpec.Any(5, 7, 3, halves: false).Where(spec => !spec.Modified).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Magnitude = 1 });
            AssertGradients(problem, step: 1e-5, tolerance: 1e-7);
        },
        iter: 60,
        threads: 1);

    [Fact]
    public void Gradients_pass_through_a_modifier()
    {
        // The modifier computes in float32: the step is wide enough for the differences to stand above its rounding.
        foreach (var normalizer in Enum.GetValues<Normalizer>())
        {
            using var problem = new AttentionProblem(new ProblemSpec { Modified = true, Queries = 3, Keys = 4, Width = 2, ValueWidth = 2, Normalizer = normalizer, Softcap = 5, Seed = 3 });
            AssertGradients(problem, step: 1.0 / 256, tolerance: 2e-4);
        }
    }

    private static void AssertGradients(AttentionProblem problem, double step, double tolerance)
    {
        problem.WantGradients();
        var inputs = new ReferenceInputs(problem.Arguments);
        var (outputGradient, logSumExpGradient) = problem.IncomingGradients();
        double Loss()
        {
            var result = problem.Spec switch
            {
                { Modified: true } => ReferenceAttention.Compute(inputs, default(WaveScore), default(AllPairs)),
                { Predicated: true } => ReferenceAttention.Compute(inputs, default(UnmodifiedScore), default(StripeMask)),
                _ => ReferenceAttention.Compute(inputs, default(UnmodifiedScore), default(AllPairs)),
            };
            var loss = result.Output.Value.Zip(outputGradient, (o, g) => o * g).Sum();
            return logSumExpGradient is null ? loss : loss + result.LogSumExp.Value.Zip(logSumExpGradient, (l, g) => double.IsNegativeInfinity(l) ? 0 : l * g).Sum();
        }

        void Check(double[]? numbers, Approximation gradient, string what)
        {
            // A dozen elements of each input are enough to catch a wrong formula.
            for (var i = 0; numbers is not null && i < numbers.Length; i += 1 + (numbers.Length / 12))
            {
                var original = numbers[i];
                if (double.IsInfinity(original))
                {
                    continue;
                }

                double At(double shift)
                {
                    numbers[i] = original + shift;
                    return Loss();
                }

                var slope = (At(step) - At(-step)) / (2 * step);
                numbers[i] = original;
                Assert.True(Math.Abs(slope - gradient.Value[i]) <= tolerance * (1 + Math.Abs(slope)), $"{what}[{i}]: {slope} by differences, {gradient.Value[i]} computed.");
            }
        }

        var expected = problem.ReferenceGradients(problem.Reference());
        Check(inputs.Query, expected.Query, "query");
        Check(inputs.Key, expected.Key, "key");
        Check(inputs.Value, expected.Value, "value");
        Check(inputs.Bias, expected.Bias, "bias");
        Check(inputs.KeyBias, expected.KeyBias, "key bias");
        Check(inputs.Sinks, expected.Sinks, "sinks");
        Check(inputs.AlibiSlopes, expected.AlibiSlopes, "slopes");
        Check(inputs.LowRankQuery, expected.LowRankQuery, "low-rank query");
        Check(inputs.LowRankKey, expected.LowRankKey, "low-rank key");
    }
}
