using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// The chunk scan of HiP's release 1.2 (the pruning stage of InfiniteHiP, arXiv 2502.08910): within every chunk of keys a binary search walks towards the key that scores best for a block of queries; its score stands for the
/// chunk. Chunks do not know each other.
/// </summary>
public static class ChunkScan
{
    /// <summary>Scans chunks for every block of queries. Looks at keys only, not at positions: what is not visible must not be in a chunk.</summary>
    /// <param name="query"><c>[B, H, T, D]</c>, float32 or float64.</param>
    /// <param name="key"><c>[B, Hkv, S, D]</c>.</param>
    /// <param name="left">First key of every chunk, int32 or int64 <c>[B, H, query blocks, n]</c>, 0 to S - 1.</param>
    /// <param name="right">The key after its last one, of the same shape, at most S.</param>
    /// <param name="blockSizeQ">Queries that share the chunks.</param>
    /// <param name="blockStrideQ">Every how many of them vote: rows 0, the stride, twice the stride and so on.</param>
    /// <returns>What is left of each chunk, int32, and the score of its first key, float32 (float64 for float64 queries).</returns>
    /// <exception cref="ArgumentException">Shapes or numbers do not fit.</exception>
    public static (Tensor Left, Tensor Right, Tensor Score) Scan(Tensor query, Tensor key, Tensor left, Tensor right, int blockSizeQ, int blockStrideQ)
    {
        AttentionShape.Read(query, key, key);
        ArgumentNullException.ThrowIfNull(left);
        ArgumentNullException.ThrowIfNull(right);
        if (blockSizeQ < 1 || blockStrideQ < 1)
        {
            throw new ArgumentException($"A block holds at least 1 query and the stride is at least 1, not {blockSizeQ} and {blockStrideQ}.", nameof(blockSizeQ));
        }

        var blocks = (query.size(2) + blockSizeQ - 1) / blockSizeQ;
        if (left.dim() != 4 || left.size(0) != query.size(0) || left.size(1) != query.size(1) || left.size(2) != blocks || !left.shape.SequenceEqual(right.shape))
        {
            throw new ArgumentException(
                $"Chunks begin and end at int32 or int64 [{query.size(0)}, {query.size(1)}, {blocks}, n]; {AttentionShape.Text(left)} and {AttentionShape.Text(right)} were given.", nameof(left));
        }

        using var scope = NewDisposeScope();
        var (readable, keys) = RepresentativeScoring.Readable(query, key);
        var (lefts, rights) = (Integers(left), Integers(right));
        for (var i = 0; i < lefts.Length; i++)
        {
            if (lefts[i] < 0 || rights[i] <= lefts[i] || rights[i] > key.size(2))
            {
                throw new ArgumentException($"A chunk is a range of the {key.size(2)} keys with at least one of them; {lefts[i]} to {rights[i]} is none.", nameof(left));
            }
        }

        var count = checked((int)left.size(3));
        var scores = new double[lefts.Length];
        var heads = (int)query.size(1);
        Parallel.For(0, heads * query.size(0) * blocks, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() },
            () => new ChunkScanSearch(readable, keys, blockSizeQ, blockStrideQ, count), (list, _, search) =>
            {
                search.Choose((int)(list / blocks / heads), (int)(list / blocks % heads), (int)(list % blocks), (int)query.size(2));
                var at = (int)list * count;
                search.Scan(lefts.AsSpan(at, count), rights.AsSpan(at, count), scores.AsSpan(at, count));
                return search;
            }, _ => { });
        var type = query.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
        return (tensor(lefts, left.shape).MoveToOuterDisposeScope(), tensor(rights, left.shape).MoveToOuterDisposeScope(), tensor(scores, left.shape).to(type).MoveToOuterDisposeScope());
    }

    private static int[] Integers(Tensor values)
    {
        if (values.dtype is not (ScalarType.Int32 or ScalarType.Int64))
        {
            throw new ArgumentException($"Chunks are int32 or int64, not {values.dtype}.", nameof(values));
        }

        using var wide = values.to(int64).reshape(-1);
        return [.. SmallIntegers.Read(wide).Select(value => checked((int)value))];
    }
}

/// <summary>Scans of chunks; one instance serves one thread.</summary>
internal sealed class ChunkScanSearch(Tensor query, Tensor key, int blockSizeQ, int blockStrideQ, int mostChunks)
{
    private readonly RepresentativeScoring _scoring = new(query, key, (blockSizeQ + blockStrideQ - 1) / blockStrideQ, 2 * mostChunks, keysPerBlock: 1, step: 1);
    private readonly int[] _rows = new int[(blockSizeQ + blockStrideQ - 1) / blockStrideQ];
    private readonly int[] _asked = new int[2 * mostChunks];
    private readonly int[] _open = new int[mostChunks];
    private readonly double[] _scores = new double[2 * mostChunks];

    /// <summary>Chooses the voting rows of a block of queries.</summary>
    public void Choose(int batch, int head, int queryBlock, int queries)
    {
        var count = 0;
        for (var row = queryBlock * blockSizeQ; row < Math.Min((queryBlock + 1) * blockSizeQ, queries); row += blockStrideQ)
        {
            _rows[count++] = row;
        }

        _scoring.Choose(batch, head, _rows.AsSpan(0, count));
    }

    /// <summary>Narrows every chunk [left, right) to the key that the search ends at, and scores it.</summary>
    public void Scan(Span<int> left, Span<int> right, Span<double> scores)
    {
        var open = left.Length;
        for (var i = 0; i < open; i++)
        {
            _open[i] = i;
        }

        // Every chunk is halved at least once, one of a single key too.
        while (open > 0)
        {
            for (var i = 0; i < open; i++)
            {
                var (l, r) = (left[_open[i]], right[_open[i]]);
                var center = (l + r) / 2;
                (_asked[2 * i], _asked[(2 * i) + 1]) = ((l + center) / 2, (center + r) / 2);
            }

            _scoring.Score(_asked.AsSpan(0, 2 * open), _scores);
            var still = 0;
            for (var i = 0; i < open; i++)
            {
                var chunk = _open[i];
                var center = (left[chunk] + right[chunk]) / 2;
                if (_scores[2 * i] > _scores[(2 * i) + 1])
                {
                    right[chunk] = center;
                }
                else
                {
                    left[chunk] = center;
                }

                if (right[chunk] - left[chunk] > 1)
                {
                    _open[still++] = chunk;
                }
            }

            open = still;
        }

        left.CopyTo(_asked);
        _scoring.Score(_asked.AsSpan(0, left.Length), scores);
    }
}
