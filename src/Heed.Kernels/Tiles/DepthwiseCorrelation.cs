using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>
/// The correlation under every pass of a depth-wise convolution, on maps packed a vector of channels per position:
/// <c>out[y, x] = sum of v[a, i] in[y + a - top, x + i - left]</c>. With filters for v it is the convolution; with turned filters and a gradient for the input it is the gradient of the input; with a gradient for v and
/// the positions of the filter for (y, x) it is the gradient of the filters.
/// </summary>
/// <remarks>A register tile holds up to seven columns of two rows: each element of the input that is loaded serves both rows, and each of v all columns.</remarks>
internal static unsafe class DepthwiseCorrelation<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    /// <summary>Columns of a tile, at most: what the registers hold.</summary>
    public static int MostColumns => TOps.TileVectors == 4 ? 7 : 6;

    /// <summary>Zero vectors that the packed input has between rows: a tile reads so far over the edge.</summary>
    public static int Margin => MostColumns - 1;

    /// <summary>Correlates.</summary>
    /// <typeparam name="TAccumulate">One: adds to the output; zero: overwrites it.</typeparam>
    /// <param name="input">The packed input's first vector after the leading margin.</param>
    /// <param name="height">Rows of the input.</param>
    /// <param name="width">Columns of the input; its rows lie a <see cref="Margin"/> apart.</param>
    /// <param name="v">The other operand.</param>
    /// <param name="vHeight">Its rows.</param>
    /// <param name="vWidth">Its columns.</param>
    /// <param name="vRow">Vectors from one of its rows to the next.</param>
    /// <param name="top">Rows that it stands over the upper edge.</param>
    /// <param name="left">Columns that it stands over the left edge.</param>
    /// <param name="start">The vector that sums start from, where they do not add up; null: zero.</param>
    /// <param name="output">Receives rows <paramref name="fromRow"/> to <paramref name="toRow"/>, exclusive, of <paramref name="columns"/> vectors each.</param>
    /// <param name="fromRow">The first row.</param>
    /// <param name="toRow">After the last row.</param>
    /// <param name="columns">Columns of the output.</param>
    public static void Correlate<TAccumulate>(
        float* input, int height, int width, float* v, int vHeight, int vWidth, int vRow, int top, int left, float* start, float* output, int fromRow, int toRow, int columns)
        where TAccumulate : struct, IConstant
    {
        var tiles = (columns + MostColumns - 1) / MostColumns;
        var inputRow = (nint)(width + Margin) * TOps.Lanes;
        for (var y = fromRow; y < toRow; y += 2)
        {
            var hasTwo = toRow - y > 1;
            // Row a of v meets row a - shift of the input in the first row of the tile, and row a - 1 of v meets it in the second.
            var shift = top - y;
            var last = height - 1 + shift;
            var head = hasTwo && shift <= 0 && last >= 0 ? 1 : 0;
            var first = Math.Max(hasTwo ? 1 : 0, shift);
            var middle = Math.Max(0, Math.Min(vHeight - 1, last) - first + 1);
            var tail = hasTwo && vHeight >= shift && vHeight <= last ? 1 : 0;
            var line = output + ((nint)(y - fromRow) * columns * TOps.Lanes);
            var x = 0;
            for (var tile = 0; tile < tiles; tile++)
            {
                var count = (columns / tiles) + (tile < columns % tiles ? 1 : 0);
                var low = Math.Max(0, left - x - (count - 1));
                var taps = Math.Max(0, Math.Min(vWidth - 1, width - 1 - x + left) - low + 1);
                var call = new TileCall
                {
                    InputRow = inputRow, VRow = (nint)vRow * TOps.Lanes, Taps = taps, Head = head, Middle = middle, Tail = tail, Start = start,
                    Output = line + ((nint)x * TOps.Lanes), OutputRow = (nint)columns * TOps.Lanes,
                };
                var column = input + ((nint)(x + low - left) * TOps.Lanes);
                call.HeadInput = column - (shift * inputRow);
                call.HeadV = v + ((nint)low * TOps.Lanes);
                call.MiddleInput = column + ((first - shift) * inputRow);
                call.MiddleV = v + (((nint)first * vRow) + low) * TOps.Lanes;
                call.TailInput = column + ((vHeight - shift) * inputRow);
                call.TailV = v + ((((nint)vHeight - 1) * vRow) + low) * TOps.Lanes;
                if (hasTwo)
                {
                    Choose<Two, TAccumulate>(count, &call);
                }
                else
                {
                    Choose<One, TAccumulate>(count, &call);
                }

                x += count;
            }
        }
    }

    private static void Choose<TRows, TAccumulate>(int columns, TileCall* call)
        where TRows : struct, IConstant
        where TAccumulate : struct, IConstant
    {
        switch (columns)
        {
            case 1:
                Tile<One, TRows, TAccumulate>(call);
                break;
            case 2:
                Tile<Two, TRows, TAccumulate>(call);
                break;
            case 3:
                Tile<Three, TRows, TAccumulate>(call);
                break;
            case 4:
                Tile<Four, TRows, TAccumulate>(call);
                break;
            case 5:
                Tile<Five, TRows, TAccumulate>(call);
                break;
            case 6:
                Tile<Six, TRows, TAccumulate>(call);
                break;
            default:
                Tile<Seven, TRows, TAccumulate>(call);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Tile<TColumns, TRows, TAccumulate>(TileCall* call)
        where TColumns : struct, IConstant
        where TRows : struct, IConstant
        where TAccumulate : struct, IConstant
    {
        var initial = TAccumulate.Value == 0 && call->Start != null ? TOps.Load(call->Start) : TOps.Zero;
        TVector a0 = initial, a1 = initial, a2 = initial, a3 = initial, a4 = initial, a5 = initial, a6 = initial;
        TVector b0 = initial, b1 = initial, b2 = initial, b3 = initial, b4 = initial, b5 = initial, b6 = initial;
        var taps = call->Taps;
        if (TRows.Value == 2 && call->Head != 0)
        {
            var input = call->HeadInput;
            var v = call->HeadV;
            for (var tap = taps; tap > 0; tap--, input += TOps.Lanes, v += TOps.Lanes)
            {
                var first = TOps.Load(v);
                a0 = TOps.MultiplyAdd(TOps.Load(input), first, a0);
                if (TColumns.Value > 1)
                {
                    a1 = TOps.MultiplyAdd(TOps.Load(input + (1 * TOps.Lanes)), first, a1);
                }

                if (TColumns.Value > 2)
                {
                    a2 = TOps.MultiplyAdd(TOps.Load(input + (2 * TOps.Lanes)), first, a2);
                }

                if (TColumns.Value > 3)
                {
                    a3 = TOps.MultiplyAdd(TOps.Load(input + (3 * TOps.Lanes)), first, a3);
                }

                if (TColumns.Value > 4)
                {
                    a4 = TOps.MultiplyAdd(TOps.Load(input + (4 * TOps.Lanes)), first, a4);
                }

                if (TColumns.Value > 5)
                {
                    a5 = TOps.MultiplyAdd(TOps.Load(input + (5 * TOps.Lanes)), first, a5);
                }

                if (TColumns.Value > 6)
                {
                    a6 = TOps.MultiplyAdd(TOps.Load(input + (6 * TOps.Lanes)), first, a6);
                }
            }
        }

        var inputLine = call->MiddleInput;
        var vLine = call->MiddleV;
        for (var row = call->Middle; row > 0; row--, inputLine += call->InputRow, vLine += call->VRow)
        {
            var input = inputLine;
            var v = vLine;
            var above = TRows.Value == 2 ? vLine - call->VRow : vLine;
            for (var tap = taps; tap > 0; tap--, input += TOps.Lanes, v += TOps.Lanes, above += TOps.Lanes)
            {
                var first = TOps.Load(v);
                var second = TRows.Value == 2 ? TOps.Load(above) : first;
                var element = TOps.Load(input);
                a0 = TOps.MultiplyAdd(element, first, a0);
                b0 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b0) : b0;
                if (TColumns.Value > 1)
                {
                    element = TOps.Load(input + (1 * TOps.Lanes));
                    a1 = TOps.MultiplyAdd(element, first, a1);
                    b1 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b1) : b1;
                }

                if (TColumns.Value > 2)
                {
                    element = TOps.Load(input + (2 * TOps.Lanes));
                    a2 = TOps.MultiplyAdd(element, first, a2);
                    b2 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b2) : b2;
                }

                if (TColumns.Value > 3)
                {
                    element = TOps.Load(input + (3 * TOps.Lanes));
                    a3 = TOps.MultiplyAdd(element, first, a3);
                    b3 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b3) : b3;
                }

                if (TColumns.Value > 4)
                {
                    element = TOps.Load(input + (4 * TOps.Lanes));
                    a4 = TOps.MultiplyAdd(element, first, a4);
                    b4 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b4) : b4;
                }

                if (TColumns.Value > 5)
                {
                    element = TOps.Load(input + (5 * TOps.Lanes));
                    a5 = TOps.MultiplyAdd(element, first, a5);
                    b5 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b5) : b5;
                }

                if (TColumns.Value > 6)
                {
                    element = TOps.Load(input + (6 * TOps.Lanes));
                    a6 = TOps.MultiplyAdd(element, first, a6);
                    b6 = TRows.Value == 2 ? TOps.MultiplyAdd(element, second, b6) : b6;
                }
            }
        }

        if (TRows.Value == 2 && call->Tail != 0)
        {
            var input = call->TailInput;
            var v = call->TailV;
            for (var tap = taps; tap > 0; tap--, input += TOps.Lanes, v += TOps.Lanes)
            {
                var second = TOps.Load(v);
                b0 = TOps.MultiplyAdd(TOps.Load(input), second, b0);
                if (TColumns.Value > 1)
                {
                    b1 = TOps.MultiplyAdd(TOps.Load(input + (1 * TOps.Lanes)), second, b1);
                }

                if (TColumns.Value > 2)
                {
                    b2 = TOps.MultiplyAdd(TOps.Load(input + (2 * TOps.Lanes)), second, b2);
                }

                if (TColumns.Value > 3)
                {
                    b3 = TOps.MultiplyAdd(TOps.Load(input + (3 * TOps.Lanes)), second, b3);
                }

                if (TColumns.Value > 4)
                {
                    b4 = TOps.MultiplyAdd(TOps.Load(input + (4 * TOps.Lanes)), second, b4);
                }

                if (TColumns.Value > 5)
                {
                    b5 = TOps.MultiplyAdd(TOps.Load(input + (5 * TOps.Lanes)), second, b5);
                }

                if (TColumns.Value > 6)
                {
                    b6 = TOps.MultiplyAdd(TOps.Load(input + (6 * TOps.Lanes)), second, b6);
                }
            }
        }

        Store<TColumns, TAccumulate>(call->Output, a0, a1, a2, a3, a4, a5, a6);
        if (TRows.Value == 2)
        {
            Store<TColumns, TAccumulate>(call->Output + call->OutputRow, b0, b1, b2, b3, b4, b5, b6);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store<TColumns, TAccumulate>(float* output, TVector c0, TVector c1, TVector c2, TVector c3, TVector c4, TVector c5, TVector c6)
        where TColumns : struct, IConstant
        where TAccumulate : struct, IConstant
    {
        Put<TAccumulate>(c0, output);
        if (TColumns.Value > 1)
        {
            Put<TAccumulate>(c1, output + (1 * TOps.Lanes));
        }

        if (TColumns.Value > 2)
        {
            Put<TAccumulate>(c2, output + (2 * TOps.Lanes));
        }

        if (TColumns.Value > 3)
        {
            Put<TAccumulate>(c3, output + (3 * TOps.Lanes));
        }

        if (TColumns.Value > 4)
        {
            Put<TAccumulate>(c4, output + (4 * TOps.Lanes));
        }

        if (TColumns.Value > 5)
        {
            Put<TAccumulate>(c5, output + (5 * TOps.Lanes));
        }

        if (TColumns.Value > 6)
        {
            Put<TAccumulate>(c6, output + (6 * TOps.Lanes));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Put<TAccumulate>(TVector sum, float* output)
        where TAccumulate : struct, IConstant => TOps.Store(TAccumulate.Value == 1 ? TOps.Add(TOps.Load(output), sum) : sum, output);

    /// <summary>What a tile works on: rows of v that only its first row sees, that both see, and that only its second sees.</summary>
    private struct TileCall
    {
        public float* HeadInput;
        public float* HeadV;
        public float* MiddleInput;
        public float* MiddleV;
        public float* TailInput;
        public float* TailV;
        public float* Start;
        public float* Output;
        public nint InputRow;
        public nint VRow;
        public nint OutputRow;
        public nint Taps;
        public int Head;
        public int Middle;
        public int Tail;
    }
}
