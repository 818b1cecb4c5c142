using Heed.Lab.Training;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>Trains a vision model of the user's choice on Fashion-MNIST.</summary>
public sealed class FashionRecipe : TaskRecipe<ImageClassifier>
{
    private FashionMnist? _data;

    /// <inheritdoc/>
    public override string Name => "fashion";

    /// <inheritdoc/>
    public override string Summary => "A vision model of your choice on Fashion-MNIST, 28 x 28 pictures of ten kinds of clothing.";

    /// <inheritdoc/>
    public override string ItemName => "pictures";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the pictures recognised";

    /// <inheritdoc/>
    public override IReadOnlyList<RecipeModel> Models => [.. ImageModel.All.Select(model => new RecipeModel(model.Name, model.Usage, model.Summary, model.Slug))];

    /// <inheritdoc/>
    protected override string DefaultChoice => "vit";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1500;

    /// <inheritdoc/>
    protected override string Measure => "held-out accuracy";

    /// <inheritdoc/>
    protected override bool TakesData => true;

    private FashionMnist Data => _data ??= FashionMnist.Load();

    /// <inheritdoc/>
    protected override void Prepare(RecipeOptions options, Action<string> notice)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        _data = FashionMnist.Load(options.DataFolder);
        notice($"Fashion-MNIST: {_data.Train.Count:N0} pictures to train on, {_data.Test.Count:N0} held out.");
    }

    /// <inheritdoc/>
    protected override ImageClassifier Create(string choice, int seed)
    {
        manual_seed(seed);
        return ImageModel.Make(choice, FashionMnist.Task);
    }

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(ImageClassifier model, string choice, int seed, long steps, string? checkpoint) => ImageTraining.Loop(
        model, Data.Train, Data.Test, new() { Steps = steps, Seed = seed }, $"recipe=fashion\nmodel={choice}", checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(ImageClassifier model, TrainingHistory history)
    {
        var (accuracy, loss) = ImageTraining.Test(model, Data.Test);
        return [("held-out accuracy", accuracy), ("held-out loss, nats", loss)];
    }

    /// <inheritdoc/>
    protected override IReadOnlyList<string> WriteMore(ImageClassifier model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);
        var card = new ImageModelCard(choice, Name, FashionMnist.Task, FashionMnist.ClassNames, measures[0].Value, model.parameters().Sum(parameter => parameter.numel()), FashionMnist.Scale);
        return [card.Write(options.Output)];
    }
}
