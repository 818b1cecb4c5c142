using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class BlockAlignerTests
{
    [Fact]
    public void Blocks_on_the_diagonal_are_found_by_both_methods()
    {
        using var scope = NewDisposeScope();
        // Token i reads the six frames from 6 i on; a block ends with every second token.
        var attention = eye(6).repeat_interleave(6, 1) + (rand(6, 36) * 0.01);
        Assert.Equal([12L, 24, 36], BlockAligner.Sbaam(attention, [1, 3, 5]));
        Assert.Equal([12L, 24], BlockAligner.Sbaam(attention, [1, 3, 5], forceEnd: false).Take(2));
        Assert.Equal([0L, 6, 12, 18, 24, 30], BlockAligner.DtwStarts(attention));
        Assert.Equal(3, BlockAligner.Dtw(attention, [1, 3, 5]).Count);
    }

    [Fact]
    public void Times_do_not_descend_whatever_the_attention()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(7);
        for (var round = 0; round < 30; round++)
        {
            var (tokens, frames) = (2 + (round % 9), 12 + round);
            var attention = rand([tokens, frames], generator: generator).softmax(-1);
            var starts = BlockAligner.DtwStarts(attention);
            Assert.Equal(tokens, starts.Count);
            Assert.All(starts, start => Assert.InRange(start, 0, frames - 1));
            Assert.Equal(starts.Order(), starts);
            int[] boundaries = [.. Enumerable.Range(0, tokens).Where(token => token % 2 == 1)];
            var ends = BlockAligner.Sbaam(attention, boundaries);
            Assert.Equal(ends.Distinct().Order(), ends);
            Assert.Equal(frames, boundaries.Length == 0 ? frames : ends[^1]);
            Assert.True(BlockAligner.Sbaam(attention, boundaries, forceEnd: false).All(end => end < frames || boundaries.Length == 0));
        }
    }

    [Fact]
    public void Where_frames_are_hardly_enough_the_first_block_goes_without_as_published()
    {
        using var scope = NewDisposeScope();
        Assert.Equal([0L, 1, 3], BlockAligner.Sbaam(ones(3, 3), [0, 1, 2]));
        Assert.Equal([1L, 2, 4], BlockAligner.Sbaam(ones(3, 4), [0, 1, 2]));
        Assert.Empty(BlockAligner.Sbaam(rand(3, 5), []));
        Assert.Empty(BlockAligner.Dtw(rand(3, 5), []));
    }

    [Fact]
    public void The_median_takes_out_a_spike_and_mirrors_at_the_ends()
    {
        using var scope = NewDisposeScope();
        var attention = zeros(2, 9, dtype: float64);
        attention[0, 4] = 5;
        var filtered = BlockAligner.NormalizeForDtw(attention, 3);
        Assertions.Close(zeros(2, 9, dtype: float64), filtered, 1e-15);
        var plain = BlockAligner.NormalizeForDtw(attention, 1);
        Assert.Equal(1, plain[0, 4].item<double>(), 1e-12);
        // No more frames than half the width: left as it is.
        Assertions.Close(BlockAligner.NormalizeForDtw(attention.narrow(1, 3, 3), 1), BlockAligner.NormalizeForDtw(attention.narrow(1, 3, 3), 7), 0);
        Assert.Equal(-0.25, BlockAligner.NormalizeForSbaam(attention, -0.25).min().item<double>());
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        string Said(Action mistake) => Assert.Throws<ArgumentException>(mistake).Message;
        var attention = rand(4, 6);
        Assert.Contains("odd width, not 4", Said(() => BlockAligner.Dtw(attention, [1], 4)), StringComparison.Ordinal);
        Assert.Contains("ascending tokens from 0 to 3", Said(() => BlockAligner.Sbaam(attention, [2, 1])), StringComparison.Ordinal);
        Assert.Contains("ascending tokens from 0 to 3", Said(() => BlockAligner.Dtw(attention, [4])), StringComparison.Ordinal);
        Assert.Contains("3 blocks do not fit 2 frames", Said(() => BlockAligner.Sbaam(rand(4, 2), [0, 1, 2])), StringComparison.Ordinal);
        Assert.Contains("[tokens, frames]", Said(() => BlockAligner.Sbaam(rand(1, 4, 6), [1])), StringComparison.Ordinal);
    }
}
