using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>Which blocks of keys a search kept for every block of queries: what <see cref="HipSelector"/> and <see cref="ChunkScanSelector"/> choose.</summary>
public sealed class HipSelection
{
    internal HipSelection(int batches, int heads, int queryBlocks, int slots, int blockTokens)
    {
        (Batches, Heads, QueryBlocks, Slots, BlockTokens) = (batches, heads, queryBlocks, slots, blockTokens);
        Blocks = new int[(long)batches * heads * queryBlocks * slots];
        KeptBlocks = new int[(long)batches * heads * queryBlocks];
    }

    /// <summary>Batch items.</summary>
    public int Batches { get; }

    /// <summary>Query heads.</summary>
    public int Heads { get; }

    /// <summary>Blocks of queries.</summary>
    public int QueryBlocks { get; }

    /// <summary>The most blocks of keys that a list holds.</summary>
    public int Slots { get; }

    /// <summary>Keys that a block spans.</summary>
    public int BlockTokens { get; }

    /// <summary>The kept blocks of every list, ascending, <c>[B, H, query blocks, slots]</c>; entries past the count mean nothing.</summary>
    internal int[] Blocks { get; }

    /// <summary>How many blocks each list holds.</summary>
    internal int[] KeptBlocks { get; }

    /// <summary>The first key of every kept block, ascending, int32 <c>[B, H, query blocks, slots]</c>; zeros past the count.</summary>
    public Tensor Indices()
    {
        var starts = new int[Blocks.Length];
        for (var list = 0; list < KeptBlocks.Length; list++)
        {
            for (var i = 0; i < KeptBlocks[list]; i++)
            {
                starts[(list * Slots) + i] = Blocks[(list * Slots) + i] * BlockTokens;
            }
        }

        return tensor(starts, [Batches, Heads, QueryBlocks, Slots]);
    }

    /// <summary>How many blocks were kept, int32 <c>[B, H, query blocks]</c>.</summary>
    public Tensor Counts() => tensor(KeptBlocks, [Batches, Heads, QueryBlocks]);

    /// <summary>Which list belongs to a block of queries.</summary>
    internal int List(int batch, int head, int queryBlock) => (((batch * Heads) + head) * QueryBlocks) + queryBlock;

    /// <summary>The kept blocks of a list.</summary>
    internal ReadOnlySpan<int> Kept(int list) => Blocks.AsSpan(list * Slots, KeptBlocks[list]);
}
