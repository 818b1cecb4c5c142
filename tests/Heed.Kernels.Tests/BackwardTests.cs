using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public sealed unsafe class BackwardTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Gradients_of_any_problem_agree_with_the_reference(int bits) => ProblemSpec.Any().Sample(spec => AssertAgrees(spec, bits),
        iter: 200);

    /// <summary>Several blocks of queries and tiles of keys, with heads wide enough for several panels of columns.</summary>
    [Theory]
    [MemberData(nameof(Widths))]
    public void Gradients_agree_across_tiles(int bits) =>
        ProblemSpec.Any(160, 300, 90).Sample(spec =>
            AssertAgrees(spec with { Batch = 1, KeyHeads = 1, QueryBlock = 9 * spec.QueryBlock, KeyBlock = 7 * spec.KeyBlock }, bits),
                iter: 15);

    /// <summary>Long enough for the blocks of queries to be split among units, and for several to share an accumulator.</summary>
    [Theory]
    [InlineData(0, null)]
    [InlineData(0, Repeats.None)]
    [InlineData(0, Repeats.Heads)]
    [InlineData(2, Repeats.Batch | Repeats.Heads)]
    [InlineData(2, Repeats.Queries)]
    [InlineData(0, Repeats.Keys)]
    public void Gradients_agree_across_splits(int rank, object? bias) =>
        AssertAgrees(Long with { Rank = rank, Bias = (Repeats?)bias, Alibi = true, Sinks = true, KeyBias = Repeats.Heads });

    [Theory]
    [InlineData(Causality.None)]
    [InlineData(Causality.AlignedToEnd)]
    public void Gradients_are_the_same_bits_for_any_number_of_threads(Causality causal)
    {
        foreach (var spec in new[]
        {
            Long with { Causal = causal },
            Long with { Causal = causal, Group = 3, Bias = Repeats.Heads, Alibi = true, Sinks = true, KeyBias = Repeats.Batch },
            Long with { Causal = causal, Batch = 3, Queries = 70, Keys = 90, KeyHeads = 3, Group = 2, Bias = Repeats.Batch, Rank = 2 },
            Long with { Causal = causal, Batch = 2, Queries = 300, Bias = Repeats.Batch | Repeats.Heads, Lengths = true },
            Long with { Causal = causal, Sequences = 4, QueryBlock = 40, KeyBlock = 16 },
        })
        {
            var expected = BitsWith(spec, 1);
            foreach (var threads in new[] { 2, 3, 7 })
            {
                Assert.Equal(expected, BitsWith(spec, threads));
            }
        }
    }

    /// <summary>A pair outside the mask is absent: NaN there reaches no gradient, and NaN inside reaches those that the plain formula
    /// gives.</summary>
    [Fact]
    public void Not_a_number_stays_where_the_formula_puts_it() =>
        Gen.Select(ProblemSpec.Any(20, 30, 20, halves: false), Gen.Int[0, 3], Gen.Int[0, 1 << 20]).Sample(
        (spec, place, index) =>
        {
            using var problem = new AttentionProblem(spec);
            problem.WantGradients();
            var view = place switch { 0 => problem.Arguments.Query, 1 => problem.Arguments.Key, 2 => problem.Arguments.Value, _ =>
                problem.Gradients.Output };
            view.Row(index % view.Batch, index / 3 % view.Heads, index / 9 % view.Length)[index / 400 % view.Width] = float.NaN;
            problem.Forward();
            problem.Backward();
            problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
        },
        iter: 300);

    [Fact]
    public void Rows_and_keys_without_pairs_have_zero_gradients()
    {
        var spec = new ProblemSpec { Queries = 9, Keys = 5, Causal = Causality.AlignedToEnd, Sinks = true, Bias = Repeats.None,
            Alibi = true };
        using var problem = new AttentionProblem(spec);
        problem.WantGradients();
        problem.Forward();
        problem.Backward();

        // The last of nine queries stands at the last of five keys: the first four queries see nothing.
        Assert.Equal(new float[4 * spec.Width], new ReadOnlySpan<float>(problem.Gradients.Query.Row(0, 0, 0), 4 * spec.Width));
        Assert.Equal(new float[4 * spec.Keys], new ReadOnlySpan<float>((float*)problem.Gradients.Bias.Data, 4 * spec.Keys));
        problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
    }

    [Theory]
    [InlineData(0, 7, 4, 4)]
    [InlineData(5, 0, 4, 4)]
    [InlineData(5, 7, 0, 4)]
    [InlineData(5, 7, 4, 0)]
    [InlineData(0, 0, 0, 0)]
    public void Sizes_of_zero_give_zero_gradients(int queries, int keys, int width, int valueWidth)
    {
        var spec = new ProblemSpec { Queries = queries, Keys = keys, Width = width, ValueWidth = valueWidth, Sinks = true,
            KeyBias = Repeats.Batch, Alibi = true };
        AssertAgrees(spec);
    }

    [Fact]
    public void No_batch_items_give_zero_gradients_of_what_the_batch_shares()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Bias = Repeats.Batch, Alibi = true });
        problem.WantGradients();
        problem.Arguments.Query = problem.Arguments.Query with { Batch = 0 };
        problem.Arguments.Key = problem.Arguments.Key with { Batch = 0 };
        problem.Arguments.Value = problem.Arguments.Value with { Batch = 0 };
        problem.Arguments.Output = problem.Arguments.Output with { Batch = 0 };
        problem.Gradients = new AttentionGradients
        {
            Output = problem.Gradients.Output with { Batch = 0 },
            Bias = problem.Gradients.Bias,
            AlibiSlopes = problem.Gradients.AlibiSlopes,
        };
        problem.Backward();
        Assert.Equal(new float[5 * 7], new ReadOnlySpan<float>((float*)problem.Gradients.Bias.Data, 5 * 7));
        Assert.Equal(0, problem.Gradients.AlibiSlopes[0]);
    }

    /// <summary>Leaving gradients out changes nothing in the others.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void Each_gradient_can_be_had_alone(int which)
    {
        var spec = new ProblemSpec { Queries = 150, Keys = 300, Width = 20, ValueWidth = 12, Causal = Causality.AlignedToEnd,
            KeyBias = Repeats.None };
        using var all = new AttentionProblem(spec);
        all.WantGradients();
        all.Forward();
        all.Backward();
        using var one = new AttentionProblem(spec);
        one.WantGradients();
        one.Forward();
        var wanted = one.Gradients;
        one.Gradients = new AttentionGradients { Output = wanted.Output, LogSumExp = wanted.LogSumExp };
        _ = which switch
        {
            0 => one.Gradients.Query = wanted.Query,
            1 => one.Gradients.Key = wanted.Key,
            _ => one.Gradients.Value = wanted.Value,
        };
        one.Backward();
        var (expected, actual) = which switch
        {
            0 => (all.Gradients.Query, wanted.Query),
            1 => (all.Gradients.Key, wanted.Key),
            _ => (all.Gradients.Value, wanted.Value),
        };
        Assert.Equal(ReferenceInputs.Read(expected), ReferenceInputs.Read(actual));
    }

    [Fact]
    public void Refusals_say_what_was_expected()
    {
        AssertRefused((ref AttentionArguments a, ref AttentionGradients _) => a.LogSumExp = null, "reads the output and the log-sum-exp");
        AssertRefused((ref AttentionArguments _, ref AttentionGradients g) => g.Output = default, "set Output of the gradients");
        AssertRefused((ref AttentionArguments _, ref AttentionGradients g) =>
            g.Key = g.Key with { Length = 6 }, "The key gradient must be [1, 1, 7, 4] but is [1, 1, 6, 4].");
        AssertRefused((ref AttentionArguments _, ref AttentionGradients g) =>
            g.Query = g.Query with { Type = ElementType.Float16 }, "must be float32 but is Float16");
        AssertRefused((ref AttentionArguments _, ref AttentionGradients g) =>
            g.Value = g.Value with { RowStride = 0 }, "must not share memory");
        AssertRefused((ref AttentionArguments a, ref AttentionGradients g) => g.Sinks = a.LogSumExp, "the problem has no sinks");
        AssertRefused((ref AttentionArguments a, ref AttentionGradients g) => g.AlibiSlopes = a.LogSumExp, "the problem has no slopes");
        AssertRefused((ref AttentionArguments a, ref AttentionGradients g) =>
            g.Bias = new((nint)a.LogSumExp, 0, 0, 7, 1), "the dense bias is asked for, but the problem has none");
        AssertRefused((ref AttentionArguments a, ref AttentionGradients g) =>
            g.KeyBias = a.KeyBias with { HeadStride = 3 }, "needs the strides of the bias");
        AssertRefused((ref AttentionArguments _, ref AttentionGradients g) =>
            g.LowRankKey = g.Key with { Width = 0 }, "the problem has no low-rank bias");
        AssertRefused(
            (ref AttentionArguments a, ref AttentionGradients g) =>
            {
                g.LogSumExp = a.LogSumExp;
                a.LogSumExp = null;
                a.Normalizer = Normalizer.Sigmoid;
            },
            "Only a softmax has a log-sum-exp");
    }

    private delegate void Spoil(ref AttentionArguments arguments, ref AttentionGradients gradients);

    private static ProblemSpec Long => new() { Queries = 2200, Keys = 25, Width = 6, ValueWidth = 5, Batch = 1, KeyHeads = 1, Group = 2,
        Seed = 5 };

    private static void AssertRefused(Spoil spoil, string sentence)
    {
        using var problem = new AttentionProblem(new ProblemSpec { KeyBias = Repeats.None });
        problem.WantGradients();
        spoil(ref problem.Arguments, ref problem.Gradients);
        Assert.Contains(sentence, Assert.ThrowsAny<ArgumentException>(problem.Backward).Message);
    }

    private static double[] BitsWith(ProblemSpec spec, int threads)
    {
        using var problem = new AttentionProblem(spec);
        problem.WantGradients();
        problem.Arguments.Threads = 1;
        problem.Forward();
        problem.Arguments.Threads = threads;
        problem.Backward();
        var g = problem.Gradients;
        List<double> numbers = [.. ReferenceInputs.Read(g.Query), .. ReferenceInputs.Read(g.Key), .. ReferenceInputs.Read(g.Value)];
        void Add(float* gradient, long count)
        {
            for (var i = 0; gradient != null && i < count; i++)
            {
                numbers.Add(gradient[i]);
            }
        }

        Add((float*)g.Bias.Data, g.Bias.IsGiven ? problem.Arguments.Query.Length * spec.Keys : 0);
        Add((float*)g.KeyBias.Data, spec.Keys);
        Add(g.Sinks, problem.Arguments.Query.Heads);
        Add(g.AlibiSlopes, problem.Arguments.Query.Heads);
        if (g.LowRankKey.IsGiven)
        {
            numbers.AddRange([.. ReferenceInputs.Read(g.LowRankQuery), .. ReferenceInputs.Read(g.LowRankKey)]);
        }

        return [.. numbers];
    }

    private static void AssertAgrees(ProblemSpec spec, int bits = 0)
    {
        using var problem = new AttentionProblem(spec);
        problem.WantGradients();
        problem.Arguments.Threads = 1 + (spec.Seed % 3);
        problem.Forward();
        problem.Call(new BackwardAtWidth(bits));
        problem.AssertGradients(problem.ReferenceGradients(problem.Reference()));
        problem.AssertNothingElseWritten();
    }
}
