namespace Heed.Kernels;

/// <summary>
/// Which pairs are computed, as rectangles of any size: for every block of queries a list of runs of consecutive keys, each read by a range of the block's queries; no pair
/// occurs twice. For selections of single tokens or short runs, of which a <see cref="BlockMask"/> would compute whole blocks: the kernels gather the keys of the runs.
/// Causality, window and lengths of the call apply on top. Immutable; shared between calls and threads.
/// </summary>
/// <remarks>Queries that read (nearly) the same runs belong in one block: what is gathered is used by all of them. Runs that one query reads alone are read in place; where blocks hold one query, what
/// neighbours share is found and gathered all the same.</remarks>
public sealed class KeyRuns
{
    private const int BlockMaskKeys = 64;

    private readonly Lock _lock = new();
    private BlockMask? _blocks;

    /// <summary>Initializes the runs from their lists, which are not copied: do not change them afterwards.</summary>
    /// <param name="batches">Batch items that have lists of their own: 1 (shared by all) or the batch size.</param>
    /// <param name="heads">Heads that have lists of their own: 1 (shared by all), the number of query heads, or a divisor of it, for example that of the key/value heads
    /// (consecutive query heads then share a list).</param>
    /// <param name="queryLength">Number of queries covered.</param>
    /// <param name="keyLength">Number of keys covered.</param>
    /// <param name="queryBlock">Queries per block; the last block may be shorter.</param>
    /// <param name="rowOffsets">Start of each query block's list of runs, ordered by batch, head, block; and the end: <c>[batches * heads * queryBlocks + 1]</c>.</param>
    /// <param name="firstKeys">First key of each run, ascending within a list.</param>
    /// <param name="keyCounts">Number of keys of each run, from 1. Runs of one list share keys only where no query reads both.</param>
    /// <param name="firstRows">First query of each run, counted within its block; null: 0 for all, and every query of the block reads every run.</param>
    /// <param name="rowCounts">Number of queries of each run, from 1; given together with <paramref name="firstRows"/>.</param>
    /// <exception cref="ArgumentException">A list is out of order, points outside, or has the wrong length, or a pair occurs twice.</exception>
    public KeyRuns(
        int batches, int heads, long queryLength, long keyLength, int queryBlock,
        int[] rowOffsets, int[] firstKeys, int[] keyCounts, int[]? firstRows = null, int[]? rowCounts = null)
    {
        ArgumentNullException.ThrowIfNull(rowOffsets);
        ArgumentNullException.ThrowIfNull(firstKeys);
        ArgumentNullException.ThrowIfNull(keyCounts);
        ArgumentOutOfRangeException.ThrowIfLessThan(batches, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(queryLength, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(keyLength, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(queryBlock, 1);
        Batches = batches;
        Heads = heads;
        QueryLength = queryLength;
        KeyLength = keyLength;
        QueryBlock = queryBlock;
        QueryBlocks = checked((int)((queryLength + queryBlock - 1) / queryBlock));
        RowOffsets = rowOffsets;
        FirstKeys = firstKeys;
        KeyCounts = keyCounts;
        FirstRows = firstRows;
        RowCounts = rowCounts;
        Pairs = Validate();
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

    /// <summary>Number of query blocks.</summary>
    public int QueryBlocks { get; }

    /// <summary>Number of runs of all lists together.</summary>
    public int Count => FirstKeys.Length;

    /// <summary>Pairs of all lists together: lists that several batch items or heads share count once.</summary>
    public long Pairs { get; }

    /// <summary>Share of the pairs that exist, 0 to 1.</summary>
    public double Density => Pairs / ((double)Batches * Heads * QueryLength * KeyLength);

    internal int[] RowOffsets { get; }

    internal int[] FirstKeys { get; }

    internal int[] KeyCounts { get; }

    internal int[]? FirstRows { get; }

    internal int[]? RowCounts { get; }

    /// <summary>The positions of one query block's runs in the lists: those of <see cref="Run"/>.</summary>
    /// <param name="batch">The batch item, of the call.</param>
    /// <param name="head">The list's head, 0 to <see cref="Heads"/> - 1: for query head h of H it is h * <see cref="Heads"/> / H.</param>
    /// <param name="queryBlock">The query block.</param>
    public (int Start, int End) Row(long batch, long head, int queryBlock)
    {
        var index = ((((Batches == 1 ? 0 : batch) * Heads) + (Heads == 1 ? 0 : head)) * QueryBlocks) + queryBlock;
        return (RowOffsets[index], RowOffsets[index + 1]);
    }

    /// <summary>The run at a position of the lists: its keys, and the queries of its block that read it, counted within the block. Where all of them do, the range is that of a
    /// whole block and may pass the last query.</summary>
    public (long FirstKey, int KeyCount, int FirstRow, int RowCount) Run(int listed) =>
        (FirstKeys[listed], KeyCounts[listed], FirstRows is null ? 0 : FirstRows[listed], RowCounts is null ? QueryBlock : RowCounts[listed]);

    /// <summary>Whether a pair is computed. For tests, references and drawing: searches the list.</summary>
    /// <param name="batch">The batch item, of the call.</param>
    /// <param name="head">The list's head, as for <see cref="Row"/>.</param>
    /// <param name="query">The query.</param>
    /// <param name="key">The key.</param>
    public bool Allows(long batch, long head, long query, long key)
    {
        var (start, end) = Row(batch, head, (int)(query / QueryBlock));
        var row = query % QueryBlock;
        for (; start < end && FirstKeys[start] <= key; start++)
        {
            var run = Run(start);
            if (key < run.FirstKey + run.KeyCount && row >= run.FirstRow && row < run.FirstRow + run.RowCount)
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>The same pairs as a block mask with a bit per pair, for what reads block masks only. Takes a word of memory for every query and listed block of 64 keys; kept for the
    /// next call.</summary>
    /// <param name="heads">The number of query heads.</param>
    /// <exception cref="ArgumentException">The heads cannot share the lists evenly, or the bits are more than an array holds.</exception>
    public BlockMask ToBlockMask(int heads)
    {
        if (heads < 1 || heads % Heads != 0)
        {
            throw new ArgumentException($"{heads} query heads cannot share the key runs of {Heads} heads evenly.", nameof(heads));
        }

        lock (_lock)
        {
            // A block mask has the lists of one head or of all.
            var listed = Heads == 1 ? 1 : heads;
            return _blocks is { } known && known.Heads == listed ? known : _blocks = BuildBlockMask(listed);
        }
    }

    private BlockMask BuildBlockMask(int heads)
    {
        List<int> blocks = [];
        List<bool> partial = [];
        var offsets = new int[checked(Batches * heads * QueryBlocks) + 1];
        List<ulong[]> bits = [];
        SortedDictionary<int, ulong[]> row = [];
        for (var index = 0; index < offsets.Length - 1; index++)
        {
            var queryBlock = index % QueryBlocks;
            var queries = (int)Math.Min(QueryBlock, QueryLength - ((long)queryBlock * QueryBlock));
            row.Clear();
            var (at, end) = Row(index / QueryBlocks / heads, index / QueryBlocks % heads / (heads / Heads), queryBlock);
            for (; at < end; at++)
            {
                AddBits(row, Run(at), queries);
            }

            foreach (var (block, words) in row)
            {
                var keys = (int)Math.Min(BlockMaskKeys, KeyLength - ((long)block * BlockMaskKeys));
                var isFull = !words.AsSpan(0, queries).ContainsAnyExcept(ulong.MaxValue >> (64 - keys));
                blocks.Add(block);
                partial.Add(!isFull);
                if (!isFull)
                {
                    bits.Add(words);
                }
            }

            offsets[index + 1] = blocks.Count;
        }

        if ((long)bits.Count * QueryBlock > Array.MaxLength)
        {
            throw new ArgumentException(
                $"{bits.Count} partial blocks of {QueryBlock} queries are too many for one block mask: leave out the option that needs the key runs as one, or give fewer runs.");
        }

        return new BlockMask(
            Batches, heads, QueryLength, KeyLength, QueryBlock, BlockMaskKeys, offsets, [.. blocks], [.. partial], null, [.. bits.SelectMany(words => words)]);
    }

    private void AddBits(SortedDictionary<int, ulong[]> row, (long FirstKey, int KeyCount, int FirstRow, int RowCount) run, int queries)
    {
        var last = run.FirstKey + run.KeyCount - 1;
        for (var block = (int)(run.FirstKey / BlockMaskKeys); (long)block * BlockMaskKeys <= last; block++)
        {
            if (!row.TryGetValue(block, out var words))
            {
                row[block] = words = new ulong[QueryBlock];
            }

            var from = (int)Math.Max(run.FirstKey - ((long)block * BlockMaskKeys), 0);
            var to = (int)Math.Min(last - ((long)block * BlockMaskKeys), BlockMaskKeys - 1);
            var keys = (ulong.MaxValue << from) & (ulong.MaxValue >> (63 - to));
            foreach (ref var word in words.AsSpan(run.FirstRow, Math.Min(run.RowCount, queries - run.FirstRow)))
            {
                word |= keys;
            }
        }
    }

    private long Validate()
    {
        var lists = (long)Batches * Heads * QueryBlocks;
        if (RowOffsets.LongLength != lists + 1 || RowOffsets[0] != 0 || RowOffsets[^1] != FirstKeys.Length)
        {
            throw new ArgumentException(
                $"The row offsets of key runs start at 0 and end at the number of runs: {lists + 1} offsets ending at {FirstKeys.Length} were expected.", "rowOffsets");
        }

        if (KeyCounts.Length != FirstKeys.Length || (FirstRows is null) != (RowCounts is null)
            || (FirstRows is not null && (FirstRows.Length != FirstKeys.Length || RowCounts!.Length != FirstKeys.Length)))
        {
            throw new ArgumentException(
                $"Key runs need one number of keys per run ({FirstKeys.Length}), and one first row and number of rows per run or neither.", "keyCounts");
        }

        long pairs = 0;
        var ends = new int[FirstRows is null ? 0 : (int)Math.Min(QueryBlock, QueryLength)];
        for (long list = 0; list < lists; list++)
        {
            if (RowOffsets[list + 1] < RowOffsets[list])
            {
                throw new ArgumentException($"The row offsets of key runs must not decrease; they do after list {list}.", "rowOffsets");
            }

            var queries = (int)Math.Min(QueryBlock, QueryLength - (list % QueryBlocks * QueryBlock));
            pairs += ValidateList(list, queries, ends);
        }

        return pairs;
    }

    private long ValidateList(long list, int queries, int[] ends)
    {
        long pairs = 0;
        var furthest = 0;
        Array.Clear(ends);
        for (var i = RowOffsets[list]; i < RowOffsets[list + 1]; i++)
        {
            var (first, count) = (FirstKeys[i], KeyCounts[i]);
            if (first < 0 || count < 1 || first + (long)count > KeyLength || (i > RowOffsets[list] && first < FirstKeys[i - 1]))
            {
                throw Wrong(
                    "firstKeys", $"Each list of key runs holds runs of at least one key from 0 to {KeyLength - 1}, ascending by first key; run {i - RowOffsets[list]} of list {list} ({first}, {count} keys) does not fit.");
            }

            if (FirstRows is null)
            {
                RequireOnce(first >= furthest, list, first);
                pairs += (long)count * queries;
            }
            else
            {
                var (row, rows) = (FirstRows[i], RowCounts![i]);
                if (row < 0 || rows < 1 || row + (long)rows > queries)
                {
                    throw Wrong(
                        "firstRows", $"The rows of a run lie among the {queries} queries of its block; run {i - RowOffsets[list]} of list {list} has rows {row} to {row + (long)rows - 1}.");
                }

                var read = ends.AsSpan(row, rows);
                RequireOnce(first >= furthest || !read.ContainsAnyInRange(first + 1, int.MaxValue), list, first);
                read.Fill(first + count);
                pairs += (long)count * rows;
            }

            furthest = Math.Max(furthest, first + count);
        }

        return pairs;
    }

    private static void RequireOnce(bool once, long list, int key)
    {
        if (!once)
        {
            throw Wrong("firstKeys", $"No pair may occur in two runs; in list {list} key {key} is read twice by one query.");
        }
    }

    private static ArgumentException Wrong(string argument, string sentence) => new(sentence, argument);
}
