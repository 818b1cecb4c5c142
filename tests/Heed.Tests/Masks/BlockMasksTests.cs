using System.Runtime.Intrinsics;
using CsCheck;
using Heed.Kernels;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class BlockMasksTests
{
    private static readonly Gen<(int Queries, int Keys, int QueryBlock, int KeyBlock)> Sizes =
        Gen.Select(Gen.Int[1, 150], Gen.Int[1, 150], Choices.OneOf(1, 16, 50, 64), Choices.OneOf(1, 16, 64, 70, 128));

    [Fact]
    public void Windows_list_exactly_the_pairs_of_the_window() => Gen.Select(
        Sizes, Gen.Int[0, 40].Nullable(), Gen.Int[0, 40].Nullable(), Gen.Enum<Causality>()).Sample((sizes, before, after, causal) =>
    {
        var mask = BlockMasks.SlidingWindow(sizes.Queries, sizes.Keys, before, after, causal, sizes.QueryBlock, sizes.KeyBlock);
        CheckPairs(mask, (_, _, i, j) =>
        {
            var position = causal == Causality.AlignedToStart ? i : i + sizes.Keys - sizes.Queries;
            return (causal == Causality.None || j <= position) && (before is null || j >= position - before) && (after is null || j <= position + after);
        });
    }, iter: 60);

    [Fact]
    public void A_mask_of_pairs_becomes_those_pairs_and_nothing_else() => Gen.Select(
        Sizes, Gen.Int[0, 100], Gen.Int[1, 2], Gen.Int[1, 3], Gen.Int[0, 3], Gen.Int).Sample((sizes, percent, batches, heads, shared, seed) =>
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)(uint)seed);
        // A quarter each: all dimensions, shared rows (a key mask), shared keys, and keys that do not lie side by side.
        var shape = new long[] { batches, heads, shared == 1 ? 1 : sizes.Queries, shared == 2 ? 1 : sizes.Keys };
        var values = rand(shape, generator: generator) < percent / 100.0;
        values = shared == 3 ? values.transpose(2, 3).contiguous().transpose(2, 3) : values;
        var mask = BlockMasks.FromTensor(values, sizes.Queries, sizes.Keys, null, sizes.QueryBlock, sizes.KeyBlock);
        Assert.Equal((batches, heads), (mask.Batches, mask.Heads));
        var expected = values.expand(batches, heads, sizes.Queries, sizes.Keys).contiguous().data<bool>().ToArray();
        CheckPairs(mask, (b, h, i, j) => expected[(((b * heads) + h) * sizes.Queries * sizes.Keys) + (i * sizes.Keys) + j]);
    }, iter: 60);

    [Fact]
    public void A_mask_within_a_block_mask_is_their_intersection() => Gen.Select(Sizes, Gen.Int, Gen.Bool).Sample((sizes, seed, whole) =>
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)(uint)seed);
        var values = rand([2, 1, sizes.Queries, sizes.Keys], generator: generator) < 0.7;
        var blocks = whole
            ? BlockMasks.Random(sizes.Queries, sizes.Keys, 0.5, seed, heads: 2, queryBlock: sizes.QueryBlock, keyBlock: sizes.KeyBlock)
            : BlockMasks.Causal(sizes.Queries, sizes.Keys, Causality.AlignedToStart, sizes.QueryBlock, sizes.KeyBlock);
        var both = BlockMasks.FromTensor(values, within: blocks);
        var expected = values.contiguous().data<bool>().ToArray();
        CheckPairs(both, (b, h, i, j) => expected[(b * sizes.Queries * sizes.Keys) + (i * sizes.Keys) + j] && blocks.Allows(b, h, i, j));
    }, iter: 60);

    [Fact]
    public void A_predicate_becomes_its_pairs() => Sizes.Sample(sizes =>
    {
        var mask = BlockMasks.FromPredicate(new Stripes(3), 2, 2, sizes.Queries, sizes.Keys, Causality.AlignedToEnd, sizes.QueryBlock, sizes.KeyBlock);
        CheckPairs(mask, (b, h, i, j) => (i + sizes.Keys - sizes.Queries + j + b + h) % 3 == 0);
    }, iter: 40);

    [Theory]
    [InlineData(0.5)]
    [InlineData(0.0625)]
    [InlineData(1)]
    public void A_random_mask_has_its_density_and_repeats_with_its_seed(double density)
    {
        var mask = BlockMasks.Random(4096, 4096, density, seed: 5, heads: 3);
        Assert.Equal(density, mask.Density, 0.002);
        var again = BlockMasks.Random(4096, 4096, density, seed: 5, heads: 3);
        for (var h = 0; h < 3; h++)
        {
            for (var block = 0; block < mask.QueryBlocks; block++)
            {
                var (start, end) = mask.Row(0, h, block);
                Assert.Equal((start, end), again.Row(0, h, block));
                Assert.True(end > start);
                for (var listed = start; listed < end; listed++)
                {
                    Assert.Equal(mask.KeyBlockAt(listed), again.KeyBlockAt(listed));
                }
            }
        }
    }

    [Fact]
    public void A_window_over_a_long_sequence_takes_memory_in_proportion_to_its_length()
    {
        var before = GC.GetAllocatedBytesForCurrentThread();
        var mask = BlockMasks.SlidingWindow(65536, 65536, 511, 0);
        Assert.Equal(65536 / 64 * 9.0 / 1024 / 1024, mask.Density, 1e-4);

        // The map of single pairs would be 512 MiB of bits.
        Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 64 << 20);
    }

    [Fact]
    public void Bad_input_is_refused_in_one_sentence()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("boolean", Assert.Throws<ArgumentException>(() => BlockMasks.FromTensor(zeros(3, 3))).Message);
        Assert.Contains(
            "broadcast", Assert.Throws<ArgumentException>(() => BlockMasks.FromTensor(zeros(3, 3, ScalarType.Bool), 4, 3)).Message);
        Assert.Throws<ArgumentException>(() => BlockMasks.FromTensor(zeros([1, 1, 1, 3, 3], ScalarType.Bool)));
        Assert.Throws<ArgumentException>(() => BlockMasks.FromTensor(zeros(0, 3, ScalarType.Bool)));
        Assert.Throws<ArgumentException>(() => BlockMasks.Causal(0, 3));
        Assert.Throws<ArgumentException>(() => BlockMasks.SlidingWindow(3, 3, -1, null));
        Assert.Throws<ArgumentException>(() => BlockMasks.Random(3, 3, 0, 1));
        Assert.Throws<ArgumentException>(() => BlockMasks.Random(3, 3, double.NaN, 1));
        Assert.Throws<ArgumentException>(() => BlockMasks.FromPredicate(default(AllPairs), 1, 0, 3, 3));
    }

    internal static void CheckPairs(BlockMask mask, Func<int, int, long, long, bool> expected)
    {
        for (var b = 0; b < mask.Batches; b++)
        {
            for (var h = 0; h < mask.Heads; h++)
            {
                for (var block = 0; block < mask.QueryBlocks; block++)
                {
                    var (start, end) = mask.Row(b, h, block);
                    for (var listed = start; listed < end; listed++)
                    {
                        CheckKind(mask, b, h, block, listed, expected);
                    }
                }

                for (long i = 0; i < mask.QueryLength; i++)
                {
                    for (long j = 0; j < mask.KeyLength; j++)
                    {
                        Assert.Equal(expected(b, h, i, j), mask.Allows(b, h, i, j));
                    }
                }
            }
        }
    }

    // A listed block has at least one pair, and is full exactly when it has all.
    private static void CheckKind(BlockMask mask, int b, int h, int block, int listed, Func<int, int, long, long, bool> expected)
    {
        var (any, every) = (false, true);
        for (var i = (long)block * mask.QueryBlock; i < Math.Min((block + 1L) * mask.QueryBlock, mask.QueryLength); i++)
        {
            for (var j = (long)mask.KeyBlockAt(listed) * mask.KeyBlock; j < Math.Min((mask.KeyBlockAt(listed) + 1L) * mask.KeyBlock, mask.KeyLength); j++)
            {
                any |= expected(b, h, i, j);
                every &= expected(b, h, i, j);
            }
        }

        Assert.True(any);
        Assert.Equal(!every, mask.IsPartial(listed));
    }

    private readonly struct Stripes(int period) : IMaskPredicate
    {
        public Vector512<int> Allows(in ScoreRow row, Vector512<int> keys)
        {
            var lanes = new int[16];
            for (var i = 0; i < lanes.Length; i++)
            {
                lanes[i] = (row.Position + keys[i] + row.Batch + row.Head) % period == 0 ? -1 : 0;
            }

            return Vector512.Create(lanes);
        }
    }
}
