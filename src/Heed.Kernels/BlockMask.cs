namespace Heed.Kernels;

/// <summary>
/// Which blocks of (query, key) pairs are computed: for every block of queries the list of its key blocks, each <i>full</i> (every pair) or <i>partial</i>
/// (the pairs whose bit is set, where the mask carries bits, and that the predicate allows, where the call has one). Causality, window and lengths of the call apply on top.
/// Selectors of every kind end here. Immutable; shared between calls and threads.
/// </summary>
public sealed class BlockMask
{
    /// <summary>Initializes a mask from its lists.</summary>
    /// <param name="batches">Batch items that have lists of their own: 1 (shared by all) or the batch size.</param>
    /// <param name="heads">Query heads that have lists of their own: 1 (shared by all) or the number of heads.</param>
    /// <param name="queryLength">Number of queries covered.</param>
    /// <param name="keyLength">Number of keys covered.</param>
    /// <param name="queryBlock">Queries per block; the last block may be shorter.</param>
    /// <param name="keyBlock">Keys per block; the last block may be shorter.</param>
    /// <param name="rowOffsets">Start of each query block's list in <paramref name="keyBlocks"/>, ordered by batch, head, block; and the end:
    /// <c>[batches * heads * queryBlocks + 1]</c>.</param>
    /// <param name="keyBlocks">Listed key blocks, ascending and distinct within a list.</param>
    /// <param name="partial">Whether each listed block is partial; null: all full.</param>
    /// <param name="biases">A bias added to every score of each listed block; null: none.</param>
    /// <param name="bits">For partial blocks, the allowed pairs: <see cref="WordsPerBlock"/> words per <i>partial</i> listed block in list order, row after row, key k of the
    /// block in bit k % 64 of word k / 64 of its row. Null: partial blocks are decided by the call's predicate alone.</param>
    /// <exception cref="ArgumentException">A list is out of order, points outside, or has the wrong length.</exception>
    public BlockMask(
        int batches, int heads, long queryLength, long keyLength, int queryBlock, int keyBlock,
        int[] rowOffsets, int[] keyBlocks, bool[]? partial = null, float[]? biases = null, ulong[]? bits = null)
    {
        ArgumentNullException.ThrowIfNull(rowOffsets);
        ArgumentNullException.ThrowIfNull(keyBlocks);
        ArgumentOutOfRangeException.ThrowIfLessThan(batches, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(queryLength, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(keyLength, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(queryBlock, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(keyBlock, 1);
        Batches = batches;
        Heads = heads;
        QueryLength = queryLength;
        KeyLength = keyLength;
        QueryBlock = queryBlock;
        KeyBlock = keyBlock;
        QueryBlocks = checked((int)((queryLength + queryBlock - 1) / queryBlock));
        KeyBlockCount = checked((int)((keyLength + keyBlock - 1) / keyBlock));
        RowOffsets = rowOffsets;
        KeyBlocks = keyBlocks;
        Partial = partial;
        Biases = biases;
        Bits = bits;
        WordsPerBlock = queryBlock * ((keyBlock + 63) / 64);
        Validate();
        BitOffsets = bits is null ? null : OffsetsOfBits();
        IsWhole = bits is null || !partial.AsSpan().Contains(true);
        RunLength = LengthOfRuns();
    }

    /// <summary>Batch items that have lists of their own.</summary>
    public int Batches { get; }

    /// <summary>Heads that have lists of their own.</summary>
    public int Heads { get; }

    /// <summary>Number of queries covered.</summary>
    public long QueryLength { get; }

    /// <summary>Number of keys covered.</summary>
    public long KeyLength { get; }

    /// <summary>Queries per block.</summary>
    public int QueryBlock { get; }

    /// <summary>Keys per block.</summary>
    public int KeyBlock { get; }

    /// <summary>Number of query blocks.</summary>
    public int QueryBlocks { get; }

    /// <summary>Number of key blocks.</summary>
    public int KeyBlockCount { get; }

    /// <summary>64-bit words that the bits of one partial block take.</summary>
    public int WordsPerBlock { get; }

    /// <summary>Share of the blocks that are listed, 0 to 1.</summary>
    public double Density => KeyBlocks.Length / ((double)Batches * Heads * QueryBlocks * KeyBlockCount);

    internal int[] RowOffsets { get; }

    internal int[] KeyBlocks { get; }

    internal bool[]? Partial { get; }

    internal float[]? Biases { get; }

    internal ulong[]? Bits { get; }

    /// <summary>First word of each listed block's bits, or -1 for full blocks.</summary>
    internal long[]? BitOffsets { get; }

    /// <summary>Whether no pair of a listed block is taken away by bits.</summary>
    internal bool IsWhole { get; }

    /// <summary>Mean number of keys that lie side by side and have the same bias, in the lists.</summary>
    internal double RunLength { get; }

    /// <summary>The positions in the lists of one query block: those of <see cref="KeyBlockAt"/>.</summary>
    /// <param name="batch">The batch item, of the call.</param>
    /// <param name="head">The query head, of the call.</param>
    /// <param name="queryBlock">The query block.</param>
    public (int Start, int End) Row(long batch, long head, int queryBlock)
    {
        var index = ((((Batches == 1 ? 0 : batch) * Heads) + (Heads == 1 ? 0 : head)) * QueryBlocks) + queryBlock;
        return (RowOffsets[index], RowOffsets[index + 1]);
    }

    /// <summary>The key block at a position of the lists.</summary>
    public int KeyBlockAt(int listed) => KeyBlocks[listed];

    /// <summary>Whether the listed block is partial.</summary>
    public bool IsPartial(int listed) => Partial is not null && Partial[listed];

    /// <summary>The bias of the listed block.</summary>
    public float BiasAt(int listed) => Biases is null ? 0 : Biases[listed];

    /// <summary>Whether the mask itself (not the call's predicate) allows a pair. For tests, references and drawing: searches the list.</summary>
    public bool Allows(long batch, long head, long query, long key)
    {
        var (start, end) = Row(batch, head, (int)(query / QueryBlock));
        var listed = Array.BinarySearch(KeyBlocks, start, end - start, (int)(key / KeyBlock));
        return listed >= 0 && (!IsPartial(listed) || Bits is null || BitIsSet(listed, (int)(query % QueryBlock), (int)(key % KeyBlock)));
    }

    /// <summary>Whether a pair of a listed partial block is allowed by the mask's bits.</summary>
    internal bool BitIsSet(int listed, int row, int column) =>
        (Bits![BitOffsets![listed] + ((long)row * ((KeyBlock + 63) / 64)) + (column / 64)] >> (column % 64) & 1) != 0;

    private double LengthOfRuns()
    {
        long runs = 0;
        for (var row = 0; row + 1 < RowOffsets.Length; row++)
        {
            for (var i = RowOffsets[row]; i < RowOffsets[row + 1]; i++)
            {
                runs += i == RowOffsets[row] || KeyBlocks[i] != KeyBlocks[i - 1] + 1 || BiasAt(i) != BiasAt(i - 1) ? 1 : 0;
            }
        }

        return (double)KeyBlocks.Length * KeyBlock / Math.Max(runs, 1);
    }

    private long[] OffsetsOfBits()
    {
        var offsets = new long[KeyBlocks.Length];
        long next = 0;
        for (var i = 0; i < offsets.Length; i++)
        {
            offsets[i] = IsPartial(i) ? next : -1;
            next += IsPartial(i) ? WordsPerBlock : 0;
        }

        return next == Bits!.LongLength
            ? offsets
            : throw new ArgumentException($"The bits of a block mask hold {WordsPerBlock} words per partial block: {next} were expected, {Bits.LongLength} given.", "bits");
    }

    private void Validate()
    {
        var rows = (long)Batches * Heads * QueryBlocks;
        if (RowOffsets.LongLength != rows + 1 || RowOffsets[0] != 0 || RowOffsets[^1] != KeyBlocks.Length)
        {
            throw new ArgumentException(
                $"The row offsets of a block mask start at 0 and end at the number of listed blocks: {rows + 1} offsets ending at {KeyBlocks.Length} were expected.", "rowOffsets");
        }

        for (long row = 0; row < rows; row++)
        {
            if (RowOffsets[row + 1] < RowOffsets[row])
            {
                throw new ArgumentException($"The row offsets of a block mask must not decrease; they do after row {row}.", "rowOffsets");
            }

            for (var i = RowOffsets[row]; i < RowOffsets[row + 1]; i++)
            {
                if ((uint)KeyBlocks[i] >= (uint)KeyBlockCount || (i > RowOffsets[row] && KeyBlocks[i] <= KeyBlocks[i - 1]))
                {
                    throw new ArgumentException($"Each list of a block mask holds distinct key blocks from 0 to {KeyBlockCount - 1} in ascending order; row {row} does not.", "keyBlocks");
                }
            }
        }

        if ((Partial is not null && Partial.Length != KeyBlocks.Length) || (Biases is not null && Biases.Length != KeyBlocks.Length))
        {
            throw new ArgumentException($"A block mask needs one partial flag and one bias per listed block ({KeyBlocks.Length}).", nameof(Partial));
        }
    }
}
