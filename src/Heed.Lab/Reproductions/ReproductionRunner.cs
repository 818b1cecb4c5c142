using System.Text.Json;
using Heed.Lab.Benchmarks;
using Heed.Models;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Runs a reproduction and leaves its results in a folder.</summary>
public static class ReproductionRunner
{
    /// <summary>The results, for programs.</summary>
    public const string ResultsFile = "results.json";

    /// <summary>The report, for people.</summary>
    public const string ReportFile = "report.html";

    private const long Seed = 1;

    /// <summary>Runs a reproduction.</summary>
    /// <param name="reproduction">The reproduction.</param>
    /// <param name="folder">Where results and report go; made if it does not exist.</param>
    /// <param name="quick">Whether to take at most twenty seconds.</param>
    /// <param name="resume">Whether to go on with a run that was stopped; where there is none, it starts afresh.</param>
    /// <param name="progress">Told of progress; null: nobody.</param>
    /// <param name="cancellation">Stops the run; what it has measured is remembered in the folder.</param>
    /// <returns>What was measured.</returns>
    /// <exception cref="ArgumentException">A run that was stopped lies in the folder, and <paramref name="resume"/> is false.</exception>
    /// <exception cref="OperationCanceledException">It was stopped.</exception>
    public static ReproductionRecord Run(
        Reproduction reproduction, string folder, bool quick, bool resume, Action<ReproductionProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(reproduction);
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (!resume)
        {
            RefuseUnfinished(folder, quick);
        }

        Directory.CreateDirectory(folder);
        var memory = MemoryOf(folder, quick);
        var run = new ReproductionRun(quick, memory, progress ?? (_ => { }), cancellation);
        manual_seed(Seed);
        using (NewDisposeScope())
        {
            reproduction.Run(run);
        }

        if (run.Claims.Count == 0)
        {
            throw new InvalidOperationException($"The reproduction of '{reproduction.Slug}' states no claim.");
        }

        var record = new ReproductionRecord(
            reproduction.Slug, DateTime.UtcNow, BenchmarkReport.Machine(), quick, Math.Round(run.Seconds, 1), [.. run.Seeds], run.Claims, run.Tables, run.Notes);
        AtomicFile.WriteText(Path.Combine(folder, ResultsFile), record.ToJson() + "\n");
        AtomicFile.Write(Path.Combine(folder, ReportFile), stream => ReproductionReport.Write(record, reproduction.Summary, run.Figures, run.Pictures, stream));
        File.Delete(memory);
        return record;
    }

    /// <summary>What a finished run of the same form left in a folder; null where there is none.</summary>
    /// <exception cref="InvalidDataException">The results are not what a run left.</exception>
    public static ReproductionRecord? Finished(string folder, bool quick)
    {
        var path = Path.Combine(folder, ResultsFile);
        try
        {
            return File.Exists(path) && JsonSerializer.Deserialize<ReproductionRecord>(File.ReadAllText(path), ReproductionRecord.Format) is { } record && record.Quick == quick ? record : null;
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"'{path}' is not what a reproduction left: delete it.", error);
        }
    }

    /// <summary>Whether a run of the same form that was stopped lies in a folder.</summary>
    public static bool IsUnfinished(string folder, bool quick) => File.Exists(MemoryOf(folder, quick));

    /// <summary>Refuses a folder in which a run of the same form was stopped.</summary>
    /// <exception cref="ArgumentException">There is one.</exception>
    public static void RefuseUnfinished(string folder, bool quick)
    {
        if (IsUnfinished(folder, quick))
        {
            throw new ArgumentException($"A run that was stopped lies in '{MemoryOf(folder, quick)}': go on with it by --resume, or delete it to start afresh.");
        }
    }

    // The two forms measure different things under what may be the same names.
    private static string MemoryOf(string folder, bool quick) => Path.Combine(folder, quick ? "unfinished-quick.json" : "unfinished.json");
}
