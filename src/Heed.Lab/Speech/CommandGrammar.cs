namespace Heed.Lab.Speech;

/// <summary>Sentences of commands over forty words, three to eight of them each: every word can be followed by several others, so that a recogniser must listen.</summary>
public static class CommandGrammar
{
    private static readonly string[] s_verbs = ["open", "close", "find", "move", "lift", "paint", "bring", "hide"];
    private static readonly string[] s_numbers = ["two", "three", "four", "five", "seven", "nine"];
    private static readonly string[] s_colours = ["red", "green", "blue", "yellow", "black", "silver"];
    private static readonly string[] s_things = ["boxes", "windows", "bottles", "tables", "lamps", "candles", "baskets", "mirrors"];
    private static readonly string[] s_places = ["under", "behind", "beside", "above"];
    private static readonly string[] s_rooms = ["kitchen", "garden", "tower", "cellar"];
    private static readonly string[] s_times = ["today", "quickly", "again", "slowly"];

    /// <summary>The words.</summary>
    public static IReadOnlyList<string> Words { get; } = [.. s_verbs, .. s_numbers, .. s_colours, .. s_things, .. s_places, .. s_rooms, .. s_times];

    /// <summary>A sentence: verb, number, perhaps a colour, thing; perhaps a place with a room or with a coloured thing; perhaps a time.</summary>
    /// <param name="random">Decides it.</param>
    /// <param name="most">The most words, from 3 to 8.</param>
    public static IReadOnlyList<string> Sentence(Random random, int most = 8)
    {
        ArgumentNullException.ThrowIfNull(random);
        ArgumentOutOfRangeException.ThrowIfLessThan(most, 3);
        string Any(string[] words) => words[random.Next(words.Length)];
        var words = new List<string> { Any(s_verbs), Any(s_numbers) };
        var target = random.Next(3, Math.Min(most, 8) + 1);
        if (target >= 4 && random.Next(3) > 0)
        {
            words.Add(Any(s_colours));
        }

        words.Add(Any(s_things));
        if (target - words.Count >= 3)
        {
            words.AddRange([Any(s_places), Any(s_colours), Any(s_things)]);
        }
        else if (target - words.Count == 2)
        {
            words.AddRange([Any(s_places), Any(s_rooms)]);
        }

        if (words.Count < target)
        {
            words.Add(Any(s_times));
        }

        return words;
    }
}
