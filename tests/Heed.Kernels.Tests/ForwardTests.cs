using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The tiled forward pass against the reference, at every width of vectors.</summary>
public unsafe class ForwardTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Random_problems_agree_with_the_reference(int bits) => ProblemSpec.Any(60, 90, 24).Sample(spec => AssertAgrees(spec, bits), iter: 400, threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Small_problems_agree_with_the_reference(int bits) => ProblemSpec.Any(6, 9, 5).Sample(spec => AssertAgrees(spec, bits), iter: 1000, threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Long_problems_of_many_tiles_agree_with_the_reference(int bits) => ProblemSpec.Any(250, 900, 80).Sample(
        spec => AssertAgrees(spec with { Batch = 1, KeyHeads = 1, QueryBlock = spec.QueryBlock * 9, KeyBlock = spec.KeyBlock * 7 }, bits), iter: 25, threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Wide_heads_agree_with_the_reference(int bits) => ProblemSpec.Any(9, 40, 300).Sample(spec => AssertAgrees(spec, bits), iter: 60, threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void What_is_not_finite_reaches_the_rows_that_read_it_and_no_other(int bits) => ProblemSpec.Any(40, 90, 12, halves: false).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Softcap = 0, Rank = 0, Modified = false });
            var random = new Random(spec.Seed);
            foreach (var view in (TensorView[])[problem.Arguments.Query, problem.Arguments.Key, problem.Arguments.Value])
            {
                view.Row(random.Next(spec.Batch), random.Next(spec.KeyHeads), random.Next((int)view.Length))[random.Next((int)view.Width)] = float.NaN;
            }

            AssertAgrees(problem, bits);
        },
        iter: 300,
        threads: 1);

    [Fact]
    public void Number_of_threads_changes_no_bit() => ProblemSpec.Any(300, 500, 20).Sample(
        spec =>
        {
            float[]? expected = null;
            foreach (var threads in (int[])[1, 2, 3, 7])
            {
                using var problem = new AttentionProblem(spec with { Strided = false, Normalizer = Normalizer.Softmax });
                problem.Arguments.Threads = threads;
                problem.Forward();
                float[] actual = [.. new ReadOnlySpan<float>((float*)problem.Arguments.Output.Data, checked((int)(problem.LogSumExp.Length * spec.ValueWidth))), .. problem.LogSumExp];
                expected ??= actual;
                Assert.Equal(expected.Select(BitConverter.SingleToInt32Bits), actual.Select(BitConverter.SingleToInt32Bits));
            }
        },
        iter: 30,
        threads: 1);

    [Theory]
    [InlineData(0, 2, 3, 4)]
    [InlineData(2, 0, 3, 4)]
    [InlineData(2, 3, 0, 4)]
    [InlineData(2, 3, 4, 0)]
    public void Empty_dimensions_give_empty_or_zero_results(int heads, int queries, int keys, int width)
    {
        using var problem = new AttentionProblem(new ProblemSpec { KeyHeads = Math.Max(heads, 1), Queries = Math.Max(queries, 1), Keys = Math.Max(keys, 1), Width = Math.Max(width, 1) });
        ref var a = ref problem.Arguments;
        a.Query = a.Query with { Heads = heads, Length = queries, Width = width };
        a.Key = a.Key with { Heads = heads, Length = keys, Width = width, Data = keys == 0 ? 0 : a.Key.Data };
        a.Value = a.Value with { Heads = heads, Length = keys, Data = keys == 0 ? 0 : a.Value.Data };
        a.Output = a.Output with { Heads = heads, Length = queries };
        FusedAttention.Forward(a);
        for (var row = 0; row < heads * queries; row++)
        {
            Assert.Equal(keys == 0 ? float.NegativeInfinity : width == 0 ? MathF.Log(keys) : a.LogSumExp[row], a.LogSumExp[row], 1e-6f);
            Assert.False(float.IsNaN(a.LogSumExp[row]));
            for (var d = 0; d < 4; d++)
            {
                Assert.True(keys == 0 ? a.Output.Row(0, row / queries, row % queries)[d] == 0 : float.IsFinite(a.Output.Row(0, row / queries, row % queries)[d]));
            }
        }

        problem.AssertNothingElseWritten();
    }

    [Fact]
    public void A_value_that_is_far_below_all_others_still_counts_where_it_is_alone()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 7, Keys = 300, Bias = Repeats.None });
        new Span<float>((float*)problem.Arguments.Bias.Data, 7 * 300).Fill(float.MinValue);
        AssertAgrees(problem, 512);
    }

    private static void AssertAgrees(ProblemSpec spec, int bits)
    {
        using var problem = new AttentionProblem(spec);
        AssertAgrees(problem, bits);
    }

    private static void AssertAgrees(AttentionProblem problem, int bits)
    {
        problem.Call(new ForwardAtWidth(bits));
        var expected = problem.Reference();
        expected.Output.AssertClose(problem.Arguments.Output, "output");
        if (problem.Arguments.LogSumExp != null)
        {
            expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
        }

        problem.AssertNothingElseWritten();
    }

    [Fact]
    public unsafe void Heads_that_are_packed_in_several_waves_give_what_each_gives_alone()
    {
        const int Heads = 40, Queries = 17, Keys = 65_536, Width = 8;
        var random = new Random(3);
        var (query, key) = (Normals(Heads * Queries * Width), Normals(Keys * Width));
        var (together, alone) = (new float[query.Length], new float[query.Length]);
        fixed (float* q = query, k = key, all = together, one = alone)
        {
            // All heads share their keys, which also serve as values: what is packed is large, what is read small.
            var keys = (nint)k;
            TensorView Shared(int heads) => new(keys, 1, heads, Keys, Width, 0, 0, Width);
            FusedAttention.Forward(new AttentionArguments(new(q, 1, Heads, Queries, Width), Shared(Heads), Shared(Heads), new(all, 1, Heads, Queries, Width)));
            for (var head = 0; head < Heads; head++)
            {
                var at = head * Queries * Width;
                FusedAttention.Forward(new AttentionArguments(new(q + at, 1, 1, Queries, Width), Shared(1), Shared(1), new(one + at, 1, 1, Queries, Width)));
            }
        }

        Assert.Equal(alone, together);

        float[] Normals(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)((random.NextDouble() * 4) - 2))];
    }
}
