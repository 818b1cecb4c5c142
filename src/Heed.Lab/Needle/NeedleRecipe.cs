using System.Globalization;
using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Needle;

/// <summary>Trains a <see cref="NeedleModel"/>: whether routing by anchors is learned.</summary>
public sealed class NeedleRecipe : TrainingRecipe
{
    /// <summary>The attention where none is asked for.</summary>
    public const string DefaultAttention = "superlinear";

    /// <summary>Texts that accuracy is measured on.</summary>
    internal const int HeldOut = 512;

    private const int TextsPerStep = 32;
    private const long DefaultSteps = 450;

    // Three times the length that is trained on.
    private const int LongLength = 384;

    private static readonly JsonSerializerOptions JsonFormat = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "needle";

    /// <inheritdoc/>
    public override string Summary => "A model with one attention that must find a value in noise: --attention superlinear, window:w=66, dense.";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the questions answered";

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        if (options.TextFile is not null)
        {
            throw new ArgumentException("The recipe needle generates its own texts: leave --text out.");
        }

        if (options.Minutes is not null)
        {
            throw new ArgumentException("The recipe needle takes about a minute: say how long by --steps, not by --minutes.");
        }

        var folder = options.Output;
        var checkpoint = Path.Combine(folder, "checkpoint.bin");
        if (File.Exists(checkpoint) && !options.Resume)
        {
            throw new ArgumentException($"A run that was stopped lies in '{checkpoint}': go on with it by --resume, or delete it to start afresh.");
        }

        if (options.Threads > 0)
        {
            set_num_threads(options.Threads);
        }

        var attention = options.Attention ?? DefaultAttention;
        var task = new NeedleTask();
        using var model = NeedleModel.Create(attention, options.Seed);
        Directory.CreateDirectory(folder);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null) ?? DefaultSteps;
        using var loop = Loop(model, task, attention, options.Seed, steps, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.ParameterCount:N0} parameters, {attention}, {steps:N0} steps of {TextsPerStep} texts of {task.Length} tokens.");
        loop.Run(progress, cancellation);
        var (accuracy, hit) = model.Measure(task, HeldOut, int.MaxValue);
        var far = model.Measure(task with { Length = LongLength }, HeldOut, int.MaxValue);
        var weights = Path.Combine(folder, "model.safetensors");
        SafetensorsWriter.Write(weights, model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal));
        var record = Path.Combine(folder, "needle.json");
        var history = loop.History;
        AtomicFile.WriteText(record, JsonSerializer.Serialize(
            new { attention, options.Seed, steps, task.Length, accuracy, hit, LongLength, LongAccuracy = far.Accuracy, LongHit = far.Hit, seconds = Math.Round(history.Seconds, 1), history.Validations }, JsonFormat) + "\n");
        var figure = Path.Combine(folder, "accuracy.png");
        new LineFigure(
            $"Needle with {attention}", "step", "share of questions answered",
            [new("held out", [.. history.Validations.Select(point => (double)point.Step)], [.. history.Validations.Select(point => point.Value)], true)]).Save(figure);
        File.Delete(checkpoint);
        string Text(double share) => share.ToString("F3", CultureInfo.InvariantCulture);
        return new([weights, record, figure], [("accuracy", Text(accuracy)), ("value among the keys", Text(hit)), ($"accuracy at {LongLength} tokens", Text(far.Accuracy)), ("attention", attention)]);
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
