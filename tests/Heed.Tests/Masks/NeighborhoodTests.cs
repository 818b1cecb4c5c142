using CsCheck;
using Heed.Masks;
using Xunit;

namespace Heed.Tests.Masks;

public sealed class NeighborhoodTests
{
    private static readonly Gen<NeighborhoodAxis> s_axes = Gen.Select(Gen.Int[1, 30], Gen.Int[1, 30], Gen.Int[1, 30], Gen.Int[1, 4], Gen.Bool).Select((length, window, stride, dilation, isCausal) =>
    {
        dilation = Math.Min(dilation, length);
        window = 1 + (window % (length / dilation));
        return new NeighborhoodAxis(length, window, 1 + (stride % window), dilation, isCausal);
    });

    [Fact]
    public void Every_query_sees_a_whole_window_unless_the_axis_is_causal() => s_axes.Sample(axis =>
    {
        for (var query = 0L; query < axis.Length; query++)
        {
            var (group, start, end) = axis.Bounds(query);
            var length = axis.Group(group).Length;
            Assert.Equal(query % axis.Dilation, group);
            Assert.InRange(start, 0, length - 1);
            Assert.InRange(end, start + 1, length);
            Assert.InRange(query / axis.Dilation, start, end - 1);
            if (axis.IsCausal)
            {
                Assert.Equal((query / axis.Dilation) + 1, end);
                Assert.InRange(end - start, Math.Min(end, axis.Window - axis.Stride + 1), axis.Window);
            }
            else
            {
                Assert.Equal(axis.Window, end - start);
            }
        }
    });

    [Fact]
    public void A_stretch_of_queries_shares_one_window_and_even_windows_and_strides_lean_as_published()
    {
        // Window 4 of 9: one key more on the left. Stride 2: the right one of the two centres leads.
        Assert.Equal((0, 2, 6), new NeighborhoodAxis(9, 4).Bounds(4));
        Assert.Equal((0, 3, 7), new NeighborhoodAxis(9, 4, 2).Bounds(4));
        Assert.Equal((0, 3, 7), new NeighborhoodAxis(9, 4, 2).Bounds(5));
        // Causal: the last of the stretch says where it starts, the query itself where it ends.
        Assert.Equal((0, 3, 5), new NeighborhoodAxis(9, 4, 3, 1, true).Bounds(4) is var (g, s, e) ? (g, s + 1, e) : default);
        // The last, incomplete block of blocked attention overlaps the one before.
        Assert.Equal((0, 4, 7), new NeighborhoodAxis(7, 3, 3).Bounds(6));
        // Groups of a dilation that does not divide the length have edges of their own: 11 in two is 6 and 5.
        Assert.Equal((0, 2, 6), new NeighborhoodAxis(11, 4, 1, 2).Bounds(10));
        Assert.Equal((1, 1, 5), new NeighborhoodAxis(11, 4, 1, 2).Bounds(9));
    }

    [Fact]
    public void The_block_mask_over_raster_order_has_exactly_the_pairs() => Gen.Select(s_axes, s_axes, Gen.Int[0, 3]).Sample(
        (a, b, additional) =>
        {
            var neighborhood = new Neighborhood(a, b);
            var mask = neighborhood.ToBlockMask(16, 16, additional);
            for (var query = 0L; query < neighborhood.Tokens; query++)
            {
                for (var key = 0L; key < neighborhood.Tokens + additional; key++)
                {
                    Assert.Equal(key >= neighborhood.Tokens || neighborhood.Allows(query, key), mask.Allows(0, 0, query, key));
                }
            }
        }, iter: 20);

    [Fact]
    public void Minus_one_stands_for_the_whole_axis_and_one_value_for_all_axes()
    {
        Assert.Equal(new Neighborhood(new NeighborhoodAxis(4, 4), new NeighborhoodAxis(44, 4, 1, 11), new NeighborhoodAxis(80, 16, 1, 5)), Neighborhood.Of([4, 44, 80], [-1, 4, 16], null, [1, 11, 5]));
        Assert.Equal(Neighborhood.Of([9, 9], [3, 3], [2, 2], [3, 3], [true, true]), Neighborhood.Of([9, 9], [3], [2], [3], [true]));
        Assert.NotEqual(Neighborhood.Of([9, 9], [3]), Neighborhood.Of([9, 9], [5]));
        Assert.Equal("3 of 9, stride 2 x 4 of 8, dilation 2, causal", new Neighborhood(new NeighborhoodAxis(9, 3, 2), new NeighborhoodAxis(8, 4, 1, 2, true)).ToString());
    }

    [Theory]
    [InlineData(9, 10, 1, 1, "does not fit 9")]
    [InlineData(9, 4, 1, 3, "take a window of at most 3")]
    [InlineData(9, 4, 5, 1, "A stride is at most the window")]
    [InlineData(9, 0, 1, 1, "of at least 1")]
    [InlineData(9, 3, 1, 0, "of at least 1")]
    public void Windows_that_do_not_fit_are_told_in_a_sentence(long length, long window, long stride, long dilation, string sentence) => Assert.Contains(
        sentence, Assert.Throws<ArgumentException>(() => new Neighborhood(new NeighborhoodAxis(length, window, stride, dilation))).Message, StringComparison.Ordinal);

    [Fact]
    public void Lists_of_a_wrong_length_and_too_many_axes_are_told_in_a_sentence()
    {
        Assert.Contains("for each of the 3 axes", Assert.Throws<ArgumentException>(() => Neighborhood.Of([4, 4, 4], [2, 2])).Message, StringComparison.Ordinal);
        Assert.Contains("1 to 3 axes", Assert.Throws<ArgumentException>(() => Neighborhood.Of([4, 4, 4, 4], [2])).Message, StringComparison.Ordinal);
    }
}
