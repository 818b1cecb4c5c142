using Heed.Kernels;

namespace Heed.Lab.Drawing;

/// <summary>What one head of a block mask or of key runs holds, counted pair by pair.</summary>
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

    /// <summary>Blocks whose pairs all exist; runs that every query of their block reads.</summary>
    public required long FullBlocks { get; init; }

    /// <summary>Blocks of which some pairs exist; runs that some queries of their block read.</summary>
    public required long PartialBlocks { get; init; }

    /// <summary>Blocks that are not listed and cost nothing; 0 for runs.</summary>
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

    /// <summary>Counts key runs, and tells where the pairs are.</summary>
    /// <param name="runs">The runs.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">The list's head.</param>
    /// <param name="rectangle">Told of rectangles of existing pairs: first query, first key, queries, keys. Every pair is told once.</param>
    /// <param name="run">Told of every run: first query, first key, queries, keys, and whether some queries of the block do not read it.</param>
    public static MaskCensus Of(
        KeyRuns runs, int batch = 0, int head = 0, Action<long, long, long, long>? rectangle = null, Action<long, long, long, long, bool>? run = null)
    {
        long pairs = 0, full = 0, partial = 0;
        for (var queryBlock = 0; queryBlock < runs.QueryBlocks; queryBlock++)
        {
            var firstQuery = (long)queryBlock * runs.QueryBlock;
            var queries = Math.Min(runs.QueryBlock, runs.QueryLength - firstQuery);
            var (start, end) = runs.Row(batch, head, queryBlock);
            for (var listed = start; listed < end; listed++)
            {
                var (firstKey, keys, firstRow, rows) = runs.Run(listed);
                var rowCount = Math.Min(rows, queries - firstRow);
                var isPartial = rowCount < queries;
                (full, partial) = isPartial ? (full, partial + 1) : (full + 1, partial);
                pairs += rowCount * keys;
                rectangle?.Invoke(firstQuery + firstRow, firstKey, rowCount, keys);
                run?.Invoke(firstQuery + firstRow, firstKey, rowCount, keys, isPartial);
            }
        }

        return new MaskCensus { Queries = runs.QueryLength, Keys = runs.KeyLength, Pairs = pairs, FullBlocks = full, PartialBlocks = partial, EmptyBlocks = 0 };
    }
}
