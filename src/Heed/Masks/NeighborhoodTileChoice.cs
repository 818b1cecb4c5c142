namespace Heed.Masks;

/// <summary>Chooses the tiles with the least work, by counting: nothing is run.</summary>
internal static class NeighborhoodTileChoice
{
    // Keys are packed in panels of 64. Larger query tiles read a packed panel more often but visit more.
    private const long Panel = 64, MostTokens = 256, FewestQueries = 48;

    // Measured on two processors: a visit costs so many rows and columns of its tile on top, and a tile with a mask so much more than one without.
    private const double VisitCost = 10, MaskCost = 0.1;

    private static readonly long[] s_lengths = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256];

    public static NeighborhoodTiles Of(Neighborhood neighborhood)
    {
        // The longest group stands for all: the others are shorter by one.
        var axes = neighborhood.Axes.Select(axis => axis.Group(0)).ToArray();
        var tokens = axes.Aggregate(1L, (product, axis) => product * axis.Length);
        var tiles = Candidates(axes);
        var keyTiles = tiles.Where(tile => tile.Tokens % Panel == 0 || tile.Tokens == tokens).ToList();
        var queryTiles = tiles.Where(tile => tile.Tokens >= FewestQueries || tile.Tokens == tokens).ToList();
        var counts = new Dictionary<(int Axis, long Query, long Key), (long Visited, long Full)>();
        var (best, least) = ((Query: queryTiles[0], Key: keyTiles[0]), double.MaxValue);
        foreach (var query in queryTiles)
        {
            foreach (var key in keyTiles)
            {
                var (visited, full) = (1.0, 1.0);
                for (var axis = 0; axis < axes.Length; axis++)
                {
                    var pair = (axis, query.Lengths[axis], key.Lengths[axis]);
                    if (!counts.TryGetValue(pair, out var count))
                    {
                        counts[pair] = count = Count(axes[axis], pair.Item2, pair.Item3);
                    }

                    visited *= count.Visited;
                    full *= count.Full;
                }

                var pairs = (double)query.Tokens * key.Tokens;
                var cost = pairs * ((visited * (1 + (VisitCost / Math.Sqrt(pairs)))) + ((visited - full) * MaskCost));
                if (cost < least)
                {
                    (best, least) = ((query, key), cost);
                }
            }
        }

        return new(best.Query.Lengths, best.Key.Lengths);
    }

    /// <summary>Key tiles that the query tiles of an axis touch, and those of them that all of a tile's queries see whole.</summary>
    private static (long Visited, long Full) Count(NeighborhoodAxis axis, long queryTile, long keyTile)
    {
        long visited = 0, full = 0;
        for (long first = 0; first < axis.Length; first += queryTile)
        {
            // Starts and ends never move back, so that the first and the last query decide.
            var (start, earliestEnd) = axis.GroupBounds(first);
            var (latestStart, end) = axis.GroupBounds(Math.Min(first + queryTile, axis.Length) - 1);
            visited += ((end + keyTile - 1) / keyTile) - (start / keyTile);
            full += Math.Max((earliestEnd / keyTile) - ((latestStart + keyTile - 1) / keyTile), 0);
        }

        return (visited, full);
    }

    private static List<(long[] Lengths, long Tokens)> Candidates(NeighborhoodAxis[] axes)
    {
        List<(long[] Lengths, long Tokens)> tiles = [([], 1)];
        foreach (var axis in axes)
        {
            // The axis itself where it is short, else lengths that it holds.
            var lengths = s_lengths.Where(length => length < axis.Length).Append(axis.Length <= MostTokens ? axis.Length : MostTokens).Distinct().ToArray();
            tiles = [.. tiles.SelectMany(tile => lengths.Select(length => (Lengths: (long[])[.. tile.Lengths, length], Tokens: tile.Tokens * length))).Where(tile => tile.Tokens <= MostTokens)];
        }

        // Grids like 7 x 9 have no tile of whole panels: hanging over costs less than a panel half full.
        if (!tiles.Any(tile => tile.Tokens % Panel == 0))
        {
            var square = axes.Select(_ => 1L).ToArray();
            for (var (axis, product) = (axes.Length - 1, 1L); product < Panel; axis = axis == 0 ? axes.Length - 1 : axis - 1, product *= 2)
            {
                square[axis] *= 2;
            }

            tiles.Add((square, Panel));
        }

        return tiles;
    }
}
