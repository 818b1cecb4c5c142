using Heed.Kernels;
using TorchSharp;

namespace Heed.Masks;

/// <summary>Tiles of a neighborhood: what becomes a block of the block mask once tokens are re-ordered tile by tile.</summary>
/// <param name="Query">Length of a query tile on each axis.</param>
/// <param name="Key">Length of a key tile on each axis.</param>
public sealed record NeighborhoodTiles(IReadOnlyList<long> Query, IReadOnlyList<long> Key);

/// <summary>How a neighborhood is computed by the block-sparse kernel: the orders that make tiles contiguous and dilation groups a batch, and which tiles meet. Depends on geometry alone, so it is built once
/// and shared.</summary>
public sealed class NeighborhoodPlan
{
    // A model uses a handful of geometries; a plan of a large grid whose tiles need masks takes hundreds of megabytes.
    private const int Remembered = 16;
    private const long RememberedBytes = 1L << 29;

    private static readonly Lock s_gate = new();
    private static readonly List<((Neighborhood, string) Key, NeighborhoodPlan Plan)> s_recent = [];

    private readonly Lists _lists;
    private readonly bool _groupsDiffer;
    private (long Batch, BlockMask Mask)? _lastMask;

    private NeighborhoodPlan(Neighborhood neighborhood, NeighborhoodTiles tiles)
    {
        Tiles = tiles;
        var grid = neighborhood.Axes.Select(axis => axis.Length).ToArray();
        var dilation = neighborhood.Axes.Select(axis => axis.Dilation).ToArray();
        Groups = neighborhood.Groups;
        QueryOrder = OrderOf(grid, tiles.Query, dilation);
        KeyOrder = tiles.Query.SequenceEqual(tiles.Key) ? QueryOrder : OrderOf(grid, tiles.Key, dilation);
        // All groups share one list where they have one shape.
        _groupsDiffer = neighborhood.Axes.Any(axis => axis.Length % axis.Dilation != 0);
        _lists = new Lists(
            neighborhood, tiles, _groupsDiffer ? Groups : 1, (QueryOrder?.Places ?? neighborhood.Tokens) / Groups, (KeyOrder?.Places ?? neighborhood.Tokens) / Groups);
    }

    /// <summary>The tiles.</summary>
    public NeighborhoodTiles Tiles { get; }

    /// <summary>Dilation groups: each becomes a batch item.</summary>
    public long Groups { get; }

    /// <summary>Order of the queries, group after group; null: as they are.</summary>
    public TokenOrder? QueryOrder { get; }

    /// <summary>Order of keys and values; null: as they are.</summary>
    public TokenOrder? KeyOrder { get; }

    /// <summary>The plan of a neighborhood; the latest ones are remembered.</summary>
    /// <param name="neighborhood">The neighborhood.</param>
    /// <param name="tiles">The tiles; null: those with the least work.</param>
    /// <exception cref="ArgumentException">The tiles have another number of axes, or a length below 1.</exception>
    public static NeighborhoodPlan Of(Neighborhood neighborhood, NeighborhoodTiles? tiles = null)
    {
        ArgumentNullException.ThrowIfNull(neighborhood);
        if (tiles is not null && (tiles.Query.Count != neighborhood.Axes.Count || tiles.Key.Count != neighborhood.Axes.Count || tiles.Query.Concat(tiles.Key).Any(length => length < 1)))
        {
            throw new ArgumentException(
                $"Tiles have one length of at least 1 for each of the {neighborhood.Axes.Count} axes; {string.Join("x", tiles.Query)} and {string.Join("x", tiles.Key)} were given.", nameof(tiles));
        }

        // Choosing takes milliseconds: it is remembered, too.
        var key = (neighborhood, tiles is null ? "chosen" : $"{string.Join('x', tiles.Query)} {string.Join('x', tiles.Key)}");
        lock (s_gate)
        {
            var index = s_recent.FindIndex(entry => entry.Key.Equals(key));
            var found = index >= 0 ? s_recent[index] : (key, new NeighborhoodPlan(neighborhood, tiles ?? NeighborhoodTileChoice.Of(neighborhood)));
            if (index >= 0)
            {
                s_recent.RemoveAt(index);
            }

            s_recent.Add(found);
            while (s_recent.Count > 1 && (s_recent.Count > Remembered || s_recent.Sum(entry => entry.Plan._lists.Bytes) > RememberedBytes))
            {
                s_recent.RemoveAt(0);
            }

            return found.Item2;
        }
    }

    /// <summary>The block mask over tokens in these orders.</summary>
    /// <param name="batch">Batch items before the dilation groups become a batch.</param>
    /// <returns>Shared by all groups where they are of one shape, else lists for <c>batch * Groups</c> items, the groups of an item one after the other.</returns>
    public BlockMask Mask(long batch)
    {
        lock (_lists)
        {
            var copies = _groupsDiffer ? batch : 1;
            if (_lastMask is not { } last || last.Batch != copies)
            {
                _lastMask = last = (copies, _lists.ToMask((int)copies));
            }

            return last.Mask;
        }
    }

    private static TokenOrder? OrderOf(long[] grid, IReadOnlyList<long> tile, long[] dilation)
    {
        // One axis without dilation is in order already; the last block may be short. So is a grid whose tiles are whole rows.
        var slowest = Array.FindIndex(grid, length => length > 1);
        var isRaster = dilation.All(step => step == 1) && Enumerable.Range(slowest + 1, grid.Length - slowest - 1).All(axis => tile[axis] == grid[axis]);
        return slowest < 0 || (isRaster && tile.Take(slowest).All(length => length == 1)) ? null : TokenOrder.Tiles(grid, tile, dilation);
    }

    /// <summary>Block lists of the groups, one after the other.</summary>
    private sealed class Lists
    {
        private readonly long _queries, _keys;
        private readonly int _queryBlock, _keyBlock, _groups;
        private readonly int[] _offsets, _keyBlocks;
        private readonly bool[] _partial;
        private readonly ulong[] _bits;

        public Lists(Neighborhood neighborhood, NeighborhoodTiles tiles, long groups, long queries, long keys)
        {
            (_queries, _keys, _groups) = (queries, keys, checked((int)groups));
            (_queryBlock, _keyBlock) = (checked((int)Product(tiles.Query)), checked((int)Product(tiles.Key)));
            var rows = new List<TileRow>();
            for (long group = 0; group < groups; group++)
            {
                AddRows(rows, neighborhood, tiles, group);
            }

            _offsets = new int[rows.Count + 1];
            var bitOffsets = new long[rows.Count + 1];
            var wordsPerRow = (_keyBlock + 63) / 64;
            for (var row = 0; row < rows.Count; row++)
            {
                var (listed, full) = rows[row].Counts;
                _offsets[row + 1] = checked((int)(_offsets[row] + listed));
                bitOffsets[row + 1] = bitOffsets[row] + ((listed - full) * _queryBlock * wordsPerRow);
            }

            _keyBlocks = new int[_offsets[^1]];
            _partial = new bool[_offsets[^1]];
            _bits = new ulong[bitOffsets[^1]];
            Parallel.For(0, rows.Count, new() { MaxDegreeOfParallelism = torch.get_num_threads() }, row =>
                rows[row].Fill(_keyBlocks.AsSpan(_offsets[row].._offsets[row + 1]), _partial.AsSpan(_offsets[row]), _bits.AsSpan((int)bitOffsets[row]), wordsPerRow));
        }

        public long Bytes => (_bits.LongLength * sizeof(ulong)) + (_keyBlocks.LongLength * (sizeof(int) + sizeof(bool)));

        public BlockMask ToMask(int copies) => new(
            _groups == 1 ? 1 : copies * _groups, 1, _queries, _keys, _queryBlock, _keyBlock,
            [0, .. Enumerable.Range(0, copies).SelectMany(copy => _offsets.Skip(1).Select(offset => offset + (copy * _keyBlocks.Length)))],
            Repeat(_keyBlocks, copies), _bits.Length > 0 ? Repeat(_partial, copies) : null, null, _bits.Length > 0 ? Repeat(_bits, copies) : null);

        private static T[] Repeat<T>(T[] values, int copies)
        {
            if (copies == 1)
            {
                return values;
            }

            var repeated = new T[checked(values.Length * copies)];
            for (var copy = 0; copy < copies; copy++)
            {
                values.CopyTo(repeated, copy * values.Length);
            }

            return repeated;
        }

        private static long Product(IReadOnlyList<long> lengths) => lengths.Aggregate(1L, (product, length) => checked(product * length));

        private static void AddRows(List<TileRow> rows, Neighborhood neighborhood, NeighborhoodTiles tiles, long group)
        {
            // The number of tiles is that of the longest group: every group is padded to it.
            var axes = neighborhood.Axes.Count;
            var perAxis = new AxisTile[axes][];
            for (var axis = axes - 1; axis >= 0; axis--)
            {
                var whole = neighborhood.Axes[axis];
                (group, var offset) = Math.DivRem(group, whole.Dilation);
                var (one, queryTile, keyTile) = (whole.Group(offset), tiles.Query[axis], tiles.Key[axis]);
                var longest = whole.Group(0).Length;
                perAxis[axis] = new AxisTile[(longest + queryTile - 1) / queryTile];
                for (var tile = 0; tile < perAxis[axis].Length; tile++)
                {
                    perAxis[axis][tile] = new AxisTile(one, tile * queryTile, queryTile, keyTile, (longest + keyTile - 1) / keyTile);
                }
            }

            // One, two and three axes alike: missing slow axes are single tiles.
            var single = new[] { new AxisTile(new(1, 1), 0, 1, 1, 1) };
            var (slow, middle) = (axes > 2 ? perAxis[0] : single, axes > 1 ? perAxis[^2] : single);
            foreach (var a in slow)
            {
                foreach (var b in middle)
                {
                    foreach (var c in perAxis[^1])
                    {
                        rows.Add(new(a, b, c));
                    }
                }
            }
        }
    }

    /// <summary>A query tile on one axis: the key tiles that it touches, those that all of its queries see whole, and each query's window.</summary>
    private sealed class AxisTile
    {
        public AxisTile(NeighborhoodAxis axis, long firstQuery, long queryTile, long keyTile, long keyTiles)
        {
            (QueryTile, KeyTile, KeyTiles) = ((int)queryTile, (int)keyTile, (int)keyTiles);
            Windows = new (int, int)[(int)Math.Clamp(axis.Length - firstQuery, 0, queryTile)];
            if (Windows.Length == 0)
            {
                return;
            }

            var (latestStart, earliestEnd) = (0L, long.MaxValue);
            for (var i = 0; i < Windows.Length; i++)
            {
                var (start, end) = axis.GroupBounds(firstQuery + i);
                Windows[i] = (checked((int)start), checked((int)end));
                (latestStart, earliestEnd) = (Math.Max(latestStart, start), Math.Min(earliestEnd, end));
            }

            // Windows move on with their queries, by no more than their width: together they have no gap.
            First = Windows[0].Start / KeyTile;
            End = (Windows[^1].End + KeyTile - 1) / KeyTile;
            FullFirst = (int)((latestStart + keyTile - 1) / keyTile);
            FullEnd = (int)Math.Max(earliestEnd / keyTile, FullFirst);
        }

        public (int Start, int End)[] Windows { get; }

        public int QueryTile { get; }

        public int KeyTile { get; }

        public int KeyTiles { get; }

        public int First { get; }

        public int End { get; }

        public int FullFirst { get; }

        public int FullEnd { get; }

        public bool IsFull(int keyTile) => keyTile >= FullFirst && keyTile < FullEnd;

        /// <summary>What a query sees of a key tile, counted from the tile's start; empty where the first is not below the second.</summary>
        public (int Start, int End) Within(int query, int keyTile) =>
            (Math.Max(Windows[query].Start - (keyTile * KeyTile), 0), Math.Min(Windows[query].End - (keyTile * KeyTile), KeyTile));
    }

    /// <summary>A query tile: the block list that it becomes.</summary>
    private readonly struct TileRow(AxisTile slow, AxisTile middle, AxisTile fast)
    {
        public (long Listed, long Full) Counts => (
            (long)(slow.End - slow.First) * (middle.End - middle.First) * (fast.End - fast.First) * (slow.Windows.Length * middle.Windows.Length * fast.Windows.Length > 0 ? 1 : 0),
            (long)(slow.FullEnd - slow.FullFirst) * (middle.FullEnd - middle.FullFirst) * (fast.FullEnd - fast.FullFirst) * (slow.Windows.Length * middle.Windows.Length * fast.Windows.Length > 0 ? 1 : 0));

        public void Fill(Span<int> keyBlocks, Span<bool> partial, Span<ulong> bits, int wordsPerRow)
        {
            if (keyBlocks.Length == 0)
            {
                return;
            }

            var (listed, words) = (0, slow.QueryTile * middle.QueryTile * fast.QueryTile * wordsPerRow);
            for (var a = slow.First; a < slow.End; a++)
            {
                for (var b = middle.First; b < middle.End; b++)
                {
                    for (var c = fast.First; c < fast.End; c++)
                    {
                        keyBlocks[listed] = (((a * middle.KeyTiles) + b) * fast.KeyTiles) + c;
                        partial[listed] = !(slow.IsFull(a) && middle.IsFull(b) && fast.IsFull(c));
                        if (partial[listed])
                        {
                            FillBits(a, b, c, bits[..words], wordsPerRow);
                            bits = bits[words..];
                        }

                        listed++;
                    }
                }
            }
        }

        private void FillBits(int a, int b, int c, Span<ulong> bits, int wordsPerRow)
        {
            for (var x = 0; x < slow.Windows.Length; x++)
            {
                var (firstA, endA) = slow.Within(x, a);
                for (var y = 0; y < middle.Windows.Length; y++)
                {
                    var (firstB, endB) = middle.Within(y, b);
                    for (var z = 0; z < fast.Windows.Length; z++)
                    {
                        var (firstC, endC) = fast.Within(z, c);
                        var row = bits.Slice(((((x * middle.QueryTile) + y) * fast.QueryTile) + z) * wordsPerRow, wordsPerRow);
                        for (var i = firstA; i < endA && firstC < endC; i++)
                        {
                            for (var j = firstB; j < endB; j++)
                            {
                                var origin = ((i * middle.KeyTile) + j) * fast.KeyTile;
                                SetRun(row, origin + firstC, origin + endC);
                            }
                        }
                    }
                }
            }
        }

        private static void SetRun(Span<ulong> words, int first, int end)
        {
            for (var word = first / 64; word * 64 < end; word++)
            {
                var (low, high) = (Math.Max(first - (word * 64), 0), Math.Min(end - (word * 64), 64));
                words[word] |= (ulong.MaxValue >> (64 - high)) & (ulong.MaxValue << low);
            }
        }
    }
}
