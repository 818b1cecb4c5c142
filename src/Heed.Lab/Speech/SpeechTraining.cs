using Heed.Lab.Training;
using Heed.Models.Speech;
using static TorchSharp.torch;

namespace Heed.Lab.Speech;

/// <summary>How a small speech model is trained.</summary>
public sealed record SpeechTrainingOptions : ModelTrainingOptions
{
    /// <summary>The defaults: learning rate 2e-3 down to a twentieth, squared gradients averaged with 0.98.</summary>
    public SpeechTrainingOptions() => (LearningRate, FinalShare, Beta2, WeightDecay) = (2e-3, 0.05, 0.98, 0.01);

    /// <summary>Utterances of a step.</summary>
    public int Batch { get; init; } = 16;

    /// <summary>Held-out utterances of a validation between steps.</summary>
    public int Watched { get; init; } = 32;
}

/// <summary>Trains and measures small speech models, for the recipe and the reproduction alike.</summary>
public static class SpeechTraining
{
    // As many utterances are written down at once.
    private const int DecodedAtOnce = 16;

    // A sentence has eight words at most; a model that does not stop is cut off here.
    private const int MostWords = 14;

    // In every utterance as many stretches of at most 150 ms and bands of at most 6 bins.
    private const int Holes = 2, MostHiddenFrames = 15, MostHiddenBins = 6;

    private const double ShortShare = 0.1, ShortUntil = 0.25, AllFrom = 0.6;

    /// <summary>The shape of the small model: T' = T / 4, three layers of width 96 in the encoder, two in the decoder.</summary>
    /// <param name="width">Width.</param>
    /// <param name="encoderLayers">Layers of the encoder.</param>
    /// <param name="decoderLayers">Layers of the decoder.</param>
    /// <param name="heads">Heads of all attention.</param>
    public static SpeechConfiguration Configuration(int width = 96, int encoderLayers = 3, int decoderLayers = 2, int heads = 4) => new()
    {
        Width = width, EncoderLayers = encoderLayers, DecoderLayers = decoderLayers, EncoderHeads = heads, DecoderHeads = heads, EncoderInner = 2 * width, DecoderInner = 2 * width,
        Bins = SpokenCorpus.Features.Bins, Vocabulary = SpokenCorpus.Vocabulary.Count, SourceLength = 512, TargetLength = 32, FirstStride = 2,
        StartToken = SpokenCorpus.StartToken, EndToken = SpokenCorpus.EndToken, PadToken = SpokenCorpus.PadToken,
    };

    /// <summary>What trains a model. Utterances of a step are alike in length; short ones come first, so that the decoder learns where to look before sentences grow.</summary>
    /// <param name="model">The model.</param>
    /// <param name="train">What it learns from.</param>
    /// <param name="heldOut">What it is measured on.</param>
    /// <param name="options">How.</param>
    /// <param name="identity">Settings beyond the options that decide the result, a line <c>name=value</c> each.</param>
    /// <param name="checkpoint">Where checkpoints go; null: none.</param>
    public static TrainingLoop Loop(SpeechTransformer model, SpokenCorpus train, SpokenCorpus heldOut, SpeechTrainingOptions options, string identity = "", string? checkpoint = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(train);
        ArgumentNullException.ThrowIfNull(heldOut);
        ArgumentNullException.ThrowIfNull(options);
        var order = Enumerable.Range(0, train.Utterances.Count).OrderBy(index => train.Utterances[index].Features.shape[0]).ThenBy(index => index).ToArray();
        return new(model, options.Plan, string.Join('\n', identity, $"seed={options.Seed}", $"utterances={train.Utterances.Count}", TrainingCheckpoint.StepsLine(options.Steps), $"options={options}"), checkpoint)
        {
            Loss = step =>
            {
                // A step depends on its number alone, so that a run can be taken up anywhere.
                var random = new Random((int)((options.Seed * 1_000_003L) + step));
                var reach = order.Length * ReachAt((double)step / options.Steps);
                var start = random.Next(Math.Max(1, (int)reach - (2 * options.Batch)));
                var near = Enumerable.Range(start, Math.Min(2 * options.Batch, order.Length - start)).ToArray();
                random.Shuffle(near);
                var batch = train.Batch([.. near.Take(options.Batch).Select(place => order[place])]);
                return LossOf(model, (double)step / options.Steps < ShortUntil ? batch : batch with { Features = WithHoles(batch.Features, random) });
            },
            Items = _ => options.Batch,
            Validation = () => WordErrorRate(model, heldOut, options.Watched),
        };
    }

    // The share of the corpus, from the shortest utterance on, that a step draws from. Without a time of short sentences only, a decoder may take most of a run to find out where to look.
    private static double ReachAt(double done) => Math.Clamp(ShortShare + ((1 - ShortShare) * (done - ShortUntil) / (AllFrom - ShortUntil)), ShortShare, 1);

    // Stretches of time and bands of frequency become 0, which is the mean (SpecAugment, arXiv 1904.08779): a recogniser that never met a hole says nothing sensible about a sound with holes, and explanations are made of them.
    private static Tensor WithHoles(Tensor features, Random random)
    {
        using var scope = NewDisposeScope();
        var (batch, frames, bins) = ((int)features.shape[0], (int)features.shape[1], (int)features.shape[2]);
        var kept = new bool[batch * frames * bins];
        Array.Fill(kept, true);
        for (var item = 0; item < batch; item++)
        {
            for (var hole = 0; hole < Holes; hole++)
            {
                var (length, height) = (random.Next(MostHiddenFrames + 1), random.Next(MostHiddenBins + 1));
                var (start, bottom) = (random.Next(Math.Max(1, frames - length)), random.Next(bins - height));
                for (var frame = 0; frame < frames; frame++)
                {
                    var row = kept.AsSpan(((item * frames) + frame) * bins, bins);
                    row.Slice(bottom, height).Clear();
                    if (frame >= start && frame < start + length)
                    {
                        row.Clear();
                    }
                }
            }
        }

        return (features * tensor(kept).view(features.shape).to(features.dtype)).MoveToOuterDisposeScope();
    }

    /// <summary>The mean cross-entropy of a batch's tokens, nats.</summary>
    public static Tensor LossOf(SpeechTransformer model, SpokenBatch batch)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(batch);
        var logits = model.Decode(model.Encode(batch.Features, batch.Lengths), batch.Inputs);
        return nn.functional.cross_entropy(logits.view(-1, model.Configuration.Vocabulary), batch.Targets.view(-1), ignore_index: SpokenCorpus.PadToken);
    }

    /// <summary>What a model writes down of a corpus, in evaluation mode.</summary>
    /// <param name="model">The model.</param>
    /// <param name="corpus">The corpus.</param>
    /// <param name="count">How many utterances, from the first on; null: all.</param>
    public static IReadOnlyList<SpeechTranscript> Transcribe(SpeechTransformer model, SpokenCorpus corpus, int? count = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(corpus);
        var texts = new List<SpeechTranscript>();
        using var quiet = no_grad();
        foreach (var some in Enumerable.Range(0, Math.Min(count ?? int.MaxValue, corpus.Utterances.Count)).Chunk(DecodedAtOnce))
        {
            using var scope = NewDisposeScope();
            var batch = corpus.Batch(some);
            texts.AddRange(model.Transcribe(model.Encode(batch.Features, batch.Lengths), new() { MaximumTokens = MostWords }));
        }

        return texts;
    }

    /// <summary>Words that must be put in, taken out or replaced, as a share of the words said: the word error rate of a corpus.</summary>
    /// <param name="model">The model.</param>
    /// <param name="corpus">The corpus.</param>
    /// <param name="count">How many utterances, from the first on; null: all.</param>
    public static double WordErrorRate(SpeechTransformer model, SpokenCorpus corpus, int? count = null)
    {
        var texts = Transcribe(model, corpus, count);
        var (wrong, all) = (0, 0);
        for (var i = 0; i < texts.Count; i++)
        {
            var said = corpus.Utterances[i].Tokens.SkipLast(1).ToArray();
            wrong += EditDistance(said, texts[i].Tokens);
            all += said.Length;
        }

        return (double)wrong / all;
    }

    /// <summary>The fewest insertions, deletions and replacements that make one list of the other (Levenshtein).</summary>
    /// <param name="first">A list.</param>
    /// <param name="second">Another.</param>
    public static int EditDistance(IReadOnlyList<long> first, IReadOnlyList<long> second)
    {
        ArgumentNullException.ThrowIfNull(first);
        ArgumentNullException.ThrowIfNull(second);
        var row = Enumerable.Range(0, second.Count + 1).ToArray();
        for (var i = 1; i <= first.Count; i++)
        {
            var diagonal = row[0];
            row[0] = i;
            for (var j = 1; j <= second.Count; j++)
            {
                var above = row[j];
                row[j] = Math.Min(Math.Min(row[j], row[j - 1]) + 1, diagonal + (first[i - 1] == second[j - 1] ? 0 : 1));
                diagonal = above;
            }
        }

        return row[second.Count];
    }
}
