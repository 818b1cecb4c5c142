using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Key runs as lists: what they allow, what they count, what they refuse, and the block mask that means the same.</summary>
public unsafe class KeyRunsTests
{
    [Fact]
    public void Pairs_are_those_of_the_rectangles()
    {
        // Two blocks of three queries (the second has two), ten keys; the first block has two runs side by side on key 4.
        var runs = new KeyRuns(1, 1, 5, 10, 3, [0, 3, 4], [1, 3, 4, 0], [2, 2, 5, 10], [0, 0, 2, 1], [3, 1, 1, 1]);

        Assert.Equal([".####.....", ".##.......", ".##.#####.", "..........", "##########"], [.. Enumerable.Range(0, 5).Select(query => Row(runs, query))]);
        Assert.Equal(6 + 2 + 5 + 10, runs.Pairs);
        Assert.Equal(23 / 50.0, runs.Density);
        Assert.Equal(4, runs.Count);
        Assert.Equal((3, 4), runs.Row(0, 0, 1));
    }

    [Fact]
    public void The_block_mask_allows_the_same_pairs()
    {
        for (var seed = 0; seed < 40; seed++)
        {
            var random = new Random(seed);
            using var problem = new AttentionProblem(new ProblemSpec
            {
                Seed = seed, Batch = 2, KeyHeads = 2, Group = 2, Queries = random.Next(1, 40), Keys = random.Next(1, 200), QueryBlock = random.Next(1, 20), KeyBlock = random.Next(1, 90),
                Density = random.NextDouble(), Runs = true, Partial = seed % 2 == 0, OwnLists = seed % 3 > 0, BlockBiases = seed % 3 > 1,
            });
            var runs = problem.Arguments.KeyRuns!;
            var mask = runs.ToBlockMask(4);
            Assert.Equal(runs.Heads == 1 ? 1 : 4, mask.Heads);
            long pairs = 0;
            for (var (batch, index) = (0, 0); batch < runs.Batches; batch++)
            {
                for (var head = 0; head < mask.Heads; head++)
                {
                    for (index = 0; index < runs.QueryLength * runs.KeyLength; index++)
                    {
                        var (query, key) = (index / runs.KeyLength, index % runs.KeyLength);
                        var allowed = runs.Allows(batch, head * runs.Heads / mask.Heads, query, key);
                        Assert.Equal(allowed, mask.Allows(batch, head, query, key));
                        pairs += allowed ? 1 : 0;
                    }
                }
            }

            Assert.Equal(pairs, runs.Pairs * mask.Heads / runs.Heads);
            Assert.Same(mask, runs.ToBlockMask(4));
        }
    }

    [Fact]
    public void Lists_that_do_not_fit_are_refused()
    {
        Refused("4 offsets ending at 2", () => _ = new KeyRuns(1, 1, 5, 9, 2, [0, 1, 2], [0, 0], [1, 1]));
        Refused("must not decrease", () => _ = new KeyRuns(1, 1, 5, 9, 2, [0, 2, 1, 2], [0, 3], [1, 1]));
        Refused("one number of keys per run", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 2], [0, 3], [1]));
        Refused("first row and number of rows", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 2], [0, 3], [1, 1], [0, 0]));
        Refused("ascending", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 2], [3, 0], [1, 1]));
        Refused("from 0 to 8", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 1], [8], [2]));
        Refused("from 0 to 8", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 1], [-1], [2]));
        Refused("at least one key", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 1], [3], [0]));
        Refused("rows of a run", () => _ = new KeyRuns(1, 1, 5, 9, 3, [0, 0, 1], [3], [1], [1], [2]));
        Refused("rows of a run", () => _ = new KeyRuns(1, 1, 5, 9, 3, [0, 1, 1], [3], [1], [1], [0]));
        Refused("key 3 is read twice", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 2], [1, 3], [3, 1]));
        Refused("key 3 is read twice", () => _ = new KeyRuns(1, 1, 5, 9, 5, [0, 3], [1, 2, 3], [3, 1, 1], [0, 2, 1], [2, 2, 1]));
        Refused("cannot share", () => _ = new KeyRuns(1, 2, 5, 9, 5, [0, 1, 2], [1, 3], [3, 1]).ToBlockMask(3));
        Assert.ThrowsAny<ArgumentException>(() => _ = new KeyRuns(1, 1, 0, 9, 5, [0], [], []));
    }

    [Fact]
    public void Runs_that_do_not_fit_the_problem_are_refused()
    {
        static void Refuse(string words, KeyRuns runs, BlockMask? mask = null)
        {
            using var problem = new AttentionProblem(new ProblemSpec { Batch = 2, KeyHeads = 2, Group = 2 });
            problem.Arguments.KeyRuns = runs;
            problem.Arguments.BlockMask = mask;
            Refused(words, () => FusedAttention.Forward(problem.Arguments));
            Assert.True(float.IsNaN(*problem.Arguments.Output.Row(0, 0, 0)));
        }

        Refuse("cover 5 queries and 8 keys", new KeyRuns(1, 1, 5, 8, 5, [0, 1], [0], [1]));
        Refuse("lists for 3 batch items", new KeyRuns(3, 1, 5, 7, 5, [0, 0, 0, 0], [], []));
        Refuse("and 3 heads", new KeyRuns(1, 3, 5, 7, 5, [0, 0, 0, 0], [], []));
        Refuse("Key runs and a block mask", new KeyRuns(1, 1, 5, 7, 5, [0, 1], [0], [1]), new BlockMask(1, 1, 5, 7, 5, 7, [0, 1], [0]));
        using var asked = new AttentionProblem(new ProblemSpec());
        asked.Arguments.KeyRuns = new KeyRuns(1, 1, 5, 7, 5, [0, 1], [0], [1]);
        Refused("mask predicate", () => FusedAttention.Forward(asked.Arguments, default(UnmodifiedScore), default(StripeMask)));
    }

    private static void Refused(string words, Action act) => Assert.Contains(words, Assert.ThrowsAny<ArgumentException>(act).Message, StringComparison.Ordinal);

    private static string Row(KeyRuns runs, int query) => string.Concat(Enumerable.Range(0, (int)runs.KeyLength).Select(key => runs.Allows(0, 0, query, key) ? '#' : '.'));
}
