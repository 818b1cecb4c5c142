using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The decoding kernel against the oracle; that calls reach it is <see cref="Calls_of_other_kinds_are_left_alone"/>.</summary>
public unsafe class DecodingAttentionTests
{
    [Fact]
    public void Random_problems_agree_with_the_reference() => Decodable(ProblemSpec.Any(16, 700, 70)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
            AssertAgrees(problem, problem.Reference());
        },
        iter: 300,
        threads: 1);

    [Fact]
    public void Small_problems_agree_with_the_reference() => Decodable(ProblemSpec.Any(4, 12, 20)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
            AssertAgrees(problem, problem.Reference());
        },
        iter: 1000,
        threads: 1);

    [Fact]
    public void Number_of_threads_changes_no_bit() => Decodable(ProblemSpec.Any(16, 3000, 40)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Strided = false });
            var count = (int)(problem.Arguments.Query.Batch * problem.Arguments.Query.Heads * spec.Queries * spec.ValueWidth);
            float[]? expected = null;
            foreach (var threads in (int[])[1, 2, 3, 7])
            {
                problem.Arguments.Threads = threads;
                DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
                float[] actual = [.. new ReadOnlySpan<float>((float*)problem.Arguments.Output.Data, count), .. problem.LogSumExp];
                expected ??= actual;
                Assert.Equal(expected.Select(BitConverter.SingleToInt32Bits), actual.Select(BitConverter.SingleToInt32Bits));
            }
        },
        iter: 30,
        threads: 1);

    [Fact]
    public void A_masked_key_or_value_that_is_not_finite_reaches_no_row() => Decodable(ProblemSpec.Any(8, 300, 40, halves: false)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { BiasMasks = true });
            var random = new Random(spec.Seed);
            var (key, value) = (problem.Arguments.Key, problem.Arguments.Value);
            for (var n = 0; n < 3; n++)
            {
                key.Row(random.Next(spec.Batch), random.Next(spec.KeyHeads), random.Next(spec.Keys))[random.Next(spec.Width)] = float.NaN;
                value.Row(random.Next(spec.Batch), random.Next(spec.KeyHeads), random.Next(spec.Keys))[random.Next(spec.ValueWidth)] = float.NaN;
            }

            DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
            AssertAgrees(problem, problem.Reference());
        },
        iter: 200,
        threads: 1);

    [Theory]
    [InlineData(1, 8, 64)]
    [InlineData(4, 2, 128)]
    public void Long_caches_agree_with_the_reference(int group, int keyHeads, int width)
    {
        using var problem = new AttentionProblem(new ProblemSpec
        {
            Group = group, KeyHeads = keyHeads, Queries = 1, Keys = 9000, Width = width, ValueWidth = width, Causal = Causality.AlignedToEnd, Sinks = true, Seed = 5,
        });
        problem.Arguments.Threads = 2;
        DecodingLoop.Compute(new CheckedProblem(problem.Arguments));
        AssertAgrees(problem, problem.Reference());
    }

    [Fact]
    public void Calls_of_other_kinds_are_left_alone()
    {
        ProblemSpec[] others =
        [
            new() { Queries = 17, Keys = 2000 },
            new() { Queries = 9, Keys = 500 },
            new() { QueryBlock = 4 },
            new() { Rank = 2 },
            new() { Sequences = 2 },
            new() { Normalizer = Normalizer.Sigmoid },
        ];
        foreach (var spec in others)
        {
            using var problem = new AttentionProblem(spec);
            Assert.False(Takes<UnmodifiedScore, AllPairs>(problem));
            Assert.True(float.IsNaN(*problem.Arguments.Output.Row(0, 0, 0)));
        }

        using var many = new AttentionProblem(new ProblemSpec { Queries = 16, Keys = 2000 });
        Assert.True(Takes<UnmodifiedScore, AllPairs>(many));
        using var plain = new AttentionProblem(new ProblemSpec());
        Assert.True(Takes<UnmodifiedScore, AllPairs>(plain));
        Assert.False(Takes<WaveScore, AllPairs>(plain));
        Assert.False(Takes<UnmodifiedScore, StripeMask>(plain));
    }

    private static bool Takes<TScore, TMask>(AttentionProblem problem)
        where TScore : struct, IScoreModifier
        where TMask : struct, IMaskPredicate => DecodingAttention.TryForward<TScore, TMask>(new CheckedProblem(problem.Arguments));

    private static Gen<ProblemSpec> Decodable(Gen<ProblemSpec> any) =>
        any.Select(spec => spec with { Normalizer = Normalizer.Softmax, QueryBlock = 0, Rank = 0, Sequences = 0, Modified = false, Predicated = false });

    private static void AssertAgrees(AttentionProblem problem, ReferenceAttention expected)
    {
        expected.Output.AssertClose(problem.Arguments.Output, "output");
        expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
        problem.AssertNothingElseWritten();
    }
}
