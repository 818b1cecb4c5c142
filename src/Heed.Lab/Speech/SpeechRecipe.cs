using Heed.Lab.Training;
using Heed.Models.Speech;
using static TorchSharp.torch;

namespace Heed.Lab.Speech;

/// <summary>Trains a small speech recogniser on commands that eSpeak NG speaks.</summary>
public sealed class SpeechRecipe : TaskRecipe<SpeechTransformer>
{
    private const int TrainingUtterances = 1500, HeldOutUtterances = 100, HeldOutSeed = 1_000_003;
    private (SpokenCorpus Train, SpokenCorpus HeldOut)? _data;

    /// <inheritdoc/>
    public override string Name => "speech";

    /// <inheritdoc/>
    public override string Summary => "A small encoder-decoder that writes down commands of forty words, spoken by eSpeak NG; for heed transcribe and heed inspect --audio.";

    /// <inheritdoc/>
    public override string ItemName => "utterances";

    /// <inheritdoc/>
    public override string ValidationUnit => "word error rate";

    /// <inheritdoc/>
    protected override string DefaultChoice => "full";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1000;

    /// <inheritdoc/>
    protected override string Measure => "held-out word error rate";

    private (SpokenCorpus Train, SpokenCorpus HeldOut) Data => _data ??= Speak(_ => { });

    /// <inheritdoc/>
    protected override void Prepare(RecipeOptions options, Action<string> notice)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        if (options.Attention is not (null or "full"))
        {
            throw new ArgumentException($"The recipe {Name} trains with full attention: leave --attention out.");
        }

        _data ??= Speak(notice);
    }

    /// <inheritdoc/>
    protected override SpeechTransformer Create(string choice, int seed)
    {
        manual_seed(seed);
        return new(SpeechTraining.Configuration());
    }

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(SpeechTransformer model, string choice, int seed, long steps, string? checkpoint) =>
        SpeechTraining.Loop(model, Data.Train, Data.HeldOut, new() { Steps = steps, Seed = seed }, "recipe=speech", checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(SpeechTransformer model, TrainingHistory history) =>
        [("held-out word error rate", SpeechTraining.WordErrorRate(model, Data.HeldOut))];

    /// <inheritdoc/>
    protected override IReadOnlyList<string> WriteMore(SpeechTransformer model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);

        // Not disposed: the model is the caller's.
        var pretrained = new PretrainedSpeech(model, SpokenCorpus.Features, SpokenCorpus.Vocabulary);
        pretrained.Save(options.Output);
        pretrained.Features.Dispose();
        var example = Path.Combine(options.Output, "example.wav");
        var spoken = SpokenCorpus.SpeakOne(new Random(HeldOutSeed));
        spoken.Sound.Write(example);
        return [Path.Combine(options.Output, "config.json"), Path.Combine(options.Output, "words.json"), Path.Combine(options.Output, "preprocessor_config.json"), example];
    }

    private static (SpokenCorpus Train, SpokenCorpus HeldOut) Speak(Action<string> notice)
    {
        var clock = System.Diagnostics.Stopwatch.StartNew();
        var data = (SpokenCorpus.Speak(TrainingUtterances, 1), SpokenCorpus.Speak(HeldOutUtterances, HeldOutSeed));
        notice($"Spoken by eSpeak NG in {clock.Elapsed.TotalSeconds:F0} s: {TrainingUtterances:N0} utterances to train on, {HeldOutUtterances:N0} held out.");
        return data;
    }
}
