using CsCheck;
using Heed.Kernels;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class KeySelectionTests
{
    [Fact]
    public void The_three_dialects_together_select_the_union_clipped_causally() => Gen.Select(
        Gen.Int[1, 90], Gen.Int[1, 90], Choices.OneOf(7, 16, 64), Choices.OneOf(5, 64, 100), Gen.Enum<Causality>(), Gen.Int).Sample(
        (queries, keys, queryBlock, keyBlock, causal, seed) =>
        {
            var random = new Random(seed);
            var selection = new KeySelection(queries, keys, 2, 2, queryBlock, keyBlock);
            var expected = new bool[2, 2, queries, keys];
            for (var action = 0; action < 60; action++)
            {
                var (b, h, i) = (random.Next(2), random.Next(2), random.Next(queries));
                switch (random.Next(3))
                {
                    case 0 when action % 10 == 0:
                        var (block, listed) = (random.Next(selection.QueryBlocks), random.Next(selection.KeyBlocks));
                        selection.AddBlocks(b, h, block, [-1, listed, listed]);
                        for (var row = block * queryBlock; row < Math.Min((block + 1) * queryBlock, queries); row++)
                        {
                            Fill(b, h, row, listed * keyBlock, ((listed + 1) * keyBlock) - 1);
                        }

                        break;
                    case 1:
                        var (first, last) = (random.Next(-5, keys + 5), random.Next(-5, keys + 5));
                        selection.AddInterval(b, h, i, first, last);
                        Fill(b, h, i, first, last);
                        break;
                    default:
                        var key = random.Next(keys);
                        selection.AddKeys(b, h, i, [key, -1, key]);
                        Fill(b, h, i, key, key);
                        break;
                }
            }

            var shift = causal == Causality.AlignedToStart ? 0 : keys - queries;
            BlockMasksTests.CheckPairs(
                selection.ToBlockMask(causal), (b, h, i, j) => expected[b, h, i, j] && (causal == Causality.None || j <= i + shift));

            void Fill(int b, int h, int i, int first, int last)
            {
                for (var j = Math.Max(first, 0); j <= Math.Min(last, keys - 1); j++)
                {
                    expected[b, h, i, j] = true;
                }
            }
        }, iter: 100);

    [Fact]
    public void Tensors_of_each_dialect_give_the_same_mask()
    {
        using var scope = NewDisposeScope();

        // Two query blocks of four and three queries; keys in blocks of four, ten of them.
        var blocks = KeySelection.FromBlocks(tensor(new long[] { 2, 0, 1, -1 }).view(1, 1, 2, 2), 7, 10, 4, 4);
        var first = tensor(new long[] { 0, 8, 0, 8, 0, 8, 0, 8, 4, 1, 4, 1, 4, 1 }).view(1, 1, 7, 2);
        var last = tensor(new long[] { 3, 11, 3, 11, 3, 11, 3, 11, 7, 0, 7, 0, 7, 0 }).view(1, 1, 7, 2);
        var intervals = KeySelection.FromIntervals(first, last, 10, 4, 4);
        var indices = KeySelection.FromIndices(
            cat([
                tensor(new[] { 9, 8, 0, 1, 2, 3 }).view(1, 1, 1, 6).expand(1, 1, 4, 6),
                tensor(new[] { 7, 6, 5, 4, 4, -1 }).view(1, 1, 1, 6).expand(1, 1, 3, 6)
            ], 2),
            10, 4, 4);
        foreach (var selection in new[] { blocks, intervals, indices })
        {
            var mask = selection.ToBlockMask();
            BlockMasksTests.CheckPairs(mask, (_, _, i, j) => (i < 4 && (j < 4 || j >= 8)) || (i >= 4 && j is >= 4 and < 8));
        }
    }

    [Fact]
    public void Biases_of_blocks_reach_the_mask()
    {
        var selection = new KeySelection(8, 8, queryBlock: 4, keyBlock: 4);
        selection.AddBlocks(0, 0, 0, [0]);
        selection.AddBlocks(0, 0, 1, [1], bias: 0.75f);
        var mask = selection.ToBlockMask();
        Assert.Equal(0, mask.BiasAt(0));
        Assert.Equal(0.75f, mask.BiasAt(1));
        Assert.Contains("already selected", Assert.Throws<ArgumentException>(() => selection.AddBlocks(0, 0, 1, [1], bias: 1)).Message);
    }

    [Fact]
    public void Bad_input_is_refused_in_one_sentence()
    {
        using var scope = NewDisposeScope();
        Assert.Throws<ArgumentException>(() => new KeySelection(0, 1));
        var selection = new KeySelection(10, 10, queryBlock: 4, keyBlock: 4);
        Assert.Throws<ArgumentException>(() => selection.AddBlocks(0, 0, 3, [0]));
        Assert.Throws<ArgumentException>(() => selection.AddBlocks(0, 0, 0, [3]));
        Assert.Throws<ArgumentException>(() => selection.AddBlocks(0, 0, 0, [-2]));
        Assert.Throws<ArgumentException>(() => selection.AddBlocks(0, 1, 0, [0]));
        Assert.Throws<ArgumentException>(() => selection.AddInterval(0, 0, 10, 0, 1));
        Assert.Throws<ArgumentException>(() => selection.AddKeys(0, 0, 0, [10]));
        Assert.Throws<ArgumentException>(() => KeySelection.FromBlocks(zeros(1, 1, 2, 2), 8, 8, 4, 4));
        Assert.Throws<ArgumentException>(() => KeySelection.FromBlocks(zeros(1, 1, 3, 2, ScalarType.Int64), 8, 8, 4, 4));
        Assert.Throws<ArgumentException>(() => KeySelection.FromIntervals(zeros(1, 1, 3, 2, ScalarType.Int64), zeros(1, 1, 3, 1, ScalarType.Int64), 8));
    }
}
