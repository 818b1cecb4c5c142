using System.Text.Json;

namespace Heed.Lab.Inspection;

/// <summary>Writes a <see cref="SpeechInspection"/> as one HTML page that needs nothing beside itself.</summary>
/// <remarks>The page is a template (<c>speech-report.html</c>) with one JSON object; maps lie in it as base64 of a byte a value, between the map's smallest and largest.</remarks>
public static class SpeechInspectionReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="inspection">What to show.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(SpeechInspection inspection, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(inspection);
        ArgumentNullException.ThrowIfNull(stream);
        ReportPage.Write(stream, "speech-report.html", $"What {inspection.Model} hears", [("data", writer => writer.Write(Data(inspection)))]);
    }

    private static string Data(SpeechInspection inspection) => ReportPage.Json(json =>
    {
        json.WriteStartObject();
        json.WriteString("generator", ReportPage.Generator);
        json.WriteString("model", inspection.Model);
        json.WriteNumber("parameters", inspection.Parameters);
        json.WriteString("source", inspection.Source);
        ReportPage.Number(json, "duration", inspection.Duration);
        json.WriteString("text", inspection.Text);
        json.WriteNumber("frames", inspection.Frames);
        json.WriteNumber("bins", inspection.Bins);
        json.WriteNumber("states", inspection.States);
        ReportPage.Number(json, "frame_seconds", inspection.SecondsPerFrame);
        ReportPage.Number(json, "state_seconds", inspection.SecondsPerState);
        ReportPage.Number(json, "mean_with_input", inspection.MeanWithInput);
        ReportPage.Number(json, "mean_with_encoder", inspection.MeanWithEncoder);
        ReportPage.Array(json, "tokens", inspection.Tokens.Zip(inspection.Probabilities), token =>
        {
            json.WriteStartObject();
            json.WriteString("text", token.First);
            ReportPage.Number(json, "probability", token.Second);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "words", inspection.Words, word =>
        {
            json.WriteStartObject();
            json.WriteString("text", word.Text);
            json.WriteNumber("token", word.FirstToken);
            ReportPage.Number(json, "start", word.Start);
            ReportPage.Number(json, "end", word.End);
            ReportPage.Number(json, "area_start", word.AreaStart);
            ReportPage.Number(json, "area_end", word.AreaEnd);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "heads", inspection.Heads, head =>
        {
            json.WriteStartObject();
            json.WriteNumber("layer", head.Layer);
            json.WriteNumber("head", head.Head);
            ReportPage.Number(json, "with_input", head.WithInput);
            ReportPage.Number(json, "with_encoder", head.WithEncoder);
            Map(json, "weights", head.Weights);
            json.WriteEndObject();
        });
        Map(json, "spectrogram", inspection.Spectrogram);
        Map(json, "mean", inspection.Mean);
        Map(json, "saliency", inspection.Saliency);
        Map(json, "sentence", inspection.Sentence);
        Map(json, "pooled", inspection.Pooled);
        Map(json, "encoder", inspection.EncoderSaliency);
        ReportPage.Array(json, "notices", inspection.Notices, json.WriteStringValue);
        json.WriteEndObject();
    });

    private static void Map(Utf8JsonWriter json, string name, float[]? values)
    {
        if (values is null || values.Length == 0)
        {
            json.WriteNull(name);
            return;
        }

        var (lowest, highest) = (values.Min(), values.Max());
        var range = highest - lowest;
        json.WriteBase64String(name, [.. values.Select(value => (byte)(range > 0 ? Math.Round(255 * Math.Clamp((value - lowest) / range, 0, 1)) : 0))]);
    }
}
