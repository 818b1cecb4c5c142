using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>
/// Representative scoring: for gathered runs of keys, the largest product of any of a few queries with any key of the run. What searches over keys (HiP, chunk scans, span searches) spend their time in.
/// </summary>
/// <remarks>Computes on the caller's thread and allocates nothing; searches are parallel over what they search for. Where a product is NaN, so may the maximum be.</remarks>
public static unsafe class GatheredMaxima
{
    /// <summary>Queries that share the loads of a key.</summary>
    private const int RowsTogether = 4;

    /// <summary>Rows that <see cref="Pack"/> writes: as many as were given, rounded up to whole groups of the kernel; one alone stays alone.</summary>
    /// <param name="rows">Number of queries, from 1.</param>
    public static int PackedRows(int rows) => rows == 1 ? 1 : (rows + RowsTogether - 1) / RowsTogether * RowsTogether;

    /// <summary>Floats of a packed row.</summary>
    /// <param name="width">Width of a query.</param>
    public static int PackedStride(int width) => (int)Workspace.Lines(width);

    /// <summary>Packs one query for <see cref="Compute"/>: pads it with zeros.</summary>
    /// <param name="query">The query.</param>
    /// <param name="packed">Receives <see cref="PackedRows"/> rows of <see cref="PackedStride"/> floats.</param>
    /// <param name="row">Which of the rows it is.</param>
    /// <param name="rows">How many there are; the last one also fills the rows that complete a group.</param>
    public static void Pack(ReadOnlySpan<float> query, Span<float> packed, int row, int rows)
    {
        var stride = PackedStride(query.Length);
        var end = row == rows - 1 ? PackedRows(rows) : row + 1;
        for (var place = row; place < end; place++)
        {
            var into = packed.Slice(place * stride, stride);
            query.CopyTo(into);
            into[query.Length..].Clear();
        }
    }

    /// <summary>The largest products.</summary>
    /// <param name="queries">Packed queries (<see cref="Pack"/>).</param>
    /// <param name="rows">How many queries were packed, from 1.</param>
    /// <param name="keys">Keys of one batch item and head; only <see cref="TensorView.Data"/>, <see cref="TensorView.Length"/>, <see cref="TensorView.Width"/>, <see cref="TensorView.RowStride"/>
    /// and <see cref="TensorView.Type"/> are read.</param>
    /// <param name="blocks">Which blocks of keys: block b are the keys from b * <paramref name="keysPerBlock"/> on. What lies past the last key is not read.</param>
    /// <param name="keysPerBlock">Keys of a block, from 1.</param>
    /// <param name="step">Every how many keys of a block are scored: those at step - 1, 2 step - 1 and so on; 1: all.</param>
    /// <param name="maxima">Receives one number per block; minus infinity where a block has no key.</param>
    /// <exception cref="ArgumentException">A number is out of its range, or there is too little room.</exception>
    public static void Compute(ReadOnlySpan<float> queries, int rows, TensorView keys, ReadOnlySpan<int> blocks, int keysPerBlock, int step, Span<float> maxima)
    {
        if (rows < 1 || keysPerBlock < 1 || step < 1 || step > keysPerBlock)
        {
            throw new ArgumentException($"At least 1 query, 1 key a block and a step from 1 to the keys of a block are needed, not {rows}, {keysPerBlock} and {step}.", nameof(rows));
        }

        if (queries.Length < (long)PackedRows(rows) * PackedStride(checked((int)keys.Width)) || maxima.Length < blocks.Length)
        {
            throw new ArgumentException(
                $"{rows} queries of {keys.Width} and {blocks.Length} blocks need room for {(long)PackedRows(rows) * PackedStride((int)keys.Width)} packed floats and as many maxima as blocks; "
                + $"{queries.Length} and {maxima.Length} were given.", nameof(queries));
        }

        foreach (var block in blocks)
        {
            if (block < 0)
            {
                throw new ArgumentException($"Blocks of keys count from 0; {block} was given.", nameof(blocks));
            }
        }

        if (Vector512.IsHardwareAccelerated)
        {
            Compute<Vector512<float>, Vector512Operations>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Compute<Vector256<float>, Vector256Operations>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
        }
        else
        {
            Compute<Vector128<float>, Vector128Operations>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
        }
    }

    /// <summary>As the public method, checked already, at one width of vectors.</summary>
    internal static void Compute<TVector, TOps>(ReadOnlySpan<float> queries, int rows, TensorView keys, ReadOnlySpan<int> blocks, int keysPerBlock, int step, Span<float> maxima)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        switch (keys.Type)
        {
            case ElementType.Float32:
                Compute<TVector, TOps, Float32Element>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
                break;
            case ElementType.Float16:
                Compute<TVector, TOps, Float16Element>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
                break;
            default:
                Compute<TVector, TOps, BFloat16Element>(queries, rows, keys, blocks, keysPerBlock, step, maxima);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Compute<TVector, TOps, TKey>(ReadOnlySpan<float> queries, int rows, TensorView keys, ReadOnlySpan<int> blocks, int keysPerBlock, int step, Span<float> maxima)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TKey : struct, IElement
    {
        // Random rows come from far away: enough of them are asked for ahead that the memory is never idle.
        const int Ahead = 8, CacheLine = 64;
        var width = (int)keys.Width;
        var whole = width - (width % TOps.Lanes);
        var stride = PackedStride(width);
        var groups = PackedRows(rows) / RowsTogether;
        var rowBytes = (nint)(keys.RowStride * TKey.Size);
        var tail = stackalloc float[TOps.Lanes];
        new Span<float>(tail, TOps.Lanes).Clear();
        fixed (float* packed = queries)
        {
            for (var i = 0; i < blocks.Length; i++)
            {
                if (i + Ahead < blocks.Length)
                {
                    var upcoming = (byte*)keys.Data + (blocks[i + Ahead] * (long)keysPerBlock * rowBytes);
                    for (var key = step - 1; key < keysPerBlock; key += step)
                    {
                        for (var at = 0; at < width * TKey.Size; at += CacheLine)
                        {
                            TOps.Prefetch((float*)(upcoming + (key * rowBytes) + at));
                        }
                    }
                }

                var best = Vector128.Create(float.NegativeInfinity);
                var first = blocks[i] * (long)keysPerBlock;
                var last = Math.Min(first + keysPerBlock, keys.Length);
                for (var key = first + step - 1; key < last; key += step)
                {
                    var row = (byte*)keys.Data + (key * rowBytes);
                    for (var d = whole; d < width; d++)
                    {
                        tail[d - whole] = TKey.Read(row + (d * TKey.Size));
                    }

                    if (groups == 0)
                    {
                        var sum = TOps.Zero;
                        for (var d = 0; d < whole; d += TOps.Lanes)
                        {
                            sum = TOps.MultiplyAdd(TKey.Load<TVector, TOps>(row + (d * TKey.Size)), TOps.Load(packed + d), sum);
                        }

                        if (whole < width)
                        {
                            sum = TOps.MultiplyAdd(TOps.Load(tail), TOps.Load(packed + whole), sum);
                        }

                        best = Vector128.MaxNative(best, Vector128.CreateScalarUnsafe(TOps.Sum(sum)));
                        continue;
                    }

                    for (var group = 0; group < groups; group++)
                    {
                        var q = packed + (group * RowsTogether * stride);
                        var (one, two, three, four) = (TOps.Zero, TOps.Zero, TOps.Zero, TOps.Zero);
                        for (var d = 0; d < whole; d += TOps.Lanes)
                        {
                            var k = TKey.Load<TVector, TOps>(row + (d * TKey.Size));
                            one = TOps.MultiplyAdd(k, TOps.Load(q + d), one);
                            two = TOps.MultiplyAdd(k, TOps.Load(q + stride + d), two);
                            three = TOps.MultiplyAdd(k, TOps.Load(q + (2 * stride) + d), three);
                            four = TOps.MultiplyAdd(k, TOps.Load(q + (3 * stride) + d), four);
                        }

                        if (whole < width)
                        {
                            var k = TOps.Load(tail);
                            one = TOps.MultiplyAdd(k, TOps.Load(q + whole), one);
                            two = TOps.MultiplyAdd(k, TOps.Load(q + stride + whole), two);
                            three = TOps.MultiplyAdd(k, TOps.Load(q + (2 * stride) + whole), three);
                            four = TOps.MultiplyAdd(k, TOps.Load(q + (3 * stride) + whole), four);
                        }

                        best = Vector128.MaxNative(best, TOps.SumEach(one, two, three, four));
                    }
                }

                maxima[i] = groups == 0 ? best.ToScalar() : MathF.Max(MathF.Max(best[0], best[1]), MathF.Max(best[2], best[3]));
            }
        }
    }
}
