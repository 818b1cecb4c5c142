using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Queries that were picked out of longer rows and say where they stand.</summary>
public sealed unsafe class QueryPositionsTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void The_forward_pass_agrees_with_the_reference(int bits) => Any(40, 70, 20).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            problem.Call(new ForwardAtWidth(bits));
            AssertAgrees(problem);
        },
        iter: 200,
        threads: 1);

    [Theory]
    [InlineData(3, 400)]
    [InlineData(200, 500)]
    public void Few_and_many_queries_agree_with_the_reference(int queries, int keys) => Any(queries, keys, 24).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Batch = 1, QueryBlock = spec.QueryBlock * 5, KeyBlock = spec.KeyBlock * 5 });
            problem.Arguments.Threads = 1 + (spec.Seed % 3);
            problem.Forward();
            AssertAgrees(problem);
        },
        iter: 30,
        threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Gradients_agree_with_the_reference(int bits) => Any(50, 80, 20).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec);
            problem.WantGradients();
            problem.Arguments.Threads = 1 + (spec.Seed % 3);
            problem.Forward();
            problem.Call(new BackwardAtWidth(bits));
            problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
            problem.AssertNothingElseWritten();
        },
        iter: 120,
        threads: 1);

    [Fact]
    public void Positions_side_by_side_change_no_bit()
    {
        foreach (var spec in new[] { new ProblemSpec { Queries = 90, Keys = 120, Width = 16, Causal = Causality.AlignedToEnd }, new() { Queries = 3, Keys = 200, Causal = Causality.AlignedToEnd, WindowBefore = 50 } })
        {
            using var own = new AttentionProblem(spec);
            using var given = new AttentionProblem(spec);
            own.Forward();
            fixed (long* positions = Enumerable.Range(spec.Keys - spec.Queries, spec.Queries).Select(position => (long)position).ToArray())
            {
                given.Arguments.QueryPositions = positions;
                given.Forward();
            }

            for (var query = 0; query < spec.Queries; query++)
            {
                Assert.Equal(new Span<float>(own.Arguments.Output.Row(0, 0, query), spec.ValueWidth), new Span<float>(given.Arguments.Output.Row(0, 0, query), spec.ValueWidth));
            }
        }
    }

    [Fact]
    public void What_they_do_not_combine_with_is_refused()
    {
        Refused("Positions of queries and ALiBi slopes", [0, 1, 2, 3, 4], problem => problem.Arguments.AlibiSlopes = problem.Floats(1));
        Refused("Positions of queries and the mean distance", [0, 1, 2, 3, 4], problem => problem.Arguments.Statistics.MeanDistance = problem.Floats(5));
        Refused("1 comes after 2", [0, 2, 1, 3, 4], _ => { });
        Refused("lie from 0 to 7", [0, 2, 3, 3, 8], _ => { });
        Refused("lie from 0 to 7", [-1, 2, 3, 3, 4], _ => { });
    }

    private static Gen<ProblemSpec> Any(int queries, int keys, int width) => ProblemSpec.Any(queries, keys, width).Select(spec => spec with { Positions = true, Alibi = false });

    private static void AssertAgrees(AttentionProblem problem)
    {
        var expected = problem.Reference();
        expected.Output.AssertClose(problem.Arguments.Output, "output");
        if (problem.Arguments.LogSumExp != null)
        {
            expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
        }

        problem.AssertNothingElseWritten();
    }

    private static void Refused(string words, long[] positions, Action<AttentionProblem> change)
    {
        using var problem = new AttentionProblem(new ProblemSpec());
        fixed (long* given = positions)
        {
            problem.Arguments.QueryPositions = given;
            change(problem);
            Assert.Contains(words, Assert.ThrowsAny<ArgumentException>(() => FusedAttention.Forward(problem.Arguments)).Message, StringComparison.Ordinal);
        }

        Assert.True(float.IsNaN(*problem.Arguments.Output.Row(0, 0, 0)));
    }
}
