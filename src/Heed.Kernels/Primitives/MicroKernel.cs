using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>A number known to the compiler.</summary>
internal interface IConstant
{
    static abstract int Value { get; }
}

/// <summary>0, or "no".</summary>
internal readonly struct Zero : IConstant
{
    public static int Value => 0;
}

/// <summary>1, or "yes".</summary>
internal readonly struct One : IConstant
{
    public static int Value => 1;
}

/// <summary>2.</summary>
internal readonly struct Two : IConstant
{
    public static int Value => 2;
}

/// <summary>3.</summary>
internal readonly struct Three : IConstant
{
    public static int Value => 3;
}

/// <summary>4.</summary>
internal readonly struct Four : IConstant
{
    public static int Value => 4;
}

/// <summary>5.</summary>
internal readonly struct Five : IConstant
{
    public static int Value => 5;
}

/// <summary>6.</summary>
internal readonly struct Six : IConstant
{
    public static int Value => 6;
}

/// <summary>7.</summary>
internal readonly struct Seven : IConstant
{
    public static int Value => 7;
}

/// <summary>How the left operand of a register tile lies in memory, in floats; constants, so that its six rows are one register and six displacements.</summary>
internal interface ITileLayout
{
    /// <summary>From one row to the next.</summary>
    static abstract int RowStride { get; }

    /// <summary>From one step of the depth to the next.</summary>
    static abstract int DepthStride { get; }
}

/// <summary>Six rows interleaved, as <see cref="Packing.Strip"/> leaves them: element (row, depth) at 6 * depth + row.</summary>
internal readonly struct StripLayout : ITileLayout
{
    public static int RowStride => 1;

    public static int DepthStride => MicroKernel.Rows;
}

/// <summary>A row-major tile of scores read row by row: rows are queries, the depth runs over keys.</summary>
internal readonly struct ScoreLayout : ITileLayout
{
    public static int RowStride => MicroKernel.ScoreStride;

    public static int DepthStride => 1;
}

/// <summary>A row-major tile of scores read column by column: rows are keys, the depth runs over queries.</summary>
internal readonly struct ScoreTransposedLayout : ITileLayout
{
    public static int RowStride => 1;

    public static int DepthStride => MicroKernel.ScoreStride;
}

/// <summary>
/// The register tile under every product of the kernels: six rows times up to <see cref="IVectorOperations{TVector}.TileVectors"/> vectors of columns, accumulated over the
/// depth in registers that nothing spills: one load per vector of the right operand, one broadcast per row of the left, and a fused multiply-add for each pair.
/// </summary>
/// <remarks>Compiled in full from the first call: in a program with tiered compilation an unoptimised first tier would be a thousand times slower.</remarks>
internal static unsafe class MicroKernel
{
    /// <summary>Rows of a register tile.</summary>
    public const int Rows = 6;

    /// <summary>Columns (keys) of a tile of scores, at most.</summary>
    public const int ScoreColumns = 256;

    /// <summary>Floats from one row of a tile of scores to the next; not a power of two, so that the rows spread over the sets of the cache.</summary>
    public const int ScoreStride = ScoreColumns + 16;

    /// <summary>result[6, vectors * lanes] = or += left[6, depth] * right[depth, vectors * lanes].</summary>
    /// <typeparam name="TVector">The vector.</typeparam>
    /// <typeparam name="TOps">Its operations.</typeparam>
    /// <typeparam name="TLayout">How the left operand lies in memory.</typeparam>
    /// <typeparam name="TAccumulate">One: add to the result; zero: overwrite it.</typeparam>
    /// <param name="left">First element of the left operand.</param>
    /// <param name="right">First element of the right operand, whose rows are contiguous.</param>
    /// <param name="rightStride">Floats from one row of the right operand to the next.</param>
    /// <param name="result">First element of the result.</param>
    /// <param name="resultStride">Floats from one row of the result to the next.</param>
    /// <param name="depth">Length of the sums; zero gives zeros (or changes nothing).</param>
    /// <param name="vectors">Vectors of columns, 1 to <see cref="IVectorOperations{TVector}.TileVectors"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Multiply<TVector, TOps, TLayout, TAccumulate>(
        float* left, float* right, nint rightStride, float* result, nint resultStride, nint depth, int vectors)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TLayout : struct, ITileLayout
        where TAccumulate : struct, IConstant
    {
        if (TOps.TileVectors == 4 && vectors == 4)
        {
            Tile<TVector, TOps, TLayout, TAccumulate, Four>(left, right, rightStride, result, resultStride, depth);
        }
        else if (TOps.TileVectors == 4 && vectors == 3)
        {
            Tile<TVector, TOps, TLayout, TAccumulate, Three>(left, right, rightStride, result, resultStride, depth);
        }
        else if (vectors == 2)
        {
            Tile<TVector, TOps, TLayout, TAccumulate, Two>(left, right, rightStride, result, resultStride, depth);
        }
        else
        {
            Tile<TVector, TOps, TLayout, TAccumulate, One>(left, right, rightStride, result, resultStride, depth);
        }
    }

    /// <summary>As <see cref="Multiply"/> for the first row alone: five sixths of a tile would be thrown away where queries choose their keys one by one.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void MultiplyRow<TVector, TOps, TLayout, TAccumulate>(float* left, float* right, nint rightStride, float* result, nint depth, int vectors)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TLayout : struct, ITileLayout
        where TAccumulate : struct, IConstant
    {
        if (TOps.TileVectors == 4 && vectors == 4)
        {
            Row<TVector, TOps, TLayout, TAccumulate, Four>(left, right, rightStride, result, depth);
        }
        else if (TOps.TileVectors == 4 && vectors == 3)
        {
            Row<TVector, TOps, TLayout, TAccumulate, Three>(left, right, rightStride, result, depth);
        }
        else if (vectors == 2)
        {
            Row<TVector, TOps, TLayout, TAccumulate, Two>(left, right, rightStride, result, depth);
        }
        else
        {
            Row<TVector, TOps, TLayout, TAccumulate, One>(left, right, rightStride, result, depth);
        }
    }

    // Three steps of the depth side by side: a row by itself has too few sums to hide the latency of an addition.
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Row<TVector, TOps, TLayout, TAccumulate, TColumns>(float* left, float* right, nint rightStride, float* result, nint depth)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TLayout : struct, ITileLayout
        where TAccumulate : struct, IConstant
        where TColumns : struct, IConstant
    {
        TVector c00 = TOps.Zero, c01 = TOps.Zero, c02 = TOps.Zero, c03 = TOps.Zero;
        TVector c10 = TOps.Zero, c11 = TOps.Zero, c12 = TOps.Zero, c13 = TOps.Zero;
        TVector c20 = TOps.Zero, c21 = TOps.Zero, c22 = TOps.Zero, c23 = TOps.Zero;
        if (TAccumulate.Value != 0)
        {
            LoadRow<TVector, TOps, TColumns>(result, ref c00, ref c01, ref c02, ref c03);
        }

        TVector b0 = TOps.Zero, b1 = b0, b2 = b0, b3 = b0;
        for (; depth >= 3; depth -= 3)
        {
            LoadRow<TVector, TOps, TColumns>(right, ref b0, ref b1, ref b2, ref b3);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[0 * TLayout.DepthStride]), b0, b1, b2, b3, ref c00, ref c01, ref c02, ref c03);
            LoadRow<TVector, TOps, TColumns>(right + rightStride, ref b0, ref b1, ref b2, ref b3);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[1 * TLayout.DepthStride]), b0, b1, b2, b3, ref c10, ref c11, ref c12, ref c13);
            LoadRow<TVector, TOps, TColumns>(right + (2 * rightStride), ref b0, ref b1, ref b2, ref b3);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[2 * TLayout.DepthStride]), b0, b1, b2, b3, ref c20, ref c21, ref c22, ref c23);
            left += 3 * TLayout.DepthStride;
            right += 3 * rightStride;
        }

        for (; depth > 0; depth--)
        {
            LoadRow<TVector, TOps, TColumns>(right, ref b0, ref b1, ref b2, ref b3);
            AddRow<TVector, TOps, TColumns>(TOps.Create(*left), b0, b1, b2, b3, ref c00, ref c01, ref c02, ref c03);
            left += TLayout.DepthStride;
            right += rightStride;
        }

        StoreRow<TVector, TOps, TColumns>(
            result, TOps.Add(c00, TOps.Add(c10, c20)), TOps.Add(c01, TOps.Add(c11, c21)), TOps.Add(c02, TOps.Add(c12, c22)), TOps.Add(c03, TOps.Add(c13, c23)));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Tile<TVector, TOps, TLayout, TAccumulate, TColumns>(
        float* left, float* right, nint rightStride, float* result, nint resultStride, nint depth)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TLayout : struct, ITileLayout
        where TAccumulate : struct, IConstant
        where TColumns : struct, IConstant
    {
        TVector c00 = TOps.Zero, c01 = TOps.Zero, c02 = TOps.Zero, c03 = TOps.Zero;
        TVector c10 = TOps.Zero, c11 = TOps.Zero, c12 = TOps.Zero, c13 = TOps.Zero;
        TVector c20 = TOps.Zero, c21 = TOps.Zero, c22 = TOps.Zero, c23 = TOps.Zero;
        TVector c30 = TOps.Zero, c31 = TOps.Zero, c32 = TOps.Zero, c33 = TOps.Zero;
        TVector c40 = TOps.Zero, c41 = TOps.Zero, c42 = TOps.Zero, c43 = TOps.Zero;
        TVector c50 = TOps.Zero, c51 = TOps.Zero, c52 = TOps.Zero, c53 = TOps.Zero;
        if (TAccumulate.Value != 0)
        {
            LoadRow<TVector, TOps, TColumns>(result + (0 * resultStride), ref c00, ref c01, ref c02, ref c03);
            LoadRow<TVector, TOps, TColumns>(result + (1 * resultStride), ref c10, ref c11, ref c12, ref c13);
            LoadRow<TVector, TOps, TColumns>(result + (2 * resultStride), ref c20, ref c21, ref c22, ref c23);
            LoadRow<TVector, TOps, TColumns>(result + (3 * resultStride), ref c30, ref c31, ref c32, ref c33);
            LoadRow<TVector, TOps, TColumns>(result + (4 * resultStride), ref c40, ref c41, ref c42, ref c43);
            LoadRow<TVector, TOps, TColumns>(result + (5 * resultStride), ref c50, ref c51, ref c52, ref c53);
        }

        for (; depth > 0; depth--)
        {
            TVector b0 = TOps.Zero, b1 = b0, b2 = b0, b3 = b0;
            LoadRow<TVector, TOps, TColumns>(right, ref b0, ref b1, ref b2, ref b3);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[0 * TLayout.RowStride]), b0, b1, b2, b3, ref c00, ref c01, ref c02, ref c03);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[1 * TLayout.RowStride]), b0, b1, b2, b3, ref c10, ref c11, ref c12, ref c13);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[2 * TLayout.RowStride]), b0, b1, b2, b3, ref c20, ref c21, ref c22, ref c23);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[3 * TLayout.RowStride]), b0, b1, b2, b3, ref c30, ref c31, ref c32, ref c33);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[4 * TLayout.RowStride]), b0, b1, b2, b3, ref c40, ref c41, ref c42, ref c43);
            AddRow<TVector, TOps, TColumns>(TOps.Create(left[5 * TLayout.RowStride]), b0, b1, b2, b3, ref c50, ref c51, ref c52, ref c53);
            left += TLayout.DepthStride;
            right += rightStride;
        }

        StoreRow<TVector, TOps, TColumns>(result + (0 * resultStride), c00, c01, c02, c03);
        StoreRow<TVector, TOps, TColumns>(result + (1 * resultStride), c10, c11, c12, c13);
        StoreRow<TVector, TOps, TColumns>(result + (2 * resultStride), c20, c21, c22, c23);
        StoreRow<TVector, TOps, TColumns>(result + (3 * resultStride), c30, c31, c32, c33);
        StoreRow<TVector, TOps, TColumns>(result + (4 * resultStride), c40, c41, c42, c43);
        StoreRow<TVector, TOps, TColumns>(result + (5 * resultStride), c50, c51, c52, c53);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void LoadRow<TVector, TOps, TColumns>(float* source, ref TVector v0, ref TVector v1, ref TVector v2, ref TVector v3)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TColumns : struct, IConstant
    {
        v0 = TOps.Load(source);
        if (TColumns.Value > 1)
        {
            v1 = TOps.Load(source + TOps.Lanes);
        }

        if (TColumns.Value > 2)
        {
            v2 = TOps.Load(source + (2 * TOps.Lanes));
        }

        if (TColumns.Value > 3)
        {
            v3 = TOps.Load(source + (3 * TOps.Lanes));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddRow<TVector, TOps, TColumns>(
        TVector a, TVector b0, TVector b1, TVector b2, TVector b3, ref TVector c0, ref TVector c1, ref TVector c2, ref TVector c3)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TColumns : struct, IConstant
    {
        c0 = TOps.MultiplyAdd(a, b0, c0);
        if (TColumns.Value > 1)
        {
            c1 = TOps.MultiplyAdd(a, b1, c1);
        }

        if (TColumns.Value > 2)
        {
            c2 = TOps.MultiplyAdd(a, b2, c2);
        }

        if (TColumns.Value > 3)
        {
            c3 = TOps.MultiplyAdd(a, b3, c3);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow<TVector, TOps, TColumns>(float* destination, TVector v0, TVector v1, TVector v2, TVector v3)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TColumns : struct, IConstant
    {
        TOps.Store(v0, destination);
        if (TColumns.Value > 1)
        {
            TOps.Store(v1, destination + TOps.Lanes);
        }

        if (TColumns.Value > 2)
        {
            TOps.Store(v2, destination + (2 * TOps.Lanes));
        }

        if (TColumns.Value > 3)
        {
            TOps.Store(v3, destination + (3 * TOps.Lanes));
        }
    }
}
