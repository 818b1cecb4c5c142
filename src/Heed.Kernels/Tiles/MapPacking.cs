using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Heed.Kernels;

/// <summary>Brings a block of as many channels as a vector has lanes together, position by position, and takes it apart again.</summary>
internal static unsafe class MapPacking<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    /// <summary>Vectors that <see cref="Pack"/> writes.</summary>
    public static long PackedVectors(long height, long width, int margin) => margin + (height * (width + margin));

    /// <summary>Packs a block of channels: position (y, x) is the vector <c>margin + y (width + margin) + x</c>, and the margins before and after every row are zero. Channels beyond the last are zero.</summary>
    /// <param name="map">The maps.</param>
    /// <param name="batch">Which of the batch.</param>
    /// <param name="channel">The first channel.</param>
    /// <param name="to">Receives the vectors.</param>
    /// <param name="margin">Zero vectors between rows.</param>
    /// <param name="square">Room for a square of lanes.</param>
    public static void Pack(in MapView map, long batch, long channel, float* to, int margin, float* square)
    {
        var (height, width) = ((int)map.Height, (int)map.Width);
        Clear(to, margin);
        to += (nint)margin * TOps.Lanes;
        for (var y = 0; y < height; y++)
        {
            Clear(to + ((((nint)y * (width + margin)) + width) * TOps.Lanes), margin);
        }

        var lanes = (int)Math.Min(TOps.Lanes, map.Channels - channel);
        var from = map.Plane(batch, channel);
        if (lanes == TOps.Lanes && map.HasContiguousPlanes && height * width >= TOps.Lanes)
        {
            Planes(from, (nint)map.ChannelStride, height * width, width, margin, to, square);
        }
        else if (lanes == TOps.Lanes && map.IsChannelsLast)
        {
            for (var y = 0; y < height; y++)
            {
                var row = from + (y * map.RowStride);
                for (var x = 0; x < width; x++, row += map.ColumnStride, to += TOps.Lanes)
                {
                    TOps.Store(TOps.Load(row), to);
                }

                to += margin * TOps.Lanes;
            }
        }
        else
        {
            for (var y = 0; y < height; y++, to += (nint)margin * TOps.Lanes)
            {
                for (var x = 0; x < width; x++, to += TOps.Lanes)
                {
                    var position = from + (y * map.RowStride) + (x * map.ColumnStride);
                    for (var lane = 0; lane < TOps.Lanes; lane++)
                    {
                        to[lane] = lane < lanes ? position[lane * map.ChannelStride] : 0;
                    }
                }
            }
        }
    }

    /// <summary>Writes vectors of consecutive positions (no margins) to a map whose positions are contiguous in either order.</summary>
    /// <param name="from">The first vector.</param>
    /// <param name="map">The map.</param>
    /// <param name="batch">Which of the batch.</param>
    /// <param name="channel">The first channel.</param>
    /// <param name="start">The first position, row by row.</param>
    /// <param name="count">Number of positions.</param>
    public static void Unpack(float* from, in MapView map, long batch, long channel, int start, int count)
    {
        var lanes = (int)Math.Min(TOps.Lanes, map.Channels - channel);
        var to = map.Plane(batch, channel);
        if (lanes == TOps.Lanes && map.HasContiguousPlanes && count >= TOps.Lanes)
        {
            to += start;
            for (var i = 0; i < count; i += TOps.Lanes)
            {
                // The last square overlaps the one before: the same numbers are written twice.
                var first = Math.Min(i, count - TOps.Lanes);
                Transpose(from + ((nint)first * TOps.Lanes), TOps.Lanes, to + first, (nint)map.ChannelStride);
            }
        }
        else if (lanes == TOps.Lanes && map.IsChannelsLast)
        {
            to += start * map.ColumnStride;
            for (var i = 0; i < count; i++, to += map.ColumnStride)
            {
                TOps.Store(TOps.Load(from + ((nint)i * TOps.Lanes)), to);
            }
        }
        else
        {
            for (var i = 0; i < count; i++)
            {
                var position = to + ((start + i) / map.Width * map.RowStride) + ((start + i) % map.Width * map.ColumnStride);
                for (var lane = 0; lane < lanes; lane++)
                {
                    position[lane * map.ChannelStride] = from[((nint)i * TOps.Lanes) + lane];
                }
            }
        }
    }

    private static void Clear(float* to, int vectors)
    {
        for (var i = 0; i < vectors; i++)
        {
            TOps.Store(TOps.Zero, to + ((nint)i * TOps.Lanes));
        }
    }

    // Whole planes, a square of lanes x lanes at a time, since rows may be shorter than a vector.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Planes(float* from, nint channelStride, int count, int width, int margin, float* to, float* square)
    {
        var x = 0;
        for (var i = 0; i < count; i += TOps.Lanes)
        {
            var first = Math.Min(i, count - TOps.Lanes);
            if (margin == 0)
            {
                Transpose(from + first, channelStride, to + ((nint)first * TOps.Lanes), TOps.Lanes);
                continue;
            }

            Transpose(from + first, channelStride, square, TOps.Lanes);
            for (var j = i - first; j < TOps.Lanes; j++)
            {
                TOps.Store(TOps.Load(square + (j * TOps.Lanes)), to);
                to += TOps.Lanes;
                if (++x == width)
                {
                    x = 0;
                    to += (nint)margin * TOps.Lanes;
                }
            }
        }
    }

    private static void Transpose(float* from, nint fromStride, float* to, nint toStride)
    {
        if (TOps.Lanes == 16 && Avx512F.IsSupported)
        {
            Transpose16(from, fromStride, to, toStride);
            return;
        }

        for (var row = 0; row < TOps.Lanes; row += 4)
        {
            for (var column = 0; column < TOps.Lanes; column += 4)
            {
                Transpose4(from + (row * fromStride) + column, fromStride, to + (column * toStride) + row, toStride);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(float* from, nint fromStride, float* to, nint toStride)
    {
        if (Sse.IsSupported)
        {
            var (a, b) = (Vector128.Load(from), Vector128.Load(from + fromStride));
            var (c, d) = (Vector128.Load(from + (2 * fromStride)), Vector128.Load(from + (3 * fromStride)));
            var (lowLeft, highLeft) = (Sse.UnpackLow(a, b), Sse.UnpackHigh(a, b));
            var (lowRight, highRight) = (Sse.UnpackLow(c, d), Sse.UnpackHigh(c, d));
            Sse.MoveLowToHigh(lowLeft, lowRight).Store(to);
            Sse.MoveHighToLow(lowRight, lowLeft).Store(to + toStride);
            Sse.MoveLowToHigh(highLeft, highRight).Store(to + (2 * toStride));
            Sse.MoveHighToLow(highRight, highLeft).Store(to + (3 * toStride));
            return;
        }

        for (var i = 0; i < 4; i++)
        {
            for (var j = 0; j < 4; j++)
            {
                to[(j * toStride) + i] = from[(i * fromStride) + j];
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Transpose16(float* from, nint fromStride, float* to, nint toStride)
    {
        // Four rows give, in each 128 bits, four elements of a column: columns 0, 4, 8, 12 in the first result, 1, 5, 9, 13 in the second, and so on.
        Quarter(from, fromStride, out var a0, out var a1, out var a2, out var a3);
        Quarter(from + (4 * fromStride), fromStride, out var b0, out var b1, out var b2, out var b3);
        Quarter(from + (8 * fromStride), fromStride, out var c0, out var c1, out var c2, out var c3);
        Quarter(from + (12 * fromStride), fromStride, out var d0, out var d1, out var d2, out var d3);
        Columns(a0, b0, c0, d0, to, toStride);
        Columns(a1, b1, c1, d1, to + toStride, toStride);
        Columns(a2, b2, c2, d2, to + (2 * toStride), toStride);
        Columns(a3, b3, c3, d3, to + (3 * toStride), toStride);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Quarter(float* from, nint stride, out Vector512<float> first, out Vector512<float> second, out Vector512<float> third, out Vector512<float> fourth)
    {
        var (a, b) = (Vector512.Load(from), Vector512.Load(from + stride));
        var (c, d) = (Vector512.Load(from + (2 * stride)), Vector512.Load(from + (3 * stride)));
        var (lowLeft, highLeft) = (Avx512F.UnpackLow(a, b).AsDouble(), Avx512F.UnpackHigh(a, b).AsDouble());
        var (lowRight, highRight) = (Avx512F.UnpackLow(c, d).AsDouble(), Avx512F.UnpackHigh(c, d).AsDouble());
        first = Avx512F.UnpackLow(lowLeft, lowRight).AsSingle();
        second = Avx512F.UnpackHigh(lowLeft, lowRight).AsSingle();
        third = Avx512F.UnpackLow(highLeft, highRight).AsSingle();
        fourth = Avx512F.UnpackHigh(highLeft, highRight).AsSingle();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Columns(Vector512<float> a, Vector512<float> b, Vector512<float> c, Vector512<float> d, float* to, nint stride)
    {
        var (low, high) = (Avx512F.Shuffle4x128(a, b, 0x44), Avx512F.Shuffle4x128(a, b, 0xEE));
        var (lowNext, highNext) = (Avx512F.Shuffle4x128(c, d, 0x44), Avx512F.Shuffle4x128(c, d, 0xEE));
        Avx512F.Shuffle4x128(low, lowNext, 0x88).Store(to);
        Avx512F.Shuffle4x128(low, lowNext, 0xDD).Store(to + (4 * stride));
        Avx512F.Shuffle4x128(high, highNext, 0x88).Store(to + (8 * stride));
        Avx512F.Shuffle4x128(high, highNext, 0xDD).Store(to + (12 * stride));
    }
}
