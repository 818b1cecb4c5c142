using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Texts of a random sparse bigram source in which the token after a trigger repeats the token before it: the head that copies has nothing to do anywhere else. A start token comes first.</summary>
internal static class BackcopyTask
{
    /// <summary>Tokens: the start, three triggers, and ordinary ones.</summary>
    public const int Vocabulary = 32;

    /// <summary>Tokens of a text.</summary>
    public const int Length = 32;

    private const int Triggers = 3, Successors = 4;
    private const double TriggerShare = 0.2;

    // One language for all seeds: what differs is weights and texts.
    private static readonly int[][] s_successors = Draw();

    /// <summary>Texts int64 <c>[count, length + 1]</c>; the same seed gives the same texts.</summary>
    public static Tensor Texts(int count, int seed)
    {
        var random = new Random(seed);
        var texts = new long[count * (Length + 1)];
        for (var text = 0; text < count; text++)
        {
            var tokens = texts.AsSpan(text * (Length + 1), Length + 1);
            for (var i = 1; i < tokens.Length; i++)
            {
                tokens[i] = i > 2 && IsTrigger(tokens[i - 1]) ? tokens[i - 2]
                    : i > 1 && random.NextDouble() < TriggerShare ? 1 + random.Next(Triggers)
                    : s_successors[tokens[i - 1]][random.Next(Successors)];
            }
        }

        return tensor(texts).view(count, Length + 1);
    }

    /// <summary>Which queries must copy: those at a trigger with an ordinary history, boolean <c>[B, N]</c>. A trigger at place 1 has only the start before it.</summary>
    public static Tensor IsCopying(Tensor input)
    {
        var places = arange(input.shape[1], dtype: int64).unsqueeze(0);
        return input.ge(1).logical_and(input.le(Triggers)).logical_and(places.gt(1));
    }

    /// <summary>Mean cross-entropy of the next token, all and at copying queries alone.</summary>
    public static (Tensor All, Tensor Copying) Losses(LanguageModel model, Tensor texts)
    {
        var (input, target) = (texts.narrow(1, 0, Length), texts.narrow(1, 1, Length));
        var losses = nn.functional.cross_entropy(model.forward(input).view(-1, Vocabulary), target.reshape(-1), reduction: nn.Reduction.None).view(target.shape);
        return (losses.mean(), losses.masked_select(IsCopying(input)).mean());
    }

    private static bool IsTrigger(long token) => token is >= 1 and <= Triggers;

    private static int[][] Draw()
    {
        var random = new Random(12345);
        return [.. Enumerable.Range(0, Vocabulary).Select(_ => Enumerable.Range(0, Successors).Select(_ => random.Next(Triggers + 1, Vocabulary)).ToArray())];
    }
}
