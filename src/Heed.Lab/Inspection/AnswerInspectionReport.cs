using Heed.Lab.Images;

namespace Heed.Lab.Inspection;

/// <summary>Writes a <see cref="AnswerInspection"/> as one HTML page that needs nothing beside itself (template <c>answer-report.html</c>).</summary>
public static class AnswerInspectionReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="inspection">What to show.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(AnswerInspection inspection, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(inspection);
        ArgumentNullException.ThrowIfNull(stream);
        ReportPage.Write(stream, "answer-report.html", $"What {inspection.Model} says and sees", [("data", writer => writer.Write(Data(inspection)))]);
    }

    private static string Data(AnswerInspection inspection) => ReportPage.Json(json =>
    {
        json.WriteStartObject();
        json.WriteString("generator", ReportPage.Generator);
        json.WriteString("model", inspection.Model);
        json.WriteNumber("parameters", inspection.Parameters);
        json.WriteString("source", inspection.Picture.Source);
        json.WriteString("picture", $"data:image/png;base64,{Convert.ToBase64String(PictureFile.Png(inspection.Picture.Pixels, new(inspection.Side, 3, 1)))}");
        json.WriteString("prompt", inspection.Prompt);
        json.WriteNumber("grid", inspection.Grid);
        json.WriteNumber("layers", inspection.Layers);
        json.WriteNumber("heads", inspection.Heads);
        ReportPage.Number(json, "threshold", inspection.SinkThreshold);
        ReportPage.Array(json, "dimensions", inspection.SinkDimensions, json.WriteNumberValue);
        ReportPage.Array(json, "sinks", inspection.Sinks, layer =>
        {
            json.WriteStartObject();
            ReportPage.Array(json, "patches", layer.Patches, json.WriteNumberValue);
            ReportPage.Array(json, "text", layer.Text, json.WriteNumberValue);
            ReportPage.Number(json, "largest", layer.Largest);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "encoder", inspection.ClassAttention, map => json.WriteBase64StringValue(Bytes(map)));
        ReportPage.Array(json, "runs", inspection.Runs, run =>
        {
            json.WriteStartObject();
            json.WriteString("name", run.Name);
            json.WriteString("text", run.Text);
            ReportPage.Array(json, "words", run.Words, word =>
            {
                var patches = inspection.Grid * inspection.Grid;
                json.WriteStartObject();
                json.WriteString("text", word.Text);
                ReportPage.Array(json, "mass", word.ImageMass, mass => ReportPage.Value(json, mass, 4));
                ReportPage.Array(json, "most", Enumerable.Range(0, word.ImageMass.Length), head => ReportPage.Value(json, word.Weights.AsSpan(head * patches, patches).ToArray().Max(), 6));
                json.WriteBase64String("weights", Enumerable.Range(0, word.ImageMass.Length).SelectMany(head => Bytes(word.Weights.AsSpan(head * patches, patches).ToArray())).ToArray());
                json.WriteEndObject();
            });
            json.WriteEndObject();
        });
        json.WriteEndObject();
    });

    // Shares of the largest.
    private static byte[] Bytes(float[] weights)
    {
        var largest = weights.Max();
        return [.. weights.Select(weight => (byte)(largest > 0 ? Math.Round(255 * Math.Clamp(weight / largest, 0, 1)) : 0))];
    }
}
