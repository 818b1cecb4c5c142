using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Heed.Lab.Benchmarks;

/// <summary>What the machine can do at most, measured now: the denominators of "fraction of limit".</summary>
/// <param name="FusedMultiplyAddGigaflops">Float32 multiply-adds from registers, two operations each, over all threads asked for.</param>
/// <param name="ReadGigabytesPerSecond">Reading a buffer far larger than the caches, over all threads asked for.</param>
public sealed record MachineLimits(double FusedMultiplyAddGigaflops, double ReadGigabytesPerSecond)
{
    private const long BufferBytes = 1L << 28;

    /// <summary>Measures with a number of threads; the best of several short runs, for a limit is what nothing exceeds.</summary>
    public static MachineLimits Measure(int threads) => new(Best(threads, MultiplyAdds), BestRead(threads));

    private static double Best(int threads, Func<double> work)
    {
        var best = 0.0;
        for (var round = 0; round < 5; round++)
        {
            var rates = OnThreads(threads, _ => work());
            best = Math.Max(best, rates.Sum());
        }

        return best;
    }

    private static unsafe double BestRead(int threads)
    {
        var buffer = (float*)NativeMemory.AlignedAlloc((nuint)BufferBytes, 64);
        try
        {
            new Span<float>(buffer, (int)(BufferBytes / sizeof(float))).Fill(1);
            var share = BufferBytes / sizeof(float) / threads / 128 * 128;
            var best = 0.0;
            for (var round = 0; round < 5; round++)
            {
                var rates = OnThreads(threads, thread => Read(buffer + (thread * share), share));
                best = Math.Max(best, rates.Sum());
            }

            return best;
        }
        finally
        {
            NativeMemory.AlignedFree(buffer);
        }
    }

    private static double[] OnThreads(int threads, Func<int, double> work)
    {
        var rates = new double[threads];
        using var barrier = new Barrier(threads);
        var running = Enumerable.Range(0, threads).Select(thread => new Thread(() =>
        {
            barrier.SignalAndWait();
            rates[thread] = work(thread);
        })).ToList();
        running.ForEach(thread => thread.Start());
        running.ForEach(thread => thread.Join());
        return rates;
    }

    private static unsafe double MultiplyAdds()
    {
        const int Rounds = 4_000_000;
        var kept = stackalloc float[16];
        var start = Stopwatch.GetTimestamp();
        MultiplyAdds(kept, Rounds);
        return Rounds * 12.0 * 16 * 2 / Stopwatch.GetElapsedTime(start).TotalSeconds / 1e9;
    }

    private static unsafe double Read(float* data, long count)
    {
        var kept = stackalloc float[16];
        var start = Stopwatch.GetTimestamp();
        Read(data, count, kept);
        return count * sizeof(float) / Stopwatch.GetElapsedTime(start).TotalSeconds / 1e9;
    }

    // The loops stand in methods of their own that call nothing: beside a call their sums would live on the stack and measure its latency.
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static unsafe void MultiplyAdds(float* kept, int rounds)
    {
        var (a, b) = (Vector512.Create(0.999f), Vector512.Create(0.001f));
        Vector512<float> c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;
        for (var i = 0; i < rounds; i++)
        {
            c0 = Vector512.FusedMultiplyAdd(c0, a, b);
            c1 = Vector512.FusedMultiplyAdd(c1, a, b);
            c2 = Vector512.FusedMultiplyAdd(c2, a, b);
            c3 = Vector512.FusedMultiplyAdd(c3, a, b);
            c4 = Vector512.FusedMultiplyAdd(c4, a, b);
            c5 = Vector512.FusedMultiplyAdd(c5, a, b);
            c6 = Vector512.FusedMultiplyAdd(c6, a, b);
            c7 = Vector512.FusedMultiplyAdd(c7, a, b);
            c8 = Vector512.FusedMultiplyAdd(c8, a, b);
            c9 = Vector512.FusedMultiplyAdd(c9, a, b);
            c10 = Vector512.FusedMultiplyAdd(c10, a, b);
            c11 = Vector512.FusedMultiplyAdd(c11, a, b);
        }

        (c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11).Store(kept);
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static unsafe void Read(float* data, long count, float* kept)
    {
        Vector512<float> s0 = default, s1 = default, s2 = default, s3 = default, s4 = default, s5 = default, s6 = default, s7 = default;
        for (long i = 0; i < count; i += 128)
        {
            s0 += Vector512.Load(data + i);
            s1 += Vector512.Load(data + i + 16);
            s2 += Vector512.Load(data + i + 32);
            s3 += Vector512.Load(data + i + 48);
            s4 += Vector512.Load(data + i + 64);
            s5 += Vector512.Load(data + i + 80);
            s6 += Vector512.Load(data + i + 96);
            s7 += Vector512.Load(data + i + 112);
        }

        (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7).Store(kept);
    }
}
