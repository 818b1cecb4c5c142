using Heed.Lab.Inspection;
using Heed.Onnx;

namespace Heed.Lab.Onnx;

/// <summary>Writes an <see cref="OnnxInspection"/> as one HTML page that needs nothing beside itself.</summary>
/// <remarks>Maps lie in the page as base64 of a byte a cell: the square root of the weight in steps of 1/255, which keeps small weights apart.</remarks>
public static class OnnxInspectionReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="inspection">What to show.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(OnnxInspection inspection, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(inspection);
        ArgumentNullException.ThrowIfNull(stream);
        ReportPage.Write(stream, "onnx-report.html", $"What {inspection.Model} attends to", [("data", writer => writer.Write(Data(inspection)))]);
    }

    private static string Data(OnnxInspection inspection) => ReportPage.Json(json =>
    {
        json.WriteStartObject();
        json.WriteString("generator", ReportPage.Generator);
        json.WriteString("model", inspection.Model);
        json.WriteNumber("parameters", inspection.Parameters);
        json.WriteNumber("operators", inspection.OperatorVersion);
        json.WriteString("source", inspection.Source);
        ReportPage.Array(json, "notices", inspection.Notices, json.WriteStringValue);
        ReportPage.Array(json, "edits", inspection.Edits, json.WriteStringValue);
        ReportPage.Array(json, "tokens", inspection.Tokens, json.WriteStringValue);
        json.WriteString("text", inspection.Text);
        json.WriteString("text_after", inspection.TextAfter);
        if (inspection.Picture is { } picture)
        {
            json.WriteStartObject("picture");
            json.WriteString("png", $"data:image/png;base64,{Convert.ToBase64String(picture.Png)}");
            json.WriteNumber("width", picture.PaddedWidth);
            json.WriteNumber("height", picture.Height);
            json.WriteEndObject();
        }

        ReportPage.Array(json, "characters", inspection.Characters ?? [], character =>
        {
            json.WriteStartObject();
            json.WriteString("text", character.Read.Text);
            ReportPage.Number(json, "probability", character.Read.Probability);
            json.WriteNumber("first", character.Read.First);
            json.WriteNumber("last", character.Read.Last);
            ReportPage.Array(json, "looks", character.Looks, look =>
            {
                json.WriteStartObject();
                json.WriteNumber("layer", look.Layer);
                json.WritePropertyName("head");
                ReportPage.Value(json, look.Head, 0);
                ReportPage.Number(json, "own", look.OwnMass);
                ReportPage.Number(json, "equal", look.EqualMass);
                json.WriteBase64String("weights", Roots(look.Weights));
                json.WriteEndObject();
            });
            json.WriteEndObject();
        });
        ReportPage.Array(json, "outputs", inspection.Changes, change =>
        {
            json.WriteStartObject();
            json.WriteString("name", change.Name);
            ReportPage.Number(json, "change", change.Change);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "layers", inspection.Layers, layer =>
        {
            json.WriteStartObject();
            json.WriteString("name", layer.Attention.Name);
            json.WriteString("kind", layer.Attention.Kind == OnnxAttentionKind.Self ? "self" : "cross");
            json.WriteBoolean("causal", layer.IsCausal);
            json.WriteNumber("queries", layer.Queries);
            json.WriteNumber("keys", layer.Keys);
            ReportPage.Array(json, "heads", layer.Heads, head =>
            {
                json.WriteStartObject();
                json.WriteNumber("head", head.Head);
                Head(head);
                if (layer.After?[head.Head] is { } after)
                {
                    json.WriteStartObject("after");
                    Head(after);
                    json.WriteEndObject();
                }

                json.WriteEndObject();
            });
            json.WriteEndObject();

            void Head(OnnxHead head)
            {
                json.WriteString("look", HeadLooks.Word(head.Look));
                json.WriteString("colour", head.Look.ToString().ToLowerInvariant());
                ReportPage.Number(json, "entropy", head.Statistics.Entropy);
                ReportPage.Number(json, "entropy_share", head.Statistics.EntropyShare);
                ReportPage.Number(json, "first_mass", head.Statistics.FirstMass);
                ReportPage.Number(json, "near_mass", head.Statistics.NearMass);
                ReportPage.Number(json, "distance", head.Statistics.MeanDistance);
                json.WriteNumber("rows", head.Map.Rows);
                json.WriteNumber("columns", head.Map.Columns);
                json.WriteBase64String("cells", Roots(head.Map.Cells));
            }
        });
        json.WriteEndObject();
    });

    private static byte[] Roots(float[] weights) => [.. weights.Select(weight => (byte)Math.Round(255 * Math.Sqrt(Math.Clamp(float.IsFinite(weight) ? weight : 0, 0, 1))))];
}
