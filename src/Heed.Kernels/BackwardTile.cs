using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>The columns of a tile that a strip of six rows computes; the others are absent. Both ends do not decrease from strip to
/// strip.</summary>
/// <param name="First">First column. A strip that computes nothing has First = End = 0 above the strips that do, or
/// <see cref="int.MaxValue"/> below them.</param>
/// <param name="End">Column after the last.</param>
internal readonly record struct StripColumns(int First, int End)
{
    /// <summary>Nothing, above the first strip that computes something.</summary>
    public static StripColumns None => default;

    /// <summary>Nothing, below the last strip that computes something.</summary>
    public static StripColumns Past => new(int.MaxValue, int.MaxValue);

    /// <summary>Whether the strip computes nothing.</summary>
    public bool IsEmpty => First == End;

    /// <summary>Finds the columns of each strip of a tile by the positions of its queries.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="slice">The sequence.</param>
    /// <param name="query">First query of the tile, within the sequence.</param>
    /// <param name="rows">Queries of the tile.</param>
    /// <param name="segment">The run of keys.</param>
    /// <param name="firstKey">Key of the first column, within the sequence.</param>
    /// <param name="width">Columns of the tile.</param>
    /// <param name="columns">Receives the columns of each strip.</param>
    /// <returns>Whether there are any.</returns>
    public static unsafe bool Find(
        CheckedProblem problem, in SequenceSlice slice, long query, int rows, in KeySegment segment, long firstKey, int width,
            StripColumns* columns)
    {
        var any = false;
        for (var row = 0; row < rows; row += MicroKernel.Rows, columns++)
        {
            var first = Math.Max(Math.Max(problem.FirstKey(slice, query + row), segment.Start) - firstKey, 0);
            var end = Math.Min(problem.EndKey(slice, query + Math.Min(row + MicroKernel.Rows, rows) - 1) - firstKey, width);
            *columns = first < end ? new((int)first, (int)end) : any ? Past : None;
            any |= first < end;
        }

        return any;
    }
}

/// <summary>
/// The steps of the backward pass on one tile of scores (rows are queries, columns are keys, <see cref="MicroKernel.ScoreStride"/> floats
/// apart): products with the tile on either side, and the way from scores to their gradient.
/// </summary>
/// <remarks>Products read the columns of a strip, and a little beyond: the step from scores to gradients leaves zeros there.</remarks>
internal static unsafe class BackwardTile
{
    /// <summary>Marks the weight of a pair that does not exist, for the careful products. It adds as zero does, and no normaliser gives
    /// it.</summary>
    private const uint Absent = 0x8000_0000;

    private const int Rows = MicroKernel.Rows;
    private const int Stride = MicroKernel.ScoreStride;

    /// <summary>tile = left * panels in the columns of each strip, rounded out to whole vectors.</summary>
    /// <param name="strips">The left operand in strips of six rows.</param>
    /// <param name="depth">Length of the sums.</param>
    /// <param name="panels">The panels of the tile's columns, one after the other.</param>
    /// <param name="columns">The columns of each strip.</param>
    /// <param name="count">Number of strips.</param>
    /// <param name="width">Columns of the tile.</param>
    /// <param name="tile">Receives the products.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Multiply<TVector, TOps>(float* strips, nint depth, float* panels, StripColumns* columns, int count, int width,
        float* tile)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var panelWidth = Packing.PanelWidth<TVector, TOps>();
        for (var start = 0; start < width; start += panelWidth)
        {
            var panel = panels + (start * depth);
            for (var strip = 0; strip < count; strip++)
            {
                var first = Math.Max(columns[strip].First - start, 0) / TOps.Lanes;
                var end = (Math.Min(columns[strip].End - start, panelWidth) + TOps.Lanes - 1) / TOps.Lanes;
                if (first < end)
                {
                    MicroKernel.Multiply<TVector, TOps, StripLayout, Zero>(
                        strips + (strip * Rows * depth), panel + (first * TOps.Lanes), panelWidth,
                        tile + (strip * Rows * Stride) + start + (first * TOps.Lanes), Stride, depth, end - first);
                }
            }
        }
    }

    /// <summary>result[row] += sum over the row's columns of tile[row, column] * right[column].</summary>
    /// <param name="tile">The tile.</param>
    /// <param name="columns">The columns of each strip.</param>
    /// <param name="count">Number of strips.</param>
    /// <param name="right">Rows of the right operand, the tile's first column first.</param>
    /// <param name="width">Floats of a row of the right operand and the result, a multiple of the lanes.</param>
    /// <param name="result">Rows of the result, six for every strip.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void AddRowProducts<TVector, TOps>(float* tile, StripColumns* columns, int count, float* right, int width, float* result)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var (vectors, panels) = (Packing.Vectors<TVector, TOps>(width), Packing.Panels<TVector, TOps>(width));
        for (int panel = 0, column = 0; panel < panels; panel++)
        {
            var panelVectors = Packing.PanelVectors(vectors, panels, panel);
            for (var strip = 0; strip < count; strip++)
            {
                var (first, end) = columns[strip];
                if (first < end)
                {
                    MicroKernel.Multiply<TVector, TOps, ScoreLayout, One>(
                        tile + (strip * Rows * Stride) + first, right + ((nint)first * width) + column, width,
                        result + (strip * Rows * width) + column, width, end - first, panelVectors);
                }
            }

            column += panelVectors * TOps.Lanes;
        }
    }

    /// <summary>result[column] += sum over the column's rows of tile[row, column] * right[row].</summary>
    /// <param name="tile">The tile.</param>
    /// <param name="columns">The columns of each strip.</param>
    /// <param name="rows">Rows that exist.</param>
    /// <param name="tileWidth">Columns of the tile.</param>
    /// <param name="right">Rows of the right operand.</param>
    /// <param name="width">Floats of a row of the right operand and the result, a multiple of the lanes.</param>
    /// <param name="result">Rows of the result, the tile's first column first; up to five rows after the last column are written back
    /// unchanged.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void AddColumnProducts<TVector, TOps>(float* tile, StripColumns* columns, int rows, int tileWidth, float* right,
        int width, float* result)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var (vectors, panels) = (Packing.Vectors<TVector, TOps>(width), Packing.Panels<TVector, TOps>(width));
        var count = (rows + Rows - 1) / Rows;
        for (int panel = 0, column = 0; panel < panels; panel++)
        {
            var panelVectors = Packing.PanelVectors(vectors, panels, panel);
            var (firstStrip, endStrip) = (0, 0);
            for (var key = 0; key < tileWidth; key += Rows)
            {
                // The strips that reach these six keys follow each other, and both ends only move on.
                while (firstStrip < count && columns[firstStrip].End <= key)
                {
                    firstStrip++;
                }

                while (endStrip < count && columns[endStrip].First < key + Rows)
                {
                    endStrip++;
                }

                var depth = Math.Min(rows, endStrip * Rows) - (firstStrip * Rows);
                if (depth > 0)
                {
                    MicroKernel.Multiply<TVector, TOps, ScoreTransposedLayout, One>(
                        tile + (firstStrip * Rows * Stride) + key, right + (firstStrip * Rows * width) + column, width,
                        result + ((nint)key * width) + column, width, depth, panelVectors);
                }
            }

            column += panelVectors * TOps.Lanes;
        }
    }

    /// <summary>As <see cref="AddRowProducts"/> where the right operand holds infinities or NaN: leaves out the pairs that do not exist
    /// instead of multiplying by zero.</summary>
    public static void AddRowProductsCarefully(float* tile, float* weights, StripColumns* columns, int rows, float* right, int width,
        float* result)
    {
        for (var row = 0; row < rows; row++)
        {
            for (var column = columns[row / Rows].First; column < columns[row / Rows].End; column++)
            {
                AddCarefully(tile, weights, (row * Stride) + column, right + ((nint)column * width), width, result + (row * width));
            }
        }
    }

    /// <summary>As <see cref="AddColumnProducts"/> where the right operand holds infinities or NaN.</summary>
    public static void AddColumnProductsCarefully(float* tile, float* weights, StripColumns* columns, int rows, float* right, int width,
        float* result)
    {
        for (var row = 0; row < rows; row++)
        {
            for (var column = columns[row / Rows].First; column < columns[row / Rows].End; column++)
            {
                AddCarefully(tile, weights, (row * Stride) + column, right + (row * width), width, result + ((nint)column * width));
            }
        }
    }

    /// <summary>Turns the scores of a strip into weights and the products of the output's gradient with the values into the gradient of
    /// the scores. A score of minus infinity is a pair that does not exist.</summary>
    /// <param name="scores">Scores of the strip; receives the weights.</param>
    /// <param name="products">Products; receives the gradients of the final scores.</param>
    /// <param name="columns">The columns of the strip; beside them, as far as the products read, zeros are left.</param>
    /// <param name="rows">Rows that exist, 1 to 6.</param>
    /// <param name="first">First number that the normaliser keeps of each row.</param>
    /// <param name="second">Second number that the normaliser keeps of each row.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Differentiate<TVector, TOps, TNormalizer>(float* scores, float* products, StripColumns columns, int rows,
        float* first, float* second)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TNormalizer : struct, INormalizerGradient
    {
        var (start, stop) = (columns.First & -TOps.Lanes, (columns.End + TOps.Lanes - 1) & -TOps.Lanes);
        var whole = columns.End & -TOps.Lanes;
        for (var row = 0; row < rows; row++)
        {
            var (x, y) = (TOps.Create(first[row]), TOps.Create(second[row]));
            var column = start;
            if (column < columns.First)
            {
                Differentiate<TVector, TOps, TNormalizer>(scores + column, products + column, x, y);
                Keep<TVector, TOps>(scores + column, products + column, columns.First - column, columns.End - column);
                column += TOps.Lanes;
            }

            for (; column < whole; column += TOps.Lanes)
            {
                Differentiate<TVector, TOps, TNormalizer>(scores + column, products + column, x, y);
            }

            if (column < columns.End)
            {
                Differentiate<TVector, TOps, TNormalizer>(scores + column, products + column, x, y);
                Keep<TVector, TOps>(scores + column, products + column, 0, columns.End - column);
            }

            // Six keys at a time are read: up to five beside the columns.
            for (column = Math.Max(start - 8, 0) & -TOps.Lanes; column < start; column += TOps.Lanes)
            {
                Clear<TVector, TOps>(scores + column, products + column);
            }

            for (column = stop; column < stop + 8; column += TOps.Lanes)
            {
                Clear<TVector, TOps>(scores + column, products + column);
            }

            scores += Stride;
            products += Stride;
        }
    }

    /// <summary>gradient *= 1 - (capped / cap)^2, the derivative of the softcap, in the columns of a strip.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void DifferentiateSoftcap<TVector, TOps>(float* capped, float* weights, float* gradients, StripColumns columns, int rows,
        float cap)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var (inverse, one) = (TOps.Create(1 / cap), TOps.Create(1));
        for (nint row = 0; row < rows; row++)
        {
            for (var column = (row * Stride) + (columns.First & -TOps.Lanes); column < (row * Stride) + columns.End; column += TOps.Lanes)
            {
                var tanh = TOps.Multiply(TOps.Load(capped + column), inverse);
                var gradient = TOps.Multiply(TOps.Load(gradients + column), TOps.Subtract(one, TOps.Multiply(tanh, tanh)));
                TOps.Store(TOps.Select(IsAbsent<TVector, TOps>(weights + column), TOps.Zero, gradient), gradients + column);
            }
        }
    }

    /// <summary>Clears the gradients of the pairs of a strip that do not exist, and those beside its columns, after a modifier has seen
    /// sixteen keys at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void ClearAbsent<TVector, TOps>(float* weights, float* gradients, StripColumns columns, int rows)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        for (nint row = 0; row < rows; row++, weights += Stride, gradients += Stride)
        {
            for (var column = columns.First & -TOps.Lanes; column < columns.End; column += TOps.Lanes)
            {
                TOps.Store(TOps.Select(IsAbsent<TVector, TOps>(weights + column), TOps.Zero, TOps.Load(gradients + column)), gradients
                    + column);
            }

            new Span<float>(gradients + columns.End, Math.Min(Stride - columns.End, 2 * 16)).Clear();
        }
    }

    /// <summary>The lanes whose weight is minus zero: alone among weights it has a reciprocal below all numbers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector IsAbsent<TVector, TOps>(float* weights)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> =>
            TOps.LessThan(TOps.Divide(TOps.Create(1), TOps.Load(weights)), TOps.Create(float.MinValue));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Differentiate<TVector, TOps, TNormalizer>(float* score, float* product, TVector first, TVector second)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TNormalizer : struct, INormalizerGradient
    {
        var s = TOps.Load(score);
        var absent = TOps.LessThan(s, TOps.Create(float.MinValue));
        var weight = TNormalizer.Weigh<TVector, TOps>(s, TOps.Load(product), first, second, out var gradient);
        TOps.Store(TOps.Select(absent, TOps.Create(-0f), weight), score);
        TOps.Store(TOps.Select(absent, TOps.Zero, gradient), product);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Keep<TVector, TOps>(float* score, float* product, int first, int end)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var inside = TOps.And(TOps.GreaterThanOrEqual(TOps.Indices, TOps.Create(first)), TOps.LessThan(TOps.Indices, TOps.Create(end)));
        TOps.Store(TOps.Select(inside, TOps.Load(score), TOps.Create(-0f)), score);
        TOps.Store(TOps.And(inside, TOps.Load(product)), product);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Clear<TVector, TOps>(float* score, float* product)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        TOps.Store(TOps.Zero, score);
        TOps.Store(TOps.Zero, product);
    }

    /// <summary>Whether a weight says that its pair does not exist.</summary>
    public static bool IsAbsent(float weight) => BitConverter.SingleToUInt32Bits(weight) == Absent;

    private static void AddCarefully(float* tile, float* weights, int at, float* right, int width, float* result)
    {
        if (!IsAbsent(weights[at]))
        {
            for (var d = 0; d < width; d++)
            {
                result[d] += tile[at] * right[d];
            }
        }
    }
}
