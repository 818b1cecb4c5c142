using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>
/// The fused forward pass. An item is a block of queries of one head. Its keys come in tiles of up to <see cref="MicroKernel.ScoreColumns"/>, and strips of six queries go through
/// scores, weights and the weighted sum of values while the tile of scores is in the first-level cache and the keys and values of the tile in the second.
/// </summary>
internal sealed unsafe class ForwardKernel<TVector, TOps, TScore, TMask> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TScore : struct, IScoreModifier
    where TMask : struct, IMaskPredicate
{
    // Queries of an item: a multiple of six, large enough that keys and values loaded into the second-level cache are used often, small enough to share out.
    private const int BlockRows = 96;

    private const int MostPieces = MicroKernel.ScoreColumns / 4;

    private readonly CheckedProblem _problem;
    private readonly ScoreTile<TVector, TOps, TScore, TMask> _scores;
    private readonly PackedKeyValue<TVector, TOps> _packed;
    private readonly int[] _firstItem;
    private readonly bool _statistics;
    private int _unit;
    private int _unitEnd;

    private ForwardKernel(CheckedProblem problem, TScore modifier, TMask predicate)
    {
        _problem = problem;
        _scores = new(problem, modifier, predicate);
        _packed = new(problem);
        _firstItem = new int[_packed.Units + 1];
        _statistics = problem.Arguments.Statistics.Any;
    }

    /// <summary>Computes the output and the log-sum-exp of a checked problem.</summary>
    public static void Compute(CheckedProblem problem, TScore modifier, TMask predicate)
    {
        var kernel = new ForwardKernel<TVector, TOps, TScore, TMask>(problem, modifier, predicate);
        for (var unit = 0; unit < kernel._packed.Units;)
        {
            unit = kernel.RunWave(unit);
        }
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var unit = Array.BinarySearch(_firstItem, _unit, _unitEnd + 1 - _unit, item);
        unit = unit < 0 ? ~unit - 1 : unit;
        while (_firstItem[unit + 1] == item)
        {
            unit++;
        }

        var slice = _problem.Sequence(unit / _packed.UnitsPerSequence);
        var blocks = new QueryBlocks(_problem, slice, BlockRows);
        var (head, block) = Math.DivRem(item - _firstItem[unit], blocks.Count);

        // Causal blocks grow with the queries: the largest first leaves the smallest to even out the threads.
        var (query, rows) = blocks[blocks.Count - 1 - block];
        if (rows > 0)
        {
            head += unit % _packed.UnitsPerSequence * _packed.HeadsPerUnit;
            ComputeBlock(slice, unit, head, query, rows);
        }
    }

    private int RunWave(int first)
    {
        _unit = first;
        _unitEnd = _packed.PackWave(first);
        var items = 0;
        for (var unit = first; unit < _unitEnd; unit++)
        {
            _firstItem[unit] = items;
            var blocks = new QueryBlocks(_problem, _problem.Sequence(unit / _packed.UnitsPerSequence), BlockRows);
            items = checked(items + (_packed.HeadsPerUnit * blocks.Count));
        }

        _firstItem[_unitEnd] = items;
        Run(items, _problem.Threads);
        return _unitEnd;
    }

    [SkipLocalsInit]
    private void ComputeBlock(in SequenceSlice slice, int unit, int head, long query, int rows)
    {
        var segments = KeySegments.OfItem;
        segments.Find(_problem, slice, head, query, rows, ScoreTile<TVector, TOps, TScore, TMask>.Asks);
        var block = TakeBlock(slice, unit, head, query, rows);
        PackQueries(block);
        var pieces = stackalloc ScorePiece[MostPieces];
        var stripPieces = stackalloc ScorePiece[MostPieces];
        var sets = stackalloc float*[MostPieces];
        var cursor = (Segment: 0, Key: segments.Count == 0 ? 0 : segments[0].Start);
        while (cursor.Segment < segments.Count)
        {
            var count = FillTile(segments, ref cursor, pieces);
            ExpandSet(block, pieces, count);
            for (var row = 0; row < rows; row += MicroKernel.Rows)
            {
                ComputeStrip(block, row, Math.Min(MicroKernel.Rows, rows - row), pieces, count, stripPieces, sets);
            }
        }

        WriteRows(block);
    }

    private Block TakeBlock(in SequenceSlice slice, int unit, int head, long query, int rows)
    {
        var padded = (long)(rows + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows;
        var outputStride = _packed.ValueVectors * TOps.Lanes;
        var sumStride = _statistics ? ForwardStatistics<TVector, TOps>.Sums * TOps.Lanes : TOps.Lanes;
        var (strips, output, sums, largest) =
            (Workspace.Lines(padded * _packed.Depth), Workspace.Lines(padded * outputStride), Workspace.Lines(padded * sumStride), Workspace.Lines(padded));
        var top = _statistics ? _problem.Arguments.Statistics.TopCount : 0;
        var (keys, topScores, set) = (_statistics ? largest : 0, Workspace.Lines(padded * top), _statistics ? MicroKernel.ScoreColumns : 0);
        const long tile = MicroKernel.Rows * MicroKernel.ScoreStride;
        var memory = Workspace.OfItem.Take((2 * tile) + strips + output + sums + largest + keys + (2 * topScores) + set);
        var block = new Block { Slice = slice, Unit = unit, Head = head, Query = query, Rows = rows, OutputStride = outputStride, SumStride = sumStride };
        block.Scores = memory;
        block.Unweighed = block.Scores + tile;
        block.Strips = block.Unweighed + tile;
        block.Output = block.Strips + strips;
        block.Sums = block.Output + output;
        block.Largest = block.Sums + sums;
        block.LargestKeys = (int*)(block.Largest + largest);
        block.TopScores = block.Largest + largest + keys;
        block.TopKeys = (int*)(block.TopScores + topScores);
        block.Set = block.TopScores + (2 * topScores);
        new Span<float>(block.Output, checked((int)(output + sums))).Clear();
        new Span<float>(block.Largest, (int)padded).Fill(float.NegativeInfinity);
        if (_statistics)
        {
            new Span<int>(block.LargestKeys, (int)padded).Fill(-1);
            new Span<float>(block.TopScores, (int)(padded * top)).Fill(float.NegativeInfinity);
        }

        return block;
    }

    private void PackQueries(in Block block)
    {
        ref readonly var a = ref _problem.Arguments;
        for (var row = 0; row < block.Rows; row += MicroKernel.Rows)
        {
            var strip = block.Strips + ((long)row * _packed.Depth);
            var (rows, at) = (Math.Min(MicroKernel.Rows, block.Rows - row), block.Slice.QueryStart + block.Query + row);
            Packing.Strip(a.Query.Row(block.Slice.Batch, block.Head, at), (nint)a.Query.RowStride, rows, _problem.Width, a.Scale, strip);
            if (_problem.HasLowRank)
            {
                var factors = a.LowRankQuery.Row(block.Slice.Batch, block.Head, at);
                Packing.Strip(factors, (nint)a.LowRankQuery.RowStride, rows, _problem.Rank, 1, strip + ((long)MicroKernel.Rows * _problem.Width));
            }
        }
    }

    /// <summary>The next keys, up to a full tile of columns; runs are cut where panels end.</summary>
    private static int FillTile(KeySegments segments, ref (int Segment, long Key) cursor, ScorePiece* pieces)
    {
        var (count, columns, width) = (0, 0, Packing.PanelWidth<TVector, TOps>());
        while (cursor.Segment < segments.Count)
        {
            ref readonly var segment = ref segments[cursor.Segment];
            var first = cursor.Key / TOps.Lanes * TOps.Lanes;
            var end = Math.Min(segment.End, first + MicroKernel.ScoreColumns - columns);
            if (end < segment.End)
            {
                end = end / width * width;
                if (end <= cursor.Key)
                {
                    return count;
                }
            }

            var piece = (int)((end - first + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes);
            pieces[count++] = new(first, piece, segment with { Start = cursor.Key, End = end });
            columns += piece;
            if (end == segment.End)
            {
                cursor.Segment++;
                cursor.Key = cursor.Segment < segments.Count ? segments[cursor.Segment].Start : 0;
            }
            else
            {
                cursor.Key = end;
            }
        }

        return count;
    }

    /// <summary>The key set of a tile's columns as factors.</summary>
    private void ExpandSet(in Block block, ScorePiece* pieces, int count)
    {
        ref readonly var statistics = ref _problem.Arguments.Statistics;
        var factor = block.Set;
        for (var i = 0; _statistics && i < count; i++)
        {
            var set = statistics.KeySet + (block.Slice.Batch * statistics.KeySetBatchStride) + block.Slice.KeyStart;
            for (var key = pieces[i].First; key < pieces[i].First + pieces[i].Columns; key++)
            {
                *factor++ = statistics.SetMass != null && key < block.Slice.KeyLength && set[key] != 0 ? 1 : 0;
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ComputeStrip(in Block block, int row, int rows, ScorePiece* tile, int tilePieces, ScorePiece* pieces, float** sets)
    {
        var query = block.Query + row;
        var (columns, count) = (0, 0);
        var set = block.Set;
        for (var i = 0; i < tilePieces; i++)
        {
            ref readonly var whole = ref tile[i];
            if (TryTrim(block.Slice, query, rows, whole, out pieces[count]))
            {
                ref readonly var piece = ref pieces[count];
                MultiplyKeys(block, row, rows, piece, block.Scores + columns);
                _scores.Apply(block.Slice, block.Head, piece, query, rows, block.Scores + columns);
                sets[count++] = set + (piece.First - whole.First);
                columns += piece.Columns;
            }

            set += whole.Columns;
        }

        if (count == 0)
        {
            return;
        }

        var careful = !_packed.IsFinite(block.Unit);
        if (careful)
        {
            new ReadOnlySpan<float>(block.Scores, MicroKernel.Rows * MicroKernel.ScoreStride).CopyTo(new(block.Unweighed, MicroKernel.Rows * MicroKernel.ScoreStride));
        }

        if (_statistics)
        {
            WeighWithStatistics(block, row, rows, pieces, sets, count);
        }
        else
        {
            Weigh(block, row, rows, columns);
        }

        columns = 0;
        for (var i = 0; i < count; i++)
        {
            if (careful && _scores.MayMask(block.Slice, pieces[i], query, rows))
            {
                AddValuesOfPairs(block, row, rows, pieces[i], columns);
            }
            else
            {
                MultiplyValues(block, row, rows, pieces[i], columns);
            }

            columns += pieces[i].Columns;
        }
    }

    /// <summary>Cuts a piece to the keys that a strip sees by position.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool TryTrim(in SequenceSlice slice, long query, int rows, in ScorePiece piece, out ScorePiece trimmed)
    {
        trimmed = piece;
        if (!_problem.IsBanded)
        {
            return true;
        }

        var start = Math.Max(piece.Segment.Start, _problem.FirstKey(slice, query));
        var end = Math.Min(piece.Segment.End, _problem.EndKey(slice, query + rows - 1));
        if (start >= end)
        {
            return false;
        }

        var first = start / TOps.Lanes * TOps.Lanes;
        trimmed = new(first, (int)((end - first + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes), piece.Segment with { Start = start, End = end });
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void MultiplyKeys(in Block block, int row, int rows, in ScorePiece piece, float* scores)
    {
        var strip = block.Strips + ((long)row * _packed.Depth);
        var width = Packing.PanelWidth<TVector, TOps>();
        var end = piece.First + piece.Columns;
        for (var key = piece.First; key < end;)
        {
            var columns = (int)Math.Min(width - (key % width), end - key);
            if (_scores.ReadsMap)
            {
                _scores.Prefetch(block.Slice, block.Head, key, columns, block.Query + row, rows);
            }

            var panel = _packed.KeyPanel(block.Unit, key);
            if (rows > 1)
            {
                MicroKernel.Multiply<TVector, TOps, StripLayout, Zero>(strip, panel, width, scores, MicroKernel.ScoreStride, _packed.Depth, columns / TOps.Lanes);
            }
            else
            {
                MicroKernel.MultiplyRow<TVector, TOps, StripLayout, Zero>(strip, panel, width, scores, _packed.Depth, columns / TOps.Lanes);
            }

            scores += columns;
            key += columns;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void MultiplyValues(in Block block, int row, int rows, in ScorePiece piece, int column)
    {
        var (start, end) = (piece.Segment.Start, piece.Segment.End);
        var weights = block.Scores + column + (start - piece.First);
        var output = block.Output + ((long)row * block.OutputStride);
        for (int panel = 0, vector = 0; panel < _packed.ValuePanels; panel++)
        {
            var vectors = Packing.PanelVectors(_packed.ValueVectors, _packed.ValuePanels, panel);
            var values = _packed.ValuePanel(block.Unit, start, vector, vectors);
            var width = vectors * TOps.Lanes;
            var sums = output + (vector * TOps.Lanes);
            if (rows > 1)
            {
                MicroKernel.Multiply<TVector, TOps, ScoreLayout, One>(weights, values, width, sums, block.OutputStride, (nint)(end - start), vectors);
            }
            else
            {
                MicroKernel.MultiplyRow<TVector, TOps, ScoreLayout, One>(weights, values, width, sums, (nint)(end - start), vectors);
            }

            vector += vectors;
        }
    }

    /// <summary>As <see cref="MultiplyValues"/> where values are not finite: only pairs that exist are read, since zero times NaN is not zero.</summary>
    private void AddValuesOfPairs(in Block block, int row, int rows, in ScorePiece piece, int column)
    {
        for (var r = 0; r < rows; r++)
        {
            var offset = (r * MicroKernel.ScoreStride) + column - piece.First;
            var output = block.Output + ((long)(row + r) * block.OutputStride);
            for (var key = piece.Segment.Start; key < piece.Segment.End; key++)
            {
                if (float.IsNegativeInfinity(block.Unweighed[offset + key]))
                {
                    continue;
                }

                var weight = TOps.Create(block.Scores[offset + key]);
                for (int panel = 0, vector = 0; panel < _packed.ValuePanels; panel++)
                {
                    var vectors = Packing.PanelVectors(_packed.ValueVectors, _packed.ValuePanels, panel);
                    var values = _packed.ValuePanel(block.Unit, key, vector, vectors);
                    for (var v = 0; v < vectors; v++, vector++)
                    {
                        var sum = output + (vector * TOps.Lanes);
                        TOps.Store(TOps.MultiplyAdd(weight, TOps.Load(values + (v * TOps.Lanes)), TOps.Load(sum)), sum);
                    }
                }
            }
        }
    }

    private void Weigh(in Block block, int row, int rows, int columns)
    {
        switch (_problem.Arguments.Normalizer)
        {
            case Normalizer.ReluOverPosition:
                Elementwise.Relu<TVector, TOps>(block.Scores, columns, rows);
                break;
            case Normalizer.Sigmoid:
                Elementwise.Sigmoid<TVector, TOps>(block.Scores, columns, rows);
                break;
            default:
                OnlineSoftmax<TVector, TOps>.Weigh(
                    block.Scores, columns, rows, block.Largest + row, block.Sums + ((long)row * block.SumStride), block.SumStride,
                    block.Output + ((long)row * block.OutputStride), block.OutputStride);
                break;
        }
    }

    private void WeighWithStatistics(in Block block, int row, int rows, ScorePiece* pieces, float** sets, int count)
    {
        var top = _problem.Arguments.Statistics.TopCount;
        if (top > 0)
        {
            ForwardStatistics<TVector, TOps>.KeepLargest(
                pieces, count, rows, block.Scores, top, block.TopScores + ((long)row * top), block.TopKeys + ((long)row * top));
        }

        ForwardStatistics<TVector, TOps>.Weigh(
            pieces, sets, count, block.Query + row + block.Slice.Shift, rows, block.Scores, block.Largest + row, block.LargestKeys + row,
            block.Sums + ((long)row * block.SumStride), block.Output + ((long)row * block.OutputStride), block.OutputStride);
    }

    private void WriteRows(in Block block)
    {
        ref readonly var a = ref _problem.Arguments;
        for (var row = 0; row < block.Rows; row++)
        {
            var at = block.Slice.QueryStart + block.Query + row;
            var factor = a.Normalizer switch
            {
                Normalizer.Softmax => 1 / Total(block, row, at),
                Normalizer.ReluOverPosition => 1 / _problem.KeysUpTo(block.Slice, block.Query + row),
                _ => 1,
            };
            ForwardRows<TVector, TOps>.Scale(block.Output + ((long)row * block.OutputStride), factor, a.Output.Row(block.Slice.Batch, block.Head, at), _problem.ValueWidth);
        }
    }

    /// <summary>Finishes the sum of a row's weights, with the sink, and writes log-sum-exp and statistics. Infinity for a row without pairs, so that its zeros stay zeros.</summary>
    private float Total(in Block block, int row, long at)
    {
        ref readonly var a = ref _problem.Arguments;
        var largest = block.Largest + row;
        var largestOfKeys = *largest;
        var sums = block.Sums + ((long)row * block.SumStride);
        var total = TOps.Sum(TOps.Load(sums));
        var sink = float.NegativeInfinity;
        if (total == 0)
        {
            total = float.PositiveInfinity;
        }
        else if (a.Sinks != null)
        {
            sink = a.Sinks[block.Head];
            if (sink > *largest)
            {
                RaiseToSink(block, row, sink);
                total = TOps.Sum(TOps.Load(sums));
            }

            total += MathF.Exp(sink - *largest);
        }

        var index = (((block.Slice.Batch * _problem.Heads) + block.Head) * _problem.Queries) + at;
        if (a.LogSumExp != null)
        {
            a.LogSumExp[index] = float.IsPositiveInfinity(total) ? float.NegativeInfinity : *largest + MathF.Log(total);
        }

        if (_statistics)
        {
            var list = (long)row * a.Statistics.TopCount;
            ForwardStatistics<TVector, TOps>.Write(
                a.Statistics, index, block.Slice.KeyStart, *largest, largestOfKeys, block.LargestKeys[row], sink, total, sums, block.TopScores + list, block.TopKeys + list);
        }

        return total;
    }

    private void RaiseToSink(in Block block, int row, float sink)
    {
        var sums = block.Sums + ((long)row * block.SumStride);
        var output = block.Output + ((long)row * block.OutputStride);
        if (_statistics)
        {
            ForwardStatistics<TVector, TOps>.Raise(sink, block.Largest + row, sums, output, block.OutputStride);
        }
        else
        {
            OnlineSoftmax<TVector, TOps>.Raise(sink, block.Largest + row, sums, block.SumStride, output, block.OutputStride);
        }
    }

    /// <summary>A block of queries on its way through the tiles; its memory is the item's.</summary>
    private struct Block
    {
        public SequenceSlice Slice;
        public int Unit;
        public int Head;
        public long Query;
        public int Rows;
        public int OutputStride;
        public int SumStride;
        public float* Scores;
        public float* Unweighed;
        public float* Strips;
        public float* Output;
        public float* Sums;
        public float* Largest;
        public int* LargestKeys;
        public float* TopScores;
        public int* TopKeys;
        public float* Set;
    }
}
