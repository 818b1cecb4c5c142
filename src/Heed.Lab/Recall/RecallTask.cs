using static TorchSharp.torch;

namespace Heed.Lab.Recall;

/// <summary>Multi-query associative recall: a text begins with pairs of a key and a value; later, among values drawn at random, each key comes once more, and the model must say its
/// value there. A window that is shorter than the text forgets the pairs.</summary>
/// <param name="Length">Tokens of a text.</param>
/// <param name="Pairs">Pairs of a text.</param>
/// <param name="Vocabulary">Number of tokens, even: keys are 1 to half of it (excluded), values the rest.</param>
public sealed record RecallTask(int Length = 64, int Pairs = 4, int Vocabulary = 64)
{
    /// <summary>The target of a token that is not asked.</summary>
    public const long NotAsked = -100;

    /// <summary>Refuses sizes that make no task.</summary>
    /// <exception cref="ArgumentException">A size is out of range.</exception>
    public void Validate()
    {
        if (Vocabulary < 4 || Vocabulary % 2 != 0 || Pairs < 1 || Pairs >= Vocabulary / 2 || Length < 4 * Pairs)
        {
            throw new ArgumentException(
                $"Recall needs an even vocabulary of at least 4, fewer pairs than keys and 4 tokens for every pair; {Vocabulary}, {Pairs} and {Length} were given.");
        }
    }

    /// <summary>Texts and what is asked in them.</summary>
    /// <param name="count">Number of texts.</param>
    /// <param name="seed">The same seed gives the same texts.</param>
    /// <returns>Tokens and targets, int64 <c>[count, Length]</c> each; targets are <see cref="NotAsked"/> but where a key comes again.</returns>
    public (Tensor Tokens, Tensor Targets) Draw(int count, int seed)
    {
        Validate();
        var random = new Random(seed);
        var (tokens, targets) = (new long[count, Length], new long[count, Length]);
        var half = Vocabulary / 2;
        var keys = Enumerable.Range(1, half - 1).ToArray();
        // Even places behind the pairs.
        var places = Enumerable.Range(Pairs, (Length / 2) - Pairs).Select(place => 2 * place).ToArray();
        for (var text = 0; text < count; text++)
        {
            random.Shuffle(keys);
            random.Shuffle(places);
            for (var i = 0; i < Length; i++)
            {
                (tokens[text, i], targets[text, i]) = (half + random.Next(half), NotAsked);
            }

            for (var pair = 0; pair < Pairs; pair++)
            {
                tokens[text, 2 * pair] = keys[pair];
                tokens[text, places[pair]] = keys[pair];
                targets[text, places[pair]] = tokens[text, (2 * pair) + 1];
            }
        }

        return (tensor(tokens), tensor(targets));
    }
}
