using Heed.Kernels;
using Heed.Lab.Mechanisms;
using Heed.Masks;

namespace Heed.Lab.Drawing;

/// <summary>A block or a run of the plan that a kernel follows.</summary>
/// <param name="Query">First query.</param>
/// <param name="Key">First key.</param>
/// <param name="Queries">Number of queries.</param>
/// <param name="Keys">Number of keys.</param>
/// <param name="IsPartial">Whether some of its pairs, or some queries of its block, are left out.</param>
/// <param name="Bias">What is added to its scores.</param>
public readonly record struct PlannedBlock(long Query, long Key, long Queries, long Keys, bool IsPartial, float Bias);

/// <summary>What one head of a block mask, of key runs or of a call holds, counted pair by pair.</summary>
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

    /// <summary>Queries per block.</summary>
    public required int QueryBlock { get; init; }

    /// <summary>Keys per block; null for runs, each of which has a length of its own.</summary>
    public required int? KeyBlock { get; init; }

    /// <summary>Blocks whose pairs all exist; runs that every query of their block reads.</summary>
    public required long FullBlocks { get; init; }

    /// <summary>Blocks of which some pairs exist; runs that some queries of their block read.</summary>
    public required long PartialBlocks { get; init; }

    /// <summary>Blocks that are not computed and cost nothing; 0 for runs.</summary>
    public required long EmptyBlocks { get; init; }

    /// <summary>Share of the pairs that exist, 0 to 1.</summary>
    public double Share => Pairs / ((double)Queries * Keys);

    /// <summary>Share of the blocks that are computed, 0 to 1; for runs, the share of the pairs.</summary>
    public double ListedShare => KeyBlock is null ? Share : (FullBlocks + PartialBlocks) / (double)(FullBlocks + PartialBlocks + EmptyBlocks);

    /// <summary>Counts a mask, and tells where the pairs are.</summary>
    /// <param name="mask">The mask.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Head.</param>
    /// <param name="rectangle">Told of rectangles of existing pairs: first query, first key, queries, keys. Every pair is told once.</param>
    /// <param name="plan">Told of every listed block.</param>
    public static MaskCensus Of(BlockMask mask, int batch = 0, int head = 0, Action<long, long, long, long>? rectangle = null, Action<PlannedBlock>? plan = null)
    {
        ArgumentNullException.ThrowIfNull(mask);
        var count = new Count(plan);
        long pairs = 0;
        foreach (var (block, listed) in Listed(mask, batch, head))
        {
            count.Add(block);
            if (!mask.IsPartial(listed))
            {
                pairs += block.Queries * block.Keys;
                rectangle?.Invoke(block.Query, block.Key, block.Queries, block.Keys);
                continue;
            }

            for (var query = block.Query; query < block.Query + block.Queries; query++)
            {
                for (var key = block.Key; key < block.Key + block.Keys; key++)
                {
                    if (mask.Allows(batch, head, query, key))
                    {
                        pairs++;
                        rectangle?.Invoke(query, key, 1, 1);
                    }
                }
            }
        }

        return count.Census(mask.QueryLength, mask.KeyLength, pairs, mask.QueryBlock, mask.KeyBlock);
    }

    /// <summary>Counts key runs, and tells where the pairs are.</summary>
    /// <param name="runs">The runs.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">The list's head.</param>
    /// <param name="rectangle">Told of rectangles of existing pairs: first query, first key, queries, keys. Every pair is told once.</param>
    /// <param name="plan">Told of every run.</param>
    public static MaskCensus Of(KeyRuns runs, int batch = 0, int head = 0, Action<long, long, long, long>? rectangle = null, Action<PlannedBlock>? plan = null)
    {
        ArgumentNullException.ThrowIfNull(runs);
        var count = new Count(plan);
        long pairs = 0;
        foreach (var run in Listed(runs, batch, head))
        {
            count.Add(run);
            pairs += run.Queries * run.Keys;
            rectangle?.Invoke(run.Query, run.Key, run.Queries, run.Keys);
        }

        return count.Census(runs.QueryLength, runs.KeyLength, pairs, runs.QueryBlock, null);
    }

    /// <summary>Counts what a call computes by its mask or runs, causality and window, and tells where the pairs are.</summary>
    /// <param name="call">The call, as a selector rewrote it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Query head.</param>
    /// <param name="rectangle">Told of rectangles of computed pairs: first query, first key, queries, keys. Every pair is told once.</param>
    /// <param name="plan">Told of every block or run of which something is computed.</param>
    public static MaskCensus Of(AttentionCall call, int batch = 0, int head = 0, Action<long, long, long, long>? rectangle = null, Action<PlannedBlock>? plan = null)
    {
        ArgumentNullException.ThrowIfNull(call);
        var (queries, keys, options) = (call.Query.size(2), call.Key.size(2), call.Options);
        var count = new Count(plan);
        var mask = options.BlockMask ?? (options.KeyRuns is null ? BlockMasks.SlidingWindow(queries, keys, options.WindowBefore, options.WindowAfter, options.Causal) : null);
        var listed = mask is null
            ? Listed(options.KeyRuns!, batch, (int)(head * (long)options.KeyRuns!.Heads / call.Query.size(1)))
            : Listed(mask, batch, head).Select(entry => entry.Block);
        foreach (var block in listed)
        {
            // What causality and window leave moves on with the query: the first and the last row say how much of a block is left.
            var (top, bottom) = (ComputedPairs.Visible(call, block.Query), ComputedPairs.Visible(call, block.Query + block.Queries - 1));
            var lastKey = block.Key + block.Keys - 1;
            if (bottom.Last >= block.Key && top.First <= lastKey)
            {
                count.Add(block with { IsPartial = block.IsPartial || top.Last < lastKey || bottom.First > block.Key });
            }
        }

        long pairs = 0;
        ComputedPairs.Tell(call, batch, head, (query, first, last) =>
        {
            pairs += last - first + 1;
            rectangle?.Invoke(query, first, 1, last - first + 1);
        });
        return count.Census(queries, keys, pairs, mask?.QueryBlock ?? options.KeyRuns!.QueryBlock, mask?.KeyBlock);
    }

    private static IEnumerable<(PlannedBlock Block, int Listed)> Listed(BlockMask mask, int batch, int head)
    {
        for (var queryBlock = 0; queryBlock < mask.QueryBlocks; queryBlock++)
        {
            var query = (long)queryBlock * mask.QueryBlock;
            var (start, end) = mask.Row(batch, head, queryBlock);
            for (var listed = start; listed < end; listed++)
            {
                var key = (long)mask.KeyBlockAt(listed) * mask.KeyBlock;
                yield return (new(
                    query, key, Math.Min(mask.QueryBlock, mask.QueryLength - query), Math.Min(mask.KeyBlock, mask.KeyLength - key), mask.IsPartial(listed), mask.BiasAt(listed)), listed);
            }
        }
    }

    private static IEnumerable<PlannedBlock> Listed(KeyRuns runs, int batch, int head)
    {
        for (var queryBlock = 0; queryBlock < runs.QueryBlocks; queryBlock++)
        {
            var query = (long)queryBlock * runs.QueryBlock;
            var queries = Math.Min(runs.QueryBlock, runs.QueryLength - query);
            var (start, end) = runs.Row(batch, head, queryBlock);
            for (var listed = start; listed < end; listed++)
            {
                var (firstKey, keys, firstRow, rows) = runs.Run(listed);
                var count = Math.Min(rows, queries - firstRow);
                yield return new(query + firstRow, firstKey, count, keys, count < queries, 0);
            }
        }
    }

    /// <summary>Counts blocks while they are told.</summary>
    private sealed class Count(Action<PlannedBlock>? plan)
    {
        private long _full;
        private long _partial;

        public void Add(PlannedBlock block)
        {
            (_full, _partial) = block.IsPartial ? (_full, _partial + 1) : (_full + 1, _partial);
            plan?.Invoke(block);
        }

        public MaskCensus Census(long queries, long keys, long pairs, int queryBlock, int? keyBlock) => new()
        {
            Queries = queries, Keys = keys, Pairs = pairs, QueryBlock = queryBlock, KeyBlock = keyBlock, FullBlocks = _full, PartialBlocks = _partial,
            EmptyBlocks = keyBlock is { } width ? (((queries + queryBlock - 1) / queryBlock) * ((keys + width - 1) / width)) - _full - _partial : 0,
        };
    }
}
