using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// Which keys each query attends to, collected in any order and in the three ways in which selectors speak: key blocks per query block,
/// inclusive intervals per query, index sets per query. What is selected twice counts once. Becomes the <see cref="BlockMask"/> that the
/// kernels read.
/// </summary>
public sealed class KeySelection
{
    private readonly Dictionary<int, Block>?[] _rows;
    private readonly int _wordsPerRow;

    /// <summary>Initializes an empty selection: no query attends to anything.</summary>
    /// <param name="queries">Number of queries, from 1.</param>
    /// <param name="keys">Number of keys, from 1.</param>
    /// <param name="batches">1 where all batch items share the selection, or the batch size.</param>
    /// <param name="heads">1 where all heads share the selection, or the number of heads.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">A number is less than 1.</exception>
    public KeySelection(
        long queries, long keys, int batches = 1, int heads = 1, int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock)
    {
        // The builder checks the same numbers with the same sentence.
        var plan = new BlockMaskBuilder(batches, heads, queries, keys, queryBlock, keyBlock);
        (Queries, Keys, Batches, Heads, QueryBlock, KeyBlock) = (queries, keys, batches, heads, queryBlock, keyBlock);
        (QueryBlocks, KeyBlocks) = (plan.QueryBlocks, plan.KeyBlocks);
        _rows = new Dictionary<int, Block>?[checked(batches * heads * QueryBlocks)];
        _wordsPerRow = (keyBlock + 63) / 64;
    }

    /// <summary>Number of queries.</summary>
    public long Queries { get; }

    /// <summary>Number of keys.</summary>
    public long Keys { get; }

    /// <summary>Batch items with a selection of their own.</summary>
    public int Batches { get; }

    /// <summary>Heads with a selection of their own.</summary>
    public int Heads { get; }

    /// <summary>Queries per block.</summary>
    public int QueryBlock { get; }

    /// <summary>Keys per block.</summary>
    public int KeyBlock { get; }

    /// <summary>Number of query blocks.</summary>
    public int QueryBlocks { get; }

    /// <summary>Number of key blocks.</summary>
    public int KeyBlocks { get; }

    /// <summary>Selects whole key blocks for all queries of a query block.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    /// <param name="queryBlock">The query block.</param>
    /// <param name="keyBlocks">Key blocks in any order; -1 stands for none.</param>
    /// <param name="bias">Added to the scores of these blocks. Selecting a block again, in whatever way, with another bias is an
    /// error.</param>
    /// <exception cref="ArgumentException">There is no such batch item, head or block, or the block has another bias.</exception>
    public void AddBlocks(int batch, int head, int queryBlock, ReadOnlySpan<int> keyBlocks, float bias = 0)
    {
        if ((uint)queryBlock >= (uint)QueryBlocks)
        {
            throw new ArgumentException($"The selection has query blocks 0 to {QueryBlocks - 1}, not {queryBlock}.", nameof(queryBlock));
        }

        var row = RowAt(batch, head, queryBlock);
        foreach (var keyBlock in keyBlocks)
        {
            if (keyBlock == -1)
            {
                continue;
            }

            if ((uint)keyBlock >= (uint)KeyBlocks)
            {
                throw new ArgumentException(
                    $"The selection has key blocks 0 to {KeyBlocks - 1} (and -1 for none), not {keyBlock}.", nameof(keyBlocks));
            }

            if (row.TryGetValue(keyBlock, out var known) && known.Bias != bias)
            {
                throw new ArgumentException(
                    $"Key block {keyBlock} is already selected for query block {queryBlock} with the bias {known.Bias}, not "
                    + $"{bias}.", nameof(bias));
            }

            row[keyBlock] = new(null, bias);
        }
    }

    /// <summary>Selects an interval of keys for a query.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    /// <param name="query">The query.</param>
    /// <param name="first">The first key; what lies outside 0 to the last key is cut off.</param>
    /// <param name="last">The last key, included. An interval that ends before it begins selects nothing.</param>
    /// <exception cref="ArgumentException">There is no such batch item, head or query.</exception>
    public void AddInterval(int batch, int head, long query, long first, long last)
    {
        var row = RowOf(batch, head, query);
        first = Math.Max(first, 0);
        last = Math.Min(last, Keys - 1);
        for (var block = first / KeyBlock; block * KeyBlock <= last; block++)
        {
            var from = (int)Math.Max(first - (block * KeyBlock), 0);
            var to = (int)Math.Min(last - (block * KeyBlock), KeyBlock - 1);
            if (BitsOf(row, (int)block) is { } bits)
            {
                var start = (int)(query % QueryBlock) * _wordsPerRow;
                for (var word = from / 64; word <= to / 64; word++)
                {
                    var (low, high) = (Math.Max(from - (word * 64), 0), Math.Min(to - (word * 64), 63));
                    bits[start + word] |= (ulong.MaxValue >> (63 - high)) & (ulong.MaxValue << low);
                }
            }
        }
    }

    /// <summary>Selects a set of keys for a query.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="head">The head.</param>
    /// <param name="query">The query.</param>
    /// <param name="keys">Keys in any order, repeated or not; -1 stands for none.</param>
    /// <exception cref="ArgumentException">There is no such batch item, head, query or key.</exception>
    public void AddKeys(int batch, int head, long query, ReadOnlySpan<long> keys)
    {
        var row = RowOf(batch, head, query);
        foreach (var key in keys)
        {
            if (key < -1 || key >= Keys)
            {
                throw new ArgumentException($"The selection has keys 0 to {Keys - 1} (and -1 for none), not {key}.", nameof(keys));
            }

            if (key >= 0 && BitsOf(row, (int)(key / KeyBlock)) is { } bits)
            {
                var column = (int)(key % KeyBlock);
                bits[((int)(query % QueryBlock) * _wordsPerRow) + (column / 64)] |= 1UL << (column % 64);
            }
        }
    }

    /// <summary>A selection of key blocks per query block.</summary>
    /// <param name="blocks">Key blocks, int64 or int32 <c>[B or 1, H or 1, query blocks, n]</c>, -1 for none.</param>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">The shape does not fit, or a block does not exist.</exception>
    public static KeySelection FromBlocks(Tensor blocks, long queries, long keys, int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock)
    {
        var (values, batches, heads, rows, count) = Integers(blocks, nameof(blocks));
        var selection = new KeySelection(queries, keys, batches, heads, queryBlock, keyBlock);
        if (rows != selection.QueryBlocks)
        {
            throw new ArgumentException($"There are {selection.QueryBlocks} query blocks; lists for {rows} were given.", nameof(blocks));
        }

        var list = new int[count];
        for (var row = 0; row < batches * heads * rows; row++)
        {
            for (var i = 0; i < count; i++)
            {
                list[i] = (int)Math.Clamp(values[(row * count) + i], int.MinValue, int.MaxValue);
            }

            selection.AddBlocks(row / (heads * rows), row / rows % heads, row % rows, list);
        }

        return selection;
    }

    /// <summary>A selection of intervals per query.</summary>
    /// <param name="first">First keys, int64 or int32 <c>[B or 1, H or 1, Nq, n]</c>.</param>
    /// <param name="last">Last keys, included, of the same shape; before the first for none.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public static KeySelection FromIntervals(Tensor first, Tensor last, long keys, int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock)
    {
        var (from, batches, heads, rows, count) = Integers(first, nameof(first));
        var (to, otherBatches, otherHeads, otherRows, otherCount) = Integers(last, nameof(last));
        if ((batches, heads, rows, count) != (otherBatches, otherHeads, otherRows, otherCount))
        {
            throw new ArgumentException(
                $"First and last keys have one shape; {AttentionShape.Text(first)} and {AttentionShape.Text(last)} were "
                + "given.", nameof(last));
        }

        var selection = new KeySelection(rows, keys, batches, heads, queryBlock, keyBlock);
        for (long i = 0; i < from.LongLength; i++)
        {
            var row = i / count;
            selection.AddInterval((int)(row / ((long)heads * rows)), (int)(row / rows % heads), row % rows, from[i], to[i]);
        }

        return selection;
    }

    /// <summary>A selection of index sets per query.</summary>
    /// <param name="indices">Keys, int64 or int32 <c>[B or 1, H or 1, Nq, n]</c>, -1 for none.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">The shape does not fit, or a key does not exist.</exception>
    public static KeySelection FromIndices(Tensor indices, long keys, int queryBlock = BlockMasks.DefaultBlock, int keyBlock = BlockMasks.DefaultBlock)
    {
        var (values, batches, heads, rows, count) = Integers(indices, nameof(indices));
        var selection = new KeySelection(rows, keys, batches, heads, queryBlock, keyBlock);
        for (long row = 0; row < (long)batches * heads * rows; row++)
        {
            selection.AddKeys((int)(row / ((long)heads * rows)), (int)(row / rows % heads), row % rows, values.AsSpan((int)(row * count), count));
        }

        return selection;
    }

    /// <summary>The selection as the kernels read it.</summary>
    /// <param name="causal">Cuts off keys after the query's position; <see cref="Causality.None"/> keeps them.</param>
    public BlockMask ToBlockMask(Causality causal = Causality.None)
    {
        var builder = new BlockMaskBuilder(Batches, Heads, Queries, Keys, QueryBlock, KeyBlock);
        var shift = causal == Causality.AlignedToStart ? 0 : Keys - Queries;
        var order = new List<int>();
        for (var index = 0; index < _rows.Length; index++)
        {
            builder.StartRow();
            if (_rows[index] is not { } row)
            {
                continue;
            }

            order.Clear();
            order.AddRange(row.Keys);
            order.Sort();
            var queryBlock = index % QueryBlocks;
            var firstPosition = causal == Causality.None ? long.MaxValue / 2 : ((long)queryBlock * QueryBlock) + shift;
            foreach (var keyBlock in order)
            {
                var block = row[keyBlock];
                var lastKey = Math.Min(((long)keyBlock + 1) * KeyBlock, Keys) - 1;
                if (block.Bits is null && lastKey <= firstPosition)
                {
                    builder.AddFull(keyBlock, block.Bias);
                    continue;
                }

                var pairs = new SelectedPairs(block.Bits, _wordsPerRow, (long)keyBlock * KeyBlock, firstPosition);
                builder.Add(queryBlock, keyBlock, ref pairs, block.Bias);
            }
        }

        return builder.Build();
    }

    private static (long[] Values, int Batches, int Heads, int Rows, int Count) Integers(Tensor values, string name)
    {
        ArgumentNullException.ThrowIfNull(values);
        if (values.dtype is not (ScalarType.Int64 or ScalarType.Int32) || values.dim() != 4)
        {
            throw new ArgumentException(
                $"A selection is int64 or int32 [B, H, rows, n]; {values.dtype} {AttentionShape.Text(values)} was given.", name);
        }

        using var wide = values.to(ScalarType.Int64);
        return (SmallIntegers.Read(wide.reshape(-1)), checked((int)values.size(0)), checked((int)values.size(1)), checked((int)values.size(2)), checked((int)values.size(3)));
    }

    private Dictionary<int, Block> RowOf(int batch, int head, long query) => query >= 0 && query < Queries
        ? RowAt(batch, head, (int)(query / QueryBlock))
        : throw new ArgumentException($"The selection has queries 0 to {Queries - 1}, not {query}.", nameof(query));

    private Dictionary<int, Block> RowAt(int batch, int head, int queryBlock)
    {
        if ((uint)batch >= (uint)Batches || (uint)head >= (uint)Heads)
        {
            throw new ArgumentException(
                $"The selection has {Batches} batch items and {Heads} heads; item {batch} and head {head} do not exist.", nameof(batch));
        }

        return _rows[(((batch * Heads) + head) * QueryBlocks) + queryBlock] ??= [];
    }

    /// <summary>The bits of a block that single pairs are added to; null where the block is selected as a whole.</summary>
    private ulong[]? BitsOf(Dictionary<int, Block> row, int keyBlock)
    {
        if (!row.TryGetValue(keyBlock, out var block))
        {
            row[keyBlock] = block = new(new ulong[QueryBlock * _wordsPerRow], 0);
        }

        return block.Bits;
    }

    private readonly record struct Block(ulong[]? Bits, float Bias);

    private readonly struct SelectedPairs(ulong[]? bits, int wordsPerRow, long firstKey, long firstPosition) : IPairSource
    {
        public ulong Word(int row, long key, int count)
        {
            var word = bits is null ? ulong.MaxValue : bits[(row * wordsPerRow) + (int)((key - firstKey) / 64)];
            var visible = Math.Clamp(firstPosition + row - key + 1, 0, count);
            return visible == 64 ? word : word & ((1UL << (int)visible) - 1);
        }
    }
}
