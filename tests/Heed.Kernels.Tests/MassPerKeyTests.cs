using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public sealed unsafe class MassPerKeyTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Mass_of_any_problem_agrees_with_the_reference(int bits) => ProblemSpec.Any().Sample(spec => AssertAgrees(spec, bits),
        iter: 200);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Mass_agrees_across_tiles(int bits) =>
        ProblemSpec.Any(160, 600, 90).Sample(spec =>
            AssertAgrees(spec with { Batch = 1, KeyHeads = 1, QueryBlock = 9 * spec.QueryBlock, KeyBlock = 7 * spec.KeyBlock }, bits),
                iter: 15);

    [Fact]
    public void Mass_agrees_across_splits() => AssertAgrees(Long, 512);

    [Fact]
    public void Mass_is_the_same_bits_for_any_number_of_threads()
    {
        using var problem = new AttentionProblem(Long);
        problem.Forward();
        problem.Arguments.Threads = 1;
        var expected = problem.MassPerKey();
        foreach (var threads in new[] { 2, 3, 7 })
        {
            problem.Arguments.Threads = threads;
            Assert.Equal(expected, problem.MassPerKey());
        }
    }

    [Fact]
    public void Mass_of_a_row_that_is_not_a_number_reaches_its_keys_only()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 7, Keys = 7, Causal = Causality.AlignedToEnd });
        problem.Arguments.Query.Row(0, 0, 2)[1] = float.NaN;
        problem.Forward();
        Assert.Equal([true, true, true, false, false, false, false], problem.MassPerKey().Select(float.IsNaN));
    }

    [Fact]
    public void Keys_that_no_query_sees_have_no_mass()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 3, Keys = 5, Causal = Causality.AlignedToStart });
        problem.Forward();
        Assert.Equal([0f, 0f], problem.MassPerKey()[3..]);
    }

    [Theory]
    [InlineData(0, 7, 4)]
    [InlineData(5, 0, 4)]
    [InlineData(5, 7, 0)]
    public void Sizes_of_zero_are_no_error(int queries, int keys, int width) =>
        AssertAgrees(new ProblemSpec { Queries = queries, Keys = keys, Width = width }, 512);

    [Fact]
    public void Values_are_not_read()
    {
        using var problem = new AttentionProblem(new ProblemSpec());
        problem.Forward();
        var expected = problem.MassPerKey();
        (problem.Arguments.Value, problem.Arguments.Output) = (default, default);
        Assert.Equal(expected, problem.MassPerKey());
    }

    [Fact]
    public void Refusals_say_what_was_expected()
    {
        using var problem = new AttentionProblem(new ProblemSpec());
        Assert.Contains("needs a place for [1, 1, 7] numbers", Assert.Throws<ArgumentNullException>(() =>
            FusedAttention.MassPerKey(problem.Arguments, null)).Message);
        problem.Arguments.LogSumExp = null;
        Assert.Contains("is found from the log-sum-exp", Assert.Throws<ArgumentException>(problem.MassPerKey).Message);
    }

    private static ProblemSpec Long => new() { Queries = 2200, Keys = 25, Width = 6, Group = 2, Seed = 5, Alibi = true };

    private static void AssertAgrees(ProblemSpec spec, int bits)
    {
        using var problem = new AttentionProblem(spec);
        problem.Arguments.Threads = 1 + (spec.Seed % 3);
        problem.Forward();
        problem.Reference().MassPerKey().AssertClose(problem.Call(new MassAtWidth(bits)), "mass");
    }

    /// <summary>The half-pass at a chosen width of vectors, whatever the hardware prefers.</summary>
    private sealed class MassAtWidth(int bits) : IProblemCall<float[]>
    {
        public float[] Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate
        {
            var count = problem.Arguments.Query.Batch * problem.Arguments.Query.Heads * problem.Arguments.Key.Length;
            var mass = problem.Floats(count);
            switch (bits)
            {
                case 128:
                    MassPerKeyPass.Compute<Vector128<float>, Vector128Operations, TScore, TMask>(problem.Arguments, mass, modifier,
                        predicate);
                    break;
                case 256:
                    MassPerKeyPass.Compute<Vector256<float>, Vector256Operations, TScore, TMask>(problem.Arguments, mass, modifier,
                        predicate);
                    break;
                default:
                    MassPerKeyPass.Compute<Vector512<float>, Vector512Operations, TScore, TMask>(problem.Arguments, mass, modifier,
                        predicate);
                    break;
            }

            return new Span<float>(mass, (int)count).ToArray();
        }
    }
}
