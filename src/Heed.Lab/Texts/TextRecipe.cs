using Heed.Lab.Corpora;
using Heed.Lab.Training;
using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Texts;

/// <summary>Trains a small causal language model of the user's choice on the bytes of the King James text, or of any other.</summary>
public sealed class TextRecipe : TaskRecipe<LanguageModel>
{
    private static readonly TextTrainingOptions s_options = new() { Steps = 1 };
    private TextData? _data;

    /// <inheritdoc/>
    public override string Name => "text";

    /// <inheritdoc/>
    public override string Summary => "A small language model of your choice on the bytes of the King James text, or any text given with --text.";

    /// <inheritdoc/>
    public override string ItemName => "bytes";

    /// <inheritdoc/>
    public override IReadOnlyList<RecipeModel> Models => [.. TextModel.All.Select(model => new RecipeModel(model.Name, model.Usage, model.Summary, model.Slug))];

    /// <inheritdoc/>
    protected override string DefaultChoice => "mha";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1000;

    /// <inheritdoc/>
    protected override string Measure => "held-out bits per byte";

    /// <inheritdoc/>
    protected override bool TakesText => true;

    private TextData Data => _data ??= new(KingJamesText.Load());

    /// <inheritdoc/>
    protected override void Prepare(RecipeOptions options, Action<string> notice)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        _data = new(options.TextFile is null ? KingJamesText.Load() : TextCorpus.FromFile(options.TextFile));
        notice($"{_data.Corpus.Name}: {_data.TrainingBytes:N0} bytes to train on, {_data.HeldOutBytes:N0} held out.");
    }

    /// <inheritdoc/>
    protected override LanguageModel Create(string choice, int seed)
    {
        manual_seed(seed);
        return TextModel.Make(choice, TextData.Vocabulary, s_options.Length);
    }

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(LanguageModel model, string choice, int seed, long steps, string? checkpoint) =>
        TextTraining.Loop(model, Data, s_options with { Steps = steps, Seed = seed }, $"recipe=text\nmodel={choice}", checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(LanguageModel model, TrainingHistory history)
    {
        var measures = TextTraining.Test(model, Data, s_options.Length);
        return [("held-out bits per byte", measures.BitsPerByte), ("held-out accuracy", measures.Accuracy)];
    }
}
