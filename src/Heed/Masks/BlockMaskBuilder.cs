using Heed.Kernels;

namespace Heed.Masks;

/// <summary>Where the pairs of a block come from.</summary>
internal interface IPairSource
{
    /// <summary>The pairs of a row and up to 64 consecutive keys, one bit each.</summary>
    /// <param name="row">The row within the query block.</param>
    /// <param name="key">The first key.</param>
    /// <param name="count">How many keys, 1 to 64; the bits above are zero.</param>
    ulong Word(int row, long key, int count);
}

/// <summary>Collects the lists of a block mask in order: by batch, head, query block, then ascending key blocks. Blocks without a pair are
/// left out, blocks with every pair become full.</summary>
internal sealed class BlockMaskBuilder
{
    private readonly int _batches, _heads;
    private readonly long _queries, _keys;
    private readonly List<int> _offsets = [];
    private readonly List<int> _keyBlocks = [];
    private readonly List<bool> _partial = [];
    private readonly List<float> _biases = [];
    private readonly ulong[] _block;
    private readonly List<ulong> _bits = [];
    private readonly int _wordsPerRow;
    private bool _biased;

    public BlockMaskBuilder(int batches, int heads, long queries, long keys, int queryBlock, int keyBlock)
    {
        if (batches < 1 || heads < 1 || queries < 1 || keys < 1 || queryBlock < 1 || keyBlock < 1)
        {
            throw new ArgumentException(
                $"A block mask covers at least one batch item, head, query and key in blocks of at least one; "
                + $"{batches}, {heads}, {queries} and {keys} in blocks of {queryBlock} by {keyBlock} were asked for.");
        }

        (_batches, _heads, _queries, _keys, QueryBlock, KeyBlock) = (batches, heads, queries, keys, queryBlock, keyBlock);
        QueryBlocks = checked((int)((queries + queryBlock - 1) / queryBlock));
        KeyBlocks = checked((int)((keys + keyBlock - 1) / keyBlock));
        _wordsPerRow = (keyBlock + 63) / 64;
        _block = new ulong[queryBlock * _wordsPerRow];
    }

    public int QueryBlock { get; }

    public int KeyBlock { get; }

    public int QueryBlocks { get; }

    public int KeyBlocks { get; }

    /// <summary>Starts the list of the next query block.</summary>
    public void StartRow() => _offsets.Add(_keyBlocks.Count);

    /// <summary>Adds a full block to the list.</summary>
    public void AddFull(int keyBlock, float bias = 0) => List(keyBlock, partial: false, bias);

    /// <summary>Adds a block whose pairs a source tells, if it has any.</summary>
    public void Add<TSource>(int queryBlock, int keyBlock, ref TSource source, float bias = 0)
        where TSource : struct, IPairSource
    {
        var rows = (int)Math.Min(QueryBlock, _queries - ((long)queryBlock * QueryBlock));
        var first = (long)keyBlock * KeyBlock;
        var columns = (int)Math.Min(KeyBlock, _keys - first);
        ulong any = 0;
        var every = true;
        Array.Clear(_block);
        for (var row = 0; row < rows; row++)
        {
            for (var word = 0; word * 64 < columns; word++)
            {
                var count = Math.Min(64, columns - (word * 64));
                var pairs = source.Word(row, first + (word * 64), count);
                _block[(row * _wordsPerRow) + word] = pairs;
                any |= pairs;
                every &= pairs == (count == 64 ? ulong.MaxValue : (1UL << count) - 1);
            }
        }

        if (any != 0)
        {
            List(keyBlock, !every, bias);
            if (!every)
            {
                _bits.AddRange(_block);
            }
        }
    }

    /// <summary>Adds every block of a query block that has a pair.</summary>
    public void AddAll<TSource>(int queryBlock, ref TSource source)
        where TSource : struct, IPairSource
    {
        for (var keyBlock = 0; keyBlock < KeyBlocks; keyBlock++)
        {
            Add(queryBlock, keyBlock, ref source);
        }
    }

    public BlockMask Build()
    {
        _offsets.Add(_keyBlocks.Count);
        return new(
            _batches, _heads, _queries, _keys, QueryBlock, KeyBlock, [.. _offsets], [.. _keyBlocks],
            _partial.Contains(true) ? [.. _partial] : null, _biased ? [.. _biases] : null, _bits.Count > 0 ? [.. _bits] : null);
    }

    private void List(int keyBlock, bool partial, float bias)
    {
        _keyBlocks.Add(keyBlock);
        _partial.Add(partial);
        _biases.Add(bias);
        _biased |= bias != 0;
    }
}
