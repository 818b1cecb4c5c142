using System.Net;
using System.Reflection;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Unicode;

namespace Heed.Lab.Inspection;

/// <summary>Writes report pages: a template among the resources, which begins with the mark <c>{{head}}</c> (what every page begins with: <c>head.html</c>) and mostly goes on with <c>{{look}}</c> (<c>look.css</c>), with its own marks filled in.</summary>
internal static class ReportPage
{
    private const string Resources = "Heed.Lab.Inspection.";

    /// <summary>What wrote the page.</summary>
    public static string Generator => $"heed {typeof(ReportPage).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? ""}";

    /// <summary>Writes a page.</summary>
    /// <param name="stream">Receives UTF-8.</param>
    /// <param name="template">The template's file name.</param>
    /// <param name="title">The page's title.</param>
    /// <param name="parts">What replaces the page's own marks, in the order in which they stand in the template.</param>
    public static void Write(Stream stream, string template, string title, IEnumerable<(string Mark, Action<StreamWriter> Write)> parts)
    {
        using var writer = new StreamWriter(stream, new UTF8Encoding(encoderShouldEmitUTF8Identifier: false), 1 << 16, leaveOpen: true);
        var body = Resource(template);
        // A page without a script of its own runs none at all.
        var head = Resource("head.html").TrimEnd().Replace("{{script}}", body.Contains("<script", StringComparison.Ordinal) ? " script-src 'unsafe-inline';" : "", StringComparison.Ordinal);
        var page = body.Replace("{{head}}", head, StringComparison.Ordinal).Replace("{{look}}", Resource("look.css"), StringComparison.Ordinal);
        var at = 0;
        foreach (var (mark, write) in parts.Prepend(("title", writer => writer.Write(WebUtility.HtmlEncode(title)))))
        {
            var text = $"{{{{{mark}}}}}";
            var found = page.IndexOf(text, at, StringComparison.Ordinal);
            writer.Write(page.AsSpan(at, found - at));
            write(writer);
            at = found + text.Length;
        }

        writer.Write(page.AsSpan(at));
    }

    /// <summary>One JSON object to stand in a script element.</summary>
    /// <param name="write">Writes all of it.</param>
    public static string Json(Action<Utf8JsonWriter> write)
    {
        using var buffer = new MemoryStream();
        // Letters of every script stay readable; what could end a script element or a line of it (<, >, &, quotes, U+2028, controls) is escaped.
        using (var json = new Utf8JsonWriter(buffer, new() { Encoder = JavaScriptEncoder.Create(UnicodeRanges.All) }))
        {
            write(json);
        }

        return Encoding.UTF8.GetString(buffer.GetBuffer().AsSpan(0, (int)buffer.Length));
    }

    /// <summary>Writes a list.</summary>
    public static void Array<T>(Utf8JsonWriter json, string name, IEnumerable<T> values, Action<T> write)
    {
        json.WriteStartArray(name);
        foreach (var value in values)
        {
            write(value);
        }

        json.WriteEndArray();
    }

    /// <summary>Writes a number of six digits; null where there is none or it is not finite.</summary>
    public static void Number(Utf8JsonWriter json, string name, double? value)
    {
        json.WritePropertyName(name);
        Value(json, value, 6);
    }

    /// <summary>Writes a number as an element of a list.</summary>
    public static void Value(Utf8JsonWriter json, double? value, int digits)
    {
        if (value is { } number && double.IsFinite(number))
        {
            json.WriteNumberValue(Math.Round(number, digits));
        }
        else
        {
            json.WriteNullValue();
        }
    }

    private static string Resource(string name)
    {
        using var stream = typeof(ReportPage).Assembly.GetManifestResourceStream(Resources + name)!;
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd();
    }
}
