using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>HiP's search: a beam of the best pieces down a binary tree over the blocks of the visible past (arXiv 2406.09827, release 1.1, steps 1 to 5).</summary>
/// <remarks>One instance serves one thread.</remarks>
internal sealed class HipSearch
{
    private readonly HipOptions _options;
    private readonly HipSelection _selection;
    private readonly RepresentativeScoring _scoring;
    private readonly int[] _rows;
    private readonly int _beam;

    // The beam: pieces (start, size), what their representative scored, and which head of the group they belong to, by head and then by start.
    private readonly int[] _start;
    private readonly int[] _size;
    private readonly double[] _score;
    private readonly int[] _headEnd;

    // Their halves.
    private readonly int[] _childStart;
    private readonly int[] _childSize;
    private readonly double[] _childScore;
    private readonly int[] _childHeadEnd;
    private readonly int[] _asked;
    private readonly int[] _askedFor;
    private readonly double[] _answers;
    private readonly long[] _order;
    private readonly int[] _kept;

    public HipSearch(HipOptions options, HipSelection selection, Tensor query, Tensor searched, int keysPerBlock)
    {
        (_options, _selection) = (options, selection);
        _rows = new int[Math.Max(1, options.BlockSizeQ / options.BlockStrideQ)];
        _beam = options.Slots * options.HeadGroup;
        _scoring = new(query, searched, _rows.Length, 2 * _beam, keysPerBlock, options.BlockSizeKGroup == 1 ? options.BlockStrideK : 1);
        (_start, _size, _score, _headEnd) = (new int[_beam], new int[_beam], new double[_beam], new int[options.HeadGroup]);
        var children = 2 * _beam;
        (_childStart, _childSize, _childScore, _childHeadEnd) = (new int[children], new int[children], new double[children], new int[options.HeadGroup]);
        (_asked, _askedFor, _answers, _order, _kept) = (new int[children], new int[children], new double[children], new long[children], new int[children]);
    }

    /// <summary>Selects for one block of queries and one group of heads.</summary>
    /// <param name="batch">The batch item.</param>
    /// <param name="firstHead">First head of the group.</param>
    /// <param name="queryBlock">The block of queries.</param>
    /// <param name="queries">Queries of the batch item.</param>
    /// <param name="searchable">Keys (or groups of keys) that are searched: the visible ones before the window.</param>
    public void Select(int batch, int firstHead, int queryBlock, int queries, int searchable)
    {
        var group = _options.HeadGroup;
        var (slots, blocks) = (_options.Slots, (searchable + _options.BlockSizeK - 1) / _options.BlockSizeK);
        if (searchable <= _options.MaskK / _options.BlockSizeKGroup)
        {
            for (var head = firstHead; head < firstHead + group; head++)
            {
                var list = _selection.List(batch, head, queryBlock);
                for (var i = 0; i < blocks; i++)
                {
                    _selection.Blocks[(list * _selection.Slots) + i] = i;
                }

                _selection.KeptBlocks[list] = blocks;
            }

            return;
        }

        var rows = VotingRows(queryBlock, queries);
        // In double and truncated, as the definition says: whole-number arithmetic would round elsewhere.
        var share = blocks / (double)slots;
        var count = 0;
        for (var head = 0; head < group; head++)
        {
            for (var i = 0; i < slots; i++, count++)
            {
                _start[count] = (int)(share * i);
                _size[count] = (int)(share * (i + 1)) - _start[count];
                _score[count] = double.NaN;
            }

            _headEnd[head] = count;
        }

        for (; share > 1; share /= 2)
        {
            var children = Split(batch, firstHead, rows);
            Keep(children);
        }

        var at = 0;
        for (var head = 0; head < group; head++)
        {
            var list = _selection.List(batch, firstHead + head, queryBlock);
            var mine = _headEnd[head] - at;
            _start.AsSpan(at, mine).CopyTo(_selection.Blocks.AsSpan(list * _selection.Slots));
            _selection.KeptBlocks[list] = mine;
            at = _headEnd[head];
        }
    }

    private ReadOnlySpan<int> VotingRows(int queryBlock, int queries)
    {
        var first = queryBlock * _options.BlockSizeQ;
        var end = Math.Min(first + _options.BlockSizeQ, queries);
        var count = 0;
        for (var row = first + _options.BlockStrideQ - 1; row < end; row += _options.BlockStrideQ)
        {
            _rows[count++] = row;
        }

        if (count == 0)
        {
            _rows[count++] = end - 1;
        }

        return _rows.AsSpan(0, count);
    }

    private int Representative(int start, int size) => _options.Representative switch
    {
        HipRepresentative.First => start,
        HipRepresentative.Last => start + size - 1,
        _ => start + (size / 2),
    };

    /// <summary>Halves every piece and scores the halves that are not empty; one whose representative is its parent's has its parent's score.</summary>
    private int Split(int batch, int firstHead, ReadOnlySpan<int> rows)
    {
        var (children, parent) = (0, 0);
        for (var head = 0; head < _options.HeadGroup; head++)
        {
            var asked = 0;
            for (; parent < _headEnd[head]; parent++)
            {
                var (start, size, left) = (_start[parent], _size[parent], _size[parent] / 2);
                var represented = Representative(start, size);
                if (left > 0)
                {
                    Add(start, left);
                }

                Add(start + left, size - left);

                void Add(int childStart, int childSize)
                {
                    (_childStart[children], _childSize[children]) = (childStart, childSize);
                    var representative = Representative(childStart, childSize);
                    if (representative == represented && !double.IsNaN(_score[parent]))
                    {
                        _childScore[children] = _score[parent];
                    }
                    else
                    {
                        _asked[asked] = representative;
                        _askedFor[asked++] = children;
                    }

                    children++;
                }
            }

            _childHeadEnd[head] = children;
            if (asked > 0)
            {
                _scoring.Choose(batch, firstHead + head, rows);
                _scoring.Score(_asked.AsSpan(0, asked), _answers);
                for (var i = 0; i < asked; i++)
                {
                    _childScore[_askedFor[i]] = _answers[i];
                }
            }
        }

        return children;
    }

    private void Keep(int children)
    {
        var kept = LargestScores.Keep(_childScore.AsSpan(0, children), _order, _beam, _kept);
        var head = 0;
        for (var i = 0; i < kept; i++)
        {
            var child = _kept[i];
            for (; child >= _childHeadEnd[head]; head++)
            {
                _headEnd[head] = i;
            }

            (_start[i], _size[i], _score[i]) = (_childStart[child], _childSize[child], _childScore[child]);
        }

        for (; head < _options.HeadGroup; head++)
        {
            _headEnd[head] = kept;
        }
    }
}
