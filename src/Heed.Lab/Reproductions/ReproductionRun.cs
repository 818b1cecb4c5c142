using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Serialization;
using Heed.Lab.Figures;
using Heed.Models;

namespace Heed.Lab.Reproductions;

/// <summary>What the numbers say.</summary>
public enum Verdict
{
    /// <summary>The claim holds at this scale.</summary>
    [JsonStringEnumMemberName("confirmed")]
    Confirmed,

    /// <summary>It does not.</summary>
    [JsonStringEnumMemberName("not confirmed")]
    NotConfirmed,

    /// <summary>The numbers do not decide.</summary>
    [JsonStringEnumMemberName("inconclusive")]
    Inconclusive,
}

/// <summary>Verdicts as people and programs read them.</summary>
public static class Verdicts
{
    /// <summary>The verdict in words.</summary>
    public static string Word(Verdict verdict) => verdict switch { Verdict.Confirmed => "confirmed", Verdict.NotConfirmed => "not confirmed", _ => "inconclusive" };
}

/// <summary>A claim and what was measured.</summary>
/// <param name="Claim">The claim, in one sentence.</param>
/// <param name="Source">Where the paper makes it, with its figure.</param>
/// <param name="Expected">What would confirm it at this scale, in numbers.</param>
/// <param name="Measured">What was measured, in numbers.</param>
/// <param name="Verdict">What follows.</param>
public sealed record ReproducedClaim(string Claim, string Source, string Expected, string Measured, Verdict Verdict);

/// <summary>A table of a reproduction's report.</summary>
/// <param name="Title">What it shows.</param>
/// <param name="Columns">Column headings.</param>
/// <param name="Rows">Cells, row by row.</param>
public sealed record ReproductionTable(string Title, IReadOnlyList<string> Columns, IReadOnlyList<IReadOnlyList<string>> Rows);

/// <summary>How far a reproduction is.</summary>
/// <param name="What">What is being done, in a few words.</param>
/// <param name="Share">Done, 0 to 1.</param>
public readonly record struct ReproductionProgress(string What, double Share);

/// <summary>One run of a reproduction: what it was asked for, and what it leaves behind. Everything measured is kept on disk as soon as it is known, so that a run that was stopped goes on
/// where it was.</summary>
public sealed class ReproductionRun
{
    // A name that no reproduction gives: the seconds of the runs before this one.
    private const string SecondsKey = " seconds";

    // Tuples keep their values in fields, and a measurement may be infinite or no number at all.
    private static readonly JsonSerializerOptions Format = new() { IncludeFields = true, NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals };
    private readonly string? _memory;
    private readonly Stopwatch _clock = Stopwatch.StartNew();
    private readonly double _secondsBefore;
    private readonly Dictionary<string, JsonElement> _known;
    private readonly Action<ReproductionProgress> _progress;

    /// <summary>Initializes a run.</summary>
    /// <param name="isQuick">Whether to take at most twenty seconds, on smaller problems and fewer seeds.</param>
    /// <param name="memory">The file that remembers what was measured; null: nothing is remembered.</param>
    /// <param name="progress">Told of progress.</param>
    /// <param name="cancellation">Stops the run.</param>
    /// <exception cref="InvalidDataException">The file is not what an earlier run left.</exception>
    public ReproductionRun(bool isQuick, string? memory, Action<ReproductionProgress> progress, CancellationToken cancellation)
    {
        IsQuick = isQuick;
        Cancellation = cancellation;
        _memory = memory;
        _progress = progress;
        try
        {
            _known = memory is not null && File.Exists(memory) ? JsonSerializer.Deserialize<Dictionary<string, JsonElement>>(File.ReadAllText(memory)) ?? [] : [];
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"'{memory}' is not what a stopped run left: delete it to start afresh.", error);
        }

        _secondsBefore = _known.TryGetValue(SecondsKey, out var before) ? before.GetDouble() : 0;
    }

    /// <summary>Seconds of work, those of the runs that this one goes on from included.</summary>
    public double Seconds => _secondsBefore + _clock.Elapsed.TotalSeconds;

    /// <summary>Whether the run takes at most twenty seconds.</summary>
    public bool IsQuick { get; }

    /// <summary>Stops the run: to be asked between steps that take longer than a second.</summary>
    public CancellationToken Cancellation { get; }

    /// <summary>The claims stated so far.</summary>
    public List<ReproducedClaim> Claims { get; } = [];

    /// <summary>Tables of the report.</summary>
    public List<ReproductionTable> Tables { get; } = [];

    /// <summary>Figures of the report.</summary>
    public List<LineFigure> Figures { get; } = [];

    /// <summary>Pictures of the report: title and PNG.</summary>
    public List<(string Title, byte[] Png)> Pictures { get; } = [];

    /// <summary>Sentences under the claims: what was left out, what to keep in mind.</summary>
    public List<string> Notes { get; } = [];

    /// <summary>The seeds that were used, for the report.</summary>
    public SortedSet<int> Seeds { get; } = [];

    /// <summary>Tells how far the run is.</summary>
    /// <param name="what">What is being done.</param>
    /// <param name="share">Done, 0 to 1.</param>
    public void Tell(string what, double share)
    {
        Cancellation.ThrowIfCancellationRequested();
        _progress(new(what, share));
    }

    /// <summary>Measures something once: a run that goes on after a stop takes the remembered value. libtorch's generator is seeded by the key before the measurement, so that its value does not
    /// depend on what was measured before it.</summary>
    /// <typeparam name="T">Something that JSON keeps: a number, an array, a tuple, a record.</typeparam>
    /// <param name="key">Its name, unique within the reproduction, with everything that decides its value (seed, sizes).</param>
    /// <param name="measure">Measures it.</param>
    public T Once<T>(string key, Func<T> measure)
    {
        ArgumentNullException.ThrowIfNull(measure);
        if (_known.TryGetValue(key, out var remembered))
        {
            return remembered.Deserialize<T>(Format)!;
        }

        Cancellation.ThrowIfCancellationRequested();
        T value;
        using (TorchSharp.torch.NewDisposeScope())
        {
            TorchSharp.torch.manual_seed(SeedOf(key));
            value = measure();
        }

        _known[key] = JsonSerializer.SerializeToElement(value, Format);
        if (_memory is not null)
        {
            _known[SecondsKey] = JsonSerializer.SerializeToElement(Seconds);
            AtomicFile.WriteText(_memory, JsonSerializer.Serialize(_known));
        }

        return value;
    }

    /// <summary>States a claim.</summary>
    public void Claim(string claim, string source, string expected, string measured, Verdict verdict) => Claims.Add(new(claim, source, expected, measured, verdict));

    /// <summary>States a claim that one condition decides.</summary>
    public void Claim(string claim, string source, string expected, string measured, bool holds) =>
        Claim(claim, source, expected, measured, holds ? Verdict.Confirmed : Verdict.NotConfirmed);

    // FNV-1a: string.GetHashCode differs from process to process.
    private static long SeedOf(string key) => key.Aggregate(2166136261u, (hash, letter) => unchecked((hash ^ letter) * 16777619u));
}
