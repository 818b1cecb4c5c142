using System.Buffers.Binary;
using System.IO.Compression;
using System.Text.Json;
using Heed.Probes;

namespace Heed.Lab.Inspection;

/// <summary>Writes an <see cref="InspectionResult"/> as one HTML page that needs nothing beside itself: no network, no other file.</summary>
/// <remarks>
/// The page is a template (<c>report.html</c>) with two kinds of data: one JSON object (tokens, statistics, looks), and per head a zlib-compressed block in base64 that
/// the page opens when the head is first looked at. A block holds, one after another (16-bit values as all low bytes, then all high bytes, which compresses better): mass
/// received by each token (square root of the share of the largest, 1/65535 steps), keys of the largest weights of each row (65535: none), the weights (1/65535 steps), and the cells of the
/// <see cref="PooledMap"/>.
/// </remarks>
public static class InspectionReport
{
    /// <summary>The longest sequence that a report can hold: keys are 16-bit.</summary>
    public const int MaximumTokens = 32768;

    private const ushort NoKey = ushort.MaxValue;

    /// <summary>Bytes that a head takes in the report at most (base64 of what does not compress at all).</summary>
    public static long BytesPerHead(int tokens, int topCount, int tokensPerCell) => ((2L * tokens) + (4L * tokens * topCount) + PooledMap.BytesOf(tokens, tokensPerCell)) * 4 / 3;

    /// <summary>How much detail fits a budget: two thirds of it for the maps, the rest for the largest weights.</summary>
    /// <param name="tokens">Length of the sequence.</param>
    /// <param name="heads">Number of heads in all.</param>
    /// <param name="budget">Bytes that the heads may take in the report.</param>
    /// <returns>Largest weights kept per row (2 to 16) and tokens along the side of a cell of the map. The least that makes a picture is kept even where the budget is smaller.</returns>
    public static (int TopCount, int TokensPerCell) Detail(int tokens, int heads, long budget)
    {
        const int leastSide = 64;
        var perHead = budget / Math.Max(1, heads);
        var cell = 1;
        while (PooledMap.SideOf(tokens, cell) > leastSide && PooledMap.BytesOf(tokens, cell) * 4 / 3 > perHead * 2 / 3)
        {
            cell++;
        }

        var top = 16;
        while (top > 2 && BytesPerHead(tokens, top, cell) > perHead)
        {
            top--;
        }

        return (Math.Min(top, tokens), cell);
    }

    /// <summary>Writes the page.</summary>
    /// <param name="inspection">What to show. Every head needs a map, all of the same shape.</param>
    /// <param name="stream">Receives UTF-8.</param>
    /// <exception cref="ArgumentException">A head has no map or other sizes than the tokens ask for, or there are more tokens than <see cref="MaximumTokens"/>.</exception>
    public static void Write(InspectionResult inspection, Stream stream)
    {
        ArgumentNullException.ThrowIfNull(inspection);
        ArgumentNullException.ThrowIfNull(stream);
        var tokens = inspection.Tokens.Count;
        if (tokens is 0 or > MaximumTokens)
        {
            throw new ArgumentException($"A report shows 1 to {MaximumTokens} tokens, not {tokens}: inspect fewer (--tokens).");
        }

        foreach (var head in inspection.Heads.Concat(inspection.Before?.Heads ?? []))
        {
            if (head.Map is null || head.Map.Tokens != tokens || head.MassReceived.Length != tokens || head.TopKeys.Length != tokens * inspection.TopCount
                || head.TopWeights.Length != head.TopKeys.Length || head.Map.TokensPerCell != inspection.Heads[0].Map!.TokensPerCell)
            {
                throw new ArgumentException($"Head {head.Head} of layer {head.Layer} lacks a map, or its data are not those of {tokens} tokens.");
            }
        }

        ReportPage.Write(stream, "report.html", $"What {inspection.Model.Name} attends to", [("data", writer => writer.Write(Data(inspection))), ("blobs", writer => WriteBlocks(inspection, writer))]);
    }

    private static string Data(InspectionResult inspection) => ReportPage.Json(json =>
    {
        var map = inspection.Heads.Count > 0 ? inspection.Heads[0].Map! : new PooledMap(inspection.Tokens.Count, 1, []);
        json.WriteStartObject();
        json.WriteString("generator", ReportPage.Generator);
        json.WriteString("source", inspection.Source);
        json.WriteStartObject("model");
        json.WriteString("name", inspection.Model.Name);
        json.WriteNumber("layers", inspection.Model.Layers);
        json.WriteNumber("heads", inspection.Model.Heads);
        json.WriteNumber("key_value_heads", inspection.Model.KeyValueHeads);
        json.WriteNumber("parameters", inspection.Model.Parameters);
        json.WriteEndObject();
        json.WriteString("attention", inspection.Attention);
        ReportPage.Array(json, "edits", inspection.Edits, json.WriteStringValue);
        if (inspection.Before is { } before)
        {
            json.WriteStartObject("before");
            ReportPage.Number(json, "bits_per_byte", before.BitsPerByte);
            ReportPage.Array(json, "loss", before.Tokens, token => ReportPage.Value(json, token.Loss, 4));
            ReportPage.Array(json, "heads", before.Heads, head =>
            {
                json.WriteStartObject();
                Statistics(json, head);
                ReportPage.Number(json, "received_max", MostReceived(head));
                json.WriteEndObject();
            });
            json.WriteEndObject();
        }

        ReportPage.Number(json, "bits_per_byte", inspection.BitsPerByte);
        ReportPage.Number(json, "bits_per_byte_without", inspection.BitsPerByteWithout);
        ReportPage.Number(json, "loss_per_token", inspection.LossPerToken);
        json.WriteNumber("tokens_per_cell", map.TokensPerCell);
        json.WriteNumber("side", map.Side);
        json.WriteNumber("top_count", inspection.TopCount);
        ReportPage.Array(json, "notices", inspection.Notices, json.WriteStringValue);
        WriteSinks(json, inspection);
        ReportPage.Array(json, "looks", Enum.GetValues<HeadLook>(), look =>
        {
            json.WriteStartObject();
            json.WriteString("key", Key(look));
            json.WriteString("word", HeadLooks.Word(look));
            json.WriteString("meaning", HeadLooks.Meaning(look));
            json.WriteEndObject();
        });
        json.WriteStartObject("tokens");
        ReportPage.Array(json, "text", inspection.Tokens, token => json.WriteStringValue(token.Text));
        ReportPage.Array(json, "loss", inspection.Tokens, token => ReportPage.Value(json, token.Loss, 4));
        ReportPage.Array(json, "raw", Enumerable.Range(0, inspection.Tokens.Count).Where(i => !inspection.Tokens[i].IsText), json.WriteNumberValue);
        json.WriteEndObject();
        ReportPage.Array(json, "heads", inspection.Heads, head =>
        {
            json.WriteStartObject();
            json.WriteNumber("layer", head.Layer);
            json.WriteNumber("head", head.Head);
            Statistics(json, head);
            ReportPage.Number(json, "computed_share", head.ComputedShare);
            ReportPage.Number(json, "received_max", MostReceived(head));
            json.WriteBoolean("dormant", head.IsDormant);
            ReportPage.Number(json, "column_entropy", head.ColumnEntropy);
            ReportPage.Number(json, "sink_logit_gap", head.SinkLogitGap);
            ReportPage.Array(json, "sinks", head.AttentionSinks, json.WriteNumberValue);
            json.WriteEndObject();
        });
        json.WriteEndObject();
    });

    private static void Statistics(Utf8JsonWriter json, InspectedHead head)
    {
        var statistics = head.Statistics;
        json.WriteString("look", Key(head.Look));
        ReportPage.Number(json, "entropy", statistics.Entropy);
        ReportPage.Number(json, "entropy_share", statistics.EntropyShare);
        ReportPage.Number(json, "first_mass", statistics.FirstMass);
        ReportPage.Number(json, "near_mass", statistics.NearMass);
        ReportPage.Number(json, "mean_distance", statistics.MeanDistance);
        ReportPage.Number(json, "previous_share", statistics.PreviousShare);
        ReportPage.Number(json, "self_share", statistics.SelfShare);
        ReportPage.Number(json, "induction", statistics.Induction);
    }

    private static void WriteSinks(Utf8JsonWriter json, InspectionResult inspection)
    {
        json.WriteString("dormant_meaning", InspectedHead.DormantMeaning);
        ReportPage.Number(json, "sink_threshold", SinkMask.AttentionThreshold);
        json.WriteNumber("sink_rows", InspectedHead.LeastRows);
        if (inspection.Sinks is { } sinks)
        {
            json.WriteStartObject("sinks");
            json.WriteNumber("primary", sinks.Primary);
            json.WriteNumber("start", sinks.Start);
            json.WriteNumber("end", sinks.End);
            json.WriteNumber("primary_slack", sinks.PrimarySlack);
            json.WriteNumber("noise_lifetime", sinks.NoiseLifetime);
            ReportPage.Number(json, "cosine_threshold", sinks.CosineThreshold);
            ReportPage.Array(json, "tokens", sinks.Tokens, sink =>
            {
                json.WriteStartObject();
                json.WriteNumber("token", sink.Token);
                json.WriteString("label", sink.Label.ToString().ToLowerInvariant());
                json.WriteNumber("creation", sink.Creation);
                json.WriteNumber("lifetime", sink.Lifetime);
                ReportPage.Array(json, "layers", sink.Layers, json.WriteNumberValue);
                ReportPage.Number(json, "received", sink.Received);
                json.WriteEndObject();
            });
            json.WriteEndObject();
        }

        ReportPage.Array(json, "layers", inspection.Layers, layer =>
        {
            json.WriteStartObject();
            json.WriteNumber("layer", layer.Layer);
            ReportPage.Number(json, "sink", layer.Residual.Norm);
            ReportPage.Number(json, "mean", layer.Residual.OthersMean);
            ReportPage.Number(json, "largest", layer.Residual.OthersMaximum);
            ReportPage.Number(json, "sink_value", layer.SinkValueNorm);
            ReportPage.Number(json, "value", layer.OthersValueNorm);
            ReportPage.Number(json, "logit_gap", layer.SinkLogitGap);
            json.WriteEndObject();
        });
    }

    private static void WriteBlocks(InspectionResult inspection, StreamWriter writer)
    {
        WriteBlocks(inspection.Heads, "h", writer);
        WriteBlocks(inspection.Before?.Heads ?? [], "b", writer);
    }

    private static void WriteBlocks(IReadOnlyList<InspectedHead> heads, string prefix, StreamWriter writer)
    {
        for (var index = 0; index < heads.Count; index++)
        {
            writer.Write($"<script type=\"text/plain\" id=\"{prefix}{index}\">");
            writer.Write(Convert.ToBase64String(Block(heads[index])));
            writer.Write("</script>\n");
        }
    }

    private static byte[] Block(InspectedHead head)
    {
        using var buffer = new MemoryStream();
        using (var zlib = new ZLibStream(buffer, CompressionLevel.Optimal, leaveOpen: true))
        {
            var most = MostReceived(head);
            Words(zlib, head.MassReceived, mass => most > 0 ? (ushort)Math.Round(65535 * Math.Sqrt(Math.Clamp(mass / most, 0, 1))) : (ushort)0);
            Words(zlib, head.TopKeys, key => key < 0 ? NoKey : (ushort)key);
            Words(zlib, head.TopWeights, weight => (ushort)Math.Round(65535 * Math.Clamp(weight, 0f, 1f)));
            zlib.Write(head.Map!.Cells);
        }

        return buffer.ToArray();
    }

    private static void Words<T>(Stream stream, T[] values, Func<T, ushort> encode)
    {
        var bytes = new byte[2 * values.Length];
        Span<byte> word = stackalloc byte[2];
        for (var i = 0; i < values.Length; i++)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(word, encode(values[i]));
            bytes[i] = word[0];
            bytes[values.Length + i] = word[1];
        }

        stream.Write(bytes);
    }

    private static double MostReceived(InspectedHead head) => head.MassReceived.Where(float.IsFinite).DefaultIfEmpty(0).Max();

    private static string Key(HeadLook look) => look.ToString().ToLowerInvariant();
}
