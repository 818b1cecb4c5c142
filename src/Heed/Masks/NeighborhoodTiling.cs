namespace Heed.Masks;

/// <summary>How a kernel cuts the keys of a query tile into tiles.</summary>
public enum KeyTiling
{
    /// <summary>The grid is cut once; a query tile visits every tile that its window touches.</summary>
    Static,

    /// <summary>The region that a query tile needs is sliced out first and cut from its own corner.</summary>
    Dynamic,
}

/// <summary>What a tiled kernel does for a neighborhood, counted (arXiv 2504.16922, appendix B.1).</summary>
/// <param name="QueryTiles">Query tiles.</param>
/// <param name="KeyTiles">Key tiles of the whole grid.</param>
/// <param name="VisitedMax">Key tiles that the worst query tile visits.</param>
/// <param name="VisitedTotal">Key tiles that all query tiles visit together.</param>
/// <param name="WindowTokens">Keys of a window.</param>
/// <param name="Tokens">Keys of the grid.</param>
/// <param name="NeedsNoMask">Whether every query of every query tile sees exactly the tiles that are visited: perfectly block-sparse.</param>
public readonly record struct TilingReport(
    long QueryTiles, long KeyTiles, long VisitedMax, long VisitedTotal, long WindowTokens, long Tokens, bool NeedsNoMask)
{
    /// <summary>The paper's bound on the speed-up: all key tiles over those of the worst query tile. For a machine that runs all query tiles at once.</summary>
    public double SpeedupBound => KeyTiles / (double)VisitedMax;

    /// <summary>All pairs of tiles over those visited: the bound for a machine that runs them in turn.</summary>
    public double MeanSpeedup => QueryTiles * (double)KeyTiles / VisitedTotal;

    /// <summary>What the fewer operations alone would give.</summary>
    public double FlopSpeedup => Tokens / (double)WindowTokens;

    /// <summary>The bound on a whole model in which attention takes a share of the time.</summary>
    /// <param name="attentionShare">0 to 1.</param>
    public double EndToEnd(double attentionShare) => 1 / (1 - attentionShare + (attentionShare / SpeedupBound));
}

/// <summary>Tells without running anything how fast a tiled kernel can be on a neighborhood.</summary>
public static class NeighborhoodTiling
{
    /// <summary>Counts the tiles that are visited.</summary>
    /// <param name="neighborhood">The neighborhood, without dilation (give the grid of one dilation group).</param>
    /// <param name="queryTile">Length of a query tile on each axis.</param>
    /// <param name="keyTile">Length of a key tile on each axis.</param>
    /// <param name="tiling">How keys are cut.</param>
    /// <exception cref="ArgumentException">A tile has another number of axes or a length below 1, or the neighborhood is dilated.</exception>
    public static TilingReport Simulate(Neighborhood neighborhood, IReadOnlyList<long> queryTile, IReadOnlyList<long> keyTile, KeyTiling tiling = KeyTiling.Static)
    {
        ArgumentNullException.ThrowIfNull(neighborhood);
        ArgumentNullException.ThrowIfNull(queryTile);
        ArgumentNullException.ThrowIfNull(keyTile);
        var axes = neighborhood.Axes;
        if (queryTile.Count != axes.Count || keyTile.Count != axes.Count || queryTile.Concat(keyTile).Any(length => length < 1))
        {
            throw new ArgumentException(
                $"Tiles have one length of at least 1 for each of the {axes.Count} axes; {string.Join("x", queryTile)} and {string.Join("x", keyTile)} were given.", nameof(queryTile));
        }

        if (neighborhood.Groups > 1)
        {
            throw new ArgumentException("Tiles are counted without dilation: give the grid of one dilation group, its lengths divided by the dilation.", nameof(neighborhood));
        }

        long queryTiles = 1, keyTiles = 1, most = 1, total = 1;
        var needsNoMask = true;
        // A query tile visits the product over the axes: sums and maxima are products, too.
        for (var i = 0; i < axes.Count; i++)
        {
            var (count, axisMost, axisTotal) = CountAxis(axes[i], queryTile[i], keyTile[i], tiling);
            queryTiles = checked(queryTiles * count);
            keyTiles = checked(keyTiles * ((axes[i].Length + keyTile[i] - 1) / keyTile[i]));
            most = checked(most * axisMost);
            total = checked(total * axisTotal);
            needsNoMask &= AxisNeedsNoMask(axes[i], queryTile[i], keyTile[i], tiling);
        }

        return new(queryTiles, keyTiles, most, total, neighborhood.WindowTokens, neighborhood.Tokens, needsNoMask);
    }

    /// <summary>Query tiles of an axis, and the key tiles that the worst and all of them visit.</summary>
    internal static (long Tiles, long Most, long Total) CountAxis(NeighborhoodAxis axis, long queryTile, long keyTile, KeyTiling tiling)
    {
        long tiles = 0, most = 0, total = 0;
        for (long first = 0; first < axis.Length; first += queryTile)
        {
            // A tile that hangs over the axis counts as if its last query, with a clipped leader, were there.
            var (start, end) = (axis.GroupBounds(first).Start, axis.GroupBounds(first + queryTile - 1).End);
            var visited = tiling == KeyTiling.Static ? ((end + keyTile - 1) / keyTile) - (start / keyTile) : (end - start + keyTile - 1) / keyTile;
            tiles++;
            total += visited;
            most = Math.Max(most, visited);
        }

        return (tiles, most, total);
    }

    /// <summary>Whether all queries of every tile see exactly the key tiles that the tile visits. Counted, because alignment of stride, window and tile alone decides neither way.</summary>
    private static bool AxisNeedsNoMask(NeighborhoodAxis axis, long queryTile, long keyTile, KeyTiling tiling)
    {
        if (axis.IsCausal)
        {
            return false;
        }

        if (axis.Length == axis.Window)
        {
            return true;
        }

        if (tiling == KeyTiling.Dynamic)
        {
            return axis.Stride % queryTile == 0 && axis.Window % keyTile == 0;
        }

        for (long first = 0; first < axis.Length; first += queryTile)
        {
            // Starts never move back: the first and the last query decide.
            var (start, end) = axis.GroupBounds(first);
            if (start % keyTile != 0 || (end % keyTile != 0 && end != axis.Length) || axis.GroupBounds(first + queryTile - 1).Start != start)
            {
                return false;
            }
        }

        return true;
    }
}
