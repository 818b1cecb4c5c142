using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Heed.Lab.Benchmarks;

/// <summary>Times two pieces of work in turn, so that a machine whose speed drifts slows both alike.</summary>
internal static class PairedTimer
{
    /// <summary>Median times and the median of the pairwise ratios.</summary>
    /// <param name="ours">Our work.</param>
    /// <param name="peer">The peer's; null: none.</param>
    /// <param name="budget">How long to measure altogether, after the warm-up. At least three pairs are measured, of long ones fewer.</param>
    /// <param name="cancellation">Stops between two runs.</param>
    public static (double Ours, double? Peer, double? Ratio) Measure(Action ours, Action? peer, TimeSpan budget, CancellationToken cancellation)
    {
        var warm = Once(ours) + (peer is null ? 0 : Once(peer));
        // Noise is short: a pair of many seconds averages it out by itself.
        var least = warm < 3_000 ? 3 : warm < 10_000 ? 2 : 1;

        var oursTimes = new List<double>();
        var peerTimes = new List<double>();
        var clock = Stopwatch.StartNew();
        while (oursTimes.Count < least || (clock.Elapsed < budget && oursTimes.Count < 200))
        {
            cancellation.ThrowIfCancellationRequested();
            oursTimes.Add(Once(ours));
            if (peer is not null)
            {
                peerTimes.Add(Once(peer));
            }
        }

        return peer is null
            ? (Median(oursTimes), null, null)
            : (Median(oursTimes), Median(peerTimes), Median(oursTimes.Zip(peerTimes, (a, b) => b / a)));
    }

    /// <summary>As <see cref="PeakGrowth"/>, with every tensor of more than 64 KiB in pages of its own, so that holes between blocks of the heap do not count. Timings before and after it are not of the same allocator.</summary>
    public static long? ExactPeakGrowth(Action work)
    {
        const int mapFrom = -3, large = 32 << 20;
        try
        {
            SetAllocator(mapFrom, 64 << 10);
            return PeakGrowth(work);
        }
        finally
        {
            SetAllocator(mapFrom, large);
        }
    }

    private static void SetAllocator(int option, int value)
    {
        try
        {
            _ = SetOption(option, value);
        }
        catch (Exception error) when (error is EntryPointNotFoundException or DllNotFoundException)
        {
            // Not glibc: holes count.
        }
    }

    /// <summary>How much the resident set grows at most while the work runs, in bytes; null where the system does not tell.</summary>
    public static long? PeakGrowth(Action work)
    {
        const string Reset = "/proc/self/clear_refs";
        try
        {
            ReturnFreeMemory();
            File.WriteAllText(Reset, "5");
            var before = Status("VmRSS:");
            work();
            return Math.Max(0, Status("VmHWM:") - before);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>Memory that earlier calls freed stays resident where the C library keeps it for the next allocation: given back, what a call takes is seen.</summary>
    private static void ReturnFreeMemory()
    {
        GC.Collect();
        try
        {
            _ = Trim(0);
        }
        catch (Exception error) when (error is EntryPointNotFoundException or DllNotFoundException)
        {
            // Not glibc: the figure is then a lower bound.
        }
    }

    [DllImport("libc", EntryPoint = "malloc_trim")]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern int Trim(nint pad);

    [DllImport("libc", EntryPoint = "mallopt")]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern int SetOption(int option, int value);

    public static double Median(IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return sorted.Length % 2 == 1 ? sorted[sorted.Length / 2] : (sorted[(sorted.Length / 2) - 1] + sorted[sorted.Length / 2]) / 2;
    }

    private static double Once(Action work)
    {
        var start = Stopwatch.GetTimestamp();
        work();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }

    private static long Status(string key) =>
        1024 * long.Parse(File.ReadLines("/proc/self/status").First(line => line.StartsWith(key, StringComparison.Ordinal))[key.Length..].Replace("kB", "", StringComparison.Ordinal).Trim());
}
