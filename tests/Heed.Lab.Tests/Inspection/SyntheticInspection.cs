using System.Text.RegularExpressions;
using Heed.Lab.Inspection;
using Heed.Probes;

namespace Heed.Lab.Tests.Inspection;

/// <summary>Inspections whose every number is known, from maps written as formulas.</summary>
internal static partial class SyntheticInspection
{
    private const string Passage =
        "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon the face of the deep. "
        + "And the Spirit of God moved upon the face of the waters.\nAnd God said, Let there be light: and there was light. And God saw the light, that it was good: "
        + "and God divided the light from the darkness.\nAnd God called the light Day, and the darkness he called Night. And the evening and the morning were the first day.\n";

    /// <summary>Unnormalised weight of a pair (row, key), for each look.</summary>
    public static IReadOnlyDictionary<HeadLook, Func<int, int, double>> Patterns { get; } = new Dictionary<HeadLook, Func<int, int, double>>
    {
        [HeadLook.Previous] = (row, key) => key == row - 1 ? 20 : 1.0 / (1 + row),
        [HeadLook.Self] = (row, key) => key == row ? 20 : 1.0 / (1 + row),
        [HeadLook.Sink] = (row, key) => key == 0 ? 4 : Noise(row, key) / (1 + row),
        [HeadLook.Local] = (row, key) => Math.Exp(-Math.Abs(row - key - 3) / 2.0) * Noise(row, key),
        [HeadLook.Broad] = (row, key) => 0.5 + Noise(row, key),
        [HeadLook.Mixed] = (row, key) => Math.Exp(6 * Noise(key, key)) * (0.2 + Noise(row, key)),
        [HeadLook.Induction] = (row, key) => row >= 64 && key == row - 63 ? 6 : key == 0 ? 1 : Noise(row, key) / (1 + row),
    };

    /// <summary>Tokens of a passage: words with the space before them.</summary>
    public static List<string> Words(int count)
    {
        var words = Word().Matches(Passage).Select(match => match.Value).ToList();
        return [.. Enumerable.Range(0, count).Select(i => words[i % words.Count])];
    }

    public static InspectionResult Create(int tokens = 96, int layers = 2, int heads = 4, int topCount = 8, int tokensPerCell = 1, IReadOnlyList<string>? words = null)
    {
        words ??= Words(tokens);
        var looks = Enum.GetValues<HeadLook>();
        return new()
        {
            Model = new("synthetic", layers, heads, heads, 1234567),
            Tokens = [.. words.Select((word, i) => new InspectedToken(i % 50, word, i == 0 ? null : 0.2 + (6 * Noise(i, 3))))],
            Heads = [.. Enumerable.Range(0, layers * heads).AsParallel().AsOrdered().Select(index =>
                Head(index / heads, index % heads, tokens, Patterns[looks[index % looks.Length]], topCount, tokensPerCell, looks[index % looks.Length] == HeadLook.Induction ? 0.8 : 0.01)
                with { IsDormant = looks[index % looks.Length] == HeadLook.Sink, AttentionSinks = looks[index % looks.Length] == HeadLook.Sink ? [0] : [], ColumnEntropy = 0.5, SinkLogitGap = index })],
            Sinks = tokens < 16 ? null : new(0, 0, layers, 0, 0, 0.9, [new(0, SinkLabel.Primary, 0, layers, [.. Enumerable.Range(0, layers)], 0.4), new(9, SinkLabel.Secondary, 1, 1, [1], 0.05)]),
            Layers = [.. Enumerable.Range(0, layers).Select(layer => new InspectedLayer(layer, new(100 + layer, 10, 20), 0.5, 4, 2.5))],
            PredictedBytes = words.Skip(1).Sum(System.Text.Encoding.UTF8.GetByteCount),
            TopCount = topCount,
            Source = "a synthetic page",
            Seconds = 1,
        };
    }

    /// <summary>A head whose weights are those of a formula, normalised by row.</summary>
    public static InspectedHead Head(int layer, int head, int tokens, Func<int, int, double> weight, int topCount = 8, int tokensPerCell = 1, double? induction = null)
    {
        var side = PooledMap.SideOf(tokens, tokensPerCell);
        var cells = new double[side, side];
        float[] entropy = new float[tokens], distance = new float[tokens], first = new float[tokens], near = new float[tokens], received = new float[tokens];
        var place = new int[tokens];
        var topKeys = new int[tokens * topCount];
        var topWeights = new float[tokens * topCount];
        Array.Fill(topKeys, -1);
        for (var row = 0; row < tokens; row++)
        {
            var weights = Enumerable.Range(0, row + 1).Select(key => weight(row, key)).ToArray();
            var sum = weights.Sum();
            for (var key = 0; key <= row; key++)
            {
                var w = weights[key] /= sum;
                entropy[row] -= w > 0 ? (float)(w * Math.Log(w)) : 0;
                distance[row] += (float)(w * (row - key));
                received[key] += (float)w;
                cells[row / tokensPerCell, key / tokensPerCell] += w / Math.Min(tokensPerCell, tokens - (row / tokensPerCell * tokensPerCell));
            }

            first[row] = (float)weights[0];
            near[row] = (float)weights[Math.Max(0, row - 15)..].Sum();
            place[row] = Array.IndexOf(weights, weights.Max());
            var at = row * topCount;
            foreach (var key in Enumerable.Range(0, row + 1).OrderByDescending(key => weights[key]).Take(topCount))
            {
                topKeys[at] = key;
                topWeights[at++] = (float)weights[key];
            }
        }

        var bytes = new byte[PooledMap.BytesOf(tokens, tokensPerCell)];
        var cell = 0;
        for (var row = 0; row < side; row++)
        {
            for (var column = 0; column <= row; column++)
            {
                bytes[cell++] = (byte)Math.Round(255 * Math.Sqrt(Math.Min(1, cells[row, column])));
            }
        }

        return new()
        {
            Layer = layer,
            Head = head,
            Statistics = HeadStatistics.Of(entropy, place, distance, first, near, null, induction),
            Map = new(tokens, tokensPerCell, bytes),
            TopKeys = topKeys,
            TopWeights = topWeights,
            MassReceived = received,
            Entropy = entropy,
        };
    }

    /// <summary>A repeatable number from 0 to 1 for a pair.</summary>
    private static double Noise(int row, int key)
    {
        var mixed = (uint)((row * 73856093) ^ (key * 19349663));
        mixed ^= mixed >> 13;
        mixed *= 0x5bd1e995;
        return (mixed >> 8) / (double)(1 << 24);
    }

    [GeneratedRegex(@"\s?[\p{L}]+|\n|\s?[^\s\p{L}]")]
    private static partial Regex Word();
}
