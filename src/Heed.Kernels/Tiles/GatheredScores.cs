using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>A tile of gathered columns: what the scores of a column depend on beside query and key, in arrays of up to <see cref="MicroKernel.ScoreColumns"/> floats.</summary>
internal unsafe struct GatheredTile
{
    /// <summary>Floats of memory that a tile takes.</summary>
    public const long Floats = 6 * MicroKernel.ScoreColumns;

    /// <summary>Key of each column, within the sequence.</summary>
    public int* Keys;

    /// <summary>Columns that exist.</summary>
    public int Count;

    /// <summary>First row of the block that reads each column; beyond every row where there is no column.</summary>
    public float* FirstRows;

    /// <summary>Row after the last that reads each column.</summary>
    public float* EndRows;

    /// <summary>Key of each column less the aligned position of the block's first row; only with ALiBi.</summary>
    public float* Distances;

    /// <summary>The bias of each column's listed block; only with a block mask that has biases.</summary>
    public float* BlockBiases;

    /// <summary>The biases of each column, its key's and its block's; only where there is one.</summary>
    public float* KeyBiases;

    /// <summary>Lays out a tile.</summary>
    public static GatheredTile Create(float* memory)
    {
        const int columns = MicroKernel.ScoreColumns;

        // The last vector reads what lies past the columns; what it finds there is masked.
        new Span<float>(memory + (3 * columns), 2 * columns).Clear();
        return new()
        {
            Keys = (int*)memory, FirstRows = memory + columns, EndRows = memory + (2 * columns), Distances = memory + (3 * columns), KeyBiases = memory + (4 * columns),
            BlockBiases = memory + (5 * columns),
        };
    }

    /// <summary>Takes some columns of a block.</summary>
    public void Take(GatheredColumns columns, int first, int count)
    {
        columns.Keys.Slice(first, count).CopyTo(new(Keys, count));
        var firstRows = columns.FirstRows.Slice(first, count);
        var endRows = columns.EndRows.Slice(first, count);
        for (var i = 0; i < count; i++)
        {
            (FirstRows[i], EndRows[i]) = (firstRows[i], endRows[i]);
        }

        columns.Biases.Slice(first, count).CopyTo(new(BlockBiases, count));
        new Span<float>(FirstRows + count, MicroKernel.ScoreColumns - count).Fill(float.PositiveInfinity);
        new Span<float>(EndRows + count, MicroKernel.ScoreColumns - count).Clear();
        Count = count;
    }
}

/// <summary>Scores of gathered columns: what <see cref="ScoreTile{TVector, TOps, TScore, TMask}"/> does for consecutive keys.</summary>
internal readonly unsafe struct GatheredScores<TVector, TOps>(CheckedProblem problem)
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    private readonly CheckedProblem _problem = problem;
    private readonly bool _blockBiases = problem.Arguments.BlockMask?.Biases is not null;

    /// <summary>Whether a bias may take pairs away.</summary>
    public bool MayMask { get; } =
        problem.Arguments.Bias.IsGiven || problem.Arguments.KeyBias.IsGiven || problem.Arguments.BlockMask?.Biases is not null;

    /// <summary>Reads what the columns of a tile need for one head.</summary>
    public void Prepare(in GatheredTile tile, in SequenceSlice slice, int head, long query)
    {
        ref readonly var a = ref _problem.Arguments;
        if (a.KeyBias.IsGiven)
        {
            var source = (float*)a.KeyBias.Data + (slice.Batch * a.KeyBias.BatchStride) + (head * a.KeyBias.HeadStride) + (slice.KeyStart * a.KeyBias.KeyStride);
            for (var i = 0; i < tile.Count; i++)
            {
                var bias = source[tile.Keys[i] * a.KeyBias.KeyStride];
                tile.KeyBiases[i] = !_blockBiases || float.IsNegativeInfinity(bias) ? bias : bias + tile.BlockBiases[i];
            }
        }
        else if (_blockBiases)
        {
            new ReadOnlySpan<float>(tile.BlockBiases, tile.Count).CopyTo(new(tile.KeyBiases, tile.Count));
        }

        if (a.AlibiSlopes != null)
        {
            for (var i = 0; i < tile.Count; i++)
            {
                tile.Distances[i] = tile.Keys[i] - (query + slice.Shift);
            }
        }
    }

    /// <summary>Finishes the scores of some rows and consecutive columns of a tile.</summary>
    /// <param name="tile">The tile, prepared for the head.</param>
    /// <param name="slice">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="query">Query of the block's first row, within the sequence.</param>
    /// <param name="row">First row, within the block.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="first">First column, a multiple of the lanes.</param>
    /// <param name="columns">Number of columns, a multiple of the lanes; may pass the last.</param>
    /// <param name="ranged">Whether some column is not read by every row, or the last has been passed.</param>
    /// <param name="scores">The scores of the first row and column, rows <see cref="MicroKernel.ScoreStride"/> floats apart.</param>
    /// <param name="capped">Receives the scores after the softcap, same layout; null: not wanted.</param>
    public void Apply(in GatheredTile tile, in SequenceSlice slice, int head, long query, int row, int rows, int first, int columns, bool ranged, float* scores, float* capped = null)
    {
        ref readonly var a = ref _problem.Arguments;
        if (a.Softcap > 0)
        {
            Cap(a.Softcap, columns, rows, scores);
            for (nint r = 0; capped != null && r < rows; r++)
            {
                new ReadOnlySpan<float>(scores + (r * MicroKernel.ScoreStride), columns).CopyTo(new(capped + (r * MicroKernel.ScoreStride), columns));
            }
        }

        if (a.Bias.IsGiven)
        {
            AddBias(tile, slice, head, query + row, rows, first, Math.Min(columns, tile.Count - first), scores);
        }

        if (a.KeyBias.IsGiven || _blockBiases)
        {
            AddKeyBiases(tile.KeyBiases + first, columns, rows, scores);
        }

        if (a.AlibiSlopes != null)
        {
            AddDistances(a.AlibiSlopes[head], tile.Distances + first, row, columns, rows, scores);
        }

        if (ranged)
        {
            Mask(tile.FirstRows + first, tile.EndRows + first, row, columns, rows, scores);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Cap(float cap, int columns, int rows, float* scores)
    {
        var (factor, inverse) = (TOps.Create(cap), TOps.Create(1 / cap));
        for (var row = 0; row < rows; row++, scores += MicroKernel.ScoreStride)
        {
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                TOps.Store(TOps.Multiply(VectorMath.Tanh<TVector, TOps>(TOps.Multiply(TOps.Load(scores + column), inverse)), factor), scores + column);
            }
        }
    }

    private void AddBias(in GatheredTile tile, in SequenceSlice slice, int head, long query, int rows, int first, int columns, float* scores)
    {
        ref readonly var bias = ref _problem.Arguments.Bias;
        var source = (float*)bias.Data + (slice.Batch * bias.BatchStride) + (head * bias.HeadStride)
            + ((slice.QueryStart + query) * bias.QueryStride) + (slice.KeyStart * bias.KeyStride);
        for (var row = 0; row < rows; row++, source += bias.QueryStride, scores += MicroKernel.ScoreStride)
        {
            for (var column = 0; column < columns; column++)
            {
                // A bias of minus infinity takes the pair away, even from a score that is NaN.
                var addend = source[tile.Keys[first + column] * bias.KeyStride];
                scores[column] = float.IsNegativeInfinity(addend) ? addend : scores[column] + addend;
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddKeyBiases(float* biases, int columns, int rows, float* scores)
    {
        var (lowest, absent) = (TOps.Create(float.MinValue), TOps.Create(float.NegativeInfinity));
        for (var row = 0; row < rows; row++, scores += MicroKernel.ScoreStride)
        {
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                var addend = TOps.Load(biases + column);
                TOps.Store(TOps.Select(TOps.LessThan(addend, lowest), absent, TOps.Add(TOps.Load(scores + column), addend)), scores + column);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddDistances(float slope, float* distances, int firstRow, int columns, int rows, float* scores)
    {
        var factor = TOps.Create(-slope);
        for (var row = 0; row < rows; row++, scores += MicroKernel.ScoreStride)
        {
            var position = TOps.Create(firstRow + row);
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                var distance = TOps.Abs(TOps.Subtract(position, TOps.Load(distances + column)));
                TOps.Store(TOps.MultiplyAdd(distance, factor, TOps.Load(scores + column)), scores + column);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Mask(float* firstRows, float* endRows, int firstRow, int columns, int rows, float* scores)
    {
        var absent = TOps.Create(float.NegativeInfinity);
        for (var row = 0; row < rows; row++, scores += MicroKernel.ScoreStride)
        {
            var at = TOps.Create(firstRow + row);
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                var exists = TOps.And(TOps.GreaterThanOrEqual(at, TOps.Load(firstRows + column)), TOps.LessThan(at, TOps.Load(endRows + column)));
                TOps.Store(TOps.Select(exists, TOps.Load(scores + column), absent), scores + column);
            }
        }
    }
}
