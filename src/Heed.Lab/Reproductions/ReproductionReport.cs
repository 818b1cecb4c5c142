using System.Globalization;
using System.Net;
using System.Text;
using Heed.Lab.Catalogue;
using Heed.Lab.Figures;
using Heed.Lab.Inspection;

namespace Heed.Lab.Reproductions;

/// <summary>Writes a reproduction as one HTML page that needs nothing beside itself: no network, no script, no other file.</summary>
public static class ReproductionReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="record">What was measured.</param>
    /// <param name="summary">What was done, in one line.</param>
    /// <param name="figures">Figures.</param>
    /// <param name="pictures">Pictures: title and PNG.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(
        ReproductionRecord record, string summary, IEnumerable<LineFigure> figures, IEnumerable<(string Title, byte[] Png)> pictures, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(record);
        ArgumentNullException.ThrowIfNull(figures);
        ArgumentNullException.ThrowIfNull(pictures);
        var paper = PaperCatalogue.All.FirstOrDefault(paper => paper.Slug == record.Slug);
        var body = new StringBuilder();
        body.Append(CultureInfo.InvariantCulture, $"<header><p class=\"slug\">{Text(record.Slug)}</p><h1>{Text(paper?.Title ?? record.Slug)}</h1>");
        if (paper is not null)
        {
            body.Append(CultureInfo.InvariantCulture, $"<p class=\"facts\"><a href=\"https://arxiv.org/abs/{paper.ArXiv}\">arXiv {paper.ArXiv}</a> ({paper.Year}) · {Text(paper.What)}</p>");
        }

        body.Append(CultureInfo.InvariantCulture, $"<p>{Text(summary)}</p><p class=\"counts\">{Text(record.Counts)}</p>");
        if (record.Quick)
        {
            body.Append("<p class=\"notice\">A quick run, on problems too small to judge the claims by: it shows that everything runs.</p>");
        }

        body.Append("</header><section><h2>Claims</h2><ol class=\"claims\">");
        foreach (var claim in record.Claims)
        {
            body.Append(CultureInfo.InvariantCulture, $"<li class=\"{Class(claim.Verdict)}\"><p class=\"verdict\">{Verdicts.Word(claim.Verdict)}</p><h3>{Text(claim.Claim)}</h3><dl>")
                .Append(CultureInfo.InvariantCulture, $"<dt>source</dt><dd>{Text(claim.Source)}</dd><dt>confirmed if</dt><dd>{Text(claim.Expected)}</dd><dt>measured</dt><dd class=\"measured\">{Text(claim.Measured)}</dd></dl></li>");
        }

        body.Append("</ol></section>");
        foreach (var figure in figures)
        {
            Picture(figure.Title, figure.Png());
        }

        foreach (var (title, png) in pictures)
        {
            Picture(title, png);
        }

        foreach (var table in record.Tables)
        {
            body.Append(CultureInfo.InvariantCulture, $"<section><h2>{Text(table.Title)}</h2><div class=\"wide\"><table><thead><tr>");
            table.Columns.ToList().ForEach(column => body.Append(CultureInfo.InvariantCulture, $"<th scope=\"col\">{Text(column)}</th>"));
            body.Append("</tr></thead><tbody>");
            foreach (var row in table.Rows)
            {
                body.Append("<tr>");
                row.ToList().ForEach(cell => body.Append(CultureInfo.InvariantCulture, $"<td>{Text(cell)}</td>"));
                body.Append("</tr>");
            }

            body.Append("</tbody></table></div></section>");
        }

        if (record.Notes.Count > 0)
        {
            body.Append("<section><h2>Notes</h2>");
            record.Notes.ToList().ForEach(note => body.Append(CultureInfo.InvariantCulture, $"<p>{Text(note)}</p>"));
            body.Append("</section>");
        }

        body.Append(CultureInfo.InvariantCulture, $"<section><h2>This run</h2><dl><dt>again</dt><dd><code>heed reproduce {Text(record.Slug)}{(record.Quick ? " --quick" : "")}</code></dd>")
            .Append(CultureInfo.InvariantCulture, $"<dt>date</dt><dd>{record.Date:yyyy-MM-dd HH:mm} UTC</dd><dt>time</dt><dd>{record.Seconds:0} s</dd>")
            .Append(CultureInfo.InvariantCulture, $"<dt>seeds</dt><dd>{(record.Seeds.Count > 0 ? string.Join(", ", record.Seeds) : "none needed")}</dd><dt>machine</dt><dd>{Text(record.Machine)}</dd></dl></section>");
        ReportPage.Write(stream, "reproduction-report.html", $"{record.Slug}: {record.Counts}", [("body", writer => writer.Write(body))]);

        void Picture(string title, byte[] png) => body.Append(CultureInfo.InvariantCulture, $"<section><h2>{Text(title)}</h2><div class=\"wide\"><img alt=\"{Text(title)}\" src=\"data:image/png;base64,")
            .Append(Convert.ToBase64String(png)).Append("\"></div></section>");
    }

    private static string Class(Verdict verdict) => verdict switch { Verdict.Confirmed => "yes", Verdict.NotConfirmed => "no", _ => "open" };

    private static string Text(string text) => WebUtility.HtmlEncode(text);
}
