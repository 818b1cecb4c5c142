using Xunit;
using Heed.Masks;

namespace Heed.Tests.Masks;

public class GilbertCurveTests
{
    [Theory]
    [InlineData(1, 1)]
    [InlineData(3, 3)]
    [InlineData(5, 5)]
    [InlineData(6, 6)]
    [InlineData(7, 4)]
    [InlineData(2, 9)]
    public void A_plane_is_walked_once_and_hardly_ever_by_more_than_a_step(int width, int height)
    {
        var order = GilbertCurve.PlaneOrder(width, height).Order.ToArray();
        Assert.Equal(Enumerable.Range(0, width * height).Select(token => (long)token), order.Order());
        var jumps = order.Zip(order.Skip(1)).Count(step =>
            Math.Abs((step.First % width) - (step.Second % width)) + Math.Abs((step.First / width) - (step.Second / width)) != 1);
        Assert.InRange(jumps, 0, 1); // An odd width by an even height leaves a single diagonal.
    }

    [Fact]
    public void Only_the_side_across_is_rounded_to_even_steps_in_a_plane()
    {
        // Ranks by row and column on three rows of three: 0 1 2, 7 6 3, 8 5 4, the curve's first axis being the row.
        long[] expected = [0, 3, 6, 7, 8, 5, 4, 1, 2];
        Assert.Equal(expected, GilbertCurve.PlaneOrder(3, 3).Order.ToArray());
    }
}
