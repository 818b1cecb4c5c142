using System.Globalization;
using System.Text;
using static TorchSharp.torch;

namespace Heed.Lab.Backcopy;

/// <summary>How often characters occur and follow each other, with a begin token and a delimiter behind the characters: the language of <see cref="BigramBackcopy"/>.</summary>
public sealed class BigramTable
{
    // No text in letters needs more; a table of V x V has to stay small.
    private const int MostCharacters = 512;
    private const string Resource = "Heed.Lab.Backcopy.tiny-shakespeare.txt";

    private readonly double[] _conditional;
    private readonly double[] _marginal;

    private BigramTable(string name, string characters, long[] counts, long[,] followers)
    {
        (Name, Characters) = (name, characters);
        var (known, size) = (characters.Length, characters.Length + 2);
        (_conditional, _marginal) = (new double[size * size], new double[size]);
        double total = counts.Sum();
        for (var token = 0; token < known; token++)
        {
            _marginal[token] = counts[token] / total;
            double row = 0;
            for (var next = 0; next < known; next++)
            {
                row += followers[token, next];
            }

            for (var next = 0; next < known; next++)
            {
                // A character that only ends the text is followed by any, as if the text began anew.
                _conditional[(token * size) + next] = row > 0 ? followers[token, next] / row : counts[next] / total;
            }
        }

        for (var token = known; token < size; token++)
        {
            _marginal.CopyTo(_conditional, token * size);
        }
    }

    /// <summary>The table that ships: counts of the text known as tiny Shakespeare, 65 characters.</summary>
    public static BigramTable Shakespeare { get; } = ReadShakespeare();

    /// <summary>What was counted.</summary>
    public string Name { get; }

    /// <summary>The characters, by token.</summary>
    public string Characters { get; }

    /// <summary>The begin token, which nothing is followed by and which every token follows as often as it occurs.</summary>
    public int Begin => Characters.Length;

    /// <summary>Number V of tokens: the characters, the begin token, and a delimiter that never occurs by itself.</summary>
    public int Vocabulary => Characters.Length + 2;

    /// <summary>Share of every token, float64 <c>[V]</c>.</summary>
    public Tensor Marginal() => tensor(_marginal);

    /// <summary>Share of every token (columns) behind every token (rows), float64 <c>[V, V]</c>.</summary>
    public Tensor Conditional() => tensor(_conditional, [Vocabulary, Vocabulary]);

    /// <summary>Counts the characters of a text.</summary>
    /// <param name="name">What to call it.</param>
    /// <param name="text">The text.</param>
    /// <exception cref="ArgumentException">It has fewer than 16 or more than 512 different characters.</exception>
    public static BigramTable Of(string name, string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var characters = string.Concat(text.Distinct().Order());
        if (characters.Length is < 16 or > MostCharacters)
        {
            throw new ArgumentException($"'{name}' has {characters.Length} different characters; a bigram language takes 16 to {MostCharacters}: give a text of some pages in one script.", nameof(text));
        }

        var places = characters.Select((character, place) => (character, place)).ToDictionary(pair => pair.character, pair => pair.place);
        var (counts, followers) = (new long[characters.Length], new long[characters.Length, characters.Length]);
        for (var i = 0; i < text.Length; i++)
        {
            counts[places[text[i]]]++;
            if (i > 0)
            {
                followers[places[text[i - 1]], places[text[i]]]++;
            }
        }

        return new(name, characters, counts, followers);
    }

    private static BigramTable ReadShakespeare()
    {
        using var stream = typeof(BigramTable).Assembly.GetManifestResourceStream(Resource)!;
        using var reader = new StreamReader(stream, Encoding.UTF8);
        var rows = reader.ReadToEnd().Split('\n', StringSplitOptions.RemoveEmptyEntries).Where(line => line[0] != '#').Select(line => line.Split(' ')).ToArray();
        static long Number(string text) => long.Parse(text, CultureInfo.InvariantCulture);
        var places = rows.Select((row, place) => (Character: Number(row[0]), place)).ToDictionary(pair => pair.Character, pair => pair.place);
        var followers = new long[rows.Length, rows.Length];
        foreach (var (row, place) in rows.Select((row, place) => (row, place)))
        {
            foreach (var pair in row.Skip(2).Select(pair => pair.Split(':')))
            {
                followers[place, places[Number(pair[0])]] = Number(pair[1]);
            }
        }

        return new("tiny Shakespeare", string.Concat(rows.Select(row => (char)Number(row[0]))), [.. rows.Select(row => Number(row[1]))], followers);
    }
}
