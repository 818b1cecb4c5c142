namespace Heed.Kernels;

/// <summary>A run of keys that a block of queries computes in the same way.</summary>
/// <param name="Start">First key, within the sequence.</param>
/// <param name="End">Key after the last.</param>
/// <param name="Bits">Position in the block mask's lists of the block whose bits decide the pairs; -1: none do.</param>
/// <param name="Asks">Whether the call's predicate decides the pairs.</param>
/// <param name="Bias">The block's bias.</param>
internal readonly record struct KeySegment(long Start, long End, int Bits, bool Asks, float Bias);

/// <summary>The keys of one block of queries as runs: causality, window and lengths cut them, listed blocks that touch and do the same are joined.</summary>
internal sealed class KeySegments
{
    [ThreadStatic]
    private static KeySegments? t_ofItem;

    private KeySegment[] _segments = new KeySegment[16];

    /// <summary>What this thread uses for the item of a parallel loop that it computes.</summary>
    public static KeySegments OfItem => t_ofItem ??= new();

    /// <summary>Number of runs.</summary>
    public int Count { get; private set; }

    /// <summary>A run; they ascend and do not overlap.</summary>
    public ref readonly KeySegment this[int index] => ref _segments[index];

    /// <summary>Finds the runs of queries that lie in one block of queries of the mask.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="slice">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="query">First query, within the sequence.</param>
    /// <param name="rows">Number of queries, at least one.</param>
    /// <param name="asks">Whether the call has a predicate.</param>
    public void Find(CheckedProblem problem, in SequenceSlice slice, int head, long query, int rows, bool asks)
    {
        Count = 0;
        var (first, end) = (problem.FirstKey(slice, query), problem.EndKey(slice, query + rows - 1));
        if (first >= end)
        {
            return;
        }

        if (problem.Arguments.BlockMask is not { } mask)
        {
            Add(new(first, end, -1, asks, 0));
            return;
        }

        var (listed, stop) = mask.Row(slice.Batch, head, (int)((slice.QueryStart + query) / mask.QueryBlock));
        var firstBlock = Array.BinarySearch(mask.KeyBlocks, listed, stop - listed, (int)((slice.KeyStart + first) / mask.KeyBlock));
        for (listed = firstBlock < 0 ? ~firstBlock : firstBlock; listed < stop; listed++)
        {
            var start = ((long)mask.KeyBlockAt(listed) * mask.KeyBlock) - slice.KeyStart;
            if (start >= end)
            {
                return;
            }

            var partial = mask.IsPartial(listed);
            Add(new(
                Math.Max(start, first), Math.Min(start + mask.KeyBlock, end), partial && mask.Bits is not null ? listed : -1, partial && asks, mask.BiasAt(listed)));
        }
    }

    private void Add(in KeySegment segment)
    {
        if (Count > 0)
        {
            ref var last = ref _segments[Count - 1];
            if (last.End == segment.Start && last.Bits < 0 && segment.Bits < 0 && last.Asks == segment.Asks && last.Bias == segment.Bias)
            {
                last = last with { End = segment.End };
                return;
            }
        }

        if (Count == _segments.Length)
        {
            Array.Resize(ref _segments, 2 * Count);
        }

        _segments[Count++] = segment;
    }
}
