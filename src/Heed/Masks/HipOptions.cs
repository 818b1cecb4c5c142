namespace Heed.Masks;

/// <summary>Which block represents a piece of the past in HiP's search.</summary>
public enum HipRepresentative
{
    /// <summary>The first block: its score is the parent's for the left half, so that half of the products fall away.</summary>
    First,

    /// <summary>The block in the middle.</summary>
    Center,

    /// <summary>The last block.</summary>
    Last,
}

/// <summary>What the window of HiP is aligned with.</summary>
public enum HipWindowAlignment
{
    /// <summary>All queries of a block share the window that ends with the block: the last of them sees all of it, the first the fewest keys.</summary>
    QueryBlock,

    /// <summary>Every query sees exactly as many keys back.</summary>
    Query,
}

/// <summary>The options of HiP attention (arXiv 2406.09827); the defaults are those of the authors' release 1.1. Immutable.</summary>
public sealed record HipOptions
{
    /// <summary>Keys kept per query block (the paper's k); not counted: window and sinks.</summary>
    public int MaskK { get; init; } = 512;

    /// <summary>Queries that share a selection (b_q). In decoding the one query is a block of its own.</summary>
    public int BlockSizeQ { get; init; } = 64;

    /// <summary>Every how many rows of a query block vote (b_sq): rows b_sq - 1, 2 b_sq - 1 and so on. Where a short last block has no such row, its last row votes.</summary>
    public int BlockStrideQ { get; init; } = 2;

    /// <summary>Keys of a block (b_k), which is kept or dropped as a whole.</summary>
    public int BlockSizeK { get; init; } = 2;

    /// <summary>Every how many keys of a representative block are scored (b_sk): keys b_sk - 1, 2 b_sk - 1 and so on.</summary>
    public int BlockStrideK { get; init; } = 1;

    /// <summary>Keys that are summarised by their element-wise minimum and maximum before the search (c); 1: none are. A block then spans <see cref="BlockSizeK"/> such groups.</summary>
    public int BlockSizeKGroup { get; init; } = 1;

    /// <summary>The last keys of the visible past, which every query of a block sees without search (W).</summary>
    public int SlidingWindow { get; init; } = 256;

    /// <summary>First keys of the sequence that every query sees.</summary>
    public int SinkSize { get; init; } = 16;

    /// <summary>Which block represents a piece.</summary>
    public HipRepresentative Representative { get; init; } = HipRepresentative.Center;

    /// <summary>Neighbouring heads that share one budget (G): heads that matter more get more keys.</summary>
    public int HeadGroup { get; init; } = 1;

    /// <summary>What the window is aligned with.</summary>
    public HipWindowAlignment WindowAlignment { get; init; }

    /// <summary>In decoding, the steps for which a selection is used before it is made anew; 1: made for every step. New tokens fall into the window meanwhile, which grows by them.</summary>
    public int RefreshInterval { get; init; } = 8;

    /// <summary>Keys that a selected block spans.</summary>
    public int BlockTokens => BlockSizeK * BlockSizeKGroup;

    /// <summary>Blocks kept per query block and head (M).</summary>
    internal int Slots => (((MaskK / BlockSizeKGroup) + BlockSizeK) - 1) / BlockSizeK;

    /// <summary>Refuses options that make no search.</summary>
    /// <exception cref="ArgumentException">An option is out of its range.</exception>
    public void Validate()
    {
        foreach (var (name, value) in new[]
        {
            (nameof(MaskK), MaskK), (nameof(BlockSizeQ), BlockSizeQ), (nameof(BlockStrideQ), BlockStrideQ), (nameof(BlockSizeK), BlockSizeK), (nameof(BlockStrideK), BlockStrideK),
            (nameof(BlockSizeKGroup), BlockSizeKGroup), (nameof(HeadGroup), HeadGroup), (nameof(RefreshInterval), RefreshInterval),
        })
        {
            if (value < 1)
            {
                throw new ArgumentException($"{nameof(HipOptions)}.{name} is at least 1, not {value}.");
            }
        }

        if (SlidingWindow < 0 || SinkSize < 0)
        {
            throw new ArgumentException($"{nameof(HipOptions)}.{nameof(SlidingWindow)} and {nameof(SinkSize)} count keys from 0 on, not {SlidingWindow} and {SinkSize}.");
        }

        if (MaskK < BlockTokens)
        {
            throw new ArgumentException($"{nameof(HipOptions)}.{nameof(MaskK)} holds at least one block of {BlockTokens} keys; {MaskK} does not.");
        }

        if (BlockStrideQ > BlockSizeQ || BlockStrideK > BlockSizeK)
        {
            throw new ArgumentException(
                $"A stride is at most the block it strides over; {nameof(HipOptions)}.{nameof(BlockStrideQ)} is {BlockStrideQ} of {BlockSizeQ} queries and {nameof(BlockStrideK)} {BlockStrideK} of {BlockSizeK} keys.");
        }
    }
}
