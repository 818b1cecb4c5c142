using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>A word that a model wrote, with its times read off cross-attention.</summary>
/// <param name="Text">The word.</param>
/// <param name="FirstToken">Its first token in the text.</param>
/// <param name="Tokens">How many tokens it has.</param>
/// <param name="Start">Where it starts by dynamic time warping, in seconds.</param>
/// <param name="End">Where it ends by dynamic time warping.</param>
/// <param name="AreaStart">Where it starts by the largest attended area (SBAAM).</param>
/// <param name="AreaEnd">Where it ends by the largest attended area.</param>
public sealed record TimedWord(string Text, int FirstToken, int Tokens, double Start, double End, double AreaStart, double AreaEnd);

/// <summary>Times of words from cross-attention.</summary>
public static class WordTimes
{
    /// <summary>The words of a text with their times, by both methods of <see cref="BlockAligner"/>.</summary>
    /// <param name="pretrained">The model and its words.</param>
    /// <param name="attention">Cross-attention while the decoder was fed the text, usually the mean of all heads: <c>[I + 1, T']</c>, the end token's row last.</param>
    /// <param name="tokens">The text without its end token.</param>
    /// <returns>The words; none where there are no tokens.</returns>
    /// <exception cref="ArgumentException">The rows are not one more than the tokens.</exception>
    public static IReadOnlyList<TimedWord> Of(PretrainedSpeech pretrained, Tensor attention, IReadOnlyList<long> tokens)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentNullException.ThrowIfNull(attention);
        ArgumentNullException.ThrowIfNull(tokens);
        if (attention.dim() != 2 || attention.shape[0] != tokens.Count + 1)
        {
            throw new ArgumentException($"Attention must be [{tokens.Count + 1}, frames], a row for each token and for the end, not [{string.Join(", ", attention.shape)}].", nameof(attention));
        }

        if (tokens.Count == 0)
        {
            return [];
        }

        using var scope = NewDisposeScope();
        string[] texts = [.. tokens.Select(pretrained.TextOf)];

        // A word begins at a token with a space before it.
        int[] firsts = [.. Enumerable.Range(0, texts.Length).Where(index => index == 0 || texts[index].StartsWith(' '))];
        int[] lasts = [.. firsts.Skip(1).Select(next => next - 1), texts.Length - 1];
        var starts = BlockAligner.DtwStarts(attention);
        var ends = lasts.Length <= attention.shape[1] ? BlockAligner.Sbaam(attention.narrow(0, 0, tokens.Count), lasts) : [.. lasts.Select(_ => attention.shape[1])];
        var second = pretrained.SecondsPerState;
        return [.. firsts.Select((first, word) => new TimedWord(
            string.Concat(texts[first..(lasts[word] + 1)]).Trim(), first, lasts[word] - first + 1, starts[first] * second, starts[lasts[word] + 1] * second, (word == 0 ? 0 : ends[word - 1]) * second, ends[word] * second))];
    }
}
