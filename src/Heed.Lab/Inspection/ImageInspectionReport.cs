using System.Text.Json;
using Heed.Lab.Images;

namespace Heed.Lab.Inspection;

/// <summary>Writes an <see cref="ImageInspection"/> as one HTML page that needs nothing beside itself.</summary>
/// <remarks>The page is a template (<c>image-report.html</c>) with one JSON object; maps lie in it as base64 of a byte a value, between the map's smallest and largest, weights of attention as bytes of a
/// share of their row's largest.</remarks>
public static class ImageInspectionReport
{
    /// <summary>Writes the page.</summary>
    /// <param name="inspection">What to show.</param>
    /// <param name="stream">Receives UTF-8.</param>
    public static void Write(ImageInspection inspection, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(inspection);
        ArgumentNullException.ThrowIfNull(stream);
        ReportPage.Write(stream, "image-report.html", $"What {inspection.Model} sees", [("data", writer => writer.Write(Data(inspection)))]);
    }

    private static string Data(ImageInspection inspection) => ReportPage.Json(json =>
    {
        json.WriteStartObject();
        json.WriteString("generator", ReportPage.Generator);
        json.WriteString("edit", inspection.Edit);
        json.WriteString("model", inspection.Model);
        json.WriteNumber("parameters", inspection.Parameters);
        ReportPage.Number(json, "accuracy", inspection.Accuracy);
        json.WriteString("source", inspection.Picture.Source);
        json.WriteNumber("side", inspection.Task.Size);
        json.WriteString("picture", $"data:image/png;base64,{Convert.ToBase64String(PictureFile.Png(inspection.Picture.Pixels, inspection.Task))}");
        json.WriteString("label", inspection.Picture.Label is { } label ? inspection.ClassNames[label] : null);
        Seen(json, inspection, inspection);
        if (inspection.Before is { } before)
        {
            json.WriteStartObject("before");
            Seen(json, before, inspection);
            json.WriteEndObject();
        }

        ReportPage.Array(json, "notices", inspection.Notices, json.WriteStringValue);
        json.WriteEndObject();
    });

    /// <summary>What the model made of the picture; classes in the order of another look at it.</summary>
    private static void Seen(Utf8JsonWriter json, ImageInspection inspection, ImageInspection order)
    {
        ReportPage.Array(json, "classes", Enumerable.Range(0, inspection.Probabilities.Count).OrderByDescending(index => order.Probabilities[index]).Take(10), index =>
        {
            json.WriteStartObject();
            json.WriteString("name", inspection.ClassNames[index]);
            ReportPage.Number(json, "probability", inspection.Probabilities[index]);
            json.WriteEndObject();
        });
        json.WriteStartObject("field");
        json.WriteNumber("half_side", inspection.ReceptiveField.HalfSide);
        json.WriteNumber("pictures", inspection.ReceptiveField.Pictures);
        Map(json, inspection.ReceptiveField.Side, inspection.ReceptiveField.Side, inspection.ReceptiveField.Values, 0, 1);
        json.WriteEndObject();
        ReportPage.Array(json, "maps", inspection.Maps, map =>
        {
            json.WriteStartObject();
            json.WriteString("site", map.Site);
            json.WriteString("name", map.Name);
            json.WriteString("label", map.Label);
            Map(json, map.Height, map.Width, map.Values, map.Minimum, map.Maximum);
            json.WriteEndObject();
        });
        ReportPage.Array(json, "heads", inspection.Heads, head =>
        {
            json.WriteStartObject();
            json.WriteString("site", head.Site);
            json.WriteNumber("head", head.Head);
            json.WriteNumber("side", head.Side);
            ReportPage.Number(json, "distance", head.MeanDistance);
            json.WriteBase64String("weights", Rows(head));
            json.WriteEndObject();
        });
    }

    private static void Map(Utf8JsonWriter json, int height, int width, float[] values, float minimum, float maximum)
    {
        json.WriteNumber("height", height);
        json.WriteNumber("width", width);
        ReportPage.Number(json, "minimum", minimum);
        ReportPage.Number(json, "maximum", maximum);
        var range = maximum - minimum;
        json.WriteBase64String("values", [.. values.Select(value => (byte)(float.IsFinite(value) && range > 0 ? Math.Round(255 * Math.Clamp((value - minimum) / range, 0, 1)) : 0))]);
    }

    private static byte[] Rows(InspectedImageHead head)
    {
        var cells = head.Side * head.Side;
        var bytes = new byte[head.Weights.Length];
        for (var row = 0; row < cells; row++)
        {
            var weights = head.Weights.AsSpan(row * cells, cells);
            var largest = 0f;
            foreach (var weight in weights)
            {
                largest = Math.Max(largest, weight);
            }

            for (var i = 0; i < cells && largest > 0; i++)
            {
                bytes[(row * cells) + i] = (byte)Math.Round(255 * Math.Clamp(weights[i] / largest, 0, 1));
            }
        }

        return bytes;
    }
}
