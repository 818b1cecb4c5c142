using CsCheck;
using Heed.Heads;
using Heed.Kernels;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class PyramidTests
{
    private static readonly int[] s_levels = [0, 1, 2, 4, 8];

    [Fact]
    public void Attention_is_what_the_definition_says() => Gen.Select(Gen.Int[1, 60], Gen.Int[1, 20], Gen.Int[1, 3], Gen.Bool, Gen.Int).Sample((tokens, queryBlock, eighths, isCausal, seed) =>
    {
        using var scope = NewDisposeScope();
        manual_seed(seed);
        var keyBlock = 8 * eighths;
        var leaves = new[] { randn(1, 2, tokens, 4, float64), randn(1, 1, tokens, 4, float64), randn(1, 1, tokens, 3, float64) }.Select(leaf => leaf.requires_grad_()).ToArray();
        var level = RandomLevels(seed, 2, (tokens + queryBlock - 1) / queryBlock, (tokens + keyBlock - 1) / keyBlock);
        var expected = Definition(leaves[0], leaves[1], leaves[2], level, queryBlock, keyBlock, isCausal);
        var direction = randn_like(expected);

        // Where no row sees anything, there is nothing to go back through.
        ((expected * direction).sum() + (0 * leaves.Aggregate(zeros(1, float64), (sum, leaf) => sum + leaf.sum()))).backward();
        var gradients = leaves.Select(leaf => leaf.grad?.clone() ?? zeros_like(leaf)).ToArray();
        foreach (var (type, tolerance) in new[] { (float64, 1e-6), (float32, 2e-5) })
        {
            var own = leaves.Select(leaf => leaf.detach().to(type).requires_grad_()).ToArray();
            var output = PyramidAttention.Forward(own[0], own[1], own[2], level, queryBlock, keyBlock, isCausal);
            Assertions.Close(expected, output, tolerance, $"output in {type}");
            (output * direction).sum().backward();
            for (var i = 0; i < 3; i++)
            {
                Assertions.Close(gradients[i], own[i].grad ?? zeros_like(own[i]), 4 * tolerance, $"gradient {i} in {type}");
            }
        }
    }, iter: 40);

    [Fact]
    public void Keeping_the_keys_gives_the_same_attention_over_them() => Gen.Select(Gen.Int[1, 60], Gen.Bool, Gen.Bool, Gen.Int).Sample((tokens, isCausal, isCapped, seed) =>
    {
        using var scope = NewDisposeScope();
        manual_seed(seed);
        var (q, k, v) = (randn(1, 2, tokens, 4), randn(1, 1, tokens, 4), randn(1, 1, tokens, 4));
        var blocks = (tokens + 15) / 16;
        var level = RandomLevels(seed, 2, blocks, blocks);
        var options = new AttentionOptions { Causal = isCausal ? Causality.AlignedToEnd : Causality.None, Softcap = isCapped ? 2 : null };
        AttentionCall Call() => new(default, q, k, v, options);
        var (pooled, kept) = (Call(), Call());
        new PyramidKeys(pooled, level, 16, 16, isCausal).Apply(pooled);
        new PyramidKeys(kept, level, 16, 16, isCausal).ApplyKeepingKeys(kept);
        Assert.Equal(tokens, kept.Key.shape[2]);
        Assertions.Close(
            Attention.Compute(pooled.Query, pooled.Key, pooled.Value, pooled.Options), Attention.Compute(kept.Query, kept.Key, kept.Value, kept.Options), 2e-5);
    }, iter: 40);

    [Fact]
    public void Level_one_everywhere_is_dense_attention_and_level_zero_everywhere_is_nothing()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 50, 8), randn(1, 2, 50, 8), randn(1, 2, 50, 8));
        Assertions.Close(Attention.Compute(q, k, v), PyramidAttention.Forward(q, k, v, ones(1, 2, 4, 4, int32), 16, 16), 1e-5);
        Assertions.Close(Attention.Compute(q, k, v, AttentionOptions.CausalSelf), PyramidAttention.Forward(q, k, v, ones(1, 2, 4, 4, int32), 16, 16, isCausal: true), 1e-5);
        Assert.Equal(0, PyramidAttention.Forward(q, k, v, zeros(1, 2, 4, 4, int32), 16, 16).abs().sum().item<float>());

        // Coarse keys that no query of the first rows has behind it: those rows see nothing and say nothing.
        var coarse = PyramidAttention.Forward(q, k, v, full([1L, 2, 4, 4], 8, int32), 16, 16, isCausal: true);
        Assert.Equal(0, coarse.narrow(2, 0, 7).abs().sum().item<float>());
        Assert.True(coarse.narrow(2, 7, 43).abs().sum(-1).gt(0).all().item<bool>());
    }

    [Fact]
    public void Identical_tokens_lose_nothing_by_pooling()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 1, 64, 8), randn(1, 1, 8, 8).repeat_interleave(8, 2), randn(1, 1, 8, 8).repeat_interleave(8, 2));
        Assertions.Close(Attention.Compute(q, k, v), PyramidAttention.Forward(q, k, v, RandomLevels(1, 1, 4, 4, least: 1), 16, 16), 1e-5);
    }

    [Fact]
    public void The_future_of_a_block_does_not_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var options = PyramidOptions.Understanding with { QueryBlock = 16, KeyBlock = 16, Chunk = 16, TextLength = 0, UseSimilarity = false, Levels = [new(1, 0, 0.3), new(2, 0.3, 0.5), new(4, 0.5, 0.7), new(8, 0.7, 0.9), new(0, 0.9, 1)] };
        using var module = new PyramidSparseAttention(options, isCausal: true);
        var (q, k, v) = (randn(1, 2, 80, 8), randn(1, 2, 80, 8), randn(1, 2, 80, 8));
        Tensor Changed(Tensor tensor) => cat([tensor.narrow(2, 0, 48), randn(1, 2, 32, 8)], 2);
        var (before, after) = (module.forward(q, k, v), module.forward(Changed(q), Changed(k), Changed(v)));
        Assert.Equal(0, (before - after).narrow(2, 0, 48).abs().max().item<float>());
        Assert.True((before - after).narrow(2, 48, 32).abs().max().item<float>() > 0.01);
    }

    [Fact]
    public void Tokens_along_a_curve_are_put_back()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 1, 5 + 48, 8), randn(1, 1, 53, 8), randn(1, 1, 53, 8));
        var order = GilbertCurve.Order(4, 4, 3, textBefore: 5);
        Assert.Equal([0, 1, 2, 3, 4], order.Order[48..].ToArray());
        using var module = new PyramidSparseAttention(new() { QueryBlock = 16, KeyBlock = 16, Tile = 16, Levels = [new(1, 0, 1)] }, order);
        Assertions.Close(Attention.Compute(q, k, v), module.forward(q, k, v), 1e-5);
    }

    [Fact]
    public void A_curve_visits_every_token_once_and_steps_to_neighbours_where_sides_are_even() => Gen.Select(Gen.Int[1, 9], Gen.Int[1, 9], Gen.Int[1, 9]).Sample((width, height, depth) =>
    {
        var order = GilbertCurve.Order(width, height, depth).Order.ToArray();
        Assert.Equal(Enumerable.Range(0, width * height * depth).Select(token => (long)token), order.Order());
        for (var i = 1; width % 2 + height % 2 + depth % 2 == 0 && i < order.Length; i++)
        {
            var (a, b) = (order[i - 1], order[i]);
            Assert.Equal(1, Math.Abs((a % width) - (b % width)) + Math.Abs((a / width % height) - (b / width % height)) + Math.Abs((a / width / height) - (b / width / height)));
        }
    });

    [Fact]
    public void Sampled_maxima_are_those_of_the_definition()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        var (q, k) = (randn(2, 4, 150, 8), randn(2, 2, 150, 8));
        var (querySample, keySample) = (randint(0, 32, [2, 4, 8], int64), randint(0, 16, [2, 4, 4], int64));
        var narrow = BlockSummaries.SampledMaximum(q, k, 32, 16, querySample, keySample, 0.5);
        Assertions.Close(BlockSummaries.SampledMaximum(q.to(float64), k.to(float64), 32, 16, querySample, keySample, 0.5), narrow, 1e-5);
        Assert.True((narrow.sum(-1) - 1).abs().max().item<float>() < 1e-5);
        Assert.Contains("within a block", Assert.Throws<ArgumentException>(() => BlockSummaries.SampledMaximum(q, k, 8, 16, querySample, keySample)).Message);
    }

    [Fact]
    public void Rows_of_antidiagonal_sums_add_up_to_their_strides()
    {
        using var scope = NewDisposeScope();
        var (q, k) = (randn(1, 4, 100, 8), randn(1, 2, 100, 8));
        var causal = BlockSummaries.AntidiagonalSum(q, k, 16, 4, 32, isCausal: true);
        Assert.Equal([1, 4, 7, 7], causal.shape);
        Assertions.Close(full([1L, 4, 6], 4f), causal.sum(-1).narrow(2, 0, 6), 1e-5);
        Assert.Equal(0, causal.triu(1).abs().max().item<float>());
        Assert.Contains("stride divides", Assert.Throws<ArgumentException>(() => BlockSummaries.AntidiagonalSum(q, k, 16, 5, 32, true)).Message);
    }

    [Fact]
    public void What_does_not_fit_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        var q = randn(1, 1, 32, 4);
        string Message(Func<object> act) => Assert.ThrowsAny<ArgumentException>(act).Message;
        Assert.Contains("the map holds 3", Message(() => PyramidAttention.Forward(q, q, q, full([1L, 1, 2, 2], 3, int32), 16, 16)));
        Assert.Contains("[1, 1, 2, 2]", Message(() => PyramidAttention.Forward(q, q, q, ones(1, 1, 2, 3, int32), 16, 16)));
        Assert.Contains("multiple of 8", Message(() => PyramidAttention.Forward(q, q, q, full([1L, 1, 2, 8], 2, int32), 16, 4)));
        var importance = rand(1, 1, 2, 8);
        Assert.Contains("end at 0.5", Message(() => PyramidLevels.FromImportance(importance, [new(1, 0, 0.5)], PyramidRanking.TopK, 32)));
        Assert.Contains("follow each other", Message(() => PyramidLevels.FromImportance(importance, [new(1, 0, 0.5), new(2, 0.4, 0.3), new(0, 0.5, 1)], PyramidRanking.TopK, 32)));
        Assert.Contains("not 3", Message(() => PyramidLevels.FromImportance(importance, [new(3, 0, 1)], PyramidRanking.TopK, 32)));
        Assert.Contains("tile divides", Message(() => PyramidLevels.FromImportance(importance, [new(1, 0, 1)], PyramidRanking.TopK, 48)));
        Assert.Contains("as many query blocks", Message(() => PyramidLevels.Causal(importance, [new(1, 0, 1)], PyramidRanking.TopK, 32)));
        Assert.Contains("cannot be combined with a token order", Message(() => new PyramidSparseAttention(PyramidOptions.Understanding, GilbertCurve.Order(2, 2, 2), isCausal: true)));
        Assert.Contains("needs PyramidImportance.Antidiagonal", Message(() => Attention.Compute(q, q, q, AttentionOptions.CausalSelf with { Selector = new PyramidSelector() })));
        Assert.Contains("WindowBefore", Message(() => Attention.Compute(q, q, q, new() { WindowBefore = 3, Selector = new PyramidSelector() })));
        Assert.Contains("at least 1 x 1 x 1", Message(() => GilbertCurve.Order(0, 1, 1)));
    }

    [Fact]
    public void The_mask_and_the_selector_of_a_decoding_step_leave_it_dense()
    {
        using var scope = NewDisposeScope();
        var (q, k) = (randn(1, 2, 1, 8), randn(1, 2, 300, 8));
        var selector = new PyramidSelector(PyramidOptions.Understanding);
        Assert.Null(selector.Select(q, k, k, AttentionOptions.CausalSelf).Options.BlockMask);
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, 1)]
    [InlineData(8, 0.125)]
    public void The_density_of_one_level_is_its_inverse(int level, double density)
    {
        using var map = full([1L, 2, 5, 5], level, int32);
        Assert.Equal(density, PyramidLevels.Density(map), 12);
        Assert.Equal(density, PyramidLevels.Density(map, isCausal: true), 12);
    }

    private static Tensor RandomLevels(int seed, int heads, int rows, int columns, int least = 0)
    {
        var random = new Random(seed);
        return tensor(Enumerable.Range(0, heads * rows * columns).Select(_ => s_levels[random.Next(least, 5)]).ToArray()).view(1, heads, rows, columns);
    }

    /// <summary>The definition, row by row: every level's tokens with their biases, one softmax.</summary>
    private static Tensor Definition(Tensor query, Tensor key, Tensor value, Tensor level, int queryBlock, int keyBlock, bool isCausal)
    {
        var (heads, tokens, width) = ((int)query.shape[1], (int)query.shape[2], query.shape[3]);
        var missing = (keyBlock - (tokens % keyBlock)) % keyBlock;
        Tensor Filled(Tensor tensor) => missing == 0 ? tensor : cat([tensor, tensor.narrow(2, tokens - 1, 1).repeat(1, 1, missing, 1)], 2);
        Tensor Pooled(Tensor tensor, int r) => r == 1 ? tensor : Filled(tensor).view(1, 1, (tokens + missing) / r, r, tensor.shape[3]).mean([3L]);
        var pooled = s_levels.Skip(1).ToDictionary(r => r, r => (Key: Pooled(key, r)[0, 0], Value: Pooled(value, r)[0, 0]));
        var rows = new List<Tensor>();
        for (var head = 0; head < heads; head++)
        {
            for (var row = 0; row < tokens; row++)
            {
                List<Tensor> scores = [], values = [];
                for (var column = 0; column < level.shape[3]; column++)
                {
                    var r = level[0, head, row / queryBlock, column].item<int>();
                    var first = r == 0 ? 0 : column * keyBlock / r;
                    var end = r == 0 ? 0 : Math.Min((column + 1) * keyBlock / r, r == 1 ? tokens : int.MaxValue);
                    var count = Math.Min(end, isCausal && r > 0 ? (row + 1) / r : end) - first;
                    if (count > 0)
                    {
                        scores.Add((pooled[r].Key.narrow(0, first, count).mv(query[0, head, row]) / Math.Sqrt(width)) + Math.Log(r));
                        values.Add(pooled[r].Value.narrow(0, first, count));
                    }
                }

                rows.Add(scores.Count == 0 ? zeros(value.shape[3], float64) : cat(values).transpose(0, 1).mv(cat(scores).softmax(0)));
            }
        }

        return stack(rows).view(1, heads, tokens, value.shape[3]);
    }
}
