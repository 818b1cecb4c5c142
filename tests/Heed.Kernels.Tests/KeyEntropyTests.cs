using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The entropy of every key's weights as shares of its mass, which the pass for the mass per key finds beside it.</summary>
public sealed unsafe class KeyEntropyTests
{
    public static TheoryData<int> Widths => new(128, 256, 512);

    private static ProblemSpec Long => new() { Queries = 2200, Keys = 25, Width = 6, Group = 2, Seed = 5, Alibi = true };

    [Theory]
    [MemberData(nameof(Widths))]
    public void Entropy_of_any_problem_agrees_with_the_reference(int bits) => ProblemSpec.Any().Sample(spec => AssertAgrees(spec, bits), iter: 200);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Entropy_agrees_across_tiles(int bits) =>
        ProblemSpec.Any(160, 600, 90).Sample(spec => AssertAgrees(spec with { Batch = 1, KeyHeads = 1, QueryBlock = 9 * spec.QueryBlock, KeyBlock = 7 * spec.KeyBlock }, bits), iter: 15);

    [Fact]
    public void Entropy_agrees_across_splits() => AssertAgrees(Long, 512);

    [Theory]
    [InlineData(Causality.None)]
    [InlineData(Causality.AlignedToEnd)]
    public void Entropy_of_grouped_heads_under_masks_is_known_closely(Causality causal)
    {
        var spec = new ProblemSpec { Batch = 2, KeyHeads = 2, Group = 3, Queries = 33, Keys = 40, Width = 8, Causal = causal, Lengths = true, Bias = Repeats.Heads, BiasMasks = true, QueryBlock = 8, KeyBlock = 8, Density = 0.7, Sinks = true, Seed = 9 };
        AssertAgrees(spec, 512);
        using var problem = new AttentionProblem(spec);
        problem.Forward();
        // The bounds are no excuse: most are a few millionths of a nat, and the entropies are of the size of one.
        var entropy = problem.Reference().KeyEntropy();
        Assert.True(entropy.Bound.Order().ElementAt(entropy.Bound.Length * 9 / 10) < 1e-3, $"{entropy.Bound.Order().ElementAt(entropy.Bound.Length * 9 / 10)}");
        Assert.True(entropy.Value.Average() > 0.5, $"{entropy.Value.Average()}");
    }

    [Fact]
    public void Entropy_is_the_same_bits_for_any_number_of_threads()
    {
        foreach (var spec in new[] { Long, new ProblemSpec { Batch = 2, KeyHeads = 2, Group = 3, Queries = 70, Keys = 90, Width = 12, Causal = Causality.AlignedToEnd, Seed = 3 } })
        {
            using var problem = new AttentionProblem(spec);
            problem.Forward();
            problem.Arguments.Threads = 1;
            var (mass, entropy) = problem.Call(new EntropyCall());
            foreach (var threads in new[] { 2, 3, 7 })
            {
                problem.Arguments.Threads = threads;
                var again = problem.Call(new EntropyCall());
                Assert.Equal(entropy, again.Entropy);
                Assert.Equal(mass, again.Mass);
            }
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(6)]
    [InlineData(130)]
    public void A_single_key_is_attended_to_by_all_queries_alike(int queries)
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = queries, Keys = 1, Group = 2 });
        problem.Forward();
        // Every weight is 1 but for the rounding of the log-sum-exp, so that every share is 1 / Nq.
        Assert.All(problem.Call(new EntropyCall()).Entropy, nats => Assert.Equal(Math.Log(queries), nats, 1e-5));
    }

    [Fact]
    public void A_key_that_one_query_sees_has_no_entropy_and_neither_has_one_that_none_sees()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 5, Keys = 8, Causal = Causality.AlignedToStart });
        problem.Forward();
        var entropy = problem.Call(new EntropyCall()).Entropy;
        Assert.All(entropy[..4], nats => Assert.InRange(nats, 0.01f, (float)Math.Log(5)));
        // The key of the last query is seen by it alone; rounding leaves less than the weight's own error.
        Assert.InRange(entropy[4], 0, 1e-5f);
        Assert.Equal([0f, 0f, 0f], entropy[5..]);
    }

    [Fact]
    public void A_row_that_is_not_a_number_reaches_its_keys_only()
    {
        using var problem = new AttentionProblem(new ProblemSpec { Queries = 7, Keys = 7, Causal = Causality.AlignedToEnd });
        problem.Arguments.Query.Row(0, 0, 2)[1] = float.NaN;
        problem.Forward();
        Assert.Equal([true, true, true, false, false, false, false], problem.Call(new EntropyCall()).Entropy.Select(float.IsNaN));
    }

    [Theory]
    [InlineData(0, 7, 4)]
    [InlineData(5, 0, 4)]
    [InlineData(5, 7, 0)]
    public void Sizes_of_zero_are_no_error(int queries, int keys, int width) => AssertAgrees(new ProblemSpec { Queries = queries, Keys = keys, Width = width }, 512);

    [Theory]
    [InlineData(Normalizer.ReluOverPosition)]
    [InlineData(Normalizer.Sigmoid)]
    public void Other_normalisers_are_refused(Normalizer normalizer)
    {
        using var problem = new AttentionProblem(new ProblemSpec { Normalizer = normalizer });
        problem.Forward();
        Assert.Contains($"for a softmax only, not for {normalizer}", Assert.Throws<ArgumentException>(() => problem.Call(new EntropyCall())).Message, StringComparison.Ordinal);
    }

    private static void AssertAgrees(ProblemSpec drawn, int bits)
    {
        using var problem = new AttentionProblem(drawn with { Normalizer = Normalizer.Softmax });
        problem.Arguments.Threads = 1 + (drawn.Seed % 3);
        problem.Forward();
        var (mass, entropy) = problem.Call(new EntropyCall(bits));
        var reference = problem.Reference();
        reference.MassPerKey().AssertClose(mass, "mass");
        reference.KeyEntropy().AssertClose(entropy, "entropy");
    }

    /// <summary>Mass and entropy at a chosen width of vectors, or at the one that the hardware prefers.</summary>
    private sealed class EntropyCall(int? bits = null) : IProblemCall<(float[] Mass, float[] Entropy)>
    {
        public (float[] Mass, float[] Entropy) Run<TScore, TMask>(AttentionProblem problem, TScore modifier, TMask predicate)
            where TScore : struct, IScoreModifier
            where TMask : struct, IMaskPredicate
        {
            var count = problem.Arguments.Query.Batch * problem.Arguments.Query.Heads * problem.Arguments.Key.Length;
            var masses = problem.Floats(count);
            var nats = problem.Floats(count);
            switch (bits)
            {
                case 128:
                    MassPerKeyPass.Compute<Vector128<float>, Vector128Operations, TScore, TMask>(problem.Arguments, masses, modifier, predicate, nats);
                    break;
                case 256:
                    MassPerKeyPass.Compute<Vector256<float>, Vector256Operations, TScore, TMask>(problem.Arguments, masses, modifier, predicate, nats);
                    break;
                case 512:
                    MassPerKeyPass.Compute<Vector512<float>, Vector512Operations, TScore, TMask>(problem.Arguments, masses, modifier, predicate, nats);
                    break;
                default:
                    FusedAttention.MassPerKey(problem.Arguments, masses, modifier, predicate, nats);
                    break;
            }

            return (new Span<float>(masses, (int)count).ToArray(), new Span<float>(nats, (int)count).ToArray());
        }
    }
}
