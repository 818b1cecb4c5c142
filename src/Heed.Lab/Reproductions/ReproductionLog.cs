using System.Globalization;
using System.Text;
using System.Text.Json;
using Heed.Models;

namespace Heed.Lab.Reproductions;

/// <summary>Keeps the last full run of every reproduction in a JSON file beside a Markdown page made from it. The JSON file of the repository is built into the program: it is what the catalogue
/// tells of verdicts.</summary>
public static class ReproductionLog
{
    private const string Resource = "Heed.Lab.Reproductions.reproductions.json";

    /// <summary>The runs that this build knows, by slug.</summary>
    public static IReadOnlyDictionary<string, ReproductionRecord> Recorded { get; } = ReadRecorded();

    /// <summary>Puts a run in place of the paper's earlier one and rewrites the page.</summary>
    /// <param name="page">The Markdown file; the data goes beside it with the extension <c>.json</c>.</param>
    /// <param name="record">The run.</param>
    /// <exception cref="ArgumentException">The run was a quick one.</exception>
    public static void Update(string page, ReproductionRecord record)
    {
        ArgumentNullException.ThrowIfNull(record);
        if (record.Quick)
        {
            throw new ArgumentException("Quick runs are not recorded: their verdicts say little.", nameof(record));
        }

        var data = Path.ChangeExtension(page, ".json");
        var records = File.Exists(data) ? Read(File.ReadAllText(data)) : [];
        records.RemoveAll(earlier => earlier.Slug == record.Slug);
        records.Add(record);
        records.Sort((a, b) => string.CompareOrdinal(a.Slug, b.Slug));
        AtomicFile.WriteText(data, JsonSerializer.Serialize(records, ReproductionRecord.Format) + "\n");
        AtomicFile.WriteText(page, Markdown(records));
    }

    /// <summary>The page.</summary>
    public static string Markdown(IEnumerable<ReproductionRecord> records)
    {
        var page = new StringBuilder(
            """
            # Reproductions

            Written by `heed reproduce`: for every paper, its claims, what would confirm them at the scale of this machine, what was measured, and the verdict that follows from the numbers. The last
            full run of each; how to run them: [reproduce](reproduce.md).

            """);
        foreach (var record in records)
        {
            page.Append(CultureInfo.InvariantCulture, $"\n## {record.Slug}\n\n{record.Counts}. Measured {record.Date:yyyy-MM-dd HH:mm} UTC in {record.Seconds:0} s on {record.Machine}");
            page.Append(record.Seeds.Count > 0 ? $"; seeds {string.Join(", ", record.Seeds)}.\n\n" : ".\n\n");
            AppendTable(
                page, ["claim", "source", "confirmed if", "measured", "verdict"],
                record.Claims.Select(claim => (string[])[claim.Claim, claim.Source, claim.Expected, claim.Measured, $"**{Verdicts.Word(claim.Verdict)}**"]));
            foreach (var table in record.Tables)
            {
                page.Append(CultureInfo.InvariantCulture, $"\n{table.Title}\n\n");
                AppendTable(page, table.Columns, table.Rows);
            }

            foreach (var note in record.Notes)
            {
                page.Append(CultureInfo.InvariantCulture, $"\n{note}\n");
            }
        }

        return page.ToString();
    }

    private static void AppendTable(StringBuilder page, IReadOnlyList<string> columns, IEnumerable<IReadOnlyList<string>> rows)
    {
        page.Append("| ").AppendJoin(" | ", columns.Select(Cell)).Append(" |\n|").Append(string.Concat(Enumerable.Repeat("---|", columns.Count))).Append('\n');
        foreach (var row in rows)
        {
            page.Append("| ").AppendJoin(" | ", row.Select(Cell)).Append(" |\n");
        }
    }

    private static string Cell(string text) => text.Replace("|", "\\|", StringComparison.Ordinal).Replace('\n', ' ');

    private static Dictionary<string, ReproductionRecord> ReadRecorded()
    {
        using var stream = typeof(ReproductionLog).Assembly.GetManifestResourceStream(Resource)!;
        using var reader = new StreamReader(stream);
        return Read(reader.ReadToEnd()).ToDictionary(record => record.Slug, StringComparer.Ordinal);
    }

    private static List<ReproductionRecord> Read(string json) => JsonSerializer.Deserialize<List<ReproductionRecord>>(json, ReproductionRecord.Format) ?? [];
}
