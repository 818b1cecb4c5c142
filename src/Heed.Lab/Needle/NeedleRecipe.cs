using Heed.Lab.Training;
using static TorchSharp.torch;

namespace Heed.Lab.Needle;

/// <summary>Trains a <see cref="NeedleModel"/>: whether routing by anchors is learned.</summary>
public sealed class NeedleRecipe : TaskRecipe<NeedleModel>
{
    /// <summary>Texts that accuracy is measured on.</summary>
    internal const int HeldOut = 512;

    private const int TextsPerStep = 32;

    // Three times the length that is trained on.
    private const int LongLength = 384;

    private static readonly NeedleTask s_task = new();

    /// <inheritdoc/>
    public override string Name => "needle";

    /// <inheritdoc/>
    public override string Summary => "A model with one attention that must find a value in noise: --attention superlinear, window:w=66, dense.";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the questions answered";

    /// <inheritdoc/>
    protected override string DefaultChoice => "superlinear";

    /// <inheritdoc/>
    protected override long DefaultSteps => 450;

    /// <inheritdoc/>
    protected override string Measure => "share of questions answered";

    /// <inheritdoc/>
    protected override NeedleModel Create(string choice, int seed) => NeedleModel.Create(choice, seed);

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(NeedleModel model, string choice, int seed, long steps, string? checkpoint) => Loop(model, s_task, choice, seed, steps, checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(NeedleModel model, TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(model);
        var (accuracy, hit) = model.Measure(s_task, HeldOut, int.MaxValue);
        var far = model.Measure(s_task with { Length = LongLength }, HeldOut, int.MaxValue);
        return [("accuracy", accuracy), ("value among the keys", hit), ($"accuracy at {LongLength} tokens", far.Accuracy), ($"value among the keys at {LongLength} tokens", far.Hit)];
    }

    /// <summary>A loop over the task's texts.</summary>
    internal static TrainingLoop Loop(NeedleModel model, NeedleTask task, string attention, int seed, long steps, string? checkpoint = null)
    {
        var plan = new TrainingPlan
        {
            Steps = steps, WarmupSteps = Math.Min(10, steps / 10), LearningRate = 6e-3, FinalShare = 1, WeightDecay = 0.01, Beta2 = 0.999, ClipNorm = 1, ValidateEvery = Math.Max(1, Math.Min(50, steps / 3)),
        };
        var identity = string.Join('\n', "recipe=needle", $"attention={attention}", $"seed={seed}", TrainingCheckpoint.StepsLine(steps), $"task={task}");
        return new TrainingLoop(model, plan, identity, checkpoint)
        {
            Loss = step =>
            {
                // The same texts for every attention; held-out ones have a seed that no step has.
                var (texts, values, _) = task.Draw(TextsPerStep, (int)(((seed * 1_000_003L) + step) % int.MaxValue));
                return nn.functional.cross_entropy(model.forward(texts), values);
            },
            Items = _ => TextsPerStep * task.Length,
            Validation = () => model.Measure(task, HeldOut, int.MaxValue).Accuracy,
        };
    }
}
