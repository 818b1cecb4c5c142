using Heed.Kernels;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class HipSelectorTests
{
    [Fact]
    public void Keeping_every_key_is_dense_attention()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var (query, key, value) = (randn([2, 4, 130, 16], generator: random), randn([2, 2, 150, 16], generator: random), randn([2, 2, 150, 8], generator: random));
        foreach (var selector in new AttentionSelector[]
        {
            new HipSelector(new() { MaskK = 150, SlidingWindow = 0, SinkSize = 0 }), new HipSelector(new() { MaskK = 6, SlidingWindow = 150 + 64, BlockSizeQ = 16 }), new ChunkScanSelector(),
            new ChunkScanSelector(new() { Stages = [new(8, 1)], Keep = 160, SlidingWindow = 0, SinkSize = 0 }),
        })
        {
            var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
            Assertions.Close(dense, Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = selector }), 1e-5);
        }
    }

    [Fact]
    public void What_is_computed_is_what_was_searched_with_window_and_first_keys()
    {
        for (var seed = 0; seed < 15; seed++)
        {
            using var scope = NewDisposeScope();
            var random = new Random(seed);
            var (query, key, options) = Draw(random, out var lengths);
            var call = new HipSelector(options).Select(query, key, key, AttentionOptions.CausalSelf with { QueryLengths = lengths.Queries, KeyLengths = lengths.Keys });
            var (batches, heads, rows, columns) = (query.size(0), query.size(1), query.size(2), key.size(2));
            var pairs = call.Pairs().expand(batches, heads, rows, columns);
            for (var batch = 0; batch < batches; batch++)
            {
                // A batch item on its own, without lengths, says which blocks are kept.
                var (queries, keys) = (lengths.Queries?[batch].item<long>() ?? rows, lengths.Keys?[batch].item<long>() ?? columns);
                var selection = new HipSelector(options).Search(query.narrow(0, batch, 1).narrow(2, 0, queries), key.narrow(0, batch, 1).narrow(2, 0, keys));
                var starts = selection.Indices().data<int>().ToArray();
                var counts = selection.Counts().data<int>().ToArray();
                var computed = pairs[batch].contiguous().data<bool>().ToArray();
                var isKept = new bool[counts.Length * columns];
                for (var list = 0; list < counts.Length; list++)
                {
                    for (var slot = 0; slot < counts[list]; slot++)
                    {
                        var start = starts[(list * selection.Slots) + slot];
                        isKept.AsSpan((int)(list * columns) + start, (int)Math.Min(options.BlockTokens, keys - start)).Fill(true);
                    }
                }

                for (var head = 0; head < heads; head++)
                {
                    for (var i = 0; i < rows; i++)
                    {
                        var list = (head * selection.QueryBlocks) + Math.Min(i / options.BlockSizeQ, selection.QueryBlocks - 1);
                        var position = i + keys - queries;
                        var end = Math.Min(((i / options.BlockSizeQ) + 1) * options.BlockSizeQ, queries) + keys - queries;
                        var window = options.WindowAlignment == HipWindowAlignment.Query ? position + 1 : end;
                        for (var j = 0; j < columns; j++)
                        {
                            var isSeen = i < queries && j <= position
                                && (j < options.SinkSize || j >= window - options.SlidingWindow || (j < keys && isKept[(list * columns) + j]));
                            if (isSeen != computed[(((head * rows) + i) * columns) + j])
                            {
                                Assert.Fail($"seed {seed}: head {head}, query {i}, key {j} {(isSeen ? "is not" : "is")} computed with {options}");
                            }
                        }
                    }
                }
            }
        }
    }

    [Fact]
    public void The_search_finds_the_same_in_every_type_and_beside_repeated_heads()
    {
        for (var seed = 0; seed < 40; seed++)
        {
            using var scope = NewDisposeScope();
            var random = new Random(seed);
            // Small whole numbers: products are exact in every type, and ties abound.
            var (query, key, options) = Draw(random, out _);
            var expected = new HipSelector(options).Search(query.to(float64), key.to(float64));
            var repeated = key.repeat_interleave(query.shape[1] / key.shape[1], 1);
            foreach (var found in new[]
            {
                new HipSelector(options).Search(query, key), new HipSelector(options).Search(query, key.to(float16)), new HipSelector(options).Search(query, repeated.transpose(1, 2).contiguous().transpose(1, 2)),
                new HipSelector(options).Search(query.to(bfloat16), key.to(bfloat16)),
            })
            {
                Assert.True(expected.Indices().eq(found.Indices()).all().item<bool>(), $"seed {seed}: {options}");
                Assert.True(expected.Counts().eq(found.Counts()).all().item<bool>(), $"seed {seed}: {options}");
            }
        }
    }

    [Fact]
    public void Lists_ascend_within_the_searched_past_and_hold_the_budget()
    {
        for (var seed = 0; seed < 40; seed++)
        {
            using var scope = NewDisposeScope();
            var (query, key, options) = Draw(new Random(seed), out _);
            var selection = new HipSelector(options).Search(query, key);
            var starts = selection.Indices().data<int>().ToArray();
            var counts = selection.Counts().data<int>().ToArray();
            var slots = ((options.MaskK / options.BlockSizeKGroup) + options.BlockSizeK - 1) / options.BlockSizeK;
            for (var list = 0; list < counts.Length; list++)
            {
                var kept = Enumerable.Range(0, counts[list]).Select(slot => starts[(list * selection.Slots) + slot]).ToArray();
                Assert.Equal(kept.Distinct().Order(), kept);
                var end = Math.Min(((list % selection.QueryBlocks) + 1) * options.BlockSizeQ, query.shape[2]) + key.shape[2] - query.shape[2];
                var searched = Math.Max(0, (end / options.BlockSizeKGroup) - (options.SlidingWindow / options.BlockSizeKGroup)) * options.BlockSizeKGroup;
                Assert.All(kept, start => Assert.InRange(start, 0, searched - 1));
                if (searched > options.MaskK && options.HeadGroup == 1)
                {
                    Assert.Equal(slots, kept.Length);
                }
            }

            if (options.HeadGroup > 1)
            {
                var perGroup = selection.Counts().view(selection.Batches, -1, options.HeadGroup, selection.QueryBlocks).sum(2);
                Assert.True(perGroup.le(slots * options.HeadGroup).all().item<bool>());
            }
        }
    }

    [Fact]
    public void The_best_block_of_a_smooth_past_is_found()
    {
        // Scores fall with the distance from key 300: perfect locality, in which the search is exact.
        using var scope = NewDisposeScope();
        var score = -(arange(1024, dtype: float32) - 300).abs();
        var key = stack([score, ones(1024)], -1).view(1, 1, 1024, 2);
        var query = tensor(new[] { 1f, 0f }).view(1, 1, 1, 2);
        foreach (var representative in Enum.GetValues<HipRepresentative>())
        {
            var selection = new HipSelector(new() { MaskK = 32, BlockSizeK = 4, BlockStrideQ = 1, SlidingWindow = 0, SinkSize = 0, Representative = representative }).Search(query, key);
            Assert.Contains(300, selection.Indices().data<int>().ToArray());
        }
    }

    [Fact]
    public void No_query_sees_the_future()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var (query, key, value) = (randn([1, 2, 96, 8], generator: random), randn([1, 2, 96, 8], generator: random), randn([1, 2, 96, 8], generator: random));
        // One query a block: within a longer block, later queries vote on what earlier ones read.
        var hip = new HipOptions { BlockSizeQ = 1, BlockStrideQ = 1, MaskK = 8, SlidingWindow = 4, SinkSize = 2 };
        var scan = new ChunkScanOptions { Stages = [new(16, 1), new(4, 1, 32)], Keep = 8, BlockSizeQ = 1, SlidingWindow = 4, SinkSize = 2 };
        foreach (var selector in new AttentionSelector[] { new HipSelector(hip), new ChunkScanSelector(scan) })
        {
            var options = AttentionOptions.CausalSelf with { Selector = selector };
            var before = Attention.Compute(query, key, value, options);
            foreach (var changed in new long[] { 1, 40, 95 })
            {
                Tensor Changed(Tensor some) => cat([some.narrow(2, 0, changed), randn([1, 2, 96 - changed, 8], generator: random)], 2);
                var after = Attention.Compute(Changed(query), Changed(key), Changed(value), options);
                Assertions.Close(before.narrow(2, 0, changed), after.narrow(2, 0, changed), 1e-6);
            }
        }
    }

    [Fact]
    public void Decoding_is_the_last_row_of_a_prefill_of_single_queries()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var (query, key, value) = (randn([2, 4, 90, 8], generator: random), randn([2, 2, 90, 8], generator: random), randn([2, 2, 90, 8], generator: random));
        var hip = new HipOptions { BlockSizeQ = 1, BlockStrideQ = 1, MaskK = 16, SlidingWindow = 8, RefreshInterval = 1 };
        var whole = Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = new HipSelector(hip) });
        var decoding = AttentionOptions.CausalSelf with { Selector = new HipSelector(hip with { BlockSizeQ = 64, BlockStrideQ = 2 }) };
        for (var length = 60; length <= 90; length++)
        {
            var step = Attention.Compute(query.narrow(2, length - 1, 1), key.narrow(2, 0, length), value.narrow(2, 0, length), decoding);
            Assertions.Close(whole.narrow(2, length - 1, 1), step, 1e-5);
        }
    }

    [Fact]
    public void A_selection_serves_some_steps_while_the_window_grows()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var (query, key) = (randn([1, 2, 200, 8], generator: random), randn([1, 2, 200, 8], generator: random));
        var selector = new HipSelector(new() { MaskK = 16, BlockSizeK = 1, SlidingWindow = 8, SinkSize = 0, RefreshInterval = 4 });
        Tensor Step(int length) => selector.Select(query.narrow(2, length - 1, 1), key.narrow(2, 0, length), key.narrow(2, 0, length), AttentionOptions.CausalSelf).Pairs();

        selector.Select(query.narrow(2, 0, 100), key.narrow(2, 0, 100), key.narrow(2, 0, 100), AttentionOptions.CausalSelf);
        Assert.Equal(1, selector.Searches);
        for (var length = 101; length <= 112; length++)
        {
            var pairs = Step(length);
            Assert.Equal(2 + ((length - 101) / 4), selector.Searches);
            Assert.True(pairs.narrow(-1, length - 8, 8).all().item<bool>());
            // 16 keys and the window; what fell out of the window since the last search is still there.
            Assert.Equal(2 * (16 + 8 + ((length - 101) % 4)), pairs.sum().item<long>());
        }

        Step(120);
        Assert.Equal(5, selector.Searches);
        Step(120);
        Assert.Equal(6, selector.Searches);
    }

    [Fact]
    public void Gradients_flow_through_the_selected_pairs()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        Tensor Make(int heads) => randn([1, heads, 70, 8], float64, generator: random).requires_grad_();
        var (query, key, value) = (Make(4), Make(2), Make(2));
        var selector = new HipSelector(new() { MaskK = 8, SlidingWindow = 6, SinkSize = 2, BlockSizeQ = 8 });
        var outgoing = randn([1, 4, 70, 8], float64, generator: random);
        var mask = selector.Select(query, key, value, AttentionOptions.CausalSelf).Pairs().detach();
        var expected = autograd.grad([Attention.Compute(query, key, value, AttentionOptions.Default with { Mask = mask })], [query, key, value], [outgoing]);
        var actual = autograd.grad([Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = selector })], [query, key, value], [outgoing]);
        // Products of whole matrices in one or another order: what float64 rounds.
        expected.Zip(actual).ToList().ForEach(pair => Assertions.Close(pair.First, pair.Second, 1e-12));

        Tensor Single(Tensor some) => some.detach().to(float32).requires_grad_();
        Tensor[] inputs = [Single(query), Single(key), Single(value)];
        var fused = autograd.grad(
            [Attention.Compute(inputs[0], inputs[1], inputs[2], AttentionOptions.CausalSelf with { Selector = selector })], inputs, [outgoing.to(float32)]);
        expected.Zip(fused).ToList().ForEach(pair => Assertions.Close(pair.First, pair.Second, 1e-4));
    }

    [Fact]
    public void Heads_that_share_a_budget_give_it_to_the_one_with_larger_scores()
    {
        using var scope = NewDisposeScope();
        using var random = new Generator(1);
        var (query, key) = (randn([1, 2, 1, 8], generator: random), randn([1, 2, 256, 8], generator: random));
        query.select(1, 1).mul_(10);
        var options = new HipOptions { MaskK = 16, BlockSizeK = 2, SlidingWindow = 0, HeadGroup = 2 };
        using var counts = new HipSelector(options).Search(query, key).Counts().data<int>();
        Assert.Equal(16, counts[0] + counts[1]);
        Assert.True(counts[1] > counts[0]);
    }

    [Fact]
    public void What_cannot_be_searched_is_refused()
    {
        using var scope = NewDisposeScope();
        static HipOptions Hip() => new();
        foreach (var options in new[]
        {
            Hip() with { MaskK = 1 }, Hip() with { BlockSizeQ = 0 }, Hip() with { BlockStrideQ = 65 }, Hip() with { BlockStrideK = 3 }, Hip() with { SlidingWindow = -1 }, Hip() with { RefreshInterval = 0 },
            Hip() with { HeadGroup = 0 },
        })
        {
            Assert.Contains("HipOptions", Assert.Throws<ArgumentException>(() => new HipSelector(options)).Message, StringComparison.Ordinal);
        }

        var (query, key) = (ones(1, 3, 20, 8), ones(1, 3, 10, 8));
        var selector = new HipSelector();
        Refuses("at least as many keys", () => selector.Search(query, key));
        Refuses("does not divide 3", () => new HipSelector(Hip() with { HeadGroup = 2 }).Search(query, query));
        Refuses("no search sees", () => new HipSelector(Hip() with { BlockSizeKGroup = 3, SlidingWindow = 2 }).Search(query, query));
        Refuses("causal", () => Attention.Compute(query, query, query, new AttentionOptions { Selector = selector }));
        Refuses("causal", () => Attention.Compute(key, query, query, new AttentionOptions { Causal = Causality.AlignedToStart, Selector = selector }));
        Refuses("BlockMask", () => Attention.Compute(query, query, query, AttentionOptions.CausalSelf with { Selector = selector, BlockMask = BlockMasks.Causal(20, 20) }));
        Refuses("QueryOffsets", () => Attention.Compute(query, query, query, AttentionOptions.CausalSelf with { Selector = selector, QueryOffsets = tensor(new long[] { 0, 20 }) }));
        foreach (var options in new ChunkScanOptions[]
        {
            new() { Stages = [] }, new() { Stages = [new(16, 1), new(5, 1)] }, new() { Stages = [new(16, 65)] }, new() { Keep = 4 }, new() { Stages = [new(16, 1), new(4, 1, 8)] },
        })
        {
            Assert.Throws<ArgumentException>(() => new ChunkScanSelector(options));
        }

        static void Refuses(string words, Action action) => Assert.Contains(words, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
    }

    private static (Tensor Query, Tensor Key, HipOptions Options) Draw(Random random, out (Tensor? Queries, Tensor? Keys) lengths)
    {
        using var generator = new Generator((ulong)random.Next());
        var (batch, keyHeads, group) = (random.Next(1, 3), random.Next(1, 3), 1 << random.Next(0, 2));
        var heads = keyHeads * random.Next(1, 3) * 2;
        var keys = random.Next(2, 20) * group * 8;
        var queries = random.Next(1, keys + 1);
        var blockQ = random.Next(1, 40);
        var options = new HipOptions
        {
            BlockSizeQ = blockQ, BlockStrideQ = random.Next(1, Math.Min(blockQ, 5) + 1), BlockSizeK = random.Next(1, 6), BlockSizeKGroup = group, SlidingWindow = group * random.Next(0, 20),
            SinkSize = random.Next(0, 10), Representative = (HipRepresentative)random.Next(3), HeadGroup = random.Next(1, 3), WindowAlignment = (HipWindowAlignment)random.Next(2), MaskK = 1,
        };
        options = options with { MaskK = options.BlockTokens * random.Next(1, 8), BlockStrideK = random.Next(1, options.BlockSizeK + 1) };
        Tensor Numbers(int count, int length) => randint(-3, 4, [batch, count, length, 8], float32, generator: generator);
        lengths = random.Next(2) == 0 || group > 1 ? (null, null)
            : (tensor(Enumerable.Range(0, batch).Select(_ => (long)random.Next(1, queries + 1)).ToArray()), tensor(Enumerable.Range(0, batch).Select(_ => (long)random.Next(queries, keys + 1)).ToArray()));
        return (Numbers(heads, queries), Numbers(keyHeads, keys), options);
    }
}
