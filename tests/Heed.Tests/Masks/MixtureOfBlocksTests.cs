using CsCheck;
using Heed.Heads;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class MixtureOfBlocksTests
{
    public static TheoryData<BlockSelectionMode, BlockSelectionScope> Rules => new()
    {
        { BlockSelectionMode.Threshold, BlockSelectionScope.HeadGlobal },
        { BlockSelectionMode.Threshold, BlockSelectionScope.QueryHead },
        { BlockSelectionMode.Threshold, BlockSelectionScope.Block },
        { BlockSelectionMode.Threshold, BlockSelectionScope.Overall },
        { BlockSelectionMode.TopK, BlockSelectionScope.HeadGlobal },
        { BlockSelectionMode.TopK, BlockSelectionScope.QueryHead },
        { BlockSelectionMode.TopK, BlockSelectionScope.Overall },
    };

    [Theory]
    [MemberData(nameof(Rules))]
    public void What_is_selected_is_what_the_definition_says(BlockSelectionMode mode, BlockSelectionScope scope) =>
        Gen.Select(Gen.Int[1, 7], Gen.Int[1, 25], Gen.Int[1, 25], Gen.Double[0.05, 1], Gen.Int[1, 6], Gen.Int).Sample((block, first, second, threshold, topK, seed) =>
        {
            using var outer = NewDisposeScope();
            manual_seed(seed);
            var tokens = first + second;
            long[] offsets = [0, first, tokens];
            var (query, key) = (randn(2, 2, tokens, 4, float64), randn(2, 2, tokens, 4, float64));
            var options = new MixtureOfBlocksOptions { BlockSize = block, Mode = mode, Scope = scope, Threshold = threshold, TopK = topK };
            using var selection = MixtureOfBlocks.Select(query, key, options, offsets);
            var chosen = selection.ToTensor();
            for (var batch = 0; batch < 2; batch++)
            {
                var expected = Expected(selection, batch, options, first);
                Assert.True(tensor(expected).view(2, selection.Blocks, tokens).eq(chosen[batch]).all().item<bool>(), $"{block} {first} {second} {threshold} {topK}");
            }
        }, iter: 40);

    [Theory]
    [MemberData(nameof(Rules))]
    public void Gathered_blocks_give_what_the_mask_gives_and_so_do_their_gradients(BlockSelectionMode mode, BlockSelectionScope scope)
    {
        using var outer = NewDisposeScope();
        manual_seed(3);
        var leaves = new[] { randn(2, 4, 77, 8), randn(2, 2, 77, 8), randn(2, 2, 77, 6) }.Select(leaf => leaf.requires_grad_()).ToArray();
        var wide = leaves.Select(leaf => leaf.detach().to(float64).requires_grad_()).ToArray();
        var direction = randn(2, 4, 77, 6);
        using var selection = MixtureOfBlocks.Select(leaves[0], leaves[1], new() { BlockSize = 9, Mode = mode, Scope = scope, Threshold = 0.4 }, [0, 40, 77]);
        var output = MixtureOfBlockAttention.Apply(leaves[0], leaves[1], leaves[2], selection, 0.7);
        (output * direction).sum().backward();
        var expected = MixtureOfBlockAttention.Apply(wide[0], wide[1], wide[2], selection, 0.7);
        (expected * direction).sum().backward();

        Assertions.Close(expected, output, 1e-5, "output");
        for (var i = 0; i < 3; i++)
        {
            Assertions.Close(wide[i].grad!, leaves[i].grad!, 2e-5, $"gradient {i}");
        }
    }

    [Fact]
    public void Gradients_of_gradients_flow()
    {
        using var outer = NewDisposeScope();
        manual_seed(4);
        Tensor Second(ScalarType type)
        {
            manual_seed(5);
            var (q, k, v) = (randn(1, 1, 12, 4).to(type).requires_grad_(), randn(1, 1, 12, 4).to(type), randn(1, 1, 12, 4).to(type));
            using var selection = MixtureOfBlocks.Select(q.to(float64), k.to(float64), new() { BlockSize = 4 });
            var gradient = autograd.grad([MixtureOfBlockAttention.Apply(q, k, v, selection).square().sum()], [q], retain_graph: true, create_graph: true)[0];
            return autograd.grad([gradient.square().sum()], [q])[0].clone();
        }

        Assertions.Close(Second(float64), Second(float32), 1e-4);
    }

    [Fact]
    public void A_share_of_everything_is_dense_attention_and_half_precision_is_taken()
    {
        using var outer = NewDisposeScope();
        manual_seed(6);
        var (q, k, v) = (randn(1, 2, 50, 8), randn(1, 2, 50, 8), randn(1, 2, 50, 8));
        var dense = Attention.Compute(q, k, v);
        Assertions.Close(dense, MixtureOfBlockAttention.Forward(q, k, v, new() { BlockSize = 8, Threshold = 1 }), 1e-5);
        Assertions.Close(dense, MixtureOfBlockAttention.Forward(q, k, v, new() { BlockSize = 8, Mode = BlockSelectionMode.TopK, TopK = 99, Scope = BlockSelectionScope.QueryHead }), 1e-5);
        Assertions.Close(dense, MixtureOfBlockAttention.Forward(q, k, v, new() { BlockSize = 64 }), 1e-5, "one block");
        var half = MixtureOfBlockAttention.Forward(q.to(bfloat16), k.to(bfloat16), v.to(bfloat16), new() { BlockSize = 8, Threshold = 1 });
        Assert.Equal(bfloat16, half.dtype);
        Assertions.Close(dense, half, 0.05);
    }

    [Fact]
    public void Nothing_but_own_blocks_means_everything_or_own_blocks_as_asked()
    {
        using var outer = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 20, 4), randn(1, 2, 20, 4), randn(1, 2, 20, 4));
        var options = new MixtureOfBlocksOptions { BlockSize = 5, Mode = BlockSelectionMode.TopK, TopK = 1, Scope = BlockSelectionScope.QueryHead };
        Assertions.Close(Attention.Compute(q, k, v), MixtureOfBlockAttention.Forward(q, k, v, options), 1e-5);
        var own = MixtureOfBlockAttention.Forward(q, k, v, options with { EmptySelection = EmptyBlockSelection.OwnBlockOnly });
        for (var block = 0; block < 20; block += 5)
        {
            Assertions.Close(Attention.Compute(q.narrow(2, block, 5), k.narrow(2, block, 5), v.narrow(2, block, 5)), own.narrow(2, block, 5), 1e-5);
        }
    }

    [Fact]
    public void The_selector_computes_what_the_function_computes()
    {
        using var outer = NewDisposeScope();
        manual_seed(7);
        var (q, k, v) = (randn(1, 4, 90, 8), randn(1, 2, 90, 8), randn(1, 2, 90, 8));
        var options = new MixtureOfBlocksOptions { BlockSize = 16 };
        var whole = Attention.Compute(q, k, v, new() { Selector = new MixtureOfBlocksSelector(options) });
        Assertions.Close(MixtureOfBlockAttention.Forward(q, k, v, options), whole, 1e-5);
        var packed = Attention.Compute(q, k, v, new() { Selector = new MixtureOfBlocksSelector(options), QueryOffsets = tensor(new long[] { 0, 30, 90 }) });
        Assertions.Close(MixtureOfBlockAttention.Forward(q, k, v, options, [0, 30, 90]), packed, 1e-5);
    }

    [Fact]
    public void Permuting_heads_permutes_outputs()
    {
        using var outer = NewDisposeScope();
        var (q, k, v) = (randn(1, 3, 40, 8), randn(1, 3, 40, 8), randn(1, 3, 40, 8));
        var options = new MixtureOfBlocksOptions { BlockSize = 8 };
        Assertions.Close(MixtureOfBlockAttention.Forward(q, k, v, options).flip(1), MixtureOfBlockAttention.Forward(q.flip(1), k.flip(1), v.flip(1), options), 1e-6);
    }

    [Fact]
    public void What_does_not_fit_is_told_in_a_sentence()
    {
        using var outer = NewDisposeScope();
        var q = randn(1, 1, 8, 4);
        string Message(Func<object> act) => Assert.ThrowsAny<ArgumentException>(act).Message;
        var good = new MixtureOfBlocksOptions { BlockSize = 4 };
        Assert.Contains("at least 1 token", Message(() => MixtureOfBlocks.Select(q, q, good with { BlockSize = 0 })));
        Assert.Contains("above 0 and at most 1, not 1.5", Message(() => MixtureOfBlocks.Select(q, q, good with { Threshold = 1.5 })));
        Assert.Contains("k is at least 1", Message(() => MixtureOfBlocks.Select(q, q, good with { TopK = 0 })));
        Assert.Contains("cannot be combined with top-k", Message(() => MixtureOfBlocks.Select(q, q, good with { Mode = BlockSelectionMode.TopK, Scope = BlockSelectionScope.Block })));
        Assert.Contains("ascend from 0", Message(() => MixtureOfBlocks.Select(q, q, good, [0, 5, 3, 8])));
        Assert.Contains("ascend from 0", Message(() => MixtureOfBlocks.Select(q, q, good, [0, 5])));
        Assert.Contains("same tokens", Message(() => MixtureOfBlocks.Select(q, randn(1, 1, 9, 4), good)));
        Assert.Contains("top-k per query", Message(() => Attention.Compute(q, q, q, AttentionOptions.CausalSelf with { Selector = new MixtureOfBlocksSelector(good) })));
        Assert.Contains("cannot be combined", Message(() => Attention.Compute(q, q, q, new() { Selector = new MixtureOfBlocksSelector(good), BlockMask = BlockMasks.Causal(8, 8) })));
        using var selection = MixtureOfBlocks.Select(q, q, good);
        Assert.Contains("8 tokens", Message(() => MixtureOfBlockAttention.Apply(randn(1, 1, 9, 4), randn(1, 1, 9, 4), randn(1, 1, 9, 4), selection)));
        Assert.Contains("do not divide", Message(() => new VideoBlockPartition([4, 4, 6], [3, 3])));
        Assert.Contains("frames, rows and columns", Message(() => new VideoBlockPartition([4, 4], [1])));
        Assert.Contains("holds no token", Message(() => new VideoBlockPartition([4, 4, 6], [0.01])));
        Assert.Contains("24 tokens", Message(() => new VideoBlockPartition([2, 3, 4], [1]).Apply(randn(1, 23, 2), 1)));
    }

    [Fact]
    public void A_partition_puts_blocks_side_by_side_and_back()
    {
        using var outer = NewDisposeScope();
        foreach (var block in new double[][] { [1.5], [2, 3], [2, 1, 3] })
        {
            var partition = new VideoBlockPartition([4, 2, 6], block);
            var tokens = arange(48).view(1, 48, 1);
            var applied = partition.Apply(tokens, 1);
            Assert.True(partition.Restore(applied, 1).equal(tokens).all().item<bool>());
            long[] order = [.. applied.to(int64).view(-1).data<long>()];
            Assert.Equal(Enumerable.Range(0, 48).Select(token => (long)token), order.Order());
            if (block.Length == 1)
            {
                Assert.Equal((18L, 3L), (partition.BlockSize, partition.Blocks));
                continue;
            }

            // Tokens of one block share the block's place on every axis that is cut.
            var sides = block.Length == 2 ? [4, (long)block[0], (long)block[1]] : block.Select(side => (long)side).ToArray();
            Assert.All(order.Chunk((int)partition.BlockSize), tile =>
                Assert.Single(tile.Select(token => (token / 12 / sides[0], token / 6 % 2 / sides[1], token % 6 / sides[2])).Distinct()));
        }
    }

    [Fact]
    public void A_layer_learns_through_its_projections_and_names_them_as_the_checkpoints_do()
    {
        using var outer = NewDisposeScope();
        using var layer = new VMoBALayer(4, new() { Width = 8, Heads = 2, Resolution = [2, 2, 4], TemporalBlock = 1, SpatialBlock = (1, 2), SpatioTemporalBlock = (1, 2, 2) });
        Assert.Equal(
            ["norm_k.weight", "norm_q.weight", "to_k.bias", "to_k.weight", "to_out.0.bias", "to_out.0.weight", "to_q.bias", "to_q.weight", "to_v.bias", "to_v.weight"],
            layer.named_parameters().Select(entry => entry.name).Order());
        Assert.Equal(4, layer.Partition.BlockSize);
        var input = randn(2, 16, 8);
        layer.forward(input, heads => heads * 1.5).square().sum().backward();
        Assert.All(layer.parameters(), parameter => Assert.NotNull(parameter.grad));
        Assert.True(layer.parameters().Sum(parameter => parameter.grad!.abs().sum().item<float>()) > 0);
        Assert.Contains("[B, 16, 8]", Assert.Throws<ArgumentException>(() => layer.forward(randn(1, 15, 8))).Message);
    }

    [Fact]
    public void Operations_of_full_attention_are_those_of_all_blocks_without_selection()
    {
        var size = new VideoTransformerSize(1024, 64, 96, 384, 3);
        Assert.Equal(MixtureOfBlocksCost.Operations(size, 0, 0) + (3 * 2 * 1024.0 * 96 * 8), MixtureOfBlocksCost.Operations(size, 8, 1), 1e-3);
        Assert.Equal(MixtureOfBlocksCost.Operations(size, 8, 0.2), MixtureOfBlocksCost.Operations(size, (8, 8, 8), 0.2), 1e-3);
    }

    /// <summary>The selection of a batch item written out by the definition: one pool after the other, everything sorted.</summary>
    private static bool[] Expected(BlockSelection selection, int batch, MixtureOfBlocksOptions options, int boundary)
    {
        var (heads, blocks, queries) = (selection.Heads, selection.Blocks, selection.Queries);
        double[] similarity = [.. selection.Similarity[batch].contiguous().data<double>()];
        var result = new bool[similarity.Length];
        var pairs = Enumerable.Range(0, similarity.Length)
            .Select(at => (At: at, Head: at / (blocks * queries), Block: at / queries % blocks, Query: at % queries))
            .Where(pair => (selection.Block(pair.Block).Start < boundary) == (pair.Query < boundary))
            .ToList();
        bool IsOwn(int block, int query) => selection.Block(block).Start <= query && query < selection.Block(block).End;
        foreach (var pool in pairs.GroupBy(pair => options.Scope switch
        {
            BlockSelectionScope.HeadGlobal => (pair.Head, 0),
            BlockSelectionScope.QueryHead => (pair.Head, pair.Query),
            BlockSelectionScope.Block => (pair.Block, 0),
            _ => (0, 0),
        }))
        {
            var (own, free) = (pool.Where(pair => IsOwn(pair.Block, pair.Query)).ToList(), pool.Where(pair => !IsOwn(pair.Block, pair.Query)).ToList());
            own.ForEach(pair => result[pair.At] = true);
            var ranked = free.OrderByDescending(pair => similarity[pair.At]).ToList();
            if (options.Mode == BlockSelectionMode.TopK)
            {
                ranked.Take((Math.Min(options.TopK, blocks) - 1) * own.Count).ToList().ForEach(pair => result[pair.At] = true);
                continue;
            }

            var (least, most) = (pool.Min(pair => similarity[pair.At]), pool.Max(pair => similarity[pair.At]));
            var range = most - least <= 1e-6 ? 1 : most - least;
            double Score(int at) => (similarity[at] - least) / range;
            var total = pool.Sum(pair => Score(pair.At));
            var need = Math.Max(options.Threshold - (own.Sum(pair => Score(pair.At)) / (total + 1e-6)), 0);
            var reached = 0.0;
            foreach (var pair in ranked)
            {
                result[pair.At] = true;
                reached += Score(pair.At);
                if (reached / (total + 1e-6) >= need)
                {
                    break;
                }
            }
        }

        return result;
    }
}
