namespace Heed.Kernels;

/// <summary>The keys of one block of queries as columns to gather, each with the rows that read it, and as spans that a row reads in place. Causality, window and lengths only ever
/// narrow the rows that read a key, so that nothing else is left to mask.</summary>
internal sealed class GatheredColumns
{
    // Gathering a key and transposing it takes as long as reading it in place for so many rows.
    private const int FewRows = 2;

    [ThreadStatic]
    private static GatheredColumns? t_ofItem;

    private int[] _keys = new int[256];
    private int[] _firstRows = new int[256];
    private int[] _endRows = new int[256];
    private float[] _biases = new float[256];
    private Span[] _spans = new Span[64];
    private Rectangle[] _open = new Rectangle[16];
    private Rectangle[] _opened = new Rectangle[16];
    private int _openedCount;
    private int[] _firstSpans = new int[128];
    private int[] _lastSpans = new int[128];

    /// <summary>What this thread uses for the item of a parallel loop that it computes.</summary>
    public static GatheredColumns OfItem => t_ofItem ??= new();

    /// <summary>Number of columns.</summary>
    public int Count { get; private set; }

    /// <summary>Number of spans of all rows.</summary>
    public int Spans { get; private set; }

    /// <summary>Key of each column, within the sequence, ascending with the runs.</summary>
    public ReadOnlySpan<int> Keys => _keys.AsSpan(0, Count);

    /// <summary>First row of the block that reads each column.</summary>
    public ReadOnlySpan<int> FirstRows => _firstRows.AsSpan(0, Count);

    /// <summary>Row after the last that reads each column.</summary>
    public ReadOnlySpan<int> EndRows => _endRows.AsSpan(0, Count);

    /// <summary>Bias of each column's listed block; with key runs none is ever set.</summary>
    public ReadOnlySpan<float> Biases => _biases.AsSpan(0, Count);

    /// <summary>The first span of a row; -1: none.</summary>
    public int FirstSpan(int row) => _firstSpans[row];

    /// <summary>A span: its keys, and the row's next span or -1.</summary>
    public ref readonly Span SpanAt(int index) => ref _spans[index];

    /// <summary>Finds the columns and spans of queries that lie in one block of queries of the runs or block mask.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="slice">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="query">First query, within the sequence.</param>
    /// <param name="rows">Number of queries, at least one.</param>
    public void Find(CheckedProblem problem, in SequenceSlice slice, int head, long query, int rows)
    {
        (Count, Spans) = (0, 0);

        // What is read in place has no low-rank factors beside it.
        var fewRows = problem.HasLowRank ? 0 : FewRows;
        if (_firstSpans.Length < rows)
        {
            Array.Resize(ref _firstSpans, rows);
            Array.Resize(ref _lastSpans, rows);
        }

        Array.Fill(_firstSpans, -1, 0, rows);
        if (problem.Arguments.KeyRuns is { QueryBlock: 1 } single)
        {
            FindRows(problem, slice, single, head, query, rows, fewRows);
        }
        else if (problem.Arguments.KeyRuns is { } runs)
        {
            FindRuns(problem, slice, runs, head, query, rows, fewRows);
        }
        else
        {
            FindBlocks(problem, slice, problem.Arguments.BlockMask!, head, query, rows, fewRows);
        }
    }

    private void FindRuns(CheckedProblem problem, in SequenceSlice slice, KeyRuns runs, int head, long query, int rows, int fewRows)
    {
        var (block, offset) = Math.DivRem(slice.QueryStart + query, runs.QueryBlock);
        var (listed, stop) = runs.Row(slice.Batch, (long)head * runs.Heads / problem.Heads, (int)block);
        for (; listed < stop; listed++)
        {
            var run = runs.Run(listed);
            var first = (int)Math.Max(run.FirstRow - offset, 0);
            var end = (int)Math.Min(run.FirstRow + (long)run.RowCount - offset, rows);
            if (first >= end)
            {
                continue;
            }

            Add(problem, slice, query, run.FirstKey - slice.KeyStart, run.KeyCount, first, end, 0, fewRows);
        }
    }

    /// <summary>Joins the runs of single queries into rectangles: what a query reads is compared with what the one before it read.</summary>
    private void FindRows(CheckedProblem problem, in SequenceSlice slice, KeyRuns runs, int head, long query, int rows, int fewRows)
    {
        var listHead = (long)head * runs.Heads / problem.Heads;
        var open = 0;
        for (var row = 0; row < rows; row++)
        {
            _openedCount = 0;
            var (at, start) = (0, 0);
            var (listed, stop) = runs.Row(slice.Batch, listHead, (int)(slice.QueryStart + query + row));
            var (firstKey, lastKey) = (problem.FirstKey(slice, query + row), problem.EndKey(slice, query + row));
            for (; listed < stop; listed++)
            {
                var run = runs.Run(listed);
                var key = (int)Math.Max(Math.Max(run.FirstKey - slice.KeyStart, 0), firstKey);
                var end = (int)Math.Min(run.FirstKey + run.KeyCount - slice.KeyStart, lastKey);
                while (key < end)
                {
                    // What ends before this run begins is read no longer.
                    while (at < open && Math.Max(_open[at].Start, start) < key)
                    {
                        var before = _open[at] with { Start = Math.Max(_open[at].Start, start), End = Math.Min(_open[at].End, key) };
                        Close(problem, slice, query, before, row, fewRows);
                        start = before.End;
                        at += start == _open[at].End ? 1 : 0;
                    }

                    var shared = at < open && Math.Max(_open[at].Start, start) == key;
                    var next = shared ? Math.Min(end, _open[at].End) : at < open ? Math.Min(end, _open[at].Start) : end;
                    Open(key, next, shared ? _open[at].Row : row);
                    key = start = next;
                    at += shared && start == _open[at].End ? 1 : 0;
                }
            }

            for (; at < open; at++)
            {
                Close(problem, slice, query, _open[at] with { Start = Math.Max(_open[at].Start, start) }, row, fewRows);
            }

            (_open, _opened, open) = (_opened, _open, _openedCount);
        }

        for (var at = 0; at < open; at++)
        {
            Close(problem, slice, query, _open[at], rows, fewRows);
        }
    }

    private void Open(int key, int endKey, int row)
    {
        if (_openedCount > 0 && _opened[_openedCount - 1].End == key && _opened[_openedCount - 1].Row == row)
        {
            _opened[_openedCount - 1].End = endKey;
            return;
        }

        if (_openedCount == _opened.Length)
        {
            Array.Resize(ref _opened, 2 * _openedCount);
        }

        _opened[_openedCount++] = new() { Start = key, End = endKey, Row = row };
    }

    private void Close(CheckedProblem problem, in SequenceSlice slice, long query, in Rectangle rectangle, int endRow, int fewRows)
    {
        if (rectangle.Start < rectangle.End)
        {
            Add(problem, slice, query, rectangle.Start, rectangle.End - rectangle.Start, rectangle.Row, endRow, 0, fewRows);
        }
    }

    private void FindBlocks(CheckedProblem problem, in SequenceSlice slice, BlockMask mask, int head, long query, int rows, int fewRows)
    {
        var (listed, stop) = mask.Row(slice.Batch, head, (int)((slice.QueryStart + query) / mask.QueryBlock));
        for (; listed < stop; listed++)
        {
            Add(problem, slice, query, ((long)mask.KeyBlockAt(listed) * mask.KeyBlock) - slice.KeyStart, mask.KeyBlock, 0, rows, mask.BiasAt(listed), fewRows);
        }
    }

    private void Add(CheckedProblem problem, in SequenceSlice slice, long query, long firstKey, int keyCount, int first, int end, float bias, int fewRows)
    {
        var key = (int)Math.Max(Math.Max(firstKey, 0), problem.FirstKey(slice, query + first));
        var endKey = (int)Math.Min(firstKey + keyCount, problem.EndKey(slice, query + end - 1));
        if (end - first > fewRows)
        {
            AddColumns(problem, slice, query, key, endKey, first, end, bias);
            return;
        }

        for (; first < end; first++)
        {
            AddSpan(first, (int)Math.Max(key, problem.FirstKey(slice, query + first)), (int)Math.Min(endKey, problem.EndKey(slice, query + first)), bias);
        }
    }

    private void AddColumns(CheckedProblem problem, in SequenceSlice slice, long query, int key, int endKey, int first, int end, float bias)
    {
        var needed = Count + Math.Max(endKey - key, 0);
        if (needed > _keys.Length)
        {
            var size = Math.Max(needed, 2 * _keys.Length);
            Array.Resize(ref _keys, size);
            Array.Resize(ref _firstRows, size);
            Array.Resize(ref _endRows, size);
            Array.Resize(ref _biases, size);
        }

        for (; key < endKey; key++)
        {
            var (from, to) = (first, end);
            if (problem.IsBanded)
            {
                var seeing = problem.QueriesOf(slice, key);
                from = (int)Math.Max(from, seeing.First - query);
                to = (int)Math.Min(to, seeing.End - query);
                if (from >= to)
                {
                    continue;
                }
            }

            (_keys[Count], _firstRows[Count], _endRows[Count], _biases[Count]) = (key, from, to, bias);
            Count++;
        }
    }

    private void AddSpan(int row, int key, int endKey, float bias)
    {
        if (key >= endKey)
        {
            return;
        }

        if (_firstSpans[row] >= 0 && _spans[_lastSpans[row]].End == key && _spans[_lastSpans[row]].Bias == bias)
        {
            _spans[_lastSpans[row]].End = endKey;
            return;
        }

        if (Spans == _spans.Length)
        {
            Array.Resize(ref _spans, 2 * Spans);
        }

        _spans[Spans] = new() { Start = key, End = endKey, Next = -1, Bias = bias };
        if (_firstSpans[row] < 0)
        {
            _firstSpans[row] = Spans;
        }
        else
        {
            _spans[_lastSpans[row]].Next = Spans;
        }

        _lastSpans[row] = Spans++;
    }

    /// <summary>Consecutive keys that every row from one on has read.</summary>
    private struct Rectangle
    {
        public int Start;
        public int End;
        public int Row;
    }

    /// <summary>Consecutive keys that one row reads.</summary>
    internal struct Span
    {
        public int Start;
        public int End;
        public int Next;
        public float Bias;
    }
}
