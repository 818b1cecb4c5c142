using Heed.Kernels;

namespace Heed.Lab.Mechanisms;

/// <summary>The pairs that a call computes: what its block mask or its key runs list, within its causality and window. To count and to draw them.</summary>
public static class ComputedPairs
{
    /// <summary>Tells the pairs of one head as intervals of keys; every pair once.</summary>
    /// <param name="call">The call, as a selector rewrote it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Query head.</param>
    /// <param name="interval">Told the query, the first key and the last.</param>
    public static void Tell(AttentionCall call, int batch, int head, Action<long, long, long> interval)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(interval);
        var options = call.Options;
        if (options.Mask is not null || options.QueryLengths is not null || options.KeyLengths is not null || options.QueryOffsets is not null || options.KeyOffsets is not null)
        {
            TellMap(call, batch, head, interval);
            return;
        }

        var (queries, keys) = (call.Query.size(2), call.Key.size(2));
        for (long query = 0; query < queries; query++)
        {
            var (first, last) = Visible(call, query);
            if (first > last)
            {
                continue;
            }

            if (options.KeyRuns is { } runs)
            {
                TellRow(runs, batch, (int)(head * (long)runs.Heads / call.Query.size(1)), query, first, last, interval);
            }
            else if (options.BlockMask is { } mask)
            {
                TellRow(mask, batch, head, query, first, last, interval);
            }
            else
            {
                interval(query, first, last);
            }
        }
    }

    /// <summary>The keys that causality and window leave to a query: the first and the last, which comes before the first where there is none.</summary>
    /// <param name="call">The call.</param>
    /// <param name="query">The query.</param>
    public static (long First, long Last) Visible(AttentionCall call, long query)
    {
        ArgumentNullException.ThrowIfNull(call);
        var (options, queries, keys) = (call.Options, call.Query.size(2), call.Key.size(2));
        var position = options.Causal == Causality.AlignedToStart ? query : query + keys - queries;
        var last = Math.Min(options.Causal == Causality.None ? keys - 1 : Math.Min(position, keys - 1), position + (options.WindowAfter ?? keys + queries));
        return (Math.Max(0, position - (options.WindowBefore ?? keys + queries)), last);
    }

    /// <summary>Counts the pairs of one head.</summary>
    /// <param name="call">The call, as a selector rewrote it.</param>
    /// <param name="batch">Batch item.</param>
    /// <param name="head">Query head.</param>
    public static long Count(AttentionCall call, int batch, int head)
    {
        long count = 0;
        Tell(call, batch, head, (_, first, last) => count += last - first + 1);
        return count;
    }

    private static void TellRow(BlockMask mask, int batch, int head, long query, long first, long last, Action<long, long, long> interval)
    {
        var (start, end) = mask.Row(batch, head, (int)(query / mask.QueryBlock));
        for (var listed = start; listed < end; listed++)
        {
            var from = Math.Max(first, (long)mask.KeyBlockAt(listed) * mask.KeyBlock);
            var to = Math.Min(last, (((long)mask.KeyBlockAt(listed) + 1) * mask.KeyBlock) - 1);
            if (from > to || !mask.IsPartial(listed))
            {
                if (from <= to)
                {
                    interval(query, from, to);
                }

                continue;
            }

            TellRuns(key => mask.Allows(batch, head, query, key), query, from, to, interval);
        }
    }

    private static void TellRow(KeyRuns runs, int batch, int head, long query, long first, long last, Action<long, long, long> interval)
    {
        var row = query % runs.QueryBlock;
        var (start, end) = runs.Row(batch, head, (int)(query / runs.QueryBlock));
        for (var listed = start; listed < end; listed++)
        {
            var run = runs.Run(listed);
            var (from, to) = (Math.Max(first, run.FirstKey), Math.Min(last, run.FirstKey + run.KeyCount - 1));
            if (from <= to && row >= run.FirstRow && row < run.FirstRow + run.RowCount)
            {
                interval(query, from, to);
            }
        }
    }

    // What only the map knows (masks, lengths) is read from it.
    private static void TellMap(AttentionCall call, int batch, int head, Action<long, long, long> interval)
    {
        using var scope = TorchSharp.torch.NewDisposeScope();
        var pairs = call.Pairs().expand(call.Query.size(0), call.Query.size(1), call.Query.size(2), call.Key.size(2))[batch][head].contiguous();
        var allowed = pairs.data<bool>().ToArray();
        var keys = call.Key.size(2);
        for (long query = 0; query < call.Query.size(2); query++)
        {
            TellRuns(key => allowed[(query * keys) + key], query, 0, keys - 1, interval);
        }
    }

    private static void TellRuns(Func<long, bool> allows, long query, long from, long to, Action<long, long, long> interval)
    {
        var start = -1L;
        for (var key = from; key <= to + 1; key++)
        {
            var exists = key <= to && allows(key);
            if (exists && start < 0)
            {
                start = key;
            }
            else if (!exists && start >= 0)
            {
                interval(query, start, key - 1);
                start = -1;
            }
        }
    }
}
