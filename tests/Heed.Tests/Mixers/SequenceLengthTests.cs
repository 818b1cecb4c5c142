using Heed.Mixers;
using Xunit;

namespace Heed.Tests.Mixers;

public sealed class SequenceLengthTests
{
    [Theory]
    [InlineData(384, 2304)]
    [InlineData(768, 4608)]
    public void The_border_is_six_widths(int width, int border)
    {
        Assert.Equal(border, SequenceLength.Threshold(width));
        Assert.False(SequenceLength.IsLong(border, width));
        Assert.True(SequenceLength.IsLong(border + 1, width));
        Assert.False(SequenceLength.IsLong(196, width));
    }

    [Fact]
    public void At_the_border_both_parts_of_the_cost_are_equal()
    {
        foreach (var ratio in new[] { 0, 2.5, 4 })
        {
            var (linear, quadratic) = SequenceLength.BlockOperations((long)SequenceLength.Threshold(64, ratio), 64, ratio);
            Assert.Equal(linear, quadratic);
        }
    }

    [Fact]
    public void The_cost_is_that_of_the_products_counted_one_by_one()
    {
        const double D = 48, L = 100;
        var (linear, quadratic) = SequenceLength.BlockOperations(100, 48);
        // Query, key, value and output; both layers of the perceptron; scores and their use.
        Assert.Equal((4 * 2 * L * D * D) + (2 * 2 * L * D * 4 * D), linear);
        Assert.Equal(2 * 2 * L * L * D, quadratic);
    }

    [Fact]
    public void Sizes_out_of_range_are_refused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => SequenceLength.IsLong(-1, 8));
        Assert.Throws<ArgumentOutOfRangeException>(() => SequenceLength.Threshold(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => SequenceLength.Threshold(8, -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => SequenceLength.BlockOperations(-1, 8));
    }
}
