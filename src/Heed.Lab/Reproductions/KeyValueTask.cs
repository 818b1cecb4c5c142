using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Prompts of pairs of a key and a value with a delimiter behind each, then keys that ask for their values: <c>begin (key value ;) x pairs, (key value) x questions</c>. Delimiters and the begin token mean nothing, and so attract what
/// attention has nothing else to do.</summary>
internal static class KeyValueTask
{
    /// <summary>Questions of a prompt.</summary>
    public const int Questions = 5;

    /// <summary>Keys, and as many values.</summary>
    public const int Keys = 12;

    /// <summary>Number of tokens: begin, delimiter, keys, values.</summary>
    public const int Vocabulary = 2 + (2 * Keys);

    private const int Begin = 0, Delimiter = 1, FirstKey = 2, FirstValue = 2 + Keys;

    /// <summary>Tokens of a prompt.</summary>
    public static int Length(int pairs) => 1 + (3 * pairs) + (2 * Questions);

    /// <summary>Places at which a question is answered.</summary>
    public static long[] Asked(int pairs) => [.. Enumerable.Range(0, Questions).Select(question => 1L + (3 * pairs) + (2 * question))];

    /// <summary>Prompts, int64 <c>[count, length]</c>, and the answers, int64 <c>[count, questions]</c>. Keys of a prompt differ, questions may repeat; the same seed gives the same prompts.</summary>
    public static (Tensor Tokens, Tensor Answers) Draw(int count, int pairs, int seed)
    {
        var random = new Random(seed);
        var (length, keys) = (Length(pairs), Enumerable.Range(0, Keys).ToArray());
        var (tokens, answers) = (new long[count * length], new long[count * Questions]);
        for (var prompt = 0; prompt < count; prompt++)
        {
            var at = tokens.AsSpan(prompt * length, length);
            random.Shuffle(keys);
            at[0] = Begin;
            for (var pair = 0; pair < pairs; pair++)
            {
                (at[1 + (3 * pair)], at[2 + (3 * pair)], at[3 + (3 * pair)]) = (FirstKey + keys[pair], FirstValue + random.Next(Keys), Delimiter);
            }

            for (var question = 0; question < Questions; question++)
            {
                var (pair, place) = (random.Next(pairs), 1 + (3 * pairs) + (2 * question));
                (at[place], at[place + 1]) = (at[1 + (3 * pair)], at[2 + (3 * pair)]);
                answers[(prompt * Questions) + question] = at[place + 1];
            }
        }

        return (tensor(tokens, [count, length]), tensor(answers, [count, Questions]));
    }
}
