using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace Heed.Kernels;

/// <summary>Copies operands into the order in which <see cref="MicroKernel"/> reads them.</summary>
internal static unsafe class Packing
{
    /// <summary>Rows and columns of a <see cref="Tile"/>.</summary>
    public const int TileSide = 16;

    private const int SixteenKeys = 16;

    /// <summary>Columns of a panel: of keys, and at most of values.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int PanelWidth<TVector, TOps>()
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => TOps.TileVectors * TOps.Lanes;

    /// <summary>Number of panels that so many columns are spread over, as evenly as whole vectors allow.</summary>
    public static int Panels<TVector, TOps>(long columns)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => (int)((Vectors<TVector, TOps>(columns) + TOps.TileVectors - 1) / TOps.TileVectors);

    /// <summary>Number of vectors that hold so many columns.</summary>
    public static int Vectors<TVector, TOps>(long columns)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => (int)((columns + TOps.Lanes - 1) / TOps.Lanes);

    /// <summary>Vectors of one of the panels: the first ones take what does not divide.</summary>
    public static int PanelVectors(int vectors, int panels, int panel) => (vectors / panels) + (panel < vectors % panels ? 1 : 0);

    /// <summary>Interleaves up to six rows: strip[6 * depth + row] = scale * source[row, depth]; missing rows are zero.</summary>
    /// <param name="source">First element of the first row.</param>
    /// <param name="rowStride">Floats from one row to the next.</param>
    /// <param name="rows">Rows that exist, 0 to 6.</param>
    /// <param name="depth">Elements of a row.</param>
    /// <param name="scale">Factor of every element.</param>
    /// <param name="strip">Receives 6 * depth floats.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Strip(float* source, nint rowStride, int rows, nint depth, float scale, float* strip)
    {
        if (rows <= 0)
        {
            new Span<float>(strip, checked((int)(MicroKernel.Rows * depth))).Clear();
            return;
        }

        // A missing row reads the first one and is multiplied away: by bits, since zero times infinity is not zero.
        var factor = Vector128.Create(scale);
        var (r1, r2, r3) = (rows > 1 ? rowStride : 0, rows > 2 ? 2 * rowStride : 0, rows > 3 ? 3 * rowStride : 0);
        var (r4, r5) = (rows > 4 ? 4 * rowStride : 0, rows > 5 ? 5 * rowStride : 0);
        var (k1, k2, k3) = (Keep(rows > 1), Keep(rows > 2), Keep(rows > 3));
        var (k4, k5) = (Keep(rows > 4), Keep(rows > 5));
        nint d = 0;
        for (; d + 4 <= depth; d += 4)
        {
            var v0 = Vector128.Load(source + d) * factor;
            var v1 = (Vector128.Load(source + d + r1) * factor) & k1;
            var v2 = (Vector128.Load(source + d + r2) * factor) & k2;
            var v3 = (Vector128.Load(source + d + r3) * factor) & k3;
            var v4 = (Vector128.Load(source + d + r4) * factor) & k4;
            var v5 = (Vector128.Load(source + d + r5) * factor) & k5;
            Transpose(ref v0, ref v1, ref v2, ref v3);
            var low = InterleaveLow(v4, v5);
            var high = InterleaveHigh(v4, v5);
            v0.Store(strip);
            low.GetLower().Store(strip + 4);
            v1.Store(strip + 6);
            low.GetUpper().Store(strip + 10);
            v2.Store(strip + 12);
            high.GetLower().Store(strip + 16);
            v3.Store(strip + 18);
            high.GetUpper().Store(strip + 22);
            strip += 4 * MicroKernel.Rows;
        }

        for (; d < depth; d++)
        {
            for (var row = 0; row < MicroKernel.Rows; row++)
            {
                *strip++ = row < rows ? source[d + (row * rowStride)] * scale : 0;
            }
        }
    }

    /// <summary>Transposes keys into a panel: panel[depth * width + key] = source[key, depth]; missing keys are zero.</summary>
    /// <param name="source">First element of the first key.</param>
    /// <param name="rowStride">Bytes from one key to the next.</param>
    /// <param name="keys">Keys that exist, 0 to <paramref name="width"/>.</param>
    /// <param name="depth">Elements of a key.</param>
    /// <param name="panel">Receives depth * width floats.</param>
    /// <param name="width">Keys of the panel, a multiple of four.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void KeyPanel<TElement>(byte* source, nint rowStride, int keys, nint depth, float* panel, int width)
        where TElement : struct, IElement
    {
        Columns<TElement>(source, rowStride, keys, depth, panel, width);
        for (var key = keys; key < width; key++)
        {
            for (nint d = 0; d < depth; d++)
            {
                panel[(d * width) + key] = 0;
            }
        }
    }

    /// <summary>As <see cref="KeyPanel"/>, but what stands behind the last key is left as it is.</summary>
    /// <param name="source">First element of the first key.</param>
    /// <param name="rowStride">Bytes from one key to the next.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="depth">Elements of a key.</param>
    /// <param name="columns">Receives element (key, depth) at depth * stride + key.</param>
    /// <param name="stride">Floats from one element of a key to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Columns<TElement>(byte* source, nint rowStride, int keys, nint depth, float* columns, nint stride)
        where TElement : struct, IElement
    {
        var key = 0;
        var rows = stackalloc byte*[SixteenKeys];
        for (; Avx512F.IsSupported && key + SixteenKeys <= keys; key += SixteenKeys)
        {
            for (var i = 0; i < SixteenKeys; i++)
            {
                rows[i] = source + ((key + i) * rowStride);
            }

            TransposeSixteen<TElement>(rows, depth, columns + key, stride);
        }

        for (; key + 4 <= keys; key += 4)
        {
            var row = source + (key * rowStride);
            var column = columns + key;
            nint d = 0;
            for (; d + 4 <= depth; d += 4)
            {
                var v0 = TElement.Load<Vector128<float>, Vector128Operations>(row);
                var v1 = TElement.Load<Vector128<float>, Vector128Operations>(row + rowStride);
                var v2 = TElement.Load<Vector128<float>, Vector128Operations>(row + (2 * rowStride));
                var v3 = TElement.Load<Vector128<float>, Vector128Operations>(row + (3 * rowStride));
                Transpose(ref v0, ref v1, ref v2, ref v3);
                v0.Store(column);
                v1.Store(column + stride);
                v2.Store(column + (2 * stride));
                v3.Store(column + (3 * stride));
                row += 4 * TElement.Size;
                column += 4 * stride;
            }

            for (; d < depth; d++)
            {
                column[0] = TElement.Read(row);
                column[1] = TElement.Read(row + rowStride);
                column[2] = TElement.Read(row + (2 * rowStride));
                column[3] = TElement.Read(row + (3 * rowStride));
                row += TElement.Size;
                column += stride;
            }
        }

        for (; key < keys; key++)
        {
            var row = source + (key * rowStride);
            for (nint d = 0; d < depth; d++)
            {
                columns[(d * stride) + key] = TElement.Read(row + (d * TElement.Size));
            }
        }
    }

    /// <summary>Whether <see cref="Tile"/> can be used.</summary>
    public static bool HasTile => Avx512F.IsSupported;

    /// <summary>Transposes a square of sixteen by sixteen: target[c * targetStride + r] = source[r * sourceStride + c].</summary>
    /// <remarks>Every line of the source is read once and whole. Rows that lie a power of two apart share one set of the cache, which has fewer ways than there are rows: read in parts, each would be fetched again.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Tile(float* source, nint sourceStride, float* target, nint targetStride)
    {
        var r0 = Vector512.Load(source);
        var r1 = Vector512.Load(source + sourceStride);
        var r2 = Vector512.Load(source + (2 * sourceStride));
        var r3 = Vector512.Load(source + (3 * sourceStride));
        var r4 = Vector512.Load(source + (4 * sourceStride));
        var r5 = Vector512.Load(source + (5 * sourceStride));
        var r6 = Vector512.Load(source + (6 * sourceStride));
        var r7 = Vector512.Load(source + (7 * sourceStride));
        var r8 = Vector512.Load(source + (8 * sourceStride));
        var r9 = Vector512.Load(source + (9 * sourceStride));
        var r10 = Vector512.Load(source + (10 * sourceStride));
        var r11 = Vector512.Load(source + (11 * sourceStride));
        var r12 = Vector512.Load(source + (12 * sourceStride));
        var r13 = Vector512.Load(source + (13 * sourceStride));
        var r14 = Vector512.Load(source + (14 * sourceStride));
        var r15 = Vector512.Load(source + (15 * sourceStride));

        // Pairs, then fours, within quarters of a vector.
        var p0 = Avx512F.UnpackLow(r0, r1).AsDouble();
        var p1 = Avx512F.UnpackHigh(r0, r1).AsDouble();
        var p2 = Avx512F.UnpackLow(r2, r3).AsDouble();
        var p3 = Avx512F.UnpackHigh(r2, r3).AsDouble();
        var p4 = Avx512F.UnpackLow(r4, r5).AsDouble();
        var p5 = Avx512F.UnpackHigh(r4, r5).AsDouble();
        var p6 = Avx512F.UnpackLow(r6, r7).AsDouble();
        var p7 = Avx512F.UnpackHigh(r6, r7).AsDouble();
        var p8 = Avx512F.UnpackLow(r8, r9).AsDouble();
        var p9 = Avx512F.UnpackHigh(r8, r9).AsDouble();
        var p10 = Avx512F.UnpackLow(r10, r11).AsDouble();
        var p11 = Avx512F.UnpackHigh(r10, r11).AsDouble();
        var p12 = Avx512F.UnpackLow(r12, r13).AsDouble();
        var p13 = Avx512F.UnpackHigh(r12, r13).AsDouble();
        var p14 = Avx512F.UnpackLow(r14, r15).AsDouble();
        var p15 = Avx512F.UnpackHigh(r14, r15).AsDouble();
        var f0 = Avx512F.UnpackLow(p0, p2).AsSingle();
        var f1 = Avx512F.UnpackHigh(p0, p2).AsSingle();
        var f2 = Avx512F.UnpackLow(p1, p3).AsSingle();
        var f3 = Avx512F.UnpackHigh(p1, p3).AsSingle();
        var f4 = Avx512F.UnpackLow(p4, p6).AsSingle();
        var f5 = Avx512F.UnpackHigh(p4, p6).AsSingle();
        var f6 = Avx512F.UnpackLow(p5, p7).AsSingle();
        var f7 = Avx512F.UnpackHigh(p5, p7).AsSingle();
        var f8 = Avx512F.UnpackLow(p8, p10).AsSingle();
        var f9 = Avx512F.UnpackHigh(p8, p10).AsSingle();
        var f10 = Avx512F.UnpackLow(p9, p11).AsSingle();
        var f11 = Avx512F.UnpackHigh(p9, p11).AsSingle();
        var f12 = Avx512F.UnpackLow(p12, p14).AsSingle();
        var f13 = Avx512F.UnpackHigh(p12, p14).AsSingle();
        var f14 = Avx512F.UnpackLow(p13, p15).AsSingle();
        var f15 = Avx512F.UnpackHigh(p13, p15).AsSingle();

        // Then the quarters: element c of quarter q is column 4 q + c.
        Quarters(f0, f4, f8, f12, target, 4 * targetStride);
        Quarters(f1, f5, f9, f13, target + targetStride, 4 * targetStride);
        Quarters(f2, f6, f10, f14, target + (2 * targetStride), 4 * targetStride);
        Quarters(f3, f7, f11, f15, target + (3 * targetStride), 4 * targetStride);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Quarters(Vector512<float> v0, Vector512<float> v1, Vector512<float> v2, Vector512<float> v3, float* target, nint stride)
    {
        // Quarters 0 and 2, and 1 and 3, of two vectors each; then of those the even and the odd ones.
        var even01 = Avx512F.Shuffle4x128(v0, v1, 0b10_00_10_00);
        var odd01 = Avx512F.Shuffle4x128(v0, v1, 0b11_01_11_01);
        var even23 = Avx512F.Shuffle4x128(v2, v3, 0b10_00_10_00);
        var odd23 = Avx512F.Shuffle4x128(v2, v3, 0b11_01_11_01);
        Avx512F.Shuffle4x128(even01, even23, 0b10_00_10_00).Store(target);
        Avx512F.Shuffle4x128(odd01, odd23, 0b10_00_10_00).Store(target + stride);
        Avx512F.Shuffle4x128(even01, even23, 0b11_01_11_01).Store(target + (2 * stride));
        Avx512F.Shuffle4x128(odd01, odd23, 0b11_01_11_01).Store(target + (3 * stride));
    }

    /// <summary>Copies rows into a panel of values: panel[row * width + column] = source[row, column]; columns past the last are zero.</summary>
    /// <param name="source">First element of the first row, at the panel's first column.</param>
    /// <param name="rowStride">Bytes from one row to the next.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="columns">Columns that exist, at most <paramref name="width"/>.</param>
    /// <param name="panel">Receives rows * width floats.</param>
    /// <param name="width">Columns of the panel, a multiple of the lanes.</param>
    /// <returns>Whether every value is finite.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static bool ValuePanel<TVector, TOps, TElement>(byte* source, nint rowStride, nint rows, int columns, float* panel, int width)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TElement : struct, IElement
    {
        // Zero times anything finite adds zero; the first infinity or NaN turns the sum into NaN.
        var check = TOps.Zero;
        float rest = 0;
        for (; rows > 0; rows--)
        {
            var column = 0;
            for (; column + TOps.Lanes <= columns; column += TOps.Lanes)
            {
                var vector = TElement.Load<TVector, TOps>(source + (column * TElement.Size));
                check = TOps.MultiplyAdd(vector, TOps.Zero, check);
                TOps.Store(vector, panel + column);
            }

            for (; column < columns; column++)
            {
                var value = TElement.Read(source + (column * TElement.Size));
                rest += value * 0;
                panel[column] = value;
            }

            for (; column < width; column++)
            {
                panel[column] = 0;
            }

            source += rowStride;
            panel += width;
        }

        return TOps.Sum(check) + rest == 0;
    }

    /// <summary>As <see cref="KeyPanel"/> for keys that lie anywhere. Columns past the last key, up to a multiple of four, repeat it; those behind are left as they are.</summary>
    /// <param name="source">First element of key 0.</param>
    /// <param name="rowStride">Bytes from one key to the next.</param>
    /// <param name="keys">The keys.</param>
    /// <param name="count">Number of keys, 1 to <paramref name="width"/>.</param>
    /// <param name="depth">Elements of a key.</param>
    /// <param name="panel">Receives depth * width floats.</param>
    /// <param name="width">Floats from one row of the panel to the next, a multiple of four.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void GatherKeys<TElement>(byte* source, nint rowStride, int* keys, int count, nint depth, float* panel, int width)
        where TElement : struct, IElement
    {
        const int ahead = 16;
        var key = 0;
        var rows = stackalloc byte*[SixteenKeys];
        for (; Avx512F.IsSupported && key + SixteenKeys <= count; key += SixteenKeys)
        {
            for (var i = 0; i < SixteenKeys; i++)
            {
                rows[i] = source + (keys[key + i] * rowStride);
                if (key + i + ahead < count)
                {
                    Request(source + (keys[key + i + ahead] * rowStride), depth * TElement.Size);
                }
            }

            TransposeSixteen<TElement>(rows, depth, panel + key, width);
        }

        for (; key < count; key += 4)
        {
            if (Sse.IsSupported)
            {
                for (var upcoming = key + ahead; upcoming < Math.Min(key + ahead + 4, count); upcoming++)
                {
                    Request(source + (keys[upcoming] * rowStride), depth * TElement.Size);
                }
            }

            var row0 = source + (keys[key] * rowStride);
            var row1 = source + (keys[Math.Min(key + 1, count - 1)] * rowStride);
            var row2 = source + (keys[Math.Min(key + 2, count - 1)] * rowStride);
            var row3 = source + (keys[Math.Min(key + 3, count - 1)] * rowStride);
            var column = panel + key;
            nint d = 0;
            for (; d + 4 <= depth; d += 4)
            {
                var v0 = TElement.Load<Vector128<float>, Vector128Operations>(row0 + (d * TElement.Size));
                var v1 = TElement.Load<Vector128<float>, Vector128Operations>(row1 + (d * TElement.Size));
                var v2 = TElement.Load<Vector128<float>, Vector128Operations>(row2 + (d * TElement.Size));
                var v3 = TElement.Load<Vector128<float>, Vector128Operations>(row3 + (d * TElement.Size));
                Transpose(ref v0, ref v1, ref v2, ref v3);
                v0.Store(column);
                v1.Store(column + width);
                v2.Store(column + (2 * (nint)width));
                v3.Store(column + (3 * (nint)width));
                column += 4 * (nint)width;
            }

            for (; d < depth; d++)
            {
                column[0] = TElement.Read(row0 + (d * TElement.Size));
                column[1] = TElement.Read(row1 + (d * TElement.Size));
                column[2] = TElement.Read(row2 + (d * TElement.Size));
                column[3] = TElement.Read(row3 + (d * TElement.Size));
                column += width;
            }
        }
    }

    /// <summary>As <see cref="ValuePanel"/> for rows that lie anywhere: all columns of a row side by side.</summary>
    /// <param name="source">First element of row 0.</param>
    /// <param name="rowStride">Bytes from one row to the next.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="count">Number of rows.</param>
    /// <param name="scale">Factor of every element.</param>
    /// <param name="columns">Columns that exist.</param>
    /// <param name="destination">Receives the rows.</param>
    /// <param name="width">Columns of a row of the destination; those past the last are zero.</param>
    /// <param name="stride">Floats from one row of the destination to the next.</param>
    /// <returns>Whether everything is finite.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static bool GatherRows<TVector, TOps, TElement>(
        byte* source, nint rowStride, int* rows, int count, float scale, int columns, float* destination, int width, int stride)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TElement : struct, IElement
    {
        const int ahead = 8;
        var factor = TOps.Create(scale);
        var check = TOps.Zero;
        float rest = 0;
        for (var i = 0; i < count; i++)
        {
            if (Sse.IsSupported && i + ahead < count)
            {
                Request(source + (rows[i + ahead] * rowStride), columns * TElement.Size);
            }

            var row = source + (rows[i] * rowStride);
            var column = 0;
            for (; column + TOps.Lanes <= columns; column += TOps.Lanes)
            {
                var vector = TOps.Multiply(TElement.Load<TVector, TOps>(row + (column * TElement.Size)), factor);
                check = TOps.MultiplyAdd(vector, TOps.Zero, check);
                TOps.Store(vector, destination + column);
            }

            for (; column < columns; column++)
            {
                var value = TElement.Read(row + (column * TElement.Size)) * scale;
                rest += value * 0;
                destination[column] = value;
            }

            for (; column < width; column++)
            {
                destination[column] = 0;
            }

            destination += stride;
        }

        return TOps.Sum(check) + rest == 0;
    }

    /// <summary>The columns of sixteen keys in a panel.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void TransposeSixteen<TElement>(byte** rows, nint depth, float* column, nint width)
        where TElement : struct, IElement
    {
        nint d = 0;
        for (; d + 4 <= depth; d += 4)
        {
            // Each vector holds four elements of every fourth key: a transposition within the quarters leaves sixteen keys side by side.
            var v0 = EveryFourth<TElement>(rows, d * TElement.Size);
            var v1 = EveryFourth<TElement>(rows + 1, d * TElement.Size);
            var v2 = EveryFourth<TElement>(rows + 2, d * TElement.Size);
            var v3 = EveryFourth<TElement>(rows + 3, d * TElement.Size);
            var low02 = Avx512F.UnpackLow(v0, v2);
            var low13 = Avx512F.UnpackLow(v1, v3);
            var high02 = Avx512F.UnpackHigh(v0, v2);
            var high13 = Avx512F.UnpackHigh(v1, v3);
            Avx512F.UnpackLow(low02, low13).Store(column);
            Avx512F.UnpackHigh(low02, low13).Store(column + width);
            Avx512F.UnpackLow(high02, high13).Store(column + (2 * width));
            Avx512F.UnpackHigh(high02, high13).Store(column + (3 * width));
            column += 4 * width;
        }

        for (; d < depth; d++)
        {
            for (var i = 0; i < SixteenKeys; i++)
            {
                column[i] = TElement.Read(rows[i] + (d * TElement.Size));
            }

            column += width;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> EveryFourth<TElement>(byte** rows, nint offset)
        where TElement : struct, IElement => Vector512.Create(
            Vector256.Create(
                TElement.Load<Vector128<float>, Vector128Operations>(rows[0] + offset), TElement.Load<Vector128<float>, Vector128Operations>(rows[4] + offset)),
            Vector256.Create(
                TElement.Load<Vector128<float>, Vector128Operations>(rows[8] + offset), TElement.Load<Vector128<float>, Vector128Operations>(rows[12] + offset)));

    /// <summary>Asks for the cache lines of a row that will be read soon.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Request(byte* row, nint bytes)
    {
        for (nint line = 0; line < bytes; line += 64)
        {
            Sse.Prefetch0(row + line);
        }
    }

    private static Vector128<float> Keep(bool keep) => keep ? Vector128<float>.AllBitsSet : Vector128<float>.Zero;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose(ref Vector128<float> v0, ref Vector128<float> v1, ref Vector128<float> v2, ref Vector128<float> v3)
    {
        var low01 = InterleaveLow(v0, v2);
        var low23 = InterleaveLow(v1, v3);
        var high01 = InterleaveHigh(v0, v2);
        var high23 = InterleaveHigh(v1, v3);
        v0 = InterleaveLow(low01, low23);
        v1 = InterleaveHigh(low01, low23);
        v2 = InterleaveLow(high01, high23);
        v3 = InterleaveHigh(high01, high23);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> InterleaveLow(Vector128<float> left, Vector128<float> right)
    {
        if (Sse.IsSupported)
        {
            return Sse.UnpackLow(left, right);
        }

        return AdvSimd.Arm64.IsSupported ? AdvSimd.Arm64.ZipLow(left, right) : Vector128.Create(left[0], right[0], left[1], right[1]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> InterleaveHigh(Vector128<float> left, Vector128<float> right)
    {
        if (Sse.IsSupported)
        {
            return Sse.UnpackHigh(left, right);
        }

        return AdvSimd.Arm64.IsSupported ? AdvSimd.Arm64.ZipHigh(left, right) : Vector128.Create(left[2], right[2], left[3], right[3]);
    }
}
