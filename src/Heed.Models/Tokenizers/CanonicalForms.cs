using System.Globalization;
using System.Text;

namespace Heed.Models.Tokenizers;

/// <summary>The Unicode normalisation forms C and D (Unicode Standard Annex 15), with tables of their own: the framework normalises through ICU, which a program with
/// invariant globalization or a small system does not have, and silently leaves text as it is there.</summary>
internal static class CanonicalForms
{
    private const int HangulFirst = 0xAC00;
    private const int HangulCount = 11172;
    private const int LeadFirst = 0x1100;
    private const int VowelFirst = 0x1161;
    private const int TrailBefore = 0x11A7;
    private const int VowelCount = 21;
    private const int TrailCount = 28;

    private static readonly Lazy<Tables> Data = new(Tables.Read);

    /// <summary>Form C: decomposed, marks in order, composed.</summary>
    public static string Compose(string text)
    {
        var points = Decomposed(text);
        var composed = new List<int>(points.Count);
        var starter = -1;
        foreach (var point in points)
        {
            // A mark joins the last starter unless one of the same class, or a starter, lies between them.
            var blocked = composed.Count - 1 > starter && (ClassOf(composed[^1]) >= ClassOf(point) || ClassOf(composed[^1]) == 0);
            if (starter >= 0 && !blocked && Pair(composed[starter], point) is { } joined)
            {
                composed[starter] = joined;
                continue;
            }

            starter = ClassOf(point) == 0 ? composed.Count : starter;
            composed.Add(point);
        }

        return Text(composed);
    }

    /// <summary>Form D: decomposed, marks in order.</summary>
    public static string Decompose(string text) => Text(Decomposed(text));

    private static int ClassOf(int point) => Data.Value.Classes.GetValueOrDefault(point);

    private static List<int> Decomposed(string text)
    {
        var points = new List<int>(text.Length);
        for (var i = 0; i < text.Length; i++)
        {
            var isPair = char.IsHighSurrogate(text[i]) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]);
            Append(isPair ? char.ConvertToUtf32(text[i], text[++i]) : text[i], points);
        }

        // Marks of different classes commute: each run of them is brought into order of class, keeping the order within a class.
        for (var i = 1; i < points.Count; i++)
        {
            for (var j = i; j > 0 && ClassOf(points[j]) != 0 && ClassOf(points[j - 1]) > ClassOf(points[j]); j--)
            {
                (points[j - 1], points[j]) = (points[j], points[j - 1]);
            }
        }

        return points;
    }

    private static void Append(int point, List<int> points)
    {
        var syllable = point - HangulFirst;
        if (syllable is >= 0 and < HangulCount)
        {
            points.Add(LeadFirst + (syllable / (VowelCount * TrailCount)));
            points.Add(VowelFirst + (syllable / TrailCount % VowelCount));
            if (syllable % TrailCount is > 0 and var trail)
            {
                points.Add(TrailBefore + trail);
            }
        }
        else if (Data.Value.Decompositions.TryGetValue(point, out var parts))
        {
            Append(parts.First, points);
            if (parts.Second != 0)
            {
                Append(parts.Second, points);
            }
        }
        else
        {
            points.Add(point);
        }
    }

    private static int? Pair(int first, int second)
    {
        if (first - LeadFirst is >= 0 and < 19 and var lead && second - VowelFirst is >= 0 and < VowelCount and var vowel)
        {
            return HangulFirst + (((lead * VowelCount) + vowel) * TrailCount);
        }

        if (first - HangulFirst is >= 0 and < HangulCount and var syllable && syllable % TrailCount == 0 && second - TrailBefore is > 0 and < TrailCount and var trail)
        {
            return first + trail;
        }

        return Data.Value.Compositions.TryGetValue((first, second), out var joined) ? joined : null;
    }

    private static string Text(List<int> points)
    {
        var text = new StringBuilder(points.Count);
        foreach (var point in points)
        {
            // Unpaired surrogates pass through: they are no characters, but not ours to remove.
            _ = point is >= 0xD800 and <= 0xDFFF ? text.Append((char)point) : text.Append(char.ConvertFromUtf32(point));
        }

        return text.ToString();
    }

    private sealed record Tables(Dictionary<int, (int First, int Second)> Decompositions, Dictionary<(int First, int Second), int> Compositions, Dictionary<int, int> Classes)
    {
        public static Tables Read()
        {
            var tables = new Tables([], [], []);
            using var reader = new StreamReader(typeof(CanonicalForms).Assembly.GetManifestResourceStream("Heed.Models.Tokenizers.CanonicalForms.txt")!);
            while (reader.ReadLine() is { } line)
            {
                var parts = line.Split(' ');
                int Hexadecimal(int index) => int.Parse(parts[index], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
                switch (parts[0])
                {
                    case "D" or "E":
                        var pair = (Hexadecimal(2), parts.Length > 3 ? Hexadecimal(3) : 0);
                        tables.Decompositions[Hexadecimal(1)] = pair;
                        if (parts[0] == "D")
                        {
                            tables.Compositions[pair] = Hexadecimal(1);
                        }

                        break;
                    case "C":
                        for (var point = Hexadecimal(1); point <= Hexadecimal(2); point++)
                        {
                            tables.Classes[point] = int.Parse(parts[3], CultureInfo.InvariantCulture);
                        }

                        break;
                }
            }

            return tables;
        }
    }
}
