using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Heed.Lab.Reproductions;

/// <summary>What a reproduction measured, as programs read it: <c>results.json</c>, <c>heed reproduce --json</c>, <c>docs/reproductions.json</c>.</summary>
/// <param name="Slug">The paper.</param>
/// <param name="Date">When it ended, UTC.</param>
/// <param name="Machine">On what.</param>
/// <param name="Quick">Whether it was the short form, whose verdicts say little.</param>
/// <param name="Seconds">How long it took, over all interruptions.</param>
/// <param name="Seeds">Seeds used.</param>
/// <param name="Claims">The claims.</param>
/// <param name="Tables">Tables of the report.</param>
/// <param name="Notes">What was left out, what to keep in mind.</param>
public sealed record ReproductionRecord(
    string Slug,
    DateTime Date,
    string Machine,
    bool Quick,
    double Seconds,
    IReadOnlyList<int> Seeds,
    IReadOnlyList<ReproducedClaim> Claims,
    IReadOnlyList<ReproductionTable> Tables,
    IReadOnlyList<string> Notes)
{
    internal static JsonSerializerOptions Format { get; } = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        WriteIndented = true,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        Converters = { new JsonStringEnumConverter() },
    };

    /// <summary>The claims counted by verdict, for example <c>2 of 3 claims confirmed, 1 not confirmed</c>.</summary>
    [JsonIgnore]
    public string Counts => string.Create(
        CultureInfo.InvariantCulture, $"{Count(Verdict.Confirmed)} of {Claims.Count} claim{(Claims.Count == 1 ? "" : "s")} confirmed{Others(Verdict.NotConfirmed)}{Others(Verdict.Inconclusive)}");

    /// <summary>The counts, the day, and the first claim with its figure.</summary>
    [JsonIgnore]
    public string Summary => string.Create(CultureInfo.InvariantCulture, $"{Counts} ({Date:yyyy-MM-dd}). {Claims[0].Claim.TrimEnd('.')}: {Claims[0].Measured}");

    /// <summary>The record as JSON.</summary>
    public string ToJson() => JsonSerializer.Serialize(this, Format);

    private int Count(Verdict verdict) => Claims.Count(claim => claim.Verdict == verdict);

    private string Others(Verdict verdict) => Count(verdict) is > 0 and var count ? string.Create(CultureInfo.InvariantCulture, $", {count} {Verdicts.Word(verdict)}") : "";
}
