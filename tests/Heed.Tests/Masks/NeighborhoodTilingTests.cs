using CsCheck;
using Heed.Masks;
using Xunit;

namespace Heed.Tests.Masks;

public sealed class NeighborhoodTilingTests
{
    [Fact]
    public void Visits_are_those_of_a_count_pair_by_pair() => Gen.Select(Gen.Int[2, 24], Gen.Int[1, 24], Gen.Int[1, 24], Gen.Int[1, 6], Gen.Int[1, 6], Gen.Bool).Sample((length, window, stride, queryTile, keyTile, isCausal) =>
    {
        window = 1 + (window % length);
        var axis = new NeighborhoodAxis(length, window, 1 + (stride % window), 1, isCausal);
        var report = NeighborhoodTiling.Simulate(new(axis), [queryTile], [keyTile]);
        var neighborhood = new Neighborhood(axis);
        long most = 0, total = 0;
        var isExact = true;
        for (var first = 0; first < length; first += queryTile)
        {
            var visited = 0;
            for (var firstKey = 0; firstKey < length; firstKey += keyTile)
            {
                var pairs = from query in Enumerable.Range(first, Math.Min(queryTile, length - first))
                            from key in Enumerable.Range(firstKey, Math.Min(keyTile, length - firstKey))
                            select neighborhood.Allows(query, key);
                visited += pairs.Any(seen => seen) ? 1 : 0;
                isExact &= pairs.All(seen => seen) || pairs.All(seen => !seen);
            }

            most = Math.Max(most, visited);
            total += visited;
        }

        // A tile that hangs over may be counted to need what only its missing queries would.
        Assert.True(length % queryTile != 0 ? report.VisitedTotal >= total : (report.VisitedMax, report.VisitedTotal) == (most, total));
        Assert.True(!report.NeedsNoMask || isExact);
        Assert.Equal((length + queryTile - 1) / queryTile, report.QueryTiles);
        Assert.Equal(length / (double)window, report.FlopSpeedup);
    });

    [Fact]
    public void The_smallest_stride_without_masks_is_as_published()
    {
        // 32K tokens, window 2048, key tile 128: at stride 128 the centre is off by 64.
        Assert.False(NeighborhoodTiling.Simulate(Neighborhood.Of([32768], [2048], [128]), [128], [128]).NeedsNoMask);
        Assert.True(NeighborhoodTiling.Simulate(Neighborhood.Of([32768], [2048], [256]), [256], [128]).NeedsNoMask);
        Assert.False(NeighborhoodTiling.Simulate(Neighborhood.Of([32768], [2048], [256], null, [true]), [256], [128]).NeedsNoMask);
    }

    [Theory]
    [InlineData(24, 16, 1, 1, 8, false)]
    [InlineData(64, 5, 4, 2, 5, false)]
    [InlineData(10, 8, 3, 1, 2, true)]
    [InlineData(20, 16, 8, 8, 4, true)]
    public void A_mask_is_needed_where_windows_begin_within_tiles_whatever_divides_what(long length, long window, long stride, long queryTile, long keyTile, bool needsNoMask) =>
        Assert.Equal(needsNoMask, NeighborhoodTiling.Simulate(Neighborhood.Of([length], [window], [stride]), [queryTile], [keyTile]).NeedsNoMask);

    [Fact]
    public void Tables_2_and_4_of_the_paper_come_out()
    {
        var strides = new long[][] { [1, 1, 1], [2, 1, 1], [1, 1, 8], [2, 1, 8], [1, 8, 8], [2, 8, 8], [16, 8, 8] };
        double[] hunyuan = [1.73, 1.78, 1.99, 2.02, 2.17, 2.20, 2.23];
        foreach (var (stride, expected) in strides.Zip(hunyuan))
        {
            Assert.Equal(expected, NeighborhoodTiling.Simulate(Neighborhood.Of([30, 48, 80], [18, 24, 24], stride), [4, 8, 8], [2, 8, 8]).EndToEnd(0.607), 0.01);
        }

        foreach (var (stride, expected) in new long[][] { [1, 1], [16, 1], [16, 16] }.Zip([1.76, 1.84, 1.88]))
        {
            Assert.Equal(expected, NeighborhoodTiling.Simulate(Neighborhood.Of([256, 256], [80], stride), [16, 16], [16, 8]).EndToEnd(0.518), 0.01);
        }
    }

    [Fact]
    public void Keys_cut_from_the_corner_of_the_region_need_fewer_tiles()
    {
        var neighborhood = Neighborhood.Of([256, 256], [80], [32]);
        Assert.True(NeighborhoodTiling.Simulate(neighborhood, [16, 16], [16, 16], KeyTiling.Dynamic).NeedsNoMask);
        Assert.False(NeighborhoodTiling.Simulate(neighborhood, [16, 16], [16, 16]).NeedsNoMask);
        Assert.Equal(10.24, NeighborhoodTiling.Simulate(neighborhood, [16, 16], [16, 16], KeyTiling.Dynamic).SpeedupBound, 12);
    }

    [Fact]
    public void What_cannot_be_counted_is_told_in_a_sentence()
    {
        Assert.Contains("for each of the 2 axes", Assert.Throws<ArgumentException>(() => NeighborhoodTiling.Simulate(Neighborhood.Of([8, 8], [3]), [4], [4, 4])).Message, StringComparison.Ordinal);
        Assert.Contains("without dilation", Assert.Throws<ArgumentException>(() => NeighborhoodTiling.Simulate(Neighborhood.Of([8], [3], null, [2]), [4], [4])).Message, StringComparison.Ordinal);
    }
}
