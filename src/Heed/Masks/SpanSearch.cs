using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>The spans that a search chose for every query: anchors, bounds and scores, best first. Missing ones are -1 with a score of minus infinity.</summary>
public sealed class SpanSelection
{
    private readonly int[] _anchors;
    private readonly int[] _first;
    private readonly int[] _last;
    private readonly double[] _scores;
    private readonly bool _isDouble;

    internal SpanSelection(long batches, long heads, long queries, long keys, int spans, bool isDouble)
    {
        (Batches, Heads, Queries, Keys, Spans, _isDouble) = ((int)batches, (int)heads, queries, keys, spans, isDouble);
        var slots = checked((int)(batches * heads * queries * spans));
        (_anchors, _first, _last, _scores) = (new int[slots], new int[slots], new int[slots], new double[slots]);
    }

    /// <summary>Batch items.</summary>
    public int Batches { get; }

    /// <summary>Query heads: each chooses for itself.</summary>
    public int Heads { get; }

    /// <summary>Number of queries.</summary>
    public long Queries { get; }

    /// <summary>Number of keys.</summary>
    public long Keys { get; }

    /// <summary>Spans per query.</summary>
    public int Spans { get; }

    /// <summary>Positions of the anchors, int32 <c>[B, H, Nq, k]</c>.</summary>
    public Tensor Anchor() => tensor(_anchors, Shape);

    /// <summary>First keys of the spans, int32 <c>[B, H, Nq, k]</c>.</summary>
    public Tensor Start() => tensor(_first, Shape);

    /// <summary>Last keys of the spans, included, int32 <c>[B, H, Nq, k]</c>.</summary>
    public Tensor End() => tensor(_last, Shape);

    /// <summary>Scores of the anchors, unscaled, float32 (float64 where the queries are) <c>[B, H, Nq, k]</c>; without gradient.</summary>
    public Tensor Score()
    {
        using var scores = tensor(_scores, Shape);
        return _isDouble ? scores.alias() : scores.to(ScalarType.Float32);
    }

    private long[] Shape => [Batches, Heads, Queries, Spans];

    /// <summary>The keys of one span of every query, for a call that computes it.</summary>
    /// <param name="span">Which of the spans, from 0 (the best).</param>
    /// <param name="padding">Per batch item and key, whether it is padding; null: none is.</param>
    internal KeyRuns Runs(int span, bool[]? padding) => Runs(padding, (query, add) => add(_first[(query * Spans) + span], _last[(query * Spans) + span]));

    /// <summary>All spans and the window of every query as one set of keys.</summary>
    /// <param name="window">First and last key of each query's window.</param>
    internal KeyRuns Union((long First, long Last)[] window)
    {
        var order = new int[Spans];
        return Runs(null, (query, add) =>
        {
            for (var i = 0; i < Spans; i++)
            {
                order[i] = (query * Spans) + i;
            }

            Array.Sort(order, (a, b) => _first[a].CompareTo(_first[b]));
            var end = -1;
            foreach (var slot in order)
            {
                if (_first[slot] >= 0)
                {
                    add(Math.Max(_first[slot], end + 1), _last[slot]);
                    end = Math.Max(end, _last[slot]);
                }
            }

            var (first, last) = window[query % Queries];
            add((int)Math.Max(first, end + 1), (int)last);
        });
    }

    /// <summary>Intervals of keys for every query as runs, padding left out.</summary>
    internal static KeyRuns Intervals(long batches, long heads, long queries, long keys, bool[]? padding, Action<int, Action<int, int>> intervals)
    {
        var offsets = new int[checked(batches * heads * queries) + 1];
        var (first, counts) = (new List<int>(), new List<int>());
        var item = 0L;
        void Add(int from, int to)
        {
            if (from < 0 || to < from)
            {
                return;
            }

            if (padding is null)
            {
                first.Add(from);
                counts.Add(to - from + 1);
                return;
            }

            for (var key = from; key <= to; key++)
            {
                var begin = key;
                while (key <= to && !padding[(item * keys) + key])
                {
                    key++;
                }

                if (key > begin)
                {
                    first.Add(begin);
                    counts.Add(key - begin);
                }
            }
        }

        for (var query = 0; query < offsets.Length - 1; query++)
        {
            item = query / (heads * queries);
            intervals(query, Add);
            offsets[query + 1] = first.Count;
        }

        return new((int)batches, (int)heads, queries, keys, 1, offsets, [.. first], [.. counts]);
    }

    internal void Set(long query, ReadOnlySpan<int> anchors, ReadOnlySpan<double> scores, SuperlinearOptions options, long position, long start)
    {
        for (var i = 0; i < Spans; i++)
        {
            var slot = (query * Spans) + i;
            (_anchors[slot], _scores[slot]) = (anchors[i], scores[i]);
            (_first[slot], _last[slot]) = (-1, -1);
            if (anchors[i] >= 0)
            {
                var (first, last) = options.Span(anchors[i], position, start);
                (_first[slot], _last[slot]) = ((int)first, (int)Math.Min(last, Keys - 1));
            }
        }
    }

    private KeyRuns Runs(bool[]? padding, Action<int, Action<int, int>> intervals) => Intervals(Batches, Heads, Queries, Keys, padding, intervals);
}

/// <summary>
/// The span search of superlinear attention (arXiv 2601.18401, step 1): every query scores anchor keys at distances that grow as a power of their number, O(L^P) of them, and takes a span of keys around each of the best. Since the
/// candidate spans overlap, no earlier position is excluded in advance (see <see cref="SuperlinearOptions"/>).
/// </summary>
public static class SpanSearch
{
    /// <summary>Chooses spans. Without gradient: what is chosen is constant, the module that stands on the search lets the scores' gradient flow.</summary>
    /// <param name="searchQuery">Search queries <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, L, D]</c>, at positions 0 to L - 1.</param>
    /// <param name="positions">Absolute position of each query, ascending, below L.</param>
    /// <param name="options">The options; null: the defaults.</param>
    /// <param name="attentionMask">Boolean <c>[B, L]</c>, false where a key is padding; null: none is.</param>
    /// <exception cref="ArgumentException">Shapes, positions or options do not fit.</exception>
    public static SpanSelection Select(Tensor searchQuery, Tensor key, IReadOnlyList<long> positions, SuperlinearOptions? options = null, Tensor? attentionMask = null)
    {
        options ??= new();
        options.Validate();
        AttentionShape.Read(searchQuery, key, key);
        CheckPositions(positions, searchQuery.size(2), key.size(2));
        return Select(searchQuery, key, positions, options, Padding(attentionMask, key));
    }

    /// <summary>Whether each key of each batch item is padding, <c>[B * L]</c>; null where none is.</summary>
    internal static bool[]? Padding(Tensor? attentionMask, Tensor key)
    {
        if (attentionMask is null)
        {
            return null;
        }

        if (attentionMask.dtype != ScalarType.Bool || attentionMask.dim() != 2 || attentionMask.size(0) != key.size(0) || attentionMask.size(1) != key.size(2))
        {
            throw new ArgumentException(
                $"The attention mask is boolean [{key.size(0)}, {key.size(2)}], false where a key is padding; {attentionMask.dtype} {AttentionShape.Text(attentionMask)} was given.", nameof(attentionMask));
        }

        using var scope = NewDisposeScope();
        var padding = attentionMask.logical_not().cpu().contiguous();
        return padding.any().item<bool>() ? padding.data<bool>().ToArray() : null;
    }

    internal static void CheckPositions(IReadOnlyList<long> positions, long queries, long keys)
    {
        ArgumentNullException.ThrowIfNull(positions);
        if (positions.Count != queries)
        {
            throw new ArgumentException($"Every query has a position: {queries} were expected, not {positions.Count}.", nameof(positions));
        }

        for (var i = 0; i < positions.Count; i++)
        {
            if (positions[i] < 0 || positions[i] >= keys || (i > 0 && positions[i] <= positions[i - 1]))
            {
                throw new ArgumentException(
                    $"Positions ascend and have a key each: 0 to {keys - 1} were expected, not {positions[i]}{(i > 0 ? $" after {positions[i - 1]}" : "")}.", nameof(positions));
            }
        }
    }

    internal static SpanSelection Select(Tensor searchQuery, Tensor key, IReadOnlyList<long> positions, SuperlinearOptions options, bool[]? padding)
    {
        using var scope = NewDisposeScope();
        var (query, keys) = RepresentativeScoring.Readable(searchQuery, key);
        var (batches, heads, queries, length) = (query.size(0), query.size(1), query.size(2), keys.size(2));
        var selection = new SpanSelection(batches, heads, queries, length, options.NumSpans, query.dtype == ScalarType.Float64);
        if (queries == 0)
        {
            return selection;
        }

        var distances = options.Distances(positions[^1] + 1);
        var starts = Starts(padding, batches, length);
        var items = batches * heads * queries;
        const int Stretch = 64;
        Parallel.For(0, (items + Stretch - 1) / Stretch, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() }, () => new Search(query, keys, distances, options.NumSpans), (at, _, search) =>
        {
            for (var item = at * Stretch; item < Math.Min((at + 1) * Stretch, items); item++)
            {
                var (batch, head, row) = ((int)(item / queries / heads), (int)(item / queries % heads), (int)(item % queries));
                var position = positions[row];
                search.Run(batch, head, row, position, padding, batch * length);
                selection.Set(item, search.Anchors, search.Scores, options, position, starts[batch]);
            }

            return search;
        }, _ => { });
        return selection;
    }

    /// <summary>First position of each batch item that is not padding.</summary>
    private static long[] Starts(bool[]? padding, long batches, long keys)
    {
        var starts = new long[batches];
        for (var batch = 0L; padding is not null && batch < batches; batch++)
        {
            while (starts[batch] < keys && padding[(batch * keys) + starts[batch]])
            {
                starts[batch]++;
            }
        }

        return starts;
    }

    /// <summary>The best anchors of one query after another; one instance serves one thread.</summary>
    private sealed class Search(Tensor query, Tensor key, int[] distances, int spans)
    {
        private readonly RepresentativeScoring _scoring = new(query, key, mostRows: 1, distances.Length, keysPerBlock: 1, step: 1);
        private readonly int[] _candidates = new int[distances.Length];
        private readonly double[] _candidateScores = new double[distances.Length];

        public int[] Anchors { get; } = new int[spans];

        public double[] Scores { get; } = new double[spans];

        public void Run(int batch, int head, int row, long position, bool[]? padding, long paddingStart)
        {
            Anchors.AsSpan().Fill(-1);
            Scores.AsSpan().Fill(double.NegativeInfinity);
            var count = 0;

            // From far to near, so that of equal scores the more distant anchor is there first and stays.
            for (var i = distances.Length - 1; i >= 0; i--)
            {
                var anchor = position - distances[i];
                if (anchor >= 0 && (padding is null || !padding[paddingStart + anchor]))
                {
                    _candidates[count++] = (int)anchor;
                }
            }

            if (count == 0)
            {
                return;
            }

            _scoring.Choose(batch, head, [row]);
            _scoring.Score(_candidates.AsSpan(0, count), _candidateScores);
            for (var i = 0; i < count; i++)
            {
                var score = _candidateScores[i];
                if (!(score > Scores[^1]))
                {
                    continue;
                }

                var slot = spans - 1;
                for (; slot > 0 && score > Scores[slot - 1]; slot--)
                {
                    (Scores[slot], Anchors[slot]) = (Scores[slot - 1], Anchors[slot - 1]);
                }

                (Scores[slot], Anchors[slot]) = (score, _candidates[i]);
            }
        }
    }
}
