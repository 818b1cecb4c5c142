using System.Text.Json;
using Heed.Lab.Images;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.VisionLanguage;
using static TorchSharp.torch;

namespace Heed.Lab.Scenes;

/// <summary>Trains a small vision-language model to caption generated scenes and to answer questions about them. The folder that it leaves is one that the transformers library reads, too, with some held-out scenes to try.</summary>
public sealed class CaptionRecipe : TaskRecipe<VisionLanguageModel>
{
    private const int PicturesOfStep = 32, Watched = 200, HeldOut = 500, Samples = 12;

    // Held-out scenes: no step of any seed draws with these.
    private const int WatchedSeed = int.MaxValue, HeldOutSeed = int.MaxValue - 1, BrokenSeed = int.MaxValue - 2, SampleSeed = int.MaxValue - 3;

    /// <inheritdoc/>
    public override string Name => "captions";

    /// <inheritdoc/>
    public override string Summary => "A small vision-language model (a CLIP-shaped encoder and a Llama-shaped decoder) that captions generated scenes of coloured shapes and says which colour a shape has.";

    /// <inheritdoc/>
    public override string ItemName => "pictures";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the captions exact";

    /// <inheritdoc/>
    protected override string DefaultChoice => "full";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1500;

    /// <inheritdoc/>
    protected override string Measure => "held-out captions that name exactly what is there";

    /// <inheritdoc/>
    protected override VisionLanguageModel Create(string choice, int seed) => choice == DefaultChoice
        ? SceneTask.Create(new(), seed)
        : throw new ArgumentException($"The recipe {Name} trains with full attention: leave --attention out.");

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(VisionLanguageModel model, string choice, int seed, long steps, string? checkpoint) => Loop(model, seed, steps, checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(VisionLanguageModel model, TrainingHistory history)
    {
        CaptionScore Score(int seed, SceneOptions options)
        {
            var scenes = SceneAnswers.Scenes(HeldOut, seed, options);
            return CaptionScore.Of(scenes, SceneAnswers.Captions(model, scenes));
        }

        var (usual, broken) = (Score(HeldOutSeed, new()), Score(BrokenSeed, new() { CompanionShare = 0 }));
        var right = SceneAnswers.Colours(model, SceneAnswers.Questions(HeldOut, HeldOutSeed, new()));
        return
        [
            ("held-out captions exact", usual.Exact), ("colours answered right", right.Count(answer => answer) / (double)HeldOut),
            ("captions exact without companions", broken.Exact), ("named but absent without companions (CHAIR_I)", broken.ChairI),
        ];
    }

    /// <inheritdoc/>
    protected override IReadOnlyList<string> WriteMore(VisionLanguageModel model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures)
    {
        ArgumentNullException.ThrowIfNull(options);

        // Not disposed: the model stays the recipe's.
        var files = new PretrainedVisionLanguageModel(model, SceneWords.Tokenizer(), SceneTask.Normalization).WriteCard(options.Output).ToList();
        var folder = Directory.CreateDirectory(Path.Combine(options.Output, "scenes")).FullName;
        var scenes = SceneAnswers.Scenes(Samples / 2, SampleSeed, new()).Concat(SceneAnswers.Scenes(Samples / 2, SampleSeed, new() { CompanionShare = 0 })).ToArray();
        for (var index = 0; index < scenes.Length; index++)
        {
            var (scene, path) = (scenes[index], Path.Combine(folder, $"{index + 1:D2}.png"));
            AtomicFile.Write(path, stream => stream.Write(PictureFile.Png(scene.Pixels, Scene.Task)));
        }

        files.Add(Path.Combine(folder, "captions.json"));
        AtomicFile.WriteText(
            files[^1],
            JsonSerializer.Serialize(scenes.Select((scene, index) => (File: $"{index + 1:D2}.png", Caption: SceneWords.Caption(scene.Objects.Select(item => item.Thing)))).ToDictionary(entry => entry.File, entry => entry.Caption)) + "\n");
        return files;
    }

    /// <summary>A loop over generated scenes; validation tells the share of held-out captions that are exact.</summary>
    /// <param name="model">The model.</param>
    /// <param name="seed">Seed of the scenes.</param>
    /// <param name="steps">Steps.</param>
    /// <param name="checkpoint">Where checkpoints go; null: none.</param>
    /// <param name="loss">The loss of a batch; null: <see cref="SceneTask.Loss"/>.</param>
    /// <param name="validates">Whether to validate between steps.</param>
    internal static TrainingLoop Loop(VisionLanguageModel model, int seed, long steps, string? checkpoint = null, Func<SceneBatch, Tensor>? loss = null, bool validates = true)
    {
        var plan = new TrainingPlan
        {
            Steps = steps, WarmupSteps = Math.Min(50, steps / 10), LearningRate = 2e-3, FinalShare = 0.02, WeightDecay = 0.01, Beta2 = 0.99, ClipNorm = 1, ValidateEvery = Math.Max(100, steps / 10),
        };
        var watched = validates ? SceneAnswers.Scenes(Watched, WatchedSeed, new()) : [];
        return new TrainingLoop(model, plan, string.Join('\n', "recipe=captions", $"seed={seed}", TrainingCheckpoint.StepsLine(steps), $"plan={JsonSerializer.Serialize(plan)}"), checkpoint)
        {
            Loss = step =>
            {
                var batch = SceneTask.Batch(PicturesOfStep, SeedOf(seed, step), new());
                return loss?.Invoke(batch) ?? SceneTask.Loss(model, batch);
            },
            Items = _ => PicturesOfStep,
            Validation = validates ? () => CaptionScore.Of(watched, SceneAnswers.Captions(model, watched)).Exact : null,
        };
    }

    private static int SeedOf(int seed, long step) => (int)(((seed * 1_000_003L) + step) % (int.MaxValue - 8));
}
