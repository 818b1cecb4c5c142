using System.Text.Json;
using Heed.Models.Speech;

namespace Heed.Lab.Inspection;

/// <summary>Writes a <see cref="SpeechInspection"/> as one HTML page that needs nothing beside itself.</summary>
/// <remarks>The page is a template (<c>speech-report.html</c>) with one JSON object; maps lie in it as base64 of a byte a value, between the map's smallest and largest; a map before and after an edit
/// lies there on one scale.</remarks>
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
        Text(json, inspection.Tokens, inspection.Probabilities, inspection.Words);
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
        if (inspection.Edited is { } edited)
        {
            Edited(json, inspection, edited);
        }

        json.WriteEndObject();
    });

    private static void Text(Utf8JsonWriter json, IReadOnlyList<string> tokens, IReadOnlyList<double> probabilities, IReadOnlyList<TimedWord> words)
    {
        ReportPage.Array(json, "tokens", tokens.Zip(probabilities), token =>
        {
            json.WriteStartObject();
            json.WriteString("text", token.First);
            ReportPage.Number(json, "probability", token.Second);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "words", words, word =>
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
    }

    private static void Edited(Utf8JsonWriter json, SpeechInspection inspection, EditedSpeech edited)
    {
        json.WriteStartObject("edited");
        json.WriteString("name", string.Join(" ", edited.Edits));
        json.WriteString("text", edited.Text);
        Text(json, edited.Tokens, edited.Probabilities, edited.Words);
        ReportPage.Array(
            json, "maps", [(Name: "mean of all heads", Before: inspection.Mean, After: edited.Mean, edited.Moved), .. inspection.Heads.Zip(edited.Heads).Where(pair => pair.Second.Weights is not null)
                .Select(pair => (Name: $"layer {pair.First.Layer}, head {pair.First.Head}", Before: pair.First.Weights, After: pair.Second.Weights!, pair.Second.Moved))],
            map =>
            {
                // Both on one scale: from nothing to the largest weight of either.
                var most = map.Before.Concat(map.After).Append(float.Epsilon).Max();
                json.WriteStartObject();
                json.WriteString("name", map.Name);
                ReportPage.Number(json, "moved", map.Moved);
                ReportPage.Number(json, "most", most);
                Map(json, "before", map.Before, 0, most);
                Map(json, "after", map.After, 0, most);
                json.WriteEndObject();
            });
        json.WriteEndObject();
    }

    private static void Map(Utf8JsonWriter json, string name, float[]? values)
    {
        if (values is null || values.Length == 0)
        {
            json.WriteNull(name);
            return;
        }

        Map(json, name, values, values.Min(), values.Max());
    }

    private static void Map(Utf8JsonWriter json, string name, float[] values, float lowest, float highest)
    {
        var range = highest - lowest;
        json.WriteBase64String(name, [.. values.Select(value => (byte)(range > 0 ? Math.Round(255 * Math.Clamp((value - lowest) / range, 0, 1)) : 0))]);
    }
}
