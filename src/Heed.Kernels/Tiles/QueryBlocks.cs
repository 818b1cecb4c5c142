namespace Heed.Kernels;

/// <summary>The queries of a sequence in blocks of a few strips, each within one block of queries of the block mask or key runs. The division depends on the problem only, never on the threads.</summary>
internal readonly struct QueryBlocks
{
    private readonly long _start;
    private readonly long _end;
    private readonly long _origin;
    private readonly long _maskBlock;
    private readonly int _parts;
    private readonly int _partRows;

    /// <summary>Divides the queries of a sequence.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="slice">The sequence.</param>
    /// <param name="rows">Queries of a block; blocks may have up to half as many more where the mask's blocks divide better so.</param>
    public QueryBlocks(CheckedProblem problem, in SequenceSlice slice, int rows)
    {
        (_start, _end, _origin) = (slice.QueryStart, slice.QueryStart + slice.QueryLength, slice.QueryStart);
        (_maskBlock, _parts, _partRows) = (rows, 1, rows);
        if (problem.ListedQueries > 0)
        {
            _maskBlock = problem.ListedQueries;
            _origin = _start / _maskBlock * _maskBlock;
            _parts = (int)Math.Max(1, (_maskBlock + (rows / 3)) / (rows + (rows / 3)));
            var share = (_maskBlock + _parts - 1) / _parts;
            _partRows = (int)((share + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows);
        }

        Count = slice.QueryLength == 0 ? 0 : checked((int)((_end - _origin + _maskBlock - 1) / _maskBlock * _parts));
    }

    /// <summary>Number of blocks; some may be empty.</summary>
    public int Count { get; }

    /// <summary>First query of a block, within the sequence, and the number of its queries, which may be zero.</summary>
    public (long Query, int Rows) this[int index]
    {
        get
        {
            var (block, part) = Math.DivRem(index, _parts);
            var first = _origin + (block * _maskBlock);
            var start = Math.Max(_start, first + ((long)part * _partRows));
            var end = Math.Min(_end, first + Math.Min(_maskBlock, (part + 1L) * _partRows));
            return (start - _start, (int)Math.Max(0, end - start));
        }
    }
}
