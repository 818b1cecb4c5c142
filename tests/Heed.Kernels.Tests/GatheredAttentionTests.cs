using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Keys that are gathered, of key runs and of block masks with few keys a block, against the reference: blocks of many rows, several tiles of columns, single rows.</summary>
public unsafe class GatheredAttentionTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Runs_of_large_blocks_agree_with_the_reference(int bits) => Gathered(ProblemSpec.Any(260, 900, 80)).Sample(
        spec => AssertForward(spec with { Batch = 1, KeyHeads = 1, Runs = true, KeyBlock = 1 + (spec.KeyBlock / 3) }, bits), iter: 20, threads: 1);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Blocks_of_few_keys_agree_with_the_reference(int bits) => Gathered(ProblemSpec.Any(200, 600, 40)).Sample(
        spec => AssertForward(spec with { Batch = 1, KeyHeads = 1, Runs = false, Bits = false, KeyBlock = 1 + (spec.KeyBlock / 3) }, bits), iter: 20, threads: 1);

    /// <summary>Runs of neighbouring queries overlap in every way: whole, in part, side by side.</summary>
    [Theory]
    [MemberData(nameof(Widths))]
    public void Runs_of_single_queries_agree_with_the_reference(int bits) => Gathered(ProblemSpec.Any(150, 300, 40)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Batch = 1, KeyHeads = 1, Runs = true, QueryBlock = 1, Density = Math.Sqrt(spec.Density), KeyBlock = 4 * spec.KeyBlock });
            problem.WantGradients();
            problem.Call(new ForwardAtWidth(bits));
            problem.Call(new BackwardAtWidth(bits));
            var expected = problem.Reference();
            expected.Output.AssertClose(problem.Arguments.Output, "output");
            problem.AssertGradients(problem.ReferenceGradients(expected));
            problem.AssertNothingElseWritten();
        },
        iter: 25,
        threads: 1);

    [Fact]
    public void A_window_and_a_block_that_single_queries_share_agree_with_the_reference()
    {
        // Query i of 200 reads keys i to i + 40 and, in groups of 25, fifty keys that stay.
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 200, Keys = 700, Width = 8, ValueWidth = 8, KeyHeads = 2, Group = 2, Causal = Causality.AlignedToEnd });
        int[] first = [.. Enumerable.Range(0, 200).SelectMany(query => (int[])[query, 250 + (query / 25 * 40)])];
        int[] counts = [.. Enumerable.Range(0, 400).Select(i => i % 2 == 0 ? 41 : 50)];
        problem.Arguments.KeyRuns = new KeyRuns(1, 1, 200, 700, 1, [.. Enumerable.Range(0, 201).Select(query => 2 * query)], first, counts);
        problem.WantGradients();
        problem.Forward();
        problem.Backward();
        var expected = problem.Reference();
        expected.Output.AssertClose(problem.Arguments.Output, "output");
        expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
        problem.AssertGradients(problem.ReferenceGradients(expected));
    }

    [Theory]
    [MemberData(nameof(Widths))]
    public void Gradients_of_large_blocks_agree_with_the_reference(int bits) => Gathered(ProblemSpec.Any(170, 400, 70)).Sample(
        spec =>
        {
            using var problem = new AttentionProblem(spec with { Batch = 1, KeyHeads = 1, Bits = false, KeyBlock = 1 + (spec.KeyBlock / 3) });
            problem.WantGradients();
            problem.Forward();
            problem.Call(new BackwardAtWidth(bits));
            problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
            problem.AssertNothingElseWritten();
        },
        iter: 15,
        threads: 1);

    [Theory]
    [InlineData(ElementType.Float32, 64)]
    [InlineData(ElementType.Float16, 64)]
    [InlineData(ElementType.BFloat16, 128)]
    [InlineData(ElementType.Float16, 40)]
    public void One_query_over_runs_of_a_long_cache_agrees_with_the_reference(ElementType type, int width)
    {
        foreach (var (runs, bias) in new[] { (true, (Repeats?)null), (true, Repeats.Batch), (false, null) })
        {
            using var problem = new AttentionProblem(new ProblemSpec
            {
                Seed = width, Batch = 2, KeyHeads = 2, Group = 4, Queries = 1, Keys = 4000, Width = width, ValueWidth = width, KeyType = type, ValueType = type,
                QueryBlock = 1, KeyBlock = runs ? 4 : 64, Density = 0.2, Runs = runs, OwnLists = true, Sinks = true, Lengths = true, KeyBias = bias, BiasMasks = bias is not null,
            });
            problem.Arguments.QueryLengths = null;
            problem.Forward();
            var expected = problem.Reference();
            expected.Output.AssertClose(problem.Arguments.Output, "output");
            expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
            problem.AssertNothingElseWritten();
        }
    }

    [Fact]
    public void Number_of_threads_changes_no_bit() => Gathered(ProblemSpec.Any(300, 500, 20)).Sample(
        spec =>
        {
            int[]? expected = null;
            foreach (var threads in (int[])[1, 2, 3, 7])
            {
                using var problem = new AttentionProblem(spec with { Strided = false, Normalizer = Normalizer.Softmax, Runs = true });
                problem.WantGradients();
                problem.Arguments.Threads = threads;
                problem.Forward();
                problem.Backward();
                float[] output = [.. new ReadOnlySpan<float>((float*)problem.Arguments.Output.Data, checked((int)(problem.LogSumExp.Length * spec.ValueWidth))), .. problem.LogSumExp];
                var g = problem.Gradients;
                double[] gradients = [.. ReferenceInputs.Read(g.Query), .. ReferenceInputs.Read(g.Key), .. ReferenceInputs.Read(g.Value)];
                int[] actual = [.. output.Select(BitConverter.SingleToInt32Bits), .. gradients.Select(value => BitConverter.SingleToInt32Bits((float)value))];
                expected ??= actual;
                Assert.Equal(expected, actual);
            }
        },
        iter: 15,
        threads: 1);

    [Fact]
    public void Keys_outside_the_runs_are_never_read()
    {
        // Query i of a block of four reads keys 2i and 2i + 1 and, with all others, key 20; everything else is not a number.
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 8, Keys = 30, Width = 16, ValueWidth = 16 });
        ref var a = ref problem.Arguments;
        a.KeyRuns = new KeyRuns(1, 1, 8, 30, 4, [0, 5, 10], [0, 2, 4, 6, 20, 0, 2, 4, 6, 20], [2, 2, 2, 2, 1, 2, 2, 2, 2, 1], [0, 1, 2, 3, 0, 0, 1, 2, 3, 0], [1, 1, 1, 1, 4, 1, 1, 1, 1, 4]);
        for (var key = 8; key < 30; key++)
        {
            if (key != 20)
            {
                new Span<float>(a.Key.Row(0, 0, key), 16).Fill(float.NaN);
                new Span<float>(a.Value.Row(0, 0, key), 16).Fill(float.PositiveInfinity);
            }
        }

        // One row alone reads a value that is not finite.
        a.Value.Row(0, 0, 3)[0] = float.NaN;
        problem.WantGradients();
        problem.Forward();
        problem.Backward();
        var expected = problem.Reference();
        expected.Output.AssertClose(a.Output, "output");
        problem.AssertGradients(problem.ReferenceGradients(expected));
        Assert.Equal([1, 5], Enumerable.Range(0, 8).Where(row => float.IsNaN(problem.Arguments.Output.Row(0, 0, row)[0])));
    }

    [Fact]
    public void Empty_runs_give_zeros_and_no_log_sum_exp()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 9, Keys = 30, Sinks = true });
        problem.Arguments.KeyRuns = new KeyRuns(1, 1, 9, 30, 4, [0, 0, 0, 0], [], []);
        problem.WantGradients();
        problem.Forward();
        problem.Backward();
        Assert.Equal(new float[9 * 4], new ReadOnlySpan<float>((float*)problem.Arguments.Output.Data, 9 * 4));
        Assert.All(problem.LogSumExp.ToArray(), value => Assert.Equal(float.NegativeInfinity, value));
        problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
    }

    /// <summary>Problems with key runs or whole blocks of keys, in blocks of up to 120 queries, that no modifier or predicate sends another way.</summary>
    private static Gen<ProblemSpec> Gathered(Gen<ProblemSpec> any) => any.Select(spec => spec with
    {
        QueryBlock = spec.QueryBlock == 0 ? 1 : 10 * spec.QueryBlock, Partial = spec.Partial && spec.Runs, Modified = false, Predicated = false,
    });

    private static void AssertForward(ProblemSpec spec, int bits)
    {
        using var problem = new AttentionProblem(spec);
        problem.Call(new ForwardAtWidth(bits));
        var expected = problem.Reference();
        expected.Output.AssertClose(problem.Arguments.Output, "output");
        if (problem.Arguments.LogSumExp != null)
        {
            expected.LogSumExp.AssertClose(problem.LogSumExp, "log-sum-exp");
        }

        problem.AssertNothingElseWritten();
    }
}
