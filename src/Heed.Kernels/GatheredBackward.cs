using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Heed.Kernels;

/// <summary>
/// The blocks of <see cref="BackwardLoop{TVector, TOps, TNormalizer, TScore, TMask}"/> under <see cref="KeyRuns"/> and block masks of few keys a block: keys and values are gathered tile by tile, and their gradients, summed
/// over the block's queries, are added back to where they came from. Keys that a row reads (nearly) alone go row by row.
/// </summary>
internal sealed unsafe class GatheredBackward<TVector, TOps, TNormalizer>(
    CheckedProblem problem, AttentionGradients gradients, BackwardShape shape, BackwardSums sums)
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TNormalizer : struct, INormalizerGradient
{
    private const int TileColumns = BackwardShape.TileColumns;

    private readonly AttentionArguments _a = problem.Arguments;
    private readonly GatheredScores<TVector, TOps> _scores = new(problem);

    private bool WantsQueries => gradients.Query.IsGiven || gradients.LowRankQuery.IsGiven;

    private bool WantsKeys => gradients.Key.IsGiven || gradients.LowRankKey.IsGiven;

    /// <summary>Adds what a block of queries, which has been packed, gives to every gradient.</summary>
    public void RunBlock(ref BackwardUnit unit)
    {
        var columns = GatheredColumns.OfItem;
        columns.Find(problem, unit.Slice, unit.Head, unit.Query, unit.Rows);
        var tile = GatheredTile.Create(unit.Gathered);
        for (var first = 0; first < columns.Count; first += TileColumns)
        {
            tile.Take(columns, first, Math.Min(TileColumns, columns.Count - first));
            RunTile(ref unit, tile);
        }

        for (var row = 0; columns.Spans > 0 && row < unit.Rows; row++)
        {
            RunRow(ref unit, columns, tile, row);
        }
    }

    private void RunTile(ref BackwardUnit unit, in GatheredTile tile)
    {
        var strips = (unit.Rows + MicroKernel.Rows - 1) / MicroKernel.Rows;
        for (var strip = 0; strip < strips; strip++)
        {
            unit.Columns[strip] = new(0, tile.Count);
        }

        var finite = Gather(unit, tile);
        _scores.Prepare(tile, unit.Slice, unit.Head, unit.Query);
        BackwardTile.Multiply<TVector, TOps>(unit.QueryStrips, shape.Depth, unit.KeyPanels, unit.Columns, strips, tile.Count, unit.Scores);
        BackwardTile.Multiply<TVector, TOps>(unit.OutputStrips, problem.ValueWidth, unit.ValuePanels, unit.Columns, strips, tile.Count, unit.Gradients);
        for (var row = 0; row < unit.Rows; row += MicroKernel.Rows)
        {
            var offset = row * MicroKernel.ScoreStride;
            Differentiate(ref unit, tile, row, Math.Min(unit.Rows - row, MicroKernel.Rows), unit.Scores + offset, unit.Gradients + offset, unit.Capped + offset, ranged: true);
        }

        if (gradients.Value.IsGiven)
        {
            AddColumns(unit, tile, unit.Scores, unit.OutputFinite, unit.OutputRows, shape.ValueWidth, unit.TileValueGradient, unit.ValueGradient);
        }

        if (WantsKeys)
        {
            AddColumns(unit, tile, unit.Gradients, unit.QueriesFinite, unit.QueryRows, shape.KeyWidth, unit.TileKeyGradient, unit.KeyGradient);
        }

        if (WantsQueries && finite)
        {
            BackwardTile.AddRowProducts<TVector, TOps>(unit.Gradients, unit.Columns, strips, unit.KeyRows, shape.KeyWidth, unit.QueryGradient);
        }
        else if (WantsQueries)
        {
            BackwardTile.AddRowProductsCarefully(unit.Gradients, unit.Scores, unit.Columns, unit.Rows, unit.KeyRows, shape.KeyWidth, unit.QueryGradient);
        }
    }

    /// <summary>Gathers the keys of a tile in both orders and its values transposed; false where a key is not finite.</summary>
    private bool Gather(in BackwardUnit unit, in GatheredTile tile)
    {
        var width = Packing.PanelWidth<TVector, TOps>();
        for (var column = 0; column < tile.Count; column += width)
        {
            var keys = tile.Keys + column;
            var count = Math.Min(width, tile.Count - column);
            var panel = unit.KeyPanels + ((long)column * shape.Depth);
            GatheredForward<TVector, TOps>.GatherKeys(_a.Key, unit.Slice, unit.KeyHead, keys, count, panel);
            GatheredForward<TVector, TOps>.GatherKeys(_a.Value, unit.Slice, unit.KeyHead, keys, count, unit.ValuePanels + ((long)column * problem.ValueWidth));
            if (problem.HasLowRank)
            {
                GatheredForward<TVector, TOps>.GatherKeys(_a.LowRankKey, unit.Slice, unit.Head, keys, count, panel + ((long)problem.Width * width));
            }
        }

        return GatherKeyRows(unit, tile);
    }

    private bool GatherKeyRows(in BackwardUnit unit, in GatheredTile tile)
    {
        if (!problem.HasLowRank)
        {
            return GatheredForward<TVector, TOps>.GatherRows(_a.Key, unit.Slice, unit.KeyHead, tile.Keys, tile.Count, _a.Scale, unit.KeyRows, shape.KeyWidth, shape.KeyWidth);
        }

        return GatheredForward<TVector, TOps>.GatherRows(_a.Key, unit.Slice, unit.KeyHead, tile.Keys, tile.Count, _a.Scale, unit.KeyRows, problem.Width, shape.KeyWidth)
            & GatheredForward<TVector, TOps>.GatherRows(
                _a.LowRankKey, unit.Slice, unit.Head, tile.Keys, tile.Count, 1, unit.KeyRows + problem.Width, shape.KeyWidth - problem.Width, shape.KeyWidth);
    }

    /// <summary>Turns products into weights and gradients of the scores before biases and softcap, and adds up the gradients of the biases.</summary>
    private void Differentiate(ref BackwardUnit unit, in GatheredTile tile, int row, int rows, float* scores, float* products, float* capped, bool ranged)
    {
        var columns = new StripColumns(0, tile.Count);
        var vectors = (tile.Count + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes;
        _scores.Apply(tile, unit.Slice, unit.Head, unit.Query, row, rows, 0, vectors, ranged, scores, shape.Capped ? capped : null);
        BackwardTile.Differentiate<TVector, TOps, TNormalizer>(scores, products, columns, rows, unit.FirstNumbers + row, unit.SecondNumbers + row);
        if (sums.WantsTiles)
        {
            sums.AddGathered<TVector, TOps>(ref unit, tile, products, row, rows);
        }

        if (shape.Capped)
        {
            BackwardTile.DifferentiateSoftcap<TVector, TOps>(capped, scores, products, columns, rows, _a.Softcap);
        }
    }

    /// <summary>Adds the products of a tile's columns with some rows to the rows of the columns' keys.</summary>
    private static void AddColumns(in BackwardUnit unit, in GatheredTile tile, float* factors, bool finite, float* rows, int width, float* products, float* destination)
    {
        NativeMemory.Clear(products, (nuint)(tile.Count * (long)width * sizeof(float)));
        if (finite)
        {
            BackwardTile.AddColumnProducts<TVector, TOps>(factors, unit.Columns, unit.Rows, tile.Count, rows, width, products);
        }
        else
        {
            BackwardTile.AddColumnProductsCarefully(factors, unit.Scores, unit.Columns, unit.Rows, rows, width, products);
        }

        for (var column = 0; column < tile.Count; column++, products += width)
        {
            AddScaled(1, products, destination + ((long)tile.Keys[column] * width), width);
        }
    }

    /// <summary>The keys that one row of the block reads (nearly) alone.</summary>
    private void RunRow(ref BackwardUnit unit, GatheredColumns columns, GatheredTile tile, int row)
    {
        var next = columns.FirstSpan(row);
        if (next < 0)
        {
            return;
        }

        var query = new Span<float>(unit.QueryRow, shape.KeyWidth);
        query.Clear();
        new ReadOnlySpan<float>(_a.Query.Row(unit.Slice.Batch, unit.Head, unit.Slice.QueryStart + unit.Query + row), problem.Width).CopyTo(query);
        for (var key = columns.SpanAt(next).Start; next >= 0;)
        {
            tile.Count = 0;
            while (next >= 0 && tile.Count < TileColumns)
            {
                ref readonly var span = ref columns.SpanAt(next);
                for (var end = Math.Min(span.End, key + TileColumns - tile.Count); key < end; key++)
                {
                    (tile.Keys[tile.Count], tile.BlockBiases[tile.Count]) = (key, span.Bias);
                    tile.Count++;
                }

                if (key == span.End)
                {
                    next = span.Next;
                    key = next < 0 ? 0 : columns.SpanAt(next).Start;
                }
            }

            RunRow(ref unit, tile, row);
        }
    }

    private void RunRow(ref BackwardUnit unit, in GatheredTile tile, int row)
    {
        // Rows of keys and values as float32 in whole vectors; the values stand where tiles keep them transposed.
        var values = unit.ValuePanels;
        var finite = GatherKeyRows(unit, tile);
        GatheredForward<TVector, TOps>.GatherRows(_a.Value, unit.Slice, unit.KeyHead, tile.Keys, tile.Count, 1, values, shape.ValueWidth, shape.ValueWidth);
        _scores.Prepare(tile, unit.Slice, unit.Head, unit.Query);
        var (outputRow, queryRow) = ((long)row * shape.ValueWidth, (long)row * shape.KeyWidth);
        DecodingKernel<TVector, TOps>.ScoresOfOne<Float32Element>(
            unit.QueryRow, (byte*)unit.KeyRows, shape.KeyWidth * sizeof(float), unit.Scores, tile.Count, shape.KeyWidth, default);
        DecodingKernel<TVector, TOps>.ScoresOfOne<Float32Element>(
            unit.OutputRows + outputRow, (byte*)values, shape.ValueWidth * sizeof(float), unit.Gradients, tile.Count, shape.ValueWidth, default);
        Differentiate(ref unit, tile, row, 1, unit.Scores, unit.Gradients, unit.Capped, ranged: false);
        if (WantsQueries && finite)
        {
            DecodingKernel<TVector, TOps>.AccumulateOne<Float32Element>(
                unit.Gradients, (byte*)unit.KeyRows, shape.KeyWidth * sizeof(float), unit.QueryGradient + queryRow, tile.Count, shape.KeyWidth, default);
        }

        for (var column = 0; column < tile.Count; column++)
        {
            if (BackwardTile.IsAbsent(unit.Scores[column]))
            {
                continue;
            }

            if (WantsQueries && !finite)
            {
                AddScaled(unit.Gradients[column], unit.KeyRows + ((long)column * shape.KeyWidth), unit.QueryGradient + queryRow, shape.KeyWidth);
            }

            if (gradients.Value.IsGiven)
            {
                AddScaled(unit.Scores[column], unit.OutputRows + outputRow, unit.ValueGradient + ((long)tile.Keys[column] * shape.ValueWidth), shape.ValueWidth);
            }

            if (WantsKeys)
            {
                AddScaled(unit.Gradients[column], unit.QueryRows + queryRow, unit.KeyGradient + ((long)tile.Keys[column] * shape.KeyWidth), shape.KeyWidth);
            }
        }
    }

    /// <summary>destination += factor * source.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddScaled(float factor, float* source, float* destination, int width)
    {
        var by = TOps.Create(factor);
        for (var d = 0; d < width; d += TOps.Lanes)
        {
            TOps.Store(TOps.MultiplyAdd(by, TOps.Load(source + d), TOps.Load(destination + d)), destination + d);
        }
    }
}
