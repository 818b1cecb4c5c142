using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Row statistics of the tiled forward pass against the reference, at every width of vectors.</summary>
public unsafe class ForwardStatisticsTests
{
    [Theory]
    [InlineData(128)]
    [InlineData(256)]
    [InlineData(512)]
    public void Statistics_of_random_problems_agree_with_the_reference(int bits) => ProblemSpec.Any(40, 120, 12).Sample(
        spec =>
        {
            spec = spec with { Normalizer = Normalizer.Softmax };
            using var problem = new AttentionProblem(spec);
            problem.WantStatistics(1 + (spec.Seed % 9));
            problem.Call(new ForwardAtWidth(bits));
            var expected = problem.Reference();
            expected.Output.AssertClose(problem.Arguments.Output, "output");
            expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
            problem.AssertStatistics(expected.Statistics());
        },
        iter: 400,
        threads: 1);

    [Fact]
    public void Statistics_over_many_tiles_agree_with_the_reference() => ProblemSpec.Any(30, 900, 12).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Normalizer = Normalizer.Softmax, Batch = 1, KeyBlock = spec.KeyBlock * 8 });
            problem.WantStatistics(64);
            problem.Call(new ForwardAtWidth(512));
            problem.AssertStatistics(problem.Reference().Statistics());
        },
        iter: 40,
        threads: 1);

    [Fact]
    public void Each_statistic_can_be_asked_for_alone()
    {
        using var all = new AttentionProblem(new ProblemSpec { Queries = 20, Keys = 30, Seed = 3 });
        all.WantStatistics(2);
        all.Forward();
        var s = all.Arguments.Statistics;
        for (var which = 0; which < 6; which++)
        {
            using var one = new AttentionProblem(new ProblemSpec { Queries = 20, Keys = 30, Seed = 3 });
            ref var wanted = ref one.Arguments.Statistics;
            var memory = one.Floats(40);
            var expected = s.Entropy;
            switch (which)
            {
                case 0:
                    wanted.Entropy = memory;
                    break;
                case 1:
                    wanted.Maximum = memory;
                    expected = s.Maximum;
                    break;
                case 2:
                    wanted.MaximumKey = (int*)memory;
                    expected = (float*)s.MaximumKey;
                    break;
                case 3:
                    wanted.MeanDistance = memory;
                    expected = s.MeanDistance;
                    break;
                case 4:
                    wanted.SetMass = memory;
                    wanted.KeySet = s.KeySet;
                    expected = s.SetMass;
                    break;
                default:
                    wanted.TopCount = 2;
                    wanted.TopWeights = memory;
                    wanted.TopKeys = (int*)one.Floats(40);
                    expected = s.TopWeights;
                    break;
            }

            one.Forward();
            var count = which == 5 ? 40 : 20;
            Assert.Equal(new ReadOnlySpan<int>((int*)expected, count).ToArray(), new ReadOnlySpan<int>((int*)memory, count).ToArray());
        }
    }

    [Fact]
    public void The_first_of_equal_weights_is_the_largest_and_lists_are_in_the_order_of_keys()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 18, Keys = 40, Causal = Causality.AlignedToEnd });
        problem.Arguments.Scale = 0;
        problem.WantStatistics(4);
        problem.Forward();
        for (var row = 0; row < 18; row++)
        {
            Assert.Equal(0, problem.Arguments.Statistics.MaximumKey[row]);
            Assert.Equal([0, 1, 2, 3], new ReadOnlySpan<int>(problem.Arguments.Statistics.TopKeys + (row * 4), 4).ToArray());
            Assert.Equal(MathF.Log(row + 23), problem.Arguments.Statistics.Entropy[row], 1e-5f);
        }
    }
}
