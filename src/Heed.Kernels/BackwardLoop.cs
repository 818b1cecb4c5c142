using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Heed.Kernels;

/// <summary>
/// The backward pass (arXiv 2307.08691, algorithm 2) with the loops exchanged: over blocks of queries outside and tiles of keys inside, so
/// that it walks the plan of the forward pass. Scores are computed again from the saved log-sum-exp, tile by tile: five products, nothing
/// of size Nq x Nk.
/// </summary>
/// <remarks>
/// <para>A unit is a batch item, a slice of the query heads of one key/value head, and one of the splits of the query blocks (every n-th
/// block, so that causal splits weigh the same). It accumulates the key and value gradients of its queries; where several units share a
/// key/value head, the last to finish adds them up, in their order. The units, and with them every sum, depend on the shape alone: the
/// results are the same bits for any number of threads.</para>
/// <para>Where the dense bias repeats over the batch or the heads, the units that add to the same elements of its gradient form a lane,
/// which one thread walks in order.</para>
/// </remarks>
internal sealed unsafe class BackwardLoop<TVector, TOps, TNormalizer, TScore, TMask> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TNormalizer : struct, INormalizerGradient
    where TScore : struct, IScoreModifier
    where TMask : struct, IMaskPredicate
{
    private readonly CheckedProblem _problem;
    private readonly AttentionArguments _a;
    private readonly AttentionGradients _g;
    private readonly ScoreTile<TVector, TOps, TScore, TMask> _scoring;
    private readonly BackwardShape _shape;
    private readonly BackwardSums _sums;
    private readonly GatheredBackward<TVector, TOps, TNormalizer>? _gathered;
    private readonly int[] _finished;
    private readonly nint[] _partials;
    private readonly Stack<nint> _free = new();

    /// <summary>Prepares the pass over a problem whose arguments and gradients were checked.</summary>
    public BackwardLoop(CheckedProblem problem, in AttentionGradients gradients, TScore modifier, TMask predicate)
    {
        (_problem, _a, _g) = (problem, problem.Arguments, gradients);
        _scoring = new(problem, modifier, predicate);
        _shape = new BackwardShape(problem, gradients, TOps.Lanes, Packing.PanelWidth<TVector, TOps>(),
            typeof(TScore) != typeof(UnmodifiedScore),
            problem.IsGathered && typeof(TScore) == typeof(UnmodifiedScore) && typeof(TMask) == typeof(AllPairs));
        _finished = new int[problem.Sequences * problem.KeyHeads];
        _partials = new nint[_finished.Length * _shape.Parts];
        var buffers = _shape.PartialBuffers(problem.Threads);
        var memory = Workspace.OfCall.Take((buffers * _shape.AccumulatorFloats) + BackwardSums.FloatsOf(problem, gradients, _shape));
        for (var i = 0; i < buffers; i++)
        {
            _free.Push((nint)memory);
            memory += _shape.AccumulatorFloats;
        }

        _sums = new BackwardSums(problem, gradients, _shape, memory);
        _gathered = _shape.Gathers ? new(problem, gradients, _shape, _sums) : null;
    }

    /// <summary>Computes every gradient that is asked for.</summary>
    public void Run()
    {
        ClearOutside();
        Run(_shape.Lanes, _problem.Threads);
        _sums.Store();
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var split = item % _shape.Splits;
        var share = item / _shape.Splits % _shape.ShareOwners;
        var index = item / _shape.Splits / _shape.ShareOwners;
        var (firstShare, endShare) = _shape.SharesHeads ? (0, _shape.Shares) : (share, share + 1);
        var endIndex = _shape.SharesBatch ? _problem.Sequences : index + 1;
        ClearBias(index, share * _shape.ShareHeads, _shape.SharesHeads ? 1 : _shape.ShareHeads, split);
        for (; index < endIndex; index++)
        {
            for (share = firstShare; share < endShare; share++)
            {
                RunUnit(_problem.Sequence(index), share, split);
            }
        }
    }

    private void RunUnit(in SequenceSlice slice, int share, int split)
    {
        var unit = BackwardUnit.Create(_shape, Workspace.OfItem);
        unit.Slice = slice;
        unit.KeyHead = share / _shape.HeadParts;
        unit.Split = split;
        if (_shape.Parts > 1)
        {
            lock (_free)
            {
                unit.KeyGradient = (float*)_free.Pop();
            }

            unit.ValueGradient = unit.KeyGradient + _shape.ValueOffset;
        }

        var rows = slice.KeyLength + MicroKernel.Rows;
        NativeMemory.Clear(unit.KeyGradient, (nuint)(rows * _shape.KeyWidth * sizeof(float)));
        NativeMemory.Clear(unit.ValueGradient, (nuint)(rows * _shape.ValueWidth * sizeof(float)));
        if (_gathered is null)
        {
            PackKeys(unit, share * _shape.ShareHeads);
        }

        for (var head = share * _shape.ShareHeads; head < (share + 1) * _shape.ShareHeads; head++)
        {
            unit.Head = head;
            RunHead(ref unit);
        }

        Finish(unit, ((slice.Index * _problem.KeyHeads) + unit.KeyHead) * _shape.Parts, (share % _shape.HeadParts * _shape.Splits) + split);
    }

    private void RunHead(ref BackwardUnit unit)
    {
        _sums.Begin(ref unit);
        var block = 0;
        for (unit.Query = 0; unit.Query < unit.Slice.QueryLength; unit.Query += unit.Rows, block++)
        {
            unit.Rows = _shape.RowsAt(unit.Slice, unit.Query);
            if (block % _shape.Splits == unit.Split)
            {
                PackQueries(ref unit);
                if (_gathered is null)
                {
                    RunBlock(ref unit);
                }
                else
                {
                    _gathered.RunBlock(ref unit);
                }

                StoreQueryGradient(unit);
            }
        }

        _sums.End(unit);
    }

    private void RunBlock(ref BackwardUnit unit)
    {
        var segments = KeySegments.OfItem;
        segments.Find(_problem, unit.Slice, unit.Head, unit.Query, unit.Rows, ScoreTile<TVector, TOps, TScore, TMask>.Asks);
        var panel = Packing.PanelWidth<TVector, TOps>();
        for (var i = 0; i < segments.Count; i++)
        {
            var segment = segments[i];
            for (var first = segment.Start / panel * panel; first < segment.End; first += BackwardShape.TileColumns)
            {
                RunTile(ref unit, segment, first, (int)Math.Min(segment.End - first, BackwardShape.TileColumns));
            }
        }
    }

    private void RunTile(ref BackwardUnit unit, in KeySegment segment, long firstKey, int width)
    {
        var strips = (unit.Rows + MicroKernel.Rows - 1) / MicroKernel.Rows;
        if (!StripColumns.Find(_problem, unit.Slice, unit.Query, unit.Rows, segment, firstKey, width, unit.Columns))
        {
            return;
        }

        BackwardTile.Multiply<TVector, TOps>(unit.QueryStrips, _shape.Depth, unit.KeyPanels + (firstKey * _shape.Depth), unit.Columns,
            strips, width, unit.Scores);
        BackwardTile.Multiply<TVector, TOps>(
            unit.OutputStrips, _problem.ValueWidth, unit.ValuePanels + (firstKey * _problem.ValueWidth), unit.Columns, strips, width,
                unit.Gradients);
        for (var strip = 0; strip < strips; strip++)
        {
            if (!unit.Columns[strip].IsEmpty)
            {
                RunStrip(ref unit, segment, firstKey, strip * MicroKernel.Rows, unit.Columns[strip]);
            }
        }

        if (_g.Value.IsGiven)
        {
            var to = unit.ValueGradient + (firstKey * _shape.ValueWidth);
            if (unit.OutputFinite)
            {
                BackwardTile.AddColumnProducts<TVector, TOps>(unit.Scores, unit.Columns, unit.Rows, width, unit.OutputRows,
                    _shape.ValueWidth, to);
            }
            else
            {
                BackwardTile.AddColumnProductsCarefully(unit.Scores, unit.Scores, unit.Columns, unit.Rows, unit.OutputRows,
                    _shape.ValueWidth, to);
            }
        }

        if (_g.Key.IsGiven || _g.LowRankKey.IsGiven)
        {
            var to = unit.KeyGradient + (firstKey * _shape.KeyWidth);
            if (unit.QueriesFinite)
            {
                BackwardTile.AddColumnProducts<TVector, TOps>(unit.Gradients, unit.Columns, unit.Rows, width, unit.QueryRows,
                    _shape.KeyWidth, to);
            }
            else
            {
                BackwardTile.AddColumnProductsCarefully(unit.Gradients, unit.Scores, unit.Columns, unit.Rows, unit.QueryRows,
                    _shape.KeyWidth, to);
            }
        }

        if (_g.Query.IsGiven || _g.LowRankQuery.IsGiven)
        {
            var from = unit.KeyRows + (firstKey * _shape.KeyWidth);
            if (KeysAreFinite(unit, firstKey, width))
            {
                BackwardTile.AddRowProducts<TVector, TOps>(unit.Gradients, unit.Columns, strips, from, _shape.KeyWidth, unit.QueryGradient);
            }
            else
            {
                BackwardTile.AddRowProductsCarefully(unit.Gradients, unit.Scores, unit.Columns, unit.Rows, from, _shape.KeyWidth,
                    unit.QueryGradient);
            }
        }
    }

    /// <summary>Scores, weights and gradients of the scores of one strip.</summary>
    private void RunStrip(ref BackwardUnit unit, in KeySegment segment, long firstKey, int row, StripColumns columns)
    {
        var start = columns.First & -TOps.Lanes;
        var offset = (row * MicroKernel.ScoreStride) + start;
        var piece = new ScorePiece(firstKey + start, ((columns.End + TOps.Lanes - 1) & -TOps.Lanes) - start, segment);
        var rows = Math.Min(unit.Rows - row, MicroKernel.Rows);
        var capped = _shape.Capped ? unit.Capped + offset : null;
        var unmodified = _shape.Modified ? unit.Unmodified + offset : null;
        _scoring.Apply(unit.Slice, unit.Head, piece, unit.Query + row, rows, unit.Scores + offset, capped, unmodified);
        var weights = unit.Scores + (row * MicroKernel.ScoreStride);
        var gradients = unit.Gradients + (row * MicroKernel.ScoreStride);
        BackwardTile.Differentiate<TVector, TOps, TNormalizer>(weights, gradients, columns, rows, unit.FirstNumbers + row,
            unit.SecondNumbers + row);
        if (_shape.Modified)
        {
            _scoring.ModifierGradient(unit.Slice, unit.Head, piece, unit.Query + row, rows, unmodified, unit.Gradients + offset);
            BackwardTile.ClearAbsent<TVector, TOps>(weights, gradients, columns, rows);
        }

        if (_sums.WantsTiles)
        {
            _sums.Add<TVector, TOps>(ref unit, row, rows, firstKey, columns);
        }

        if (_shape.Capped)
        {
            BackwardTile.DifferentiateSoftcap<TVector, TOps>(capped - start, weights, gradients, columns, rows, _a.Softcap);
        }
    }

    private static bool KeysAreFinite(in BackwardUnit unit, long firstKey, int width)
    {
        var finite = true;
        for (var i = firstKey / BackwardShape.TileColumns; i <= (firstKey + width - 1) / BackwardShape.TileColumns; i++)
        {
            finite &= unit.KeysFinite[i];
        }

        return finite;
    }

    /// <summary>Adds up what the units of one key/value head have accumulated, once the last of them is done.</summary>
    private void Finish(in BackwardUnit unit, long firstPartial, int part)
    {
        if (_shape.Parts == 1)
        {
            StoreKeyGradients(unit, [(nint)unit.KeyGradient]);
            return;
        }

        _partials[firstPartial + part] = (nint)unit.KeyGradient;
        if (Interlocked.Increment(ref _finished[firstPartial / _shape.Parts]) == _shape.Parts)
        {
            var parts = _partials.AsSpan((int)firstPartial, _shape.Parts);
            StoreKeyGradients(unit, parts);
            lock (_free)
            {
                foreach (var buffer in parts)
                {
                    _free.Push(buffer);
                }
            }
        }
    }

    private void StoreKeyGradients(in BackwardUnit unit, ReadOnlySpan<nint> parts)
    {
        var slice = unit.Slice;
        if (_g.Key.IsGiven)
        {
            BackwardPacking.StoreSums(parts, 0, _shape.KeyWidth, _g.Key, slice.Batch, unit.KeyHead, slice.KeyStart, slice.KeyLength);
        }

        if (_g.Value.IsGiven)
        {
            BackwardPacking.StoreSums(
                parts, _shape.ValueOffset, _shape.ValueWidth, _g.Value, slice.Batch, unit.KeyHead, slice.KeyStart, slice.KeyLength);
        }

        for (var part = 0; _g.LowRankKey.IsGiven && part < _shape.HeadParts; part++)
        {
            // With factors, every query head is a slice of its own.
            BackwardPacking.StoreSums(
                parts.Slice(part * _shape.Splits, _shape.Splits), (int)_a.Key.Width, _shape.KeyWidth, _g.LowRankKey,
                slice.Batch, (unit.KeyHead * _shape.HeadParts) + part, slice.KeyStart, slice.KeyLength);
        }
    }

    private void PackKeys(in BackwardUnit unit, int head)
    {
        var slice = unit.Slice;
        var depth = _shape.Depth;
        BackwardPacking.Panels<TVector, TOps>(_a.Key, slice.Batch, unit.KeyHead, slice.KeyStart, slice.KeyLength, unit.KeyPanels, 0, depth);
        BackwardPacking.Panels<TVector, TOps>(_a.Value, slice.Batch, unit.KeyHead, slice.KeyStart, slice.KeyLength, unit.ValuePanels, 0,
            _a.Value.Width);
        if (_problem.Rank > 0)
        {
            BackwardPacking.Panels<TVector, TOps>(_a.LowRankKey, slice.Batch, head, slice.KeyStart, slice.KeyLength, unit.KeyPanels,
                _a.Key.Width, depth);
        }

        var width = (int)_a.Key.Width;
        for (long first = 0; first < slice.KeyLength; first += BackwardShape.TileColumns)
        {
            var rows = (int)Math.Min(slice.KeyLength - first, BackwardShape.TileColumns);
            var to = unit.KeyRows + (first * _shape.KeyWidth);
            var finite = BackwardPacking.Rows<TVector, TOps>(
                _a.Key, slice.Batch, unit.KeyHead, slice.KeyStart + first, rows, _a.Scale, to, _shape.KeyWidth,
                    _problem.Rank > 0 ? width : _shape.KeyWidth);
            if (_problem.Rank > 0)
            {
                finite &= BackwardPacking.Rows<TVector, TOps>(
                    _a.LowRankKey, slice.Batch, head, slice.KeyStart + first, rows, 1, to + width, _shape.KeyWidth,
                        _shape.KeyWidth - width);
            }

            unit.KeysFinite[first / BackwardShape.TileColumns] = finite;
        }
    }

    private void PackQueries(ref BackwardUnit unit)
    {
        var (slice, head, rows) = (unit.Slice, unit.Head, unit.Rows);
        var first = slice.QueryStart + unit.Query;
        var (width, depth) = ((int)_a.Query.Width, _shape.Depth);
        for (var row = 0; row < rows; row += MicroKernel.Rows)
        {
            var strip = unit.QueryStrips + (row * depth);
            Packing.Strip(_a.Query.Row(slice.Batch, head, first + row), (nint)_a.Query.RowStride, Math.Min(rows - row, MicroKernel.Rows),
                width, _a.Scale, strip);
            if (_problem.Rank > 0)
            {
                Packing.Strip(
                    _a.LowRankQuery.Row(slice.Batch, head, first + row), (nint)_a.LowRankQuery.RowStride,
                        Math.Min(rows - row, MicroKernel.Rows), _problem.Rank, 1,
                    strip + (MicroKernel.Rows * width));
            }

            Packing.Strip(
                _g.Output.Row(slice.Batch, head, first + row), (nint)_g.Output.RowStride, Math.Min(rows - row, MicroKernel.Rows),
                    (nint)_a.Value.Width, 1,
                unit.OutputStrips + (row * _a.Value.Width));
        }

        unit.QueriesFinite = BackwardPacking.Rows<TVector, TOps>(
            _a.Query, slice.Batch, head, first, rows, _a.Scale, unit.QueryRows, _shape.KeyWidth,
                _problem.Rank > 0 ? width : _shape.KeyWidth);
        if (_problem.Rank > 0)
        {
            unit.QueriesFinite &= BackwardPacking.Rows<TVector, TOps>(
                _a.LowRankQuery, slice.Batch, head, first, rows, 1, unit.QueryRows + width, _shape.KeyWidth, _shape.KeyWidth - width);
        }

        unit.OutputFinite = BackwardPacking.Rows<TVector, TOps>(_g.Output, slice.Batch, head, first, rows, 1, unit.OutputRows,
            _shape.ValueWidth, _shape.ValueWidth);
        var padded = (rows + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows;
        NativeMemory.Clear(unit.QueryGradient, (nuint)(padded * _shape.KeyWidth * sizeof(float)));
        for (var row = 0; row < rows; row++)
        {
            PrepareRow(ref unit, first, row);
        }
    }

    /// <summary>The two numbers of a row that its normaliser needs, and what the row adds to the gradient of its head's sink.</summary>
    private void PrepareRow(ref BackwardUnit unit, long first, int row)
    {
        var (slice, head) = (unit.Slice, unit.Head);
        switch (_a.Normalizer)
        {
            case Normalizer.Softmax:
                var at = (((slice.Batch * _a.Query.Heads) + head) * _a.Query.Length) + first + row;
                var width = (int)_a.Value.Width;
                var delta = TensorPrimitives.Dot(
                    new ReadOnlySpan<float>(_a.Output.Row(slice.Batch, head, first + row), width),
                        new ReadOnlySpan<float>(unit.OutputRows + (row * _shape.ValueWidth), width));
                delta -= _g.LogSumExp == null ? 0 : _g.LogSumExp[at];
                unit.FirstNumbers[row] = _a.LogSumExp[at];
                unit.SecondNumbers[row] = delta;
                if (_g.Sinks != null && !float.IsNegativeInfinity(_a.LogSumExp[at]))
                {
                    unit.SinkGradient -= Math.Exp((double)_a.Sinks[head] - _a.LogSumExp[at]) * delta;
                }

                break;
            case Normalizer.ReluOverPosition:
                unit.FirstNumbers[row] = 1 / _problem.KeysUpTo(slice, unit.Query + row);
                break;
        }
    }

    private void StoreQueryGradient(in BackwardUnit unit)
    {
        var (width, rank) = ((int)_a.Query.Width, (int)_problem.Rank);
        for (var row = 0; row < unit.Rows; row++)
        {
            var gradient = unit.QueryGradient + (row * _shape.KeyWidth);
            var at = unit.Slice.QueryStart + unit.Query + row;
            if (_g.Query.IsGiven)
            {
                new ReadOnlySpan<float>(gradient, width).CopyTo(new Span<float>(_g.Query.Row(unit.Slice.Batch, unit.Head, at), width));
            }

            if (_g.LowRankQuery.IsGiven)
            {
                new ReadOnlySpan<float>(gradient + width, rank).CopyTo(new Span<float>(_g.LowRankQuery.Row(unit.Slice.Batch, unit.Head,
                    at), rank));
            }
        }
    }

    /// <summary>Clears what no unit writes: rows outside every sequence.</summary>
    private void ClearOutside()
    {
        for (var batch = 0; batch < _problem.Batch; batch++)
        {
            if (_problem.IsPacked)
            {
                ClearOutside(batch, 0, _a.QueryOffsets[0], 0, _a.KeyOffsets[0]);
                ClearOutside(batch, _a.QueryOffsets[_a.Sequences], _problem.Queries, _a.KeyOffsets[_a.Sequences], _problem.Keys);
            }
            else
            {
                var slice = _problem.Sequence(batch);
                ClearOutside(batch, slice.QueryLength, _problem.Queries, slice.KeyLength, _problem.Keys);
            }
        }
    }

    private void ClearOutside(int batch, long query, long queryEnd, long key, long keyEnd)
    {
        for (var head = 0; head < _problem.Heads; head++)
        {
            BackwardPacking.ClearRows(_g.Query, batch, head, query, queryEnd);
            BackwardPacking.ClearRows(_g.LowRankQuery, batch, head, query, queryEnd);
            BackwardPacking.ClearRows(_g.LowRankKey, batch, head, key, keyEnd);
            if (_problem.IsPacked && _sums.WantsPairs)
            {
                for (var row = query; row < queryEnd; row++)
                {
                    _sums.ClearPairs(batch, head, row);
                }
            }
        }

        for (var head = 0; head < _problem.KeyHeads; head++)
        {
            BackwardPacking.ClearRows(_g.Key, batch, head, key, keyEnd);
            BackwardPacking.ClearRows(_g.Value, batch, head, key, keyEnd);
        }
    }

    /// <summary>Clears the rows of the dense bias's gradient that a lane adds to.</summary>
    private void ClearBias(int index, int firstHead, int heads, int split)
    {
        if (!_sums.WantsPairs)
        {
            return;
        }

        // Blocks lie where they lie in every sequence of full length; queries past a batch item's length are cleared with them.
        var whole = new SequenceSlice(index, index, 0, _problem.Queries, 0, _problem.Keys, 0);
        var slice = _problem.IsPacked ? _problem.Sequence(index) : whole;
        int rows, block = 0;
        for (long query = 0; query < slice.QueryLength; query += rows, block++)
        {
            rows = _shape.RowsAt(slice, query);
            for (var row = query; block % _shape.Splits == split && row < query + rows; row++)
            {
                for (var head = firstHead; head < firstHead + heads; head++)
                {
                    _sums.ClearPairs(slice.Batch, head, slice.QueryStart + row);
                }
            }
        }
    }
}
