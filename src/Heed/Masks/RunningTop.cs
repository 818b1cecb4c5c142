using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>The w most important keys of every query, found in one pass over the keys: a heap holds the kept ones, and when its least important is pushed out, the queries that saw it are
/// known.</summary>
internal static unsafe class RunningTop
{
    /// <summary>The runs of every batch item and key/value head.</summary>
    /// <param name="importance"><c>[B, Hkv, n]</c>.</param>
    /// <param name="queries">Number of queries, aligned to the end.</param>
    /// <param name="windowSize">w.</param>
    /// <param name="usable">Boolean <c>[B, n]</c>; null: all.</param>
    /// <param name="queryBlock">Queries of a block.</param>
    /// <param name="causal">Whether a query sees its own and earlier keys only; otherwise all queries keep the same.</param>
    public static KeyRuns Of(Tensor importance, long queries, int windowSize, Tensor? usable, int queryBlock, bool causal)
    {
        using var scope = NewDisposeScope();
        // Every type is exact in float64, so ties are those of the type that was given.
        var values = importance.detach().cpu().to(ScalarType.Float64).contiguous();
        using (var broken = values.isnan())
        {
            if (broken.any().item<bool>())
            {
                throw DynamicMask.NotANumber();
            }
        }

        var exists = usable?.detach().cpu().contiguous();
        var (batches, heads, keys) = ((int)values.shape[0], (int)values.shape[1], checked((int)values.shape[2]));
        var lists = new Lists[batches * heads];
        var (data, flags) = (TensorMemory.Data(values), exists is null ? 0 : TensorMemory.Data(exists));
        Parallel.For(0, lists.Length, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() }, list =>
        {
            var row = new ReadOnlySpan<double>((double*)data + ((long)list * keys), keys);
            var mask = flags == 0 ? default : new ReadOnlySpan<bool>((bool*)flags + ((long)(list / heads) * keys), keys);
            lists[list] = Build(row, mask, (int)queries, windowSize, queryBlock, causal);
        });
        GC.KeepAlive(values);
        GC.KeepAlive(exists);
        var total = lists.Sum(list => list.Runs.Count);
        var blocks = lists[0].Counts.Length;
        var (offsets, first, count, firstRow, rows) = (new int[(lists.Length * blocks) + 1], new int[total], new int[total], new int[total], new int[total]);
        var at = 0;
        for (var list = 0; list < lists.Length; list++)
        {
            for (var block = 0; block < blocks; block++)
            {
                var index = (list * blocks) + block;
                offsets[index + 1] = offsets[index] + lists[list].Counts[block];
            }

            foreach (var run in lists[list].Runs)
            {
                (first[at], count[at], firstRow[at], rows[at]) = (run.FirstKey, run.Keys, run.FirstRow, run.Rows);
                at++;
            }
        }

        return new(batches, heads, queries, keys, queryBlock, offsets, first, count, firstRow, rows);
    }

    private static Lists Build(ReadOnlySpan<double> importance, ReadOnlySpan<bool> usable, int queries, int windowSize, int queryBlock, bool causal)
    {
        var leaves = Leaving(importance, usable, windowSize);
        var keys = importance.Length;
        var blocks = (queries + queryBlock - 1) / queryBlock;
        var (counts, runs, alive, next) = (new int[blocks], new List<Run>(), new List<int>(windowSize + queryBlock), 0);
        for (var block = 0; block < blocks; block++)
        {
            // Positions of the block's first query and past its last; without causality every query stands at the end.
            var (begin, size) = ((block * queryBlock) + keys - queries, Math.Min(queryBlock, queries - (block * queryBlock)));
            var (from, end) = causal ? (begin, begin + size) : (keys - 1, keys);
            alive.RemoveAll(key => leaves[key] <= from);
            for (; next < end; next++)
            {
                if (leaves[next] > Math.Max(next, from))
                {
                    alive.Add(next);
                }
            }

            var before = runs.Count;
            foreach (var key in alive)
            {
                var firstRow = causal ? Math.Max(key - from, 0) : 0;
                var rows = causal ? Math.Min(leaves[key], end) - from - firstRow : size;
                if (runs.Count > before && runs[^1] is var last && last.FirstKey + last.Keys == key && last.FirstRow == firstRow && last.Rows == rows)
                {
                    runs[^1] = last with { Keys = last.Keys + 1 };
                }
                else
                {
                    runs.Add(new(key, 1, firstRow, rows));
                }
            }

            counts[block] = runs.Count - before;
        }

        return new(counts, runs);
    }

    /// <summary>The first position at which a key is no longer kept (its own, where it never is).</summary>
    private static int[] Leaving(ReadOnlySpan<double> importance, ReadOnlySpan<bool> usable, int windowSize)
    {
        var leaves = new int[importance.Length];
        // The least important first; of equal ones the earlier, so that the later stays.
        var kept = new PriorityQueue<int, (double Importance, int Key)>(Math.Min(windowSize, importance.Length) + 1);
        for (var key = 0; key < importance.Length; key++)
        {
            leaves[key] = key;
            if (!usable.IsEmpty && !usable[key])
            {
                continue;
            }

            if (kept.Count < windowSize)
            {
                kept.Enqueue(key, (importance[key], key));
                continue;
            }

            leaves[kept.EnqueueDequeue(key, (importance[key], key))] = key;
        }

        foreach (var (key, _) in kept.UnorderedItems)
        {
            leaves[key] = int.MaxValue;
        }

        return leaves;
    }

    private readonly record struct Run(int FirstKey, int Keys, int FirstRow, int Rows);

    private sealed record Lists(int[] Counts, List<Run> Runs);
}
