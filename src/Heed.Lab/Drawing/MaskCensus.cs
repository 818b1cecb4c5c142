using Heed.Kernels;

namespace Heed.Lab.Drawing;

/// <summary>What one head of a block mask holds, counted pair by pair.</summary>
public sealed record MaskCensus
{
    private MaskCensus()
    {
    }

    /// <summary>Number of queries.</summary>
    public required long Queries { get; init; }

    /// <summary>Number of keys.</summary>
    public required long Keys { get; init; }

    /// <summary>Pairs that exist.</summary>
    public required long Pairs { get; init; }

    /// <summary>Blocks whose pairs all exist.</summary>
    public required long FullBlocks { get; init; }

    /// <summary>Blocks of which some pairs exist.</summary>
    public required long PartialBlocks { get; init; }

    /// <summary>Blocks that are not listed and cost nothing.</summary>
    public required long EmptyBlocks { get; init; }

    /// <summary>Share of the pairs that exist, 0 to 1.</summary>
    public double Share => Pairs / ((double)Queries * Keys);

    /// <summary>Counts a mask, and tells where the pairs are.</summary>
    /// <param name="mask">The mask.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Head.</param>
    /// <param name="rectangle">Told of rectangles of existing pairs: first query, first key, queries, keys. Every pair is told once.</param>
    /// <param name="block">Told of every listed block: query block, key block, whether it is partial.</param>
    public static MaskCensus Of(BlockMask mask, int batch = 0, int head = 0, Action<long, long, long, long>? rectangle = null, Action<int, int, bool>? block = null)
    {
        long pairs = 0, full = 0, partial = 0;
        for (var queryBlock = 0; queryBlock < mask.QueryBlocks; queryBlock++)
        {
            var firstQuery = (long)queryBlock * mask.QueryBlock;
            var queries = Math.Min(mask.QueryBlock, mask.QueryLength - firstQuery);
            var (start, end) = mask.Row(batch, head, queryBlock);
            for (var listed = start; listed < end; listed++)
            {
                var firstKey = (long)mask.KeyBlockAt(listed) * mask.KeyBlock;
                var keys = Math.Min(mask.KeyBlock, mask.KeyLength - firstKey);
                block?.Invoke(queryBlock, mask.KeyBlockAt(listed), mask.IsPartial(listed));
                if (!mask.IsPartial(listed))
                {
                    full++;
                    pairs += queries * keys;
                    rectangle?.Invoke(firstQuery, firstKey, queries, keys);
                    continue;
                }

                partial++;
                for (var query = firstQuery; query < firstQuery + queries; query++)
                {
                    for (var key = firstKey; key < firstKey + keys; key++)
                    {
                        if (mask.Allows(batch, head, query, key))
                        {
                            pairs++;
                            rectangle?.Invoke(query, key, 1, 1);
                        }
                    }
                }
            }
        }

        return new MaskCensus
        {
            Queries = mask.QueryLength, Keys = mask.KeyLength, Pairs = pairs, FullBlocks = full, PartialBlocks = partial,
            EmptyBlocks = ((long)mask.QueryBlocks * mask.KeyBlockCount) - full - partial,
        };
    }
}
