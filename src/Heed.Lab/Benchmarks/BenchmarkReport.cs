using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Text;
using System.Text.Json;
using Heed.Interop;
using Heed.Models;

namespace Heed.Lab.Benchmarks;

/// <summary>The rows of one family as last measured, with the circumstances.</summary>
/// <param name="Family">The family's name.</param>
/// <param name="Date">When, UTC.</param>
/// <param name="Machine">On what.</param>
/// <param name="Limits">The machine's limits by number of threads, as words.</param>
/// <param name="Rows">The rows.</param>
public sealed record BenchmarkRun(string Family, DateTime Date, string Machine, IReadOnlyList<string> Limits, IReadOnlyList<BenchmarkResult> Rows);

/// <summary>
/// Keeps the last run of every family in a JSON file beside a Markdown page made from it, so that measuring one family again replaces its section only.
/// </summary>
public static class BenchmarkReport
{
    private static readonly JsonSerializerOptions Format = new(JsonSerializerDefaults.Web) { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <summary>The machine in words: processor, cores, vector width, runtime, libtorch, its wait policy.</summary>
    public static string Machine()
    {
        var model = File.Exists("/proc/cpuinfo")
            ? File.ReadLines("/proc/cpuinfo").FirstOrDefault(line => line.StartsWith("model name", StringComparison.Ordinal))?.Split(':')[1].Trim()
            : null;
        var width = Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : 128;
        return $"{model ?? RuntimeInformation.ProcessArchitecture.ToString()}, {Environment.ProcessorCount} cores, {width}-bit vectors, {RuntimeInformation.FrameworkDescription}, "
            + $"libtorch {NativeLibraries.LibTorchVersion}, OMP_WAIT_POLICY={Environment.GetEnvironmentVariable("OMP_WAIT_POLICY") ?? "unset"}";
    }

    /// <summary>Puts a run in place of the family's earlier one and rewrites the page.</summary>
    /// <param name="page">The Markdown file; the data goes beside it with the extension <c>.json</c>.</param>
    /// <param name="run">The run.</param>
    public static void Update(string page, BenchmarkRun run)
    {
        var data = Path.ChangeExtension(page, ".json");
        var runs = File.Exists(data) ? JsonSerializer.Deserialize<List<BenchmarkRun>>(File.ReadAllText(data), Format) ?? [] : [];
        runs.RemoveAll(earlier => earlier.Family == run.Family);
        runs.Add(run);
        var order = BenchmarkFamily.All.Select(family => family.Name).ToList();
        runs.Sort((a, b) => order.IndexOf(a.Family).CompareTo(order.IndexOf(b.Family)));
        AtomicFile.WriteText(data, JsonSerializer.Serialize(runs, Format) + "\n");
        AtomicFile.WriteText(page, Markdown(runs));
    }

    /// <summary>The page.</summary>
    public static string Markdown(IEnumerable<BenchmarkRun> runs)
    {
        var page = new StringBuilder(
            """
            # Benchmarks

            Written by `heed bench`; every figure is one that it measured. Ours and the peer run in turn in one process with equal threads, float32 unless the row
            says otherwise; times are medians after a warm-up, the ratio is the median of peer / ours (above 1: ours is faster). The share of the limit is of the multiply-adds
            or the read bandwidth that the same run measured. Peak memory is the growth of the resident set during one call after the warm-up, when pooled workspaces exist. Shared machines are noisy: read ratios, not times.
            What falls short of its aim, and why: [speed](speed.md).

            """);
        foreach (var run in runs)
        {
            var family = BenchmarkFamily.All.FirstOrDefault(known => known.Name == run.Family);
            page.Append(CultureInfo.InvariantCulture, $"\n## {run.Family}\n\n{family?.Title ?? run.Family}. Measured {run.Date:yyyy-MM-dd HH:mm} UTC on {run.Machine}.\n{string.Join("; ", run.Limits)}.\n\n");
            page.Append("| work | shape | threads | ours, ms | peer | peer, ms | ratio | of limit | peak, MB | exponent | aim | met |\n|---|---|---:|---:|---|---:|---:|---:|---:|---:|---|---|\n");
            foreach (var row in run.Rows)
            {
                page.Append(CultureInfo.InvariantCulture, $"| {row.Name} | {row.Shape} | {row.Threads} | {Time(row.Milliseconds)} | {row.Peer} | {Time(row.PeerMilliseconds)} | ")
                    .Append(CultureInfo.InvariantCulture, $"{row.Ratio:0.00} | {row.FractionOfLimit:P0} | {row.PeakBytes / 1e6:0.0} | {row.Exponent:0.00} | {row.Aim} | {(row.Met is { } met ? met ? "yes" : "no" : "")} |\n");
            }
        }

        return page.ToString();
    }

    private static string Time(double? milliseconds) => milliseconds is { } time ? time.ToString(time < 1 ? "0.000" : time < 100 ? "0.00" : "0", CultureInfo.InvariantCulture) : "";
}
