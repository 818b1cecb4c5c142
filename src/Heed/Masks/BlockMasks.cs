using System.Runtime.Intrinsics;
using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>Builders of block masks.</summary>
public static class BlockMasks
{
    /// <summary>The default block: a mask of single pairs costs one bit each, and a block is a fraction of a tile.</summary>
    public const int DefaultBlock = 64;

    /// <summary>The block mask of a causal map.</summary>
    /// <param name="queries">Number of queries, from 1.</param>
    /// <param name="keys">Number of keys, from 1.</param>
    /// <param name="causal">How queries and keys are aligned; <see cref="Causality.None"/> lists everything.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">A size is less than 1.</exception>
    public static BlockMask Causal(
        long queries, long keys, Causality causal = Causality.AlignedToEnd, int queryBlock = DefaultBlock, int keyBlock = DefaultBlock) =>
        SlidingWindow(queries, keys, null, null, causal, queryBlock, keyBlock);

    /// <summary>The block mask of a sliding window.</summary>
    /// <param name="queries">Number of queries, from 1.</param>
    /// <param name="keys">Number of keys, from 1.</param>
    /// <param name="before">How many keys before its own position a query sees; null: all.</param>
    /// <param name="after">How many keys after its own position a query sees; null: all that <paramref name="causal"/> allows.</param>
    /// <param name="causal">How queries and keys are aligned, and whether keys after the query's position are seen (aligned to the end
    /// where <see cref="Causality.None"/>).</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">A size is less than 1, or a window negative.</exception>
    public static BlockMask SlidingWindow(
        long queries, long keys, long? before, long? after, Causality causal = Causality.AlignedToEnd, int queryBlock = DefaultBlock, int keyBlock = DefaultBlock)
    {
        if (before < 0 || after < 0)
        {
            throw new ArgumentException(
                "A window counts tokens from 0 on; leave it null for no window.", before < 0 ? nameof(before) : nameof(after));
        }

        var selection = new KeySelection(queries, keys, queryBlock: queryBlock, keyBlock: keyBlock);
        for (long i = 0; i < queries; i++)
        {
            var position = causal == Causality.AlignedToStart ? i : i + keys - queries;
            var last = causal == Causality.None ? keys - 1 : position;
            selection.AddInterval(0, 0, i, position - (before ?? keys + queries), Math.Min(last, position + (after ?? keys + queries)));
        }

        return selection.ToBlockMask();
    }

    /// <summary>The block mask of a boolean tensor. Blocks without a true pair are not listed and cost nothing.</summary>
    /// <param name="mask">Boolean, broadcastable to <c>[B, H, Nq, Nk]</c>, true where the query may attend. Dimensions of size one stay
    /// shared.</param>
    /// <param name="queries">Number of queries; null: the mask's own.</param>
    /// <param name="keys">Number of keys; null: the mask's own.</param>
    /// <param name="within">A block mask that the result is intersected with, whose blocks and biases it takes; null: none.</param>
    /// <param name="queryBlock">Queries per block, where <paramref name="within"/> does not say.</param>
    /// <param name="keyBlock">Keys per block, where <paramref name="within"/> does not say.</param>
    /// <exception cref="ArgumentException">The mask is not boolean, has more than four dimensions or none of its sizes fit, or nothing is
    /// covered.</exception>
    public static unsafe BlockMask FromTensor(
        Tensor mask, long? queries = null, long? keys = null, BlockMask? within = null, int queryBlock = DefaultBlock, int keyBlock = DefaultBlock)
    {
        ArgumentNullException.ThrowIfNull(mask);
        if (mask.dtype != ScalarType.Bool || mask.dim() is < 2 or > 4)
        {
            throw new ArgumentException(
                $"A mask is boolean with two to four dimensions, [B, H, Nq, Nk]; {mask.dtype} {AttentionShape.Text(mask)} was "
                + "given.", nameof(mask));
        }

        using var scope = NewDisposeScope();
        while (mask.dim() < 4)
        {
            mask = mask.unsqueeze(0);
        }

        var (rows, columns) = (queries ?? mask.size(2), keys ?? mask.size(3));
        if ((mask.size(2) != 1 && mask.size(2) != rows) || (mask.size(3) != 1 && mask.size(3) != columns))
        {
            throw new ArgumentException(
                $"The mask {AttentionShape.Text(mask)} does not broadcast to {rows} queries and {columns} keys.", nameof(mask));
        }

        // One row of bytes at a time is read: only the keys must lie side by side.
        var dense = mask.cpu().expand(mask.size(0), mask.size(1), rows, columns);
        dense = dense.stride(3) == 1 || columns == 1 ? dense : dense.contiguous();
        var (batches, heads) = ((int)Math.Max(mask.size(0), within?.Batches ?? 1), (int)Math.Max(mask.size(1), within?.Heads ?? 1));
        var selection = new BlockMaskBuilder(batches, heads, rows, columns, within?.QueryBlock ?? queryBlock, within?.KeyBlock ?? keyBlock);
        var packed = new PackedRows(selection.QueryBlock, columns);
        var data = (byte*)TensorMemory.Data(dense);
        for (var b = 0; b < batches; b++)
        {
            for (var h = 0; h < heads; h++)
            {
                var map = data + (mask.size(0) == 1 ? 0 : b * dense.stride(0)) + (mask.size(1) == 1 ? 0 : h * dense.stride(1));
                for (var block = 0; block < selection.QueryBlocks; block++)
                {
                    var first = (long)block * selection.QueryBlock;
                    var reader = new BooleanRows(map + (first * dense.stride(2)), dense.stride(2));
                    selection.StartRow();
                    if (within is null)
                    {
                        if (selection.KeyBlock % 64 == 0)
                        {
                            packed.Fill(reader, (int)Math.Min(selection.QueryBlock, rows - first));
                            selection.AddAll(block, ref packed);
                        }
                        else
                        {
                            selection.AddAll(block, ref reader);
                        }

                        continue;
                    }

                    var (start, end) = within.Row(b, h, block);
                    for (var listed = start; listed < end; listed++)
                    {
                        var both = new Intersection(reader, within, listed, b, h, first);
                        selection.Add(block, within.KeyBlockAt(listed), ref both, within.BiasAt(listed));
                    }
                }
            }
        }

        return selection.Build();
    }

    /// <summary>The block mask of a predicate, which is asked about every pair once. The pairs are kept as bits: the call needs no
    /// predicate any more.</summary>
    /// <typeparam name="TMask">The predicate.</typeparam>
    /// <param name="predicate">The predicate; its <see cref="ScoreRow.Position"/> is aligned as <paramref name="alignment"/> says.</param>
    /// <param name="batches">1 where all batch items share the mask, or the batch size.</param>
    /// <param name="heads">1 where all heads share the mask, or the number of heads.</param>
    /// <param name="queries">Number of queries, from 1.</param>
    /// <param name="keys">Number of keys, from 1.</param>
    /// <param name="alignment">Where a query stands among the keys.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">A size is less than 1.</exception>
    public static BlockMask FromPredicate<TMask>(
        TMask predicate, int batches, int heads, long queries, long keys, Causality alignment = Causality.AlignedToEnd,
        int queryBlock = DefaultBlock, int keyBlock = DefaultBlock)
        where TMask : struct, IMaskPredicate
    {
        var builder = new BlockMaskBuilder(batches, heads, queries, keys, queryBlock, keyBlock);
        for (var b = 0; b < batches; b++)
        {
            for (var h = 0; h < heads; h++)
            {
                for (var block = 0; block < builder.QueryBlocks; block++)
                {
                    builder.StartRow();
                    var first = (long)block * queryBlock;
                    var rows = new PredicateRows<TMask>(predicate, b, h, first, alignment == Causality.AlignedToStart ? first : first + keys - queries);
                    builder.AddAll(block, ref rows);
                }
            }
        }

        return builder.Build();
    }

    /// <summary>A block mask of full blocks chosen at random, every query block with the same number of key blocks (at least one) up to
    /// rounding.</summary>
    /// <param name="queries">Number of queries, from 1.</param>
    /// <param name="keys">Number of keys, from 1.</param>
    /// <param name="density">Share of the blocks that is listed, above 0 and at most 1.</param>
    /// <param name="seed">Seed of the choice: the same seed gives the same mask.</param>
    /// <param name="batches">Batch items with lists of their own.</param>
    /// <param name="heads">Heads with lists of their own.</param>
    /// <param name="queryBlock">Queries per block.</param>
    /// <param name="keyBlock">Keys per block.</param>
    /// <exception cref="ArgumentException">The density is out of range, or a size less than 1.</exception>
    public static BlockMask Random(
        long queries, long keys, double density, int seed, int batches = 1, int heads = 1, int queryBlock = 128, int keyBlock = 128)
    {
        if (!(density > 0 && density <= 1))
        {
            throw new ArgumentException($"The density of a block mask is above 0 and at most 1, not {density}.", nameof(density));
        }

        var selection = new KeySelection(queries, keys, batches, heads, queryBlock, keyBlock);
        var random = new Random(seed);
        var order = new int[selection.KeyBlocks];
        double owed = 0;
        for (var b = 0; b < batches; b++)
        {
            for (var h = 0; h < heads; h++)
            {
                for (var block = 0; block < selection.QueryBlocks; block++)
                {
                    // What rounding takes from one row the next rows give back, so that the whole mask has the density asked for.
                    owed += density * order.Length;
                    var count = Math.Clamp((int)Math.Round(owed), 1, order.Length);
                    owed -= count;
                    for (var i = 0; i < order.Length; i++)
                    {
                        order[i] = i;
                    }

                    random.Shuffle(order);
                    selection.AddBlocks(b, h, block, order.AsSpan(0, count));
                }
            }
        }

        return selection.ToBlockMask();
    }

    /// <summary>Rows of bytes, non-zero where a pair exists.</summary>
    private readonly unsafe struct BooleanRows(byte* first, long stride) : IPairSource
    {
        public ulong Word(int row, long key, int count)
        {
            var at = first + (row * stride) + key;
            if (count == 64)
            {
                return ~Vector512.Equals(Vector512.Load(at), Vector512<byte>.Zero).ExtractMostSignificantBits();
            }

            ulong word = 0;
            for (var i = 0; i < count; i++)
            {
                word |= (at[i] != 0 ? 1UL : 0) << i;
            }

            return word;
        }
    }

    /// <summary>The rows of a query block as bits, read row after row as they lie in memory: block after block would touch a page a
    /// row.</summary>
    private readonly struct PackedRows(int rows, long keys) : IPairSource
    {
        private readonly int _perRow = checked((int)((keys + 63) / 64));
        private readonly ulong[] _words = new ulong[rows * ((keys + 63) / 64)];

        public void Fill(BooleanRows source, int count)
        {
            for (var row = 0; row < count; row++)
            {
                var words = _words.AsSpan(row * _perRow, _perRow);
                for (var word = 0; word < words.Length; word++)
                {
                    words[word] = source.Word(row, word * 64L, (int)Math.Min(64, keys - (word * 64L)));
                }
            }
        }

        public ulong Word(int row, long key, int count) => _words[(row * _perRow) + (int)(key / 64)];
    }

    /// <summary>Pairs of a tensor that a listed block of another mask has, too.</summary>
    private readonly struct Intersection(BooleanRows rows, BlockMask mask, int listed, int batch, int head, long first) : IPairSource
    {
        public ulong Word(int row, long key, int count)
        {
            var word = rows.Word(row, key, count);
            for (var i = 0; mask.IsPartial(listed) && i < count; i++)
            {
                word &= mask.Allows(batch, head, first + row, key + i) ? ulong.MaxValue : ~(1UL << i);
            }

            return word;
        }
    }

    private readonly struct PredicateRows<TMask>(TMask predicate, int batch, int head, long first, long position) : IPairSource
        where TMask : struct, IMaskPredicate
    {
        public ulong Word(int row, long key, int count)
        {
            var at = new ScoreRow(batch, head, (int)(first + row), (int)(position + row));
            ulong word = 0;
            for (var i = 0; i < count; i += Vector512<int>.Count)
            {
                var allowed = predicate.Allows(at, Vector512.Create((int)(key + i)) + Vector512<int>.Indices);
                word |= Vector512.LessThan(allowed, Vector512<int>.Zero).ExtractMostSignificantBits() << i;
            }

            return count == 64 ? word : word & ((1UL << count) - 1);
        }
    }
}
