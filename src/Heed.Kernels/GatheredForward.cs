using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>
/// The forward pass over <see cref="KeyRuns"/>, and over block masks of so few keys a block that gathering them is cheaper. An item is a block of queries of the heads that share key/value head and runs. Keys that several rows read are gathered once for all of
/// them, into panels of up to <see cref="MicroKernel.ScoreColumns"/> columns, and go through the register tiles of the dense pass; keys that a row reads (nearly) alone are read where
/// they lie. Both meet in the row's running softmax.
/// </summary>
/// <remarks>Every row is computed by one item, in an order that depends on the problem alone: the results are the same bits for any number of threads.</remarks>
internal sealed unsafe class GatheredForward<TVector, TOps> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    private const int BlockRows = 96;

    // Short spans are asked for so many ahead; in long ones the rows ahead are.
    private const int SpansAhead = 8;
    private const int ShortSpan = 8;

    private const int TileColumns = MicroKernel.ScoreColumns;

    private readonly CheckedProblem _problem;
    private readonly GatheredScores<TVector, TOps> _scores;
    private readonly int[] _firstItem;
    private readonly int _share;
    private readonly int _depth;
    private readonly int _valueVectors;
    private readonly int _valuePanels;

    private GatheredForward(CheckedProblem problem)
    {
        _problem = problem;
        _scores = new(problem);
        _share = SharedHeads(problem);
        _depth = problem.Width + problem.Rank;
        _valueVectors = Packing.Vectors<TVector, TOps>(problem.ValueWidth);
        _valuePanels = Packing.Panels<TVector, TOps>(problem.ValueWidth);
        _firstItem = new int[problem.Sequences + 1];
        for (var i = 0; i < problem.Sequences; i++)
        {
            _firstItem[i + 1] = checked(_firstItem[i] + (problem.Heads / _share * new QueryBlocks(problem, problem.Sequence(i), BlockRows).Count));
        }
    }

    /// <summary>Computes the output and the log-sum-exp of a checked problem with key runs or a whole block mask.</summary>
    public static void Compute(CheckedProblem problem)
    {
        if (problem.Heads > 0)
        {
            var loop = new GatheredForward<TVector, TOps>(problem);
            loop.Run(loop._firstItem[^1], problem.Threads);
        }
    }

    /// <summary>Consecutive query heads that read the same keys and the same runs.</summary>
    public static int SharedHeads(CheckedProblem problem)
    {
        var listed = problem.Heads / (problem.Arguments.KeyRuns?.Heads ?? problem.Arguments.BlockMask!.Heads);
        return problem.HasLowRank ? 1 : listed % problem.Group == 0 ? problem.Group : problem.Group % listed == 0 ? listed : 1;
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var sequence = Array.BinarySearch(_firstItem, item);
        sequence = sequence < 0 ? ~sequence - 1 : sequence;
        while (_firstItem[sequence + 1] == item)
        {
            sequence++;
        }

        var slice = _problem.Sequence(sequence);
        var blocks = new QueryBlocks(_problem, slice, BlockRows);
        var (group, index) = Math.DivRem(item - _firstItem[sequence], blocks.Count);

        // Causal blocks grow with the queries: the largest first leaves the smallest to even out the threads.
        var (query, rows) = blocks[blocks.Count - 1 - index];
        if (rows > 0)
        {
            ComputeBlock(slice, group * _share, query, rows);
        }
    }

    private void ComputeBlock(in SequenceSlice slice, int head, long query, int rows)
    {
        var columns = GatheredColumns.OfItem;
        columns.Find(_problem, slice, head, query, rows);
        var block = TakeBlock(slice, head, query, rows, columns);
        if (columns.Count > 0)
        {
            ComputeColumns(block, columns);
        }

        if (columns.Spans > 0)
        {
            ComputeSpans(block, columns);
        }

        for (var h = 0; h < _share; h++)
        {
            WriteRows(block, h);
        }
    }

    private Block TakeBlock(in SequenceSlice slice, int head, long query, int rows, GatheredColumns columns)
    {
        var padded = (long)(rows + MicroKernel.Rows - 1) / MicroKernel.Rows * MicroKernel.Rows;
        var outputStride = _valueVectors * TOps.Lanes;
        var all = padded * _share;
        var (output, sums, largest) = (Workspace.Lines(all * outputStride), Workspace.Lines(all * TOps.Lanes), Workspace.Lines(all));
        const long tile = MicroKernel.Rows * MicroKernel.ScoreStride;
        var strips = columns.Count > 0 ? Workspace.Lines(all * _depth) : 0;
        var keyPanels = columns.Count > 0 ? (long)TileColumns * _depth : 0;
        var values = columns.Count > 0 ? (long)TileColumns * outputStride : 0;
        var rowWidth = columns.Spans > 0 ? Workspace.Lines(_problem.Width) : 0;
        var keyCopy = columns.Spans > 0 && _problem.Width % TOps.Lanes != 0 ? TileColumns * rowWidth : 0;
        var valueCopy = columns.Spans > 0 && _problem.ValueWidth % TOps.Lanes != 0 ? (long)TileColumns * outputStride : 0;
        var memory = Workspace.OfItem.Take((2 * tile) + GatheredTile.Floats + output + sums + largest + strips + keyPanels + values + rowWidth + keyCopy + valueCopy);
        var block = new Block { Slice = slice, Head = head, Query = query, Rows = rows, Padded = (int)padded, OutputStride = outputStride, RowWidth = (int)rowWidth };
        block.Scores = memory;
        block.Unweighed = block.Scores + tile;
        block.Tile = GatheredTile.Create(block.Unweighed + tile);
        block.Output = block.Unweighed + tile + GatheredTile.Floats;
        block.Sums = block.Output + output;
        block.Largest = block.Sums + sums;
        block.Strips = block.Largest + largest;
        block.KeyPanels = block.Strips + strips;
        block.Values = block.KeyPanels + keyPanels;
        block.QueryRow = block.Values + values;
        block.KeyCopy = block.QueryRow + rowWidth;
        block.ValueCopy = block.KeyCopy + keyCopy;
        new Span<float>(block.Output, checked((int)(output + sums))).Clear();
        new Span<float>(block.Largest, (int)all).Fill(float.NegativeInfinity);
        return block;
    }

    private void ComputeColumns(in Block block, GatheredColumns columns)
    {
        for (var h = 0; h < _share; h++)
        {
            PackQueries(block, h);
        }

        var tile = block;
        for (var first = 0; first < columns.Count; first += TileColumns)
        {
            Gather(ref tile, columns, first, Math.Min(TileColumns, columns.Count - first));
            for (var h = 0; h < _share; h++)
            {
                _scores.Prepare(tile.Tile, block.Slice, block.Head + h, block.Query);
                for (var row = 0; row < block.Rows; row += MicroKernel.Rows)
                {
                    ComputeStrip(tile, h, row, Math.Min(MicroKernel.Rows, block.Rows - row));
                }
            }
        }
    }

    private void PackQueries(in Block block, int h)
    {
        ref readonly var a = ref _problem.Arguments;
        for (var row = 0; row < block.Rows; row += MicroKernel.Rows)
        {
            var strip = block.Strips + ((((long)h * block.Padded) + row) * _depth);
            var (rows, at) = (Math.Min(MicroKernel.Rows, block.Rows - row), block.Slice.QueryStart + block.Query + row);
            Packing.Strip(a.Query.Row(block.Slice.Batch, block.Head + h, at), (nint)a.Query.RowStride, rows, _problem.Width, a.Scale, strip);
            if (_problem.HasLowRank)
            {
                var factors = a.LowRankQuery.Row(block.Slice.Batch, block.Head + h, at);
                Packing.Strip(factors, (nint)a.LowRankQuery.RowStride, rows, _problem.Rank, 1, strip + ((long)MicroKernel.Rows * _problem.Width));
            }
        }
    }

    /// <summary>Gathers the keys and values of some columns, and which rows read each.</summary>
    private void Gather(ref Block block, GatheredColumns columns, int first, int count)
    {
        ref readonly var a = ref _problem.Arguments;
        var width = Packing.PanelWidth<TVector, TOps>();
        var tile = block.Tile;
        block.Tile.Take(columns, first, count);
        var head = _problem.KeyHeadOf(block.Head);
        for (var column = 0; column < count; column += width)
        {
            var keys = Math.Min(width, count - column);
            var panel = block.KeyPanels + ((long)column * _depth);
            GatherKeys(a.Key, block.Slice, head, tile.Keys + column, keys, panel);
            if (_problem.HasLowRank)
            {
                GatherKeys(a.LowRankKey, block.Slice, block.Head, tile.Keys + column, keys, panel + ((long)_problem.Width * width));
            }
        }

        block.Finite = GatherRows(a.Value, block.Slice, head, tile.Keys, count, 1, block.Values, block.OutputStride, block.OutputStride);
    }

    /// <summary>Transposes gathered keys into a panel.</summary>
    public static void GatherKeys(in TensorView source, in SequenceSlice slice, long head, int* keys, int count, float* panel)
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        var offset = (slice.Batch * source.BatchStride) + (head * source.HeadStride) + (slice.KeyStart * source.RowStride);
        switch (source.Type)
        {
            case ElementType.Float16:
                Packing.GatherKeys<Float16Element>((byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, keys, count, (nint)source.Width, panel, width);
                break;
            case ElementType.BFloat16:
                Packing.GatherKeys<BFloat16Element>((byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, keys, count, (nint)source.Width, panel, width);
                break;
            default:
                Packing.GatherKeys<Float32Element>((byte*)source.Data + (offset * 4), (nint)source.RowStride * 4, keys, count, (nint)source.Width, panel, width);
                break;
        }
    }

    /// <summary>Copies gathered rows; false where something in them is not finite.</summary>
    public static bool GatherRows(
        in TensorView source, in SequenceSlice slice, long head, int* rows, int count, float scale, float* destination, int width, int stride)
    {
        var offset = (slice.Batch * source.BatchStride) + (head * source.HeadStride) + (slice.KeyStart * source.RowStride);
        return source.Type switch
        {
            ElementType.Float16 => Packing.GatherRows<TVector, TOps, Float16Element>(
                (byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, rows, count, scale, (int)source.Width, destination, width, stride),
            ElementType.BFloat16 => Packing.GatherRows<TVector, TOps, BFloat16Element>(
                (byte*)source.Data + (offset * 2), (nint)source.RowStride * 2, rows, count, scale, (int)source.Width, destination, width, stride),
            _ => Packing.GatherRows<TVector, TOps, Float32Element>(
                (byte*)source.Data + (offset * 4), (nint)source.RowStride * 4, rows, count, scale, (int)source.Width, destination, width, stride),
        };
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ComputeStrip(in Block block, int h, int row, int rows)
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        var strip = block.Strips + ((((long)h * block.Padded) + row) * _depth);

        // Panels that no row of the strip reads are left out; those that stay lie side by side in the tile of scores.
        var places = stackalloc int[TileColumns / 4];
        var ranges = stackalloc bool[TileColumns / 4];
        var (columns, panels) = (0, 0);
        for (var first = 0; first < block.Tile.Count; first += width)
        {
            var count = Math.Min(width, block.Tile.Count - first);
            if (!IsRead(block.Tile, first, count, row, rows, out var ranged))
            {
                continue;
            }

            var vectors = (count + TOps.Lanes - 1) / TOps.Lanes;
            var panel = block.KeyPanels + ((long)first * _depth);
            if (rows > 1)
            {
                MicroKernel.Multiply<TVector, TOps, StripLayout, Zero>(strip, panel, width, block.Scores + columns, MicroKernel.ScoreStride, _depth, vectors);
            }
            else
            {
                MicroKernel.MultiplyRow<TVector, TOps, StripLayout, Zero>(strip, panel, width, block.Scores + columns, _depth, vectors);
            }

            _scores.Apply(block.Tile, block.Slice, block.Head + h, block.Query, row, rows, first, vectors * TOps.Lanes, ranged, block.Scores + columns);
            (places[panels], ranges[panels++]) = (first, ranged || _scores.MayMask);
            columns += vectors * TOps.Lanes;
        }

        if (panels == 0)
        {
            return;
        }

        if (!block.Finite)
        {
            new ReadOnlySpan<float>(block.Scores, MicroKernel.Rows * MicroKernel.ScoreStride).CopyTo(new(block.Unweighed, MicroKernel.Rows * MicroKernel.ScoreStride));
        }

        var at = ((long)h * block.Padded) + row;
        Weigh(block, at, columns, rows);
        columns = 0;
        for (var i = 0; i < panels; i++)
        {
            // Neighbouring panels are one product.
            var (first, careful, joined) = (places[i], !block.Finite && ranges[i], i);
            while (joined + 1 < panels && places[joined + 1] == places[joined] + width && (!block.Finite && ranges[joined + 1]) == careful)
            {
                joined++;
            }

            var count = Math.Min(places[joined] + width, block.Tile.Count) - first;
            if (careful)
            {
                AddValuesOfPairs(block, at, rows, first, count, columns);
            }
            else
            {
                MultiplyValues(block, at, rows, first, count, columns);
            }

            columns += (count + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes;
            i = joined;
        }
    }

    /// <summary>Whether some row of a strip reads some of the columns, and whether some row does not read some.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool IsRead(in GatheredTile tile, int first, int count, int row, int rows, out bool ranged)
    {
        var (low, high) = (TOps.Load(tile.FirstRows + first), TOps.Load(tile.EndRows + first));
        var (latest, soonest) = (low, high);
        for (var column = TOps.Lanes; column < count; column += TOps.Lanes)
        {
            var (from, to) = (TOps.Load(tile.FirstRows + first + column), TOps.Load(tile.EndRows + first + column));
            (low, latest) = (TOps.Min(low, from), TOps.Max(latest, from));
            (high, soonest) = (TOps.Max(high, to), TOps.Min(soonest, to));
        }

        ranged = TOps.GreaterThanAny(latest, TOps.Create(row)) || TOps.GreaterThanAny(TOps.Create(row + rows), soonest);
        return TOps.GreaterThanAny(TOps.Create(row + rows), low) && TOps.GreaterThanAny(high, TOps.Create(row));
    }

    private void Weigh(in Block block, long at, int columns, int rows)
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
                    block.Scores, columns, rows, block.Largest + at, block.Sums + (at * TOps.Lanes), TOps.Lanes, block.Output + (at * block.OutputStride), block.OutputStride);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void MultiplyValues(in Block block, long at, int rows, int first, int count, int column)
    {
        var output = block.Output + (at * block.OutputStride);
        var values = block.Values + ((long)first * block.OutputStride);
        for (int panel = 0, vector = 0; panel < _valuePanels; panel++)
        {
            var vectors = Packing.PanelVectors(_valueVectors, _valuePanels, panel);
            var offset = vector * TOps.Lanes;
            if (rows > 1)
            {
                MicroKernel.Multiply<TVector, TOps, ScoreLayout, One>(
                    block.Scores + column, values + offset, block.OutputStride, output + offset, block.OutputStride, count, vectors);
            }
            else
            {
                MicroKernel.MultiplyRow<TVector, TOps, ScoreLayout, One>(block.Scores + column, values + offset, block.OutputStride, output + offset, count, vectors);
            }

            vector += vectors;
        }
    }

    /// <summary>As <see cref="MultiplyValues"/> where values are not finite: only pairs that exist are read, since zero times NaN is not zero.</summary>
    private static void AddValuesOfPairs(in Block block, long at, int rows, int first, int count, int column)
    {
        for (var r = 0; r < rows; r++)
        {
            var offset = (r * MicroKernel.ScoreStride) + column;
            AddValuesOfPairs(block.Scores + offset, block.Unweighed + offset, count, block.Values + ((long)first * block.OutputStride), block.OutputStride,
                block.Output + ((at + r) * block.OutputStride));
        }
    }

    private static void AddValuesOfPairs(float* weights, float* scores, int count, float* values, int width, float* output)
    {
        for (var j = 0; j < count; j++, values += width)
        {
            if (!float.IsNegativeInfinity(scores[j]))
            {
                DecodingKernel<TVector, TOps>.AccumulateOne<Float32Element>(weights + j, (byte*)values, 0, output, 1, width, default);
            }
        }
    }

    private void ComputeSpans(in Block block, GatheredColumns columns)
    {
        switch (_problem.Arguments.Key.Type)
        {
            case ElementType.Float32:
                ComputeSpans<Float32Element>(block, columns);
                break;
            case ElementType.Float16:
                ComputeSpans<Float16Element>(block, columns);
                break;
            default:
                ComputeSpans<BFloat16Element>(block, columns);
                break;
        }
    }

    private void ComputeSpans<TKey>(in Block block, GatheredColumns columns)
        where TKey : struct, IElement
    {
        switch (_problem.Arguments.Value.Type)
        {
            case ElementType.Float32:
                ComputeSpans<TKey, Float32Element>(block, columns);
                break;
            case ElementType.Float16:
                ComputeSpans<TKey, Float16Element>(block, columns);
                break;
            default:
                ComputeSpans<TKey, BFloat16Element>(block, columns);
                break;
        }
    }

    private void ComputeSpans<TKey, TValue>(in Block block, GatheredColumns columns)
        where TKey : struct, IElement
        where TValue : struct, IElement
    {
        ref readonly var a = ref _problem.Arguments;
        var head = _problem.KeyHeadOf(block.Head);
        var slice = block.Slice;
        var keys = (byte*)a.Key.Data + (((slice.Batch * a.Key.BatchStride) + (head * a.Key.HeadStride) + (slice.KeyStart * a.Key.RowStride)) * TKey.Size);
        var values = (byte*)a.Value.Data + (((slice.Batch * a.Value.BatchStride) + (head * a.Value.HeadStride) + (slice.KeyStart * a.Value.RowStride)) * TValue.Size);
        var spans = stackalloc KeySpan[TileColumns];
        for (var row = 0; row < block.Rows; row++)
        {
            var next = columns.FirstSpan(row);
            var start = next < 0 ? 0 : columns.SpanAt(next).Start;
            while (next >= 0)
            {
                // Whole spans and parts of long ones, up to a tile of columns.
                var (count, filled) = (0, 0);
                while (next >= 0 && filled < TileColumns)
                {
                    ref readonly var span = ref columns.SpanAt(next);
                    var taken = Math.Min(span.End - start, TileColumns - filled);
                    spans[count++] = new(start, taken, span.Bias);
                    filled += taken;
                    start += taken;
                    if (start == span.End)
                    {
                        next = span.Next;
                        start = next < 0 ? 0 : columns.SpanAt(next).Start;
                    }
                }

                for (var h = 0; h < _share; h++)
                {
                    ComputeRow<TKey, TValue>(block, h, row, spans, count, filled, keys, values);
                }
            }
        }
    }

    /// <summary>One row of one head over some spans, read where they lie.</summary>
    private void ComputeRow<TKey, TValue>(in Block block, int h, int row, KeySpan* spans, int count, int filled, byte* keys, byte* values)
        where TKey : struct, IElement
        where TValue : struct, IElement
    {
        ref readonly var a = ref _problem.Arguments;
        var (width, valueWidth) = (_problem.Width, _problem.ValueWidth);
        var (keyStride, valueStride) = ((nint)(a.Key.RowStride * TKey.Size), (nint)(a.Value.RowStride * TValue.Size));
        var (copiesKeys, copiesValues) = (width % TOps.Lanes != 0, valueWidth % TOps.Lanes != 0);
        var query = a.Query.Row(block.Slice.Batch, block.Head + h, block.Slice.QueryStart + block.Query + row);
        for (var d = 0; d < block.RowWidth; d++)
        {
            block.QueryRow[d] = d < width ? query[d] * a.Scale : 0;
        }

        var column = 0;
        for (var i = 0; i < Math.Min(count, SpansAhead); i++)
        {
            Request(keys + (spans[i].Start * keyStride), keyStride, spans[i].Count, width * TKey.Size);
        }

        for (var i = 0; i < count; i++)
        {
            var span = spans[i];
            if (i + SpansAhead < count)
            {
                Request(keys + (spans[i + SpansAhead].Start * keyStride), keyStride, spans[i + SpansAhead].Count, width * TKey.Size);
            }

            Request(values + (span.Start * valueStride), valueStride, span.Count, valueWidth * TValue.Size);
            if (copiesKeys)
            {
                DecodingKernel<TVector, TOps>.Copy<TKey>(keys + (span.Start * keyStride), keyStride, block.KeyCopy, block.RowWidth, width, span.Count);
                DecodingKernel<TVector, TOps>.ScoresOfOne<Float32Element>(
                    block.QueryRow, (byte*)block.KeyCopy, block.RowWidth * sizeof(float), block.Scores + column, span.Count, block.RowWidth, default);
            }
            else
            {
                DecodingKernel<TVector, TOps>.ScoresOfOne<TKey>(block.QueryRow, keys + (span.Start * keyStride), keyStride, block.Scores + column, span.Count, width, Ahead(keys, keyStride, span, width * TKey.Size));
            }

            column += span.Count;
        }

        var masks = FinishRow(block, h, row, spans, count, filled);
        var at = ((long)h * block.Padded) + row;
        Weigh(block, at, (filled + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes, 1);
        var output = block.Output + (at * block.OutputStride);
        column = 0;
        for (var i = 0; i < count; i++)
        {
            var source = values + (spans[i].Start * valueStride);
            var stride = valueStride;
            var weights = block.Scores + column;
            if (copiesValues)
            {
                DecodingKernel<TVector, TOps>.Copy<TValue>(source, valueStride, block.ValueCopy, block.OutputStride, valueWidth, spans[i].Count);
                source = (byte*)block.ValueCopy;
                stride = block.OutputStride * sizeof(float);
            }

            // Pairs that a bias took away are left out one by one.
            var step = masks ? 1 : spans[i].Count;
            for (var j = 0; j < spans[i].Count; j += step)
            {
                if (masks && float.IsNegativeInfinity(block.Unweighed[column + j]))
                {
                    continue;
                }

                if (copiesValues)
                {
                    DecodingKernel<TVector, TOps>.AccumulateOne<Float32Element>(weights + j, source + (j * stride), stride, output, step, block.OutputStride, default);
                }
                else
                {
                    DecodingKernel<TVector, TOps>.AccumulateOne<TValue>(weights + j, source + (j * stride), stride, output, step, valueWidth, Ahead(values, valueStride, spans[i], valueWidth * TValue.Size));
                }
            }

            column += spans[i].Count;
        }
    }

    /// <summary>Finishes the scores of a row over some spans. True where a bias took pairs away: their scores are then kept in the block.</summary>
    private bool FinishRow(in Block block, int h, int row, KeySpan* spans, int count, int filled)
    {
        ref readonly var a = ref _problem.Arguments;
        var padded = (filled + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes;
        if (_scores.MayMask || a.AlibiSlopes != null || a.Softcap > 0)
        {
            var tile = block.Tile with { Count = filled };
            for (int i = 0, column = 0; i < count; i++)
            {
                for (var key = spans[i].Start; key < spans[i].Start + spans[i].Count; key++)
                {
                    (tile.Keys[column], tile.BlockBiases[column]) = (key, spans[i].Bias);
                    column++;
                }
            }

            _scores.Prepare(tile, block.Slice, block.Head + h, block.Query);
            _scores.Apply(tile, block.Slice, block.Head + h, block.Query, row, 1, 0, padded, ranged: false, block.Scores);
        }

        var masks = _scores.MayMask && new ReadOnlySpan<float>(block.Scores, filled).Contains(float.NegativeInfinity);
        new Span<float>(block.Scores + filled, padded - filled).Fill(float.NegativeInfinity);
        if (masks)
        {
            new ReadOnlySpan<float>(block.Scores, filled).CopyTo(new(block.Unweighed, filled));
        }

        return masks;
    }

    /// <summary>The rows to ask for while a span is read: those ahead in a long one.</summary>
    private static DecodingKernel<TVector, TOps>.Upcoming Ahead(byte* rows, nint stride, KeySpan span, nint bytes) =>
        span.Count <= ShortSpan ? default : new((nint)rows + ((span.Start + DecodingKernel<TVector, TOps>.RowsAhead(bytes)) * stride), stride, bytes);

    private static void Request(byte* row, nint stride, int rows, nint bytes)
    {
        for (rows = Math.Min(rows, ShortSpan); rows > 0; rows--, row += stride)
        {
            for (nint line = 0; line < bytes; line += 64)
            {
                TOps.Prefetch((float*)(row + line));
            }
        }
    }

    private void WriteRows(in Block block, int h)
    {
        ref readonly var a = ref _problem.Arguments;
        for (var row = 0; row < block.Rows; row++)
        {
            var (at, query) = (((long)h * block.Padded) + row, block.Slice.QueryStart + block.Query + row);
            var factor = a.Normalizer switch
            {
                Normalizer.Softmax => 1 / Total(block, at, block.Head + h, query),
                Normalizer.ReluOverPosition => 1 / _problem.KeysUpTo(block.Slice, block.Query + row),
                _ => 1,
            };
            ForwardRows<TVector, TOps>.Scale(block.Output + (at * block.OutputStride), factor, a.Output.Row(block.Slice.Batch, block.Head + h, query), _problem.ValueWidth);
        }
    }

    /// <summary>Finishes the sum of a row's weights, with the sink, and writes its log-sum-exp. Infinity for a row without pairs, so that its zeros stay zeros.</summary>
    private float Total(in Block block, long at, int head, long query)
    {
        ref readonly var a = ref _problem.Arguments;
        var sums = block.Sums + (at * TOps.Lanes);
        var largest = block.Largest + at;
        var total = TOps.Sum(TOps.Load(sums));
        if (total == 0)
        {
            total = float.PositiveInfinity;
        }
        else if (a.Sinks != null)
        {
            if (a.Sinks[head] > *largest)
            {
                OnlineSoftmax<TVector, TOps>.Raise(a.Sinks[head], largest, sums, TOps.Lanes, block.Output + (at * block.OutputStride), block.OutputStride);
                total = TOps.Sum(TOps.Load(sums));
            }

            total += MathF.Exp(a.Sinks[head] - *largest);
        }

        if (a.LogSumExp != null)
        {
            a.LogSumExp[(((block.Slice.Batch * _problem.Heads) + head) * _problem.Queries) + query] =
                float.IsPositiveInfinity(total) ? float.NegativeInfinity : *largest + MathF.Log(total);
        }

        return total;
    }

    private readonly record struct KeySpan(int Start, int Count, float Bias);

    /// <summary>A block of queries of the heads that share its keys; its memory is the item's.</summary>
    private struct Block
    {
        public SequenceSlice Slice;
        public int Head;
        public long Query;
        public int Rows;
        public int Padded;
        public int OutputStride;
        public int RowWidth;
        public bool Finite;
        public GatheredTile Tile;
        public float* Scores;
        public float* Unweighed;
        public float* Output;
        public float* Sums;
        public float* Largest;
        public float* Strips;
        public float* KeyPanels;
        public float* Values;
        public float* QueryRow;
        public float* KeyCopy;
        public float* ValueCopy;
    }
}
