using Heed.Models.Speech;
using static TorchSharp.torch;

namespace Heed.Lab.Speech;

/// <summary>One utterance of a <see cref="SpokenCorpus"/>.</summary>
/// <param name="Features">Log-mel features, float32 <c>[T, F]</c>, every bin of mean 0 and deviation 1.</param>
/// <param name="Words">What is said, and when each word starts, as the synthesiser says.</param>
/// <param name="Tokens">Its tokens, the end token last.</param>
/// <param name="Style">Who speaks.</param>
public sealed record Utterance(Tensor Features, IReadOnlyList<SpokenWord> Words, IReadOnlyList<long> Tokens, SpeakingStyle Style);

/// <summary>Commands of <see cref="CommandGrammar"/> spoken by eSpeak NG: six voices, many speeds and pitches, noise. The same seed gives the same sentences, voices and noise; the synthesiser's slight
/// wavering of the pitch goes on from utterance to utterance, so that sounds are the same bit by bit only where the process spoke the same before.</summary>
public sealed class SpokenCorpus : IDisposable
{
    /// <summary>The tokens before the words.</summary>
    public const int PadToken = 0, StartToken = 1, EndToken = 2;

    private static readonly string[] s_special = ["<pad>", "<start>", "<end>"];
    // None of the variants that breathe (f2, f3, f5 ...): the synthesiser starts their noise from memory that nobody wrote, and every process hears another.
    private static readonly string[] s_voices = ["en-us", "en-us+f1", "en", "en+f4", "en-gb-scotland", "en-gb-x-rp+m3"];

    /// <summary>The text of every token.</summary>
    public static IReadOnlyList<string> Vocabulary { get; } = [.. s_special, .. CommandGrammar.Words];

    /// <summary>How features are made: 40 bins every 10 ms.</summary>
    public static LogMelOptions Features { get; } = new() { Bins = 40, Seconds = null, Normalization = FeatureNormalization.PerBin };

    private SpokenCorpus(IReadOnlyList<Utterance> utterances) => Utterances = utterances;

    /// <summary>The utterances. Their features are the corpus' own.</summary>
    public IReadOnlyList<Utterance> Utterances { get; }

    /// <summary>Speaks a corpus.</summary>
    /// <param name="count">Number of utterances, from 1.</param>
    /// <param name="seed">Decides sentences, voices and noise.</param>
    /// <param name="mostWords">The most words of a sentence, 3 to 8.</param>
    /// <param name="progress">Told how many are spoken; null: nobody.</param>
    /// <param name="cancellation">Stops between utterances.</param>
    /// <exception cref="FileNotFoundException">eSpeak NG is not installed; the message says how to install it.</exception>
    public static SpokenCorpus Speak(int count, int seed, int mostWords = 8, Action<int>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        var random = new Random(seed);
        using var mel = new LogMel(Features);
        var utterances = new List<Utterance>();
        try
        {
            while (utterances.Count < count)
            {
                cancellation.ThrowIfCancellationRequested();
                utterances.Add(One(random, mel, mostWords));
                progress?.Invoke(utterances.Count);
            }
        }
        catch
        {
            utterances.ForEach(utterance => utterance.Features.Dispose());
            throw;
        }

        return new(utterances);
    }

    /// <summary>Speaks one sentence with noise.</summary>
    /// <param name="random">Decides the sentence, the voice and the noise.</param>
    /// <param name="mostWords">The most words.</param>
    public static SpokenSentence SpeakOne(Random random, int mostWords = 8) => SpeakOne(random, mostWords, out _);

    /// <summary>Some utterances as a batch.</summary>
    /// <param name="which">Their numbers.</param>
    public SpokenBatch Batch(IReadOnlyList<int> which)
    {
        ArgumentNullException.ThrowIfNull(which);
        using var scope = NewDisposeScope();
        var chosen = which.Select(index => Utterances[index]).ToArray();
        var (frames, tokens) = (chosen.Max(utterance => utterance.Features.shape[0]), chosen.Max(utterance => utterance.Tokens.Count));
        var features = zeros(chosen.Length, frames, Features.Bins);
        var (inputs, targets) = (new long[chosen.Length * tokens], new long[chosen.Length * tokens]);
        for (var item = 0; item < chosen.Length; item++)
        {
            using var place = features[item].narrow(0, 0, chosen[item].Features.shape[0]);
            place.copy_(chosen[item].Features);
            var text = chosen[item].Tokens;
            for (var i = 0; i < tokens; i++)
            {
                inputs[(item * tokens) + i] = i == 0 ? StartToken : i <= text.Count ? text[i - 1] : PadToken;
                targets[(item * tokens) + i] = i < text.Count ? text[i] : PadToken;
            }
        }

        return new(
            features.MoveToOuterDisposeScope(), tensor(chosen.Select(utterance => utterance.Features.shape[0]).ToArray()).MoveToOuterDisposeScope(),
            tensor(inputs).view(chosen.Length, tokens).MoveToOuterDisposeScope(), tensor(targets).view(chosen.Length, tokens).MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var utterance in Utterances)
        {
            utterance.Features.Dispose();
        }
    }

    private static Utterance One(Random random, LogMel mel, int mostWords)
    {
        var spoken = SpeakOne(random, mostWords, out var style);
        long[] tokens = [.. spoken.Words.Select(word => (long)Vocabulary.IndexOf(word.Text)), EndToken];
        return new(mel.Compute(spoken.Sound).DetachFromDisposeScope(), spoken.Words, tokens, style);
    }

    private static SpokenSentence SpeakOne(Random random, int mostWords, out SpeakingStyle style)
    {
        style = new(s_voices[random.Next(s_voices.Length)], random.Next(140, 221), random.Next(30, 71));
        var spoken = EspeakSynthesizer.Speak(CommandGrammar.Sentence(random, mostWords), style);

        // White noise, 10 to 35 dB below the speech. Drawn from a generator of its own: the number of samples is the synthesiser's affair, and the next sentence must not depend on it.
        var samples = spoken.Sound.Samples;
        var power = samples.Average(sample => (double)sample * sample);
        var (noise, hiss) = (Math.Sqrt(power * Math.Pow(10, -random.Next(10, 36) / 10.0) * 3), new Random(random.Next()));
        return spoken with { Sound = new([.. samples.Select(sample => (float)(sample + (noise * ((2 * hiss.NextDouble()) - 1))))], spoken.Sound.Rate) };
    }
}

/// <summary>Utterances side by side.</summary>
/// <param name="Features"><c>[B, T, F]</c>, zeros behind the end of each.</param>
/// <param name="Lengths">Frames of each, int64 <c>[B]</c>.</param>
/// <param name="Inputs">The decoder's inputs, int64 <c>[B, I]</c>.</param>
/// <param name="Targets">What should follow each, int64 <c>[B, I]</c>; padding behind the end token.</param>
public sealed record SpokenBatch(Tensor Features, Tensor Lengths, Tensor Inputs, Tensor Targets);

/// <summary>Looking things up in lists.</summary>
internal static class ReadOnlyLists
{
    public static int IndexOf<T>(this IReadOnlyList<T> list, T wanted)
    {
        for (var i = 0; i < list.Count; i++)
        {
            if (EqualityComparer<T>.Default.Equals(list[i], wanted))
            {
                return i;
            }
        }

        return -1;
    }
}
