using System.Globalization;
using System.Net;
using System.Text;
using Heed.Lab.Inspection;

namespace Heed.Lab.Search;

/// <summary>What a search was about, for its report and its file.</summary>
/// <param name="Model">The model's name.</param>
/// <param name="Edit">The edit, without heads.</param>
/// <param name="Metric">The metric's name.</param>
/// <param name="LowerIsBetter">Whether a smaller metric is better.</param>
/// <param name="Data">What it was measured on.</param>
/// <param name="Again">The edit with the kept heads, as <c>--edit</c> takes it; null where none is kept.</param>
public sealed record HeadSearchSubject(string Model, string Edit, string Metric, bool LowerIsBetter, string Data, string? Again);

/// <summary>Writes a head search as one HTML page that needs nothing beside itself: layers by heads, coloured by what the edit does in each.</summary>
public static class HeadSearchReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="subject">What the search was about.</param>
    /// <param name="result">What it found.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(HeadSearchSubject subject, HeadSearchResult result, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(subject);
        ArgumentNullException.ThrowIfNull(result);
        ArgumentNullException.ThrowIfNull(stream);
        ReportPage.Write(stream, "search-report.html", $"{subject.Edit} in the heads of {subject.Model}", [("body", writer => writer.Write(Body(subject, result)))]);
    }

    private static string Body(HeadSearchSubject subject, HeadSearchResult result)
    {
        var body = new StringBuilder();
        var invariant = CultureInfo.InvariantCulture;
        static string Text(string text) => WebUtility.HtmlEncode(text);
        body.Append(invariant, $"<header><h1><em>{Text(subject.Edit)}</em> in the heads of {Text(subject.Model)}, one by one</h1>")
            .Append(invariant, $"<p class=\"facts\"><span><b>{result.Baseline:G5}</b> {Text(subject.Metric)} without it ({(subject.LowerIsBetter ? "less" : "more")} is better)</span>")
            .Append(invariant, $"<span>on {Text(subject.Data)}</span><span><b>{result.Kept.Count}</b> of {result.Heads.Count} heads kept</span>");
        if (result.Together is { } together)
        {
            body.Append(invariant, $"<span><b>{together:G5}</b> with all kept heads at once</span>");
        }

        body.Append("</p></header><main><section><h2>What the edit does in each head</h2><p>Green: the metric gets better; red: worse. The colour's strength is the change against the largest one; kept heads have a frame. Heads that help alone need not help together.</p><div class=\"wide\"><table class=\"heat\"><thead><tr><th scope=\"col\">layer</th>");
        var width = result.Heads.Max(head => head.Head) + 1;
        for (var head = 0; head < width; head++)
        {
            body.Append(invariant, $"<th scope=\"col\">{head}</th>");
        }

        body.Append("</tr></thead><tbody>");
        var largest = result.Heads.Select(head => Math.Abs(head.Gain)).Where(double.IsFinite).DefaultIfEmpty(0).Max();
        foreach (var layer in result.Heads.GroupBy(head => head.Layer))
        {
            body.Append(invariant, $"<tr><th scope=\"row\">{layer.Key}</th>");
            foreach (var head in layer)
            {
                var share = largest > 0 && double.IsFinite(head.Gain) ? Math.Abs(head.Gain) / largest : 0;
                var change = subject.LowerIsBetter ? -head.Gain : head.Gain;
                body.Append(invariant, $"<td class=\"{(head.Gain < 0 ? "worse" : "better")}{(head.Kept ? " kept" : "")}\" style=\"--share:{share:F3}\" title=\"layer {head.Layer}, head {head.Head}: {head.Value:G6}\">{change:+0.0000;-0.0000;0}</td>");
            }

            body.Append("</tr>");
        }

        body.Append("</tbody></table></div></section>");
        if (subject.Again is { } again)
        {
            body.Append(invariant, $"<section><h2>Use it</h2><p><code>--edit {Text(again)}</code></p></section>");
        }

        return body.Append(invariant, $"</main><footer>{Text(ReportPage.Generator)}</footer>").ToString();
    }
}
