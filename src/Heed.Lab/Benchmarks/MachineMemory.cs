using System.Globalization;

namespace Heed.Lab.Benchmarks;

/// <summary>How much memory a benchmark may take: a row that does not fit is left out rather than ended by the system.</summary>
internal static class MachineMemory
{
    private const string Information = "/proc/meminfo";
    private const string Key = "MemAvailable:";

    /// <summary>Bytes that are free or can be freed.</summary>
    public static long Available()
    {
        // What the runtime may use is a container's limit, which the system's own figure does not know.
        var memory = GC.GetGCMemoryInfo();
        var allowed = memory.TotalAvailableMemoryBytes - Environment.WorkingSet;
        var line = File.Exists(Information) ? File.ReadLines(Information).FirstOrDefault(line => line.StartsWith(Key, StringComparison.Ordinal)) : null;
        return line is null ? allowed : Math.Min(allowed, 1024 * long.Parse(line[Key.Length..].Replace("kB", "", StringComparison.Ordinal).Trim(), CultureInfo.InvariantCulture));
    }
}
