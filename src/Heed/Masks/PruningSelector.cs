using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// What searches down a hierarchy of keys share: every block of queries attends to the few blocks of keys that a search kept, to the last keys of its past and to the first keys of the sequence. In decoding a
/// selection serves several steps.
/// </summary>
/// <remarks>For causal calls, grouped heads and batches of several lengths. The search knows scores by queries and keys alone: biases of the call count in the attention, not in the choice.</remarks>
public abstract class PruningSelector : AttentionSelector
{
    private Remembered? _remembered;

    private protected PruningSelector()
    {
    }

    /// <summary>How many searches were made so far: of decoding steps, only those that refreshed the selection.</summary>
    public long Searches { get; private set; }

    /// <summary>The blocks of keys that the search keeps for every block of queries, without window and sinks.</summary>
    /// <param name="query"><c>[B, H, T, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, S, D]</c>, S at least T: the last query is aligned with the last key.</param>
    /// <exception cref="ArgumentException">The shapes do not fit each other or the options.</exception>
    public HipSelection Search(Tensor query, Tensor key)
    {
        AttentionShape.Read(query, key, key);
        using var scope = NewDisposeScope();
        var (readable, keys) = RepresentativeScoring.Readable(query, key);
        return Search(readable, keys, Repeated(query.size(2), query.size(0)), Repeated(key.size(2), query.size(0)), get_num_threads());
    }

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        var (query, key, options) = (call.Query, call.Key, call.Options);
        Check(query, key, options);
        if (query.numel() == 0 || key.size(2) == 0)
        {
            return;
        }

        using var scope = NewDisposeScope();
        var queries = options.QueryLengths is { } some ? SmallIntegers.Read(some) : Repeated(query.size(2), query.size(0));
        var keys = options.KeyLengths is { } others ? SmallIntegers.Read(others) : Repeated(key.size(2), query.size(0));
        var threads = options.Threads > 0 ? options.Threads : get_num_threads();
        var isStep = query.size(2) == 1 && options.KeyLengths is null && options.QueryLengths is null;
        if (!isStep || _remembered is not { } remembered || !remembered.GoesOn(query, key, Shape.RefreshInterval))
        {
            var (readable, readableKeys) = RepresentativeScoring.Readable(query, key);
            var found = Search(readable, readableKeys, queries, keys, threads);
            _remembered = remembered = new(found, query.size(0), key.size(2));
        }

        if (!isStep)
        {
            _remembered = null;
        }

        remembered.Keys = key.size(2);
        remembered.Steps++;
        call.Options = options with { KeyRuns = Runs(remembered, query.size(2), queries, key.size(2), keys, threads) };
    }

    /// <summary>What the selector is made of.</summary>
    private protected abstract PruningShape Shape { get; }

    private protected abstract HipSelection Search(Tensor query, Tensor key, long[] queries, long[] keys, int threads);

    /// <summary>Runs a search of every block of queries of every batch item and group of heads, on some threads, each with tools of its own.</summary>
    private protected void ForEachBlock<TTools>(long batches, long groups, long queryBlocks, int threads, Func<TTools> tools, Action<TTools, int, int, int> search)
    {
        Searches++;
        var items = checked(batches * groups * queryBlocks);

        // Neighbouring blocks read much the same representatives: a thread takes a stretch of them.
        var stretch = Math.Clamp(items / (threads * 8L), 1, 64);
        Parallel.For(0, (items + stretch - 1) / stretch, new ParallelOptions { MaxDegreeOfParallelism = threads }, tools, (at, _, mine) =>
        {
            for (var item = at * stretch; item < Math.Min((at + 1) * stretch, items); item++)
            {
                search(mine, (int)(item / queryBlocks / groups), (int)(item / queryBlocks % groups), (int)(item % queryBlocks));
            }

            return mine;
        }, _ => { });
    }

    private protected int QueryBlocks(Tensor query) => checked((int)((query.size(2) + Shape.BlockSizeQ - 1) / Shape.BlockSizeQ));

    /// <summary>Keys that the last query of a block sees; 0 where the block has no query.</summary>
    private protected long Visible(int queryBlock, long queries, long keys) =>
        (long)queryBlock * Shape.BlockSizeQ >= queries ? 0 : Math.Min(((long)queryBlock + 1) * Shape.BlockSizeQ, queries) + keys - queries;

    private static long[] Repeated(long value, long count) => [.. Enumerable.Repeat(value, (int)count)];

    private static void Check(Tensor query, Tensor key, AttentionOptions options)
    {
        if (options.Causal == Causality.None || (options.Causal == Causality.AlignedToStart && query.size(2) != key.size(2)))
        {
            throw new ArgumentException($"A search over the past needs a causal call, the last query aligned with the last key: give {nameof(AttentionOptions)}.{nameof(AttentionOptions.Causal)}.AlignedToEnd.");
        }

        if (options.QueryOffsets is not null)
        {
            throw new ArgumentException(
                $"A search over the past cannot be combined with {nameof(AttentionOptions)}.{nameof(AttentionOptions.QueryOffsets)}: give packed sequences as a batch with {nameof(AttentionOptions.KeyLengths)}.");
        }

        if (options.BlockMask is not null || options.KeyRuns is not null)
        {
            throw new ArgumentException(
                $"A search over the past chooses the pairs itself: it cannot be combined with {nameof(AttentionOptions)}.{(options.KeyRuns is null ? nameof(AttentionOptions.BlockMask) : nameof(AttentionOptions.KeyRuns))}.");
        }
    }

    /// <summary>Selected blocks, sinks and window of every block of queries, each key once.</summary>
    private KeyRuns Runs(Remembered remembered, long queryLength, long[] queries, long keyLength, long[] keys, int threads)
    {
        var selection = remembered.Selection;
        var lists = selection.KeptBlocks.Length;
        var offsets = new int[lists + 1];
        var parallel = new ParallelOptions { MaxDegreeOfParallelism = threads };
        var staircase = Shape.WindowPerQuery && queryLength > 1;
        Parallel.For(0, lists, parallel, list =>
        {
            var counter = default(RunWriter);
            Write(ref counter, list);
            offsets[list + 1] = counter.Count;
        });
        for (var list = 0; list < lists; list++)
        {
            offsets[list + 1] = checked(offsets[list + 1] + offsets[list]);
        }

        var (first, counts) = (new int[offsets[^1]], new int[offsets[^1]]);
        var rowCounts = staircase ? new int[offsets[^1]] : null;
        Parallel.For(0, lists, parallel, list =>
        {
            var writer = new RunWriter(first, counts, rowCounts, offsets[list]);
            Write(ref writer, list);
        });
        return new(selection.Batches, selection.Heads, queryLength, keyLength, (int)Math.Min(Shape.BlockSizeQ, queryLength), offsets, first, counts, staircase ? new int[first.Length] : null, rowCounts);

        void Write(ref RunWriter writer, int list)
        {
            var (batch, queryBlock) = (list / selection.QueryBlocks / selection.Heads, list % selection.QueryBlocks);
            var shift = keys[batch] - queries[batch];
            var visible = (int)Visible(queryBlock, queries[batch], keys[batch]);
            if (visible <= 0)
            {
                return;
            }

            var firstRow = (long)queryBlock * Shape.BlockSizeQ;
            var rows = (int)(visible - shift - firstRow);

            // A selection that serves later steps leaves no gap before the window: the window grows.
            var window = (int)Math.Max(0, Math.Min(visible, remembered.FirstKeys) - Shape.Window);
            var stairs = staircase ? (int)Math.Max(0, window - rows + 1) : window;
            writer.Begin(rows, stairs, window, (int)(Shape.Window - firstRow - shift));
            writer.Add(0, Math.Min(Shape.Sinks, visible));
            foreach (var block in selection.Kept(list))
            {
                var start = block * selection.BlockTokens;
                writer.Add(start, Math.Min(start + selection.BlockTokens, visible));
            }

            writer.Add(window, visible);
            writer.End();
        }
    }

    /// <summary>A selection that decoding steps use.</summary>
    private sealed class Remembered(HipSelection selection, long batches, long firstKeys)
    {
        public HipSelection Selection => selection;

        /// <summary>Keys when it was made.</summary>
        public long FirstKeys { get; } = firstKeys;

        /// <summary>Keys when it was last used.</summary>
        public long Keys { get; set; }

        public int Steps { get; set; }

        public bool GoesOn(Tensor query, Tensor key, int interval) =>
            Steps < interval && key.size(2) == Keys + 1 && query.size(0) == batches && query.size(1) == selection.Heads;
    }

    /// <summary>Joins ascending intervals into runs; counts them where it has nowhere to write.</summary>
    private struct RunWriter(int[]? first, int[] counts, int[]? rowCounts, int at)
    {
        private readonly int _begin = at;
        private int _at = at;
        private int _start;
        private int _end;
        private int _rows;
        private int _stairs;
        private int _stairsEnd;
        private int _stairShift;

        public readonly int Count => _at - _begin;

        /// <summary>Begins a list: between the intervals, keys from <paramref name="stairs"/> to <paramref name="stairsEnd"/> are read by the first rows alone, as many as the key plus the shift.</summary>
        public void Begin(int rows, int stairs, int stairsEnd, int stairShift) => (_rows, _stairs, _stairsEnd, _stairShift) = (rows, stairs, stairsEnd, stairShift);

        public void Add(int start, int end)
        {
            start = Math.Max(start, _end);
            if (start >= end)
            {
                return;
            }

            if (start > _end)
            {
                Flush();
                for (var key = Math.Max(_end, _stairs); key < Math.Min(start, _stairsEnd); key++)
                {
                    Put(key, 1, key + _stairShift);
                }

                _start = start;
            }

            _end = end;
        }

        public void End() => Flush();

        private void Flush()
        {
            if (_end > _start)
            {
                Put(_start, _end - _start, _rows);
            }
        }

        private void Put(int key, int count, int rows)
        {
            if (first is not null)
            {
                (first[_at], counts[_at]) = (key, count);
                if (rowCounts is not null)
                {
                    rowCounts[_at] = rows;
                }
            }

            _at++;
        }
    }
}

/// <summary>What a <see cref="PruningSelector"/> is made of.</summary>
/// <param name="BlockSizeQ">Queries that share a selection.</param>
/// <param name="Window">Last keys that are seen without search.</param>
/// <param name="Sinks">First keys that are seen without search.</param>
/// <param name="WindowPerQuery">Whether every query has the whole window, or only the last of its block.</param>
/// <param name="RefreshInterval">Decoding steps that share a selection.</param>
internal readonly record struct PruningShape(int BlockSizeQ, int Window, int Sinks, bool WindowPerQuery, int RefreshInterval);
