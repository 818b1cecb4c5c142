using static TorchSharp.torch;

namespace Heed.Lab.Needle;

/// <summary>Texts of noise in which one marker stands, followed by a value; the last token asks for the value. The values occur among the noise too.</summary>
/// <param name="Length">Tokens of a text.</param>
public sealed record NeedleTask(int Length = 128)
{
    /// <summary>Kinds of noise.</summary>
    public const int NoiseTokens = 40;

    /// <summary>Kinds of values: the first so many kinds of noise.</summary>
    public const int Values = 16;

    /// <summary>The token that says that a value follows.</summary>
    public const int Marker = NoiseTokens;

    /// <summary>The token that asks for the value.</summary>
    public const int Question = NoiseTokens + 1;

    /// <summary>Number of tokens in all.</summary>
    public const int VocabularySize = NoiseTokens + 2;

    /// <summary>Draws texts.</summary>
    /// <param name="count">How many.</param>
    /// <param name="seed">The same seed gives the same texts.</param>
    /// <returns>Tokens, int64 <c>[count, length]</c>; the values, int64 <c>[count]</c>; and where each stands, int64 <c>[count]</c>: anywhere but in the last place.</returns>
    public (Tensor Texts, Tensor Values, Tensor Places) Draw(int count, int seed)
    {
        var random = new Random(seed);
        var texts = new long[count * Length];
        var (values, places) = (new long[count], new long[count]);
        for (var text = 0; text < count; text++)
        {
            var tokens = texts.AsSpan(text * Length, Length);
            foreach (ref var token in tokens)
            {
                token = random.Next(NoiseTokens);
            }

            (places[text], values[text]) = (1 + random.Next(Length - 2), random.Next(Values));
            tokens[(int)places[text] - 1] = Marker;
            tokens[(int)places[text]] = values[text];
            tokens[^1] = Question;
        }

        return (tensor(texts, [count, Length]), tensor(values), tensor(places));
    }
}
