using Heed.Lab.Training;

namespace Heed.Lab.Recall;

/// <summary>Trains a <see cref="RecallModel"/> with a chosen attention: what a mechanism can remember, in a minute.</summary>
public sealed class RecallRecipe : TaskRecipe<RecallModel>
{
    private const string Attention = "dma:form=exp,w=16";
    private const int TextsPerStep = 32;
    private const int HeldOut = 256;
    private static readonly RecallTask s_task = new();

    /// <inheritdoc/>
    public override string Name => "recall";

    /// <inheritdoc/>
    public override string Summary => $"A two-layer model that must recall values by their keys, to compare mechanisms: --attention dense, window:w=16, {Attention} ...";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the questions answered";

    /// <inheritdoc/>
    protected override string DefaultChoice => Attention;

    /// <inheritdoc/>
    protected override long DefaultSteps => 1000;

    /// <inheritdoc/>
    protected override string Measure => "share of questions answered";

    /// <inheritdoc/>
    protected override int DefaultThreads => 1;

    /// <inheritdoc/>
    protected override RecallModel Create(string choice, int seed) => new(s_task, choice, seed);

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(RecallModel model, string choice, int seed, long steps, string? checkpoint) => Loop(model, s_task, choice, seed, steps, checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(RecallModel model, TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        return [("accuracy", history.Validations[^1].Value)];
    }

    /// <summary>A loop over the task's texts; validation tells the share of held-out questions that are answered.</summary>
    internal static TrainingLoop Loop(RecallModel model, RecallTask task, string attention, int seed, long steps, string? checkpoint = null)
    {
        var plan = new TrainingPlan
        {
            Steps = steps, WarmupSteps = Math.Min(20, steps / 10), LearningRate = 4e-3, FinalShare = 1, WeightDecay = 0.01, Beta2 = 0.999, ClipNorm = 1, ValidateEvery = Math.Max(1, Math.Min(100, steps / 10)),
        };
        var identity = string.Join('\n', "recipe=recall", $"attention={attention}", $"seed={seed}", TrainingCheckpoint.StepsLine(steps), $"task={task}");
        // Held-out texts are the same for every seed and no training text's.
        return new TrainingLoop(model, plan, identity, checkpoint)
        {
            Loss = step =>
            {
                var (texts, targets) = task.Draw(TextsPerStep, SeedOf(seed, step));
                return model.Loss(texts, targets);
            },
            Items = _ => TextsPerStep * task.Length,
            Validation = () =>
            {
                var (texts, targets) = task.Draw(HeldOut, int.MaxValue);
                return model.Accuracy(texts, targets);
            },
        };
    }

    private static int SeedOf(int seed, long step) => (int)(((seed * 1_000_003L) + step) % int.MaxValue);
}
