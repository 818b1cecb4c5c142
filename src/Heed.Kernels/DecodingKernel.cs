using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Heed.Kernels;

/// <summary>The chunks of <see cref="DecodingLoop"/>, for one width of vectors. A chunk is walked in stretches of keys: scores, exponentials with a running
/// maximum, and the weighted sum of the values, each while the stretch is in the nearest cache.</summary>
/// <remarks>Loops are compiled in full from the first call: an unoptimised first tier, in programs with tiered compilation, would be a thousand times slower.</remarks>
internal sealed unsafe class DecodingKernel<TVector, TOps> : DecodingLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    private const int Stretch = 256;

    // A stretch that is copied, or read by more rows than this, stays in the first-level cache between its uses.
    private const int ReusedStretch = 64;
    private const int MostRowsPassing = 2;

    // How far ahead of its use a row is asked for, in bytes of rows: some hundred nanoseconds at the bandwidth of one core.
    private const int BytesAhead = 8192;

    private const int CacheLine = 64;

    // Minus zero stands for the weight of a pair that a bias took away: unlike one that is merely too small, it must not meet its value.
    private const int AbsentBits = int.MinValue;

    // With more rows than this, converting a stretch once is cheaper than converting it for every pair of rows.
    private const int MostRowsConverting = 8;

    [ThreadStatic]
    private static DecodingKernel<TVector, TOps>? t_ofThread;

    /// <summary>The loop of this thread, kept so that a call allocates nothing.</summary>
    public static DecodingKernel<TVector, TOps> OfThread => t_ofThread ??= new();

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        ref readonly var a = ref Problem.Arguments;
        switch (a.Key.Type)
        {
            case ElementType.Float32:
                RunWithKeys<Float32Element>(item);
                break;
            case ElementType.Float16:
                RunWithKeys<Float16Element>(item);
                break;
            default:
                RunWithKeys<BFloat16Element>(item);
                break;
        }
    }

    private void RunWithKeys<TKey>(int item)
        where TKey : struct, IElement
    {
        switch (Problem.Arguments.Value.Type)
        {
            case ElementType.Float32:
                RunChunk<TKey, Float32Element>(item);
                break;
            case ElementType.Float16:
                RunChunk<TKey, Float16Element>(item);
                break;
            default:
                RunChunk<TKey, BFloat16Element>(item);
                break;
        }
    }

    private void RunChunk<TKey, TValue>(int item)
        where TKey : struct, IElement
        where TValue : struct, IElement
    {
        ref readonly var a = ref Problem.Arguments;
        var rows = Rows;
        var queries = Problem.Queries;
        var head = item / Chunks % Problem.KeyHeads;
        var batch = item / Chunks / Problem.KeyHeads;
        var slice = Problem.Sequence(batch);
        var output = PartialOutput + ((long)item * rows * OutputStride);
        var maximum = PartialMaximum + ((long)item * rows);
        var sum = PartialSum + ((long)item * rows);
        new Span<float>(maximum, rows).Fill(float.NegativeInfinity);
        new Span<float>(sum, rows).Clear();

        // The keys of this chunk that any row sees.
        long chunkStart = (long)(item % Chunks) * Chunk, start = long.MaxValue, end = 0;
        var first = stackalloc long[queries];
        var last = stackalloc long[queries];
        var position = stackalloc long[queries];
        for (var i = 0; i < queries; i++)
        {
            position[i] = Problem.Position(slice, i);
            first[i] = Math.Max(Problem.FirstKey(slice, i), chunkStart);
            last[i] = i < slice.QueryLength ? Math.Min(Problem.EndKey(slice, i), chunkStart + Chunk) : 0;
            if (first[i] < last[i])
            {
                start = Math.Min(start, first[i]);
                end = Math.Max(end, last[i]);
            }
        }

        if (start >= end)
        {
            return;
        }

        new Span<float>(output, rows * OutputStride).Clear();
        var width = (int)Workspace.Lines(Problem.Width);
        var copyKeys = Problem.Width % TOps.Lanes != 0 || (TKey.Size != sizeof(float) && rows > MostRowsConverting);
        var copyValues = Problem.ValueWidth % TOps.Lanes != 0 || (TValue.Size != sizeof(float) && rows > MostRowsConverting);
        var step = copyKeys || copyValues || rows > MostRowsPassing ? ReusedStretch : Stretch;
        var query = Workspace.OfItem.Take(
            ((long)rows * (width + Stretch)) + (copyKeys ? step * (long)width : 0) + (copyValues ? step * (long)OutputStride : 0));
        var scores = query + ((long)rows * width);
        var keyCopy = scores + ((long)rows * Stretch);
        var valueCopy = keyCopy + (copyKeys ? step * (long)width : 0);
        LoadQueries(batch, head, query, width);

        var keyRow = (byte*)a.Key.Data + (((batch * a.Key.BatchStride) + (head * a.Key.HeadStride)) * TKey.Size);
        var valueRow = (byte*)a.Value.Data + (((batch * a.Value.BatchStride) + (head * a.Value.HeadStride)) * TValue.Size);
        var (keyStride, valueStride) = ((nint)(a.Key.RowStride * TKey.Size), (nint)(a.Value.RowStride * TValue.Size));
        for (var at = start; at < end; at += step)
        {
            var count = (int)Math.Min(step, end - at);
            var keys = keyRow + (at * keyStride);
            if (copyKeys)
            {
                Copy<TKey>(keys, keyStride, keyCopy, width, Problem.Width, count);
                var upcoming = new Upcoming((nint)keys + (step * keyStride), keyStride, Problem.Width * TKey.Size);
                Scores<Float32Element>(query, width, (byte*)keyCopy, width * sizeof(float), scores, rows, count, width, upcoming);
            }
            else
            {
                var bytes = Problem.Width * TKey.Size;
                Scores<TKey>(query, width, keys, keyStride, scores, rows, count, Problem.Width, new((nint)keys + (RowsAhead(bytes) * keyStride), keyStride, bytes));
            }

            for (var r = 0; r < rows; r++)
            {
                var i = r % queries;
                var factor = Exponentials(scores + ((long)r * Stretch), batch, (head * Problem.Group) + (r / queries), i, at, count, first[i], last[i], position[i], ref maximum[r], ref sum[r]);
                if (factor != 1)
                {
                    Rescale(output + ((long)r * OutputStride), factor);
                }
            }

            var values = valueRow + (at * valueStride);
            if (copyValues)
            {
                Copy<TValue>(values, valueStride, valueCopy, OutputStride, Problem.ValueWidth, count);
                var upcoming = new Upcoming((nint)values + (step * valueStride), valueStride, Problem.ValueWidth * TValue.Size);
                Accumulate<Float32Element>(scores, (byte*)valueCopy, OutputStride * sizeof(float), output, at, count, first, last, OutputStride, upcoming);
            }
            else
            {
                var bytes = Problem.ValueWidth * TValue.Size;
                Accumulate<TValue>(
                    scores, values, valueStride, output, at, count, first, last, Problem.ValueWidth, new((nint)values + (RowsAhead(bytes) * valueStride), valueStride, bytes));
            }
        }
    }

    internal static nint RowsAhead(nint bytesOfRow) => (BytesAhead + bytesOfRow - 1) / bytesOfRow;

    /// <summary>The scaled queries of a group's heads, padded with zeros to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private void LoadQueries(long batch, long head, float* query, int width)
    {
        ref readonly var a = ref Problem.Arguments;
        for (var r = 0; r < Rows; r++)
        {
            var source = a.Query.Row(batch, (head * Problem.Group) + (r / Problem.Queries), r % Problem.Queries);
            for (var d = 0; d < width; d++)
            {
                query[((long)r * width) + d] = d < Problem.Width ? source[d] * a.Scale : 0;
            }
        }
    }

    /// <summary>Rows to ask memory for while others are computed with: whatever the hardware guesses, keys and values take turns, and it starts over at each.</summary>
    /// <param name="First">The row that corresponds to the first of those computed with; null: none.</param>
    /// <param name="Stride">Bytes from one row to the next.</param>
    /// <param name="Bytes">Bytes of a row.</param>
    internal readonly record struct Upcoming(nint First, nint Stride, nint Bytes)
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Request(nint row)
        {
            if (First != 0 && Sse.IsSupported)
            {
                var line = (byte*)(First + (row * Stride));
                for (var end = line + Bytes; line < end; line += CacheLine)
                {
                    Sse.Prefetch0(line);
                }
            }
        }
    }

    /// <summary>Rows as float32, padded with zeros.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    internal static void Copy<TElement>(byte* source, nint sourceStride, float* destination, int stride, int width, int count)
        where TElement : struct, IElement
    {
        for (; count > 0; count--)
        {
            var d = 0;
            for (; d <= width - TOps.Lanes; d += TOps.Lanes)
            {
                TOps.Store(TElement.Load<TVector, TOps>(source + (d * TElement.Size)), destination + d);
            }

            for (; d < stride; d++)
            {
                destination[d] = d < width ? TElement.Read(source + (d * TElement.Size)) : 0;
            }

            source += sourceStride;
            destination += stride;
        }
    }

    private static void Scores<TElement>(float* query, int queryStride, byte* keys, nint keyStride, float* scores, int rows, int count, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        if (rows == 1)
        {
            ScoresOfOne<TElement>(query, keys, keyStride, scores, count, width, upcoming);
            return;
        }

        ScoresOfTwo<TElement>(query, queryStride, keys, keyStride, scores, count, width, upcoming);
        var r = 2;
        for (; r <= rows - 2; r += 2)
        {
            ScoresOfTwo<TElement>(query + ((long)r * queryStride), queryStride, keys, keyStride, scores + ((long)r * Stretch), count, width, default);
        }

        if (r < rows)
        {
            ScoresOfOne<TElement>(query + ((long)r * queryStride), keys, keyStride, scores + ((long)r * Stretch), count, width, default);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    internal static void ScoresOfOne<TElement>(float* query, byte* keys, nint keyStride, float* scores, int count, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        var j = 0;
        for (; j <= count - 4; j += 4)
        {
            TVector s0 = TOps.Zero, s1 = TOps.Zero, s2 = TOps.Zero, s3 = TOps.Zero;
            var k0 = keys;
            var k1 = k0 + keyStride;
            var k2 = k1 + keyStride;
            var k3 = k2 + keyStride;
            for (nint d = 0; d < width; d += TOps.Lanes)
            {
                var q = TOps.Load(query + d);
                s0 = TOps.MultiplyAdd(q, TElement.Load<TVector, TOps>(k0 + (d * TElement.Size)), s0);
                s1 = TOps.MultiplyAdd(q, TElement.Load<TVector, TOps>(k1 + (d * TElement.Size)), s1);
                s2 = TOps.MultiplyAdd(q, TElement.Load<TVector, TOps>(k2 + (d * TElement.Size)), s2);
                s3 = TOps.MultiplyAdd(q, TElement.Load<TVector, TOps>(k3 + (d * TElement.Size)), s3);
            }

            TOps.SumEach(s0, s1, s2, s3).Store(scores + j);
            upcoming.Request(j);
            upcoming.Request(j + 1);
            upcoming.Request(j + 2);
            upcoming.Request(j + 3);
            keys += 4 * keyStride;
        }

        for (; j < count; j++)
        {
            var s = TOps.Zero;
            for (nint d = 0; d < width; d += TOps.Lanes)
            {
                s = TOps.MultiplyAdd(TOps.Load(query + d), TElement.Load<TVector, TOps>(keys + (d * TElement.Size)), s);
            }

            scores[j] = TOps.Sum(s);
            keys += keyStride;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void ScoresOfTwo<TElement>(float* query, int queryStride, byte* keys, nint keyStride, float* scores, int count, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        var j = 0;
        for (; j <= count - 4; j += 4)
        {
            TVector s0 = TOps.Zero, s1 = TOps.Zero, s2 = TOps.Zero, s3 = TOps.Zero;
            TVector t0 = TOps.Zero, t1 = TOps.Zero, t2 = TOps.Zero, t3 = TOps.Zero;
            var k0 = keys;
            var k1 = k0 + keyStride;
            var k2 = k1 + keyStride;
            var k3 = k2 + keyStride;
            for (nint d = 0; d < width; d += TOps.Lanes)
            {
                var (q0, q1) = (TOps.Load(query + d), TOps.Load(query + queryStride + d));
                var k = TElement.Load<TVector, TOps>(k0 + (d * TElement.Size));
                s0 = TOps.MultiplyAdd(q0, k, s0);
                t0 = TOps.MultiplyAdd(q1, k, t0);
                k = TElement.Load<TVector, TOps>(k1 + (d * TElement.Size));
                s1 = TOps.MultiplyAdd(q0, k, s1);
                t1 = TOps.MultiplyAdd(q1, k, t1);
                k = TElement.Load<TVector, TOps>(k2 + (d * TElement.Size));
                s2 = TOps.MultiplyAdd(q0, k, s2);
                t2 = TOps.MultiplyAdd(q1, k, t2);
                k = TElement.Load<TVector, TOps>(k3 + (d * TElement.Size));
                s3 = TOps.MultiplyAdd(q0, k, s3);
                t3 = TOps.MultiplyAdd(q1, k, t3);
            }

            TOps.SumEach(s0, s1, s2, s3).Store(scores + j);
            TOps.SumEach(t0, t1, t2, t3).Store(scores + Stretch + j);
            upcoming.Request(j);
            upcoming.Request(j + 1);
            upcoming.Request(j + 2);
            upcoming.Request(j + 3);
            keys += 4 * keyStride;
        }

        for (; j < count; j++)
        {
            TVector s = TOps.Zero, t = TOps.Zero;
            for (nint d = 0; d < width; d += TOps.Lanes)
            {
                var k = TElement.Load<TVector, TOps>(keys + (d * TElement.Size));
                s = TOps.MultiplyAdd(TOps.Load(query + d), k, s);
                t = TOps.MultiplyAdd(TOps.Load(query + queryStride + d), k, t);
            }

            scores[j] = TOps.Sum(s);
            scores[Stretch + j] = TOps.Sum(t);
            keys += keyStride;
        }
    }

    /// <summary>Turns the products of a row and a stretch into exponentials relative to the row's maximum, and counts them into its sum.</summary>
    /// <returns>What the row's output so far has to be multiplied with.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private float Exponentials(
        float* scores, long batch, long head, long query, long at, int count, long first, long last, long position, ref float maximum, ref float sum)
    {
        ref readonly var a = ref Problem.Arguments;
        var masking = a.Bias.IsGiven || a.KeyBias.IsGiven;
        var (from, to) = ((int)Math.Clamp(first - at, 0, count), (int)Math.Clamp(last - at, 0, count));
        if (from >= to)
        {
            return 1;
        }

        // Lanes that are not the row's: minus infinity becomes a weight of exactly zero.
        var padded = (count + TOps.Lanes - 1) / TOps.Lanes * TOps.Lanes;
        new Span<float>(scores, from).Fill(float.NegativeInfinity);
        new Span<float>(scores + to, padded - to).Fill(float.NegativeInfinity);
        if (a.Softcap > 0)
        {
            Cap(scores, padded, a.Softcap);
        }

        if (a.Bias.IsGiven)
        {
            AddBias(scores, (float*)a.Bias.Data + (batch * a.Bias.BatchStride) + (head * a.Bias.HeadStride) + (query * a.Bias.QueryStride) + (at * a.Bias.KeyStride), a.Bias.KeyStride, from, to);
        }

        if (a.KeyBias.IsGiven)
        {
            AddBias(scores, (float*)a.KeyBias.Data + (batch * a.KeyBias.BatchStride) + (head * a.KeyBias.HeadStride) + (at * a.KeyBias.KeyStride), a.KeyBias.KeyStride, from, to);
        }

        if (a.AlibiSlopes != null)
        {
            AddDistance(scores, padded, a.AlibiSlopes[head], at - position);
        }

        if (a.Softcap > 0 || a.AlibiSlopes != null)
        {
            new Span<float>(scores, from).Fill(float.NegativeInfinity);
            new Span<float>(scores + to, padded - to).Fill(float.NegativeInfinity);
        }

        var largest = TOps.Create(maximum);
        for (var j = 0; j < padded; j += TOps.Lanes)
        {
            largest = TOps.Max(TOps.Load(scores + j), largest);
        }

        var newMaximum = TOps.MaxAcross(largest);
        var reference = TOps.Create(float.IsNegativeInfinity(newMaximum) ? 0 : newMaximum);
        var total = TOps.Zero;
        for (var j = 0; j < padded; j += TOps.Lanes)
        {
            var score = TOps.Load(scores + j);
            var weight = VectorMath.Exp<TVector, TOps>(TOps.Subtract(score, reference));
            weight = masking ? TOps.Select(TOps.LessThan(score, TOps.Create(float.MinValue)), TOps.Create(-0f), weight) : weight;
            total = TOps.Add(total, weight);
            TOps.Store(weight, scores + j);
        }

        var factor = newMaximum == maximum || float.IsNegativeInfinity(newMaximum) ? 1 : MathF.Exp(maximum - newMaximum);
        sum = (sum * factor) + TOps.Sum(total);
        maximum = newMaximum;
        return factor;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void Cap(float* scores, int padded, float softcap)
    {
        var (cap, inverse) = (TOps.Create(softcap), TOps.Create(1 / softcap));
        for (var j = 0; j < padded; j += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(cap, VectorMath.Tanh<TVector, TOps>(TOps.Multiply(TOps.Load(scores + j), inverse))), scores + j);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void AddDistance(float* scores, int padded, float slope, long offset)
    {
        var (negative, start) = (TOps.Create(-slope), TOps.Create(offset));
        for (var j = 0; j < padded; j += TOps.Lanes)
        {
            var distance = TOps.Abs(TOps.Add(TOps.Add(start, TOps.Create(j)), TOps.Indices));
            TOps.Store(TOps.MultiplyAdd(negative, distance, TOps.Load(scores + j)), scores + j);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void AddBias(float* scores, float* bias, long stride, int from, int to)
    {
        for (var j = from; j < to; j++)
        {
            // A bias of minus infinity takes the pair away, whatever its key holds.
            var added = bias[j * stride];
            scores[j] = float.IsNegativeInfinity(added) ? added : scores[j] + added;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private void Rescale(float* output, float factor)
    {
        var by = TOps.Create(factor);
        for (var d = 0; d < OutputStride; d += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(output + d), by), output + d);
        }
    }

    /// <summary>output[rows] += weights[rows, count] * values[count]; a value outside a row's keys is not read into that row.</summary>
    private void Accumulate<TElement>(float* weights, byte* values, nint valueStride, float* output, long at, int count, long* first, long* last, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        var (rows, queries) = (Rows, Problem.Queries);
        var masking = Problem.Arguments.Bias.IsGiven || Problem.Arguments.KeyBias.IsGiven;
        for (var r = 0; r < rows;)
        {
            var together = !masking && rows - r >= 4 ? 4 : 1;
            int common = 0, commonEnd = count;
            for (var n = r; n < r + together; n++)
            {
                common = Math.Max(common, (int)Math.Clamp(first[n % queries] - at, 0, count));
                commonEnd = Math.Min(commonEnd, (int)Math.Clamp(last[n % queries] - at, 0, count));
            }

            commonEnd = Math.Max(common, commonEnd);
            var blockWeights = weights + ((long)r * Stretch);
            var blockOutput = output + ((long)r * OutputStride);
            if (masking)
            {
                AccumulateExisting<TElement>(blockWeights, values, valueStride, blockOutput, common, commonEnd, width);
            }
            else if (together == 1)
            {
                AccumulateOne<TElement>(blockWeights + common, values + (common * valueStride), valueStride, blockOutput, commonEnd - common, width, r == 0 ? upcoming : default);
            }
            else
            {
                AccumulateFour<TElement>(
                    blockWeights + common, values + (common * valueStride), valueStride, blockOutput, OutputStride, commonEnd - common, width, r == 0 ? upcoming : default);
                for (var n = r; n < r + together; n++)
                {
                    // The keys at the ends that not all of the four see.
                    var from = (int)Math.Clamp(first[n % queries] - at, 0, count);
                    var to = (int)Math.Clamp(last[n % queries] - at, 0, count);
                    var row = weights + ((long)n * Stretch);
                    var rowOutput = output + ((long)n * OutputStride);
                    var before = Math.Min(common, to);
                    AccumulateOne<TElement>(row + from, values + (from * valueStride), valueStride, rowOutput, before - from, width, default);
                    var after = Math.Max(Math.Max(commonEnd, from), before);
                    AccumulateOne<TElement>(row + after, values + (after * valueStride), valueStride, rowOutput, to - after, width, default);
                }
            }

            r += together;
        }
    }

    /// <summary>One key at a time, without the pairs that a bias took away.</summary>
    private static void AccumulateExisting<TElement>(float* weights, byte* values, nint valueStride, float* output, int from, int to, int width)
        where TElement : struct, IElement
    {
        for (var j = from; j < to; j++)
        {
            if (BitConverter.SingleToInt32Bits(weights[j]) != AbsentBits)
            {
                AccumulateOne<TElement>(weights + j, values + (j * valueStride), valueStride, output, 1, width, default);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    internal static void AccumulateOne<TElement>(float* weights, byte* values, nint valueStride, float* output, int count, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        nint d = 0;
        for (; d <= width - (8 * TOps.Lanes); d += 8 * TOps.Lanes)
        {
            var o = output + d;
            var v = values + (d * TElement.Size);
            TVector o0 = Vector(o, 0), o1 = Vector(o, 1), o2 = Vector(o, 2), o3 = Vector(o, 3), o4 = Vector(o, 4), o5 = Vector(o, 5), o6 = Vector(o, 6), o7 = Vector(o, 7);
            for (nint j = 0; j < count; j++)
            {
                var w = TOps.Create(weights[j]);
                o0 = TOps.MultiplyAdd(w, Vector<TElement>(v, 0), o0);
                o1 = TOps.MultiplyAdd(w, Vector<TElement>(v, 1), o1);
                o2 = TOps.MultiplyAdd(w, Vector<TElement>(v, 2), o2);
                o3 = TOps.MultiplyAdd(w, Vector<TElement>(v, 3), o3);
                o4 = TOps.MultiplyAdd(w, Vector<TElement>(v, 4), o4);
                o5 = TOps.MultiplyAdd(w, Vector<TElement>(v, 5), o5);
                o6 = TOps.MultiplyAdd(w, Vector<TElement>(v, 6), o6);
                o7 = TOps.MultiplyAdd(w, Vector<TElement>(v, 7), o7);
                upcoming.Request(j);
                v += valueStride;
            }

            TOps.Store(o0, o);
            TOps.Store(o1, o + TOps.Lanes);
            TOps.Store(o2, o + (2 * TOps.Lanes));
            TOps.Store(o3, o + (3 * TOps.Lanes));
            TOps.Store(o4, o + (4 * TOps.Lanes));
            TOps.Store(o5, o + (5 * TOps.Lanes));
            TOps.Store(o6, o + (6 * TOps.Lanes));
            TOps.Store(o7, o + (7 * TOps.Lanes));
            upcoming = default;
        }

        for (; d <= width - (4 * TOps.Lanes); d += 4 * TOps.Lanes)
        {
            var o = output + d;
            var v = values + (d * TElement.Size);
            TVector o0 = Vector(o, 0), o1 = Vector(o, 1), o2 = Vector(o, 2), o3 = Vector(o, 3);
            for (nint j = 0; j < count; j++)
            {
                var w = TOps.Create(weights[j]);
                o0 = TOps.MultiplyAdd(w, Vector<TElement>(v, 0), o0);
                o1 = TOps.MultiplyAdd(w, Vector<TElement>(v, 1), o1);
                o2 = TOps.MultiplyAdd(w, Vector<TElement>(v, 2), o2);
                o3 = TOps.MultiplyAdd(w, Vector<TElement>(v, 3), o3);
                upcoming.Request(j);
                v += valueStride;
            }

            TOps.Store(o0, o);
            TOps.Store(o1, o + TOps.Lanes);
            TOps.Store(o2, o + (2 * TOps.Lanes));
            TOps.Store(o3, o + (3 * TOps.Lanes));
            upcoming = default;
        }

        for (; d < width; d += TOps.Lanes)
        {
            var v = values + (d * TElement.Size);
            var sum = TOps.Load(output + d);
            for (nint j = 0; j < count; j++)
            {
                sum = TOps.MultiplyAdd(TOps.Create(weights[j]), Vector<TElement>(v, 0), sum);
                upcoming.Request(j);
                v += valueStride;
            }

            TOps.Store(sum, output + d);
            upcoming = default;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization | MethodImplOptions.NoInlining)]
    private static void AccumulateFour<TElement>(float* weights, byte* values, nint valueStride, float* output, int outputStride, int count, int width, Upcoming upcoming)
        where TElement : struct, IElement
    {
        nint d = 0;
        for (; d <= width - (2 * TOps.Lanes); d += 2 * TOps.Lanes)
        {
            var v = values + (d * TElement.Size);
            var o = output + d;
            var p = o + outputStride;
            var q = p + outputStride;
            var r = q + outputStride;
            TVector o0 = Vector(o, 0), o1 = Vector(o, 1), p0 = Vector(p, 0), p1 = Vector(p, 1), q0 = Vector(q, 0), q1 = Vector(q, 1), r0 = Vector(r, 0), r1 = Vector(r, 1);
            for (nint j = 0; j < count; j++)
            {
                var (v0, v1) = (Vector<TElement>(v, 0), Vector<TElement>(v, 1));
                var w = TOps.Create(weights[j]);
                o0 = TOps.MultiplyAdd(w, v0, o0);
                o1 = TOps.MultiplyAdd(w, v1, o1);
                w = TOps.Create(weights[Stretch + j]);
                p0 = TOps.MultiplyAdd(w, v0, p0);
                p1 = TOps.MultiplyAdd(w, v1, p1);
                w = TOps.Create(weights[(2 * Stretch) + j]);
                q0 = TOps.MultiplyAdd(w, v0, q0);
                q1 = TOps.MultiplyAdd(w, v1, q1);
                w = TOps.Create(weights[(3 * Stretch) + j]);
                r0 = TOps.MultiplyAdd(w, v0, r0);
                r1 = TOps.MultiplyAdd(w, v1, r1);
                upcoming.Request(j);
                v += valueStride;
            }

            TOps.Store(o0, o);
            TOps.Store(o1, o + TOps.Lanes);
            TOps.Store(p0, p);
            TOps.Store(p1, p + TOps.Lanes);
            TOps.Store(q0, q);
            TOps.Store(q1, q + TOps.Lanes);
            TOps.Store(r0, r);
            TOps.Store(r1, r + TOps.Lanes);
            upcoming = default;
        }

        if (d < width)
        {
            for (var row = 0; row < 4; row++)
            {
                AccumulateOne<TElement>(weights + (row * Stretch), values + (d * TElement.Size), valueStride, output + (row * outputStride) + d, count, (int)(width - d), default);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector Vector(float* source, nint index) => TOps.Load(source + (index * TOps.Lanes));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector Vector<TElement>(byte* source, nint index)
        where TElement : struct, IElement => TElement.Load<TVector, TOps>(source + (index * TOps.Lanes * TElement.Size));
}
