using System.Globalization;
using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Recall;

/// <summary>Trains a <see cref="RecallModel"/> with a chosen attention: what a mechanism can remember, in a minute.</summary>
public sealed class RecallRecipe : TrainingRecipe
{
    /// <summary>The attention where none is asked for.</summary>
    public const string DefaultAttention = "dma:form=exp,w=16";

    private const int TextsPerStep = 32;
    private const int HeldOut = 256;
    private const long DefaultSteps = 1000;

    private static readonly JsonSerializerOptions JsonFormat = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "recall";

    /// <inheritdoc/>
    public override string Summary => $"A two-layer model that must recall values by their keys, to compare mechanisms: --attention dense, window:w=16, {DefaultAttention} ...";

    /// <inheritdoc/>
    public override string ValidationUnit => "of the questions answered";

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        if (options.TextFile is not null)
        {
            throw new ArgumentException("The recipe recall generates its own texts: leave --text out.");
        }

        var folder = options.Output;
        var checkpoint = Path.Combine(folder, "checkpoint.bin");
        if (File.Exists(checkpoint) && !options.Resume)
        {
            throw new ArgumentException($"A run that was stopped lies in '{checkpoint}': go on with it by --resume, or delete it to start afresh.");
        }

        // The model is so small that handing work to a second thread costs more than the work.
        set_num_threads(options.Threads > 0 ? options.Threads : 1);

        var attention = options.Attention ?? DefaultAttention;
        var task = new RecallTask();
        using var model = new RecallModel(task, attention, options.Seed);
        Directory.CreateDirectory(folder);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, model, task) : DefaultSteps);
        using var loop = Loop(model, task, attention, options.Seed, steps, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.ParameterCount:N0} parameters, {attention}, {steps:N0} steps of {TextsPerStep} texts of {task.Length} tokens.");
        loop.Run(progress, cancellation);
        var history = loop.History;
        var accuracy = history.Validations[^1].Value;
        var weights = Path.Combine(folder, "model.safetensors");
        SafetensorsWriter.Write(weights, model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal));
        var record = Path.Combine(folder, "recall.json");
        AtomicFile.WriteText(record, JsonSerializer.Serialize(
            new { attention, options.Seed, steps, task, accuracy, seconds = Math.Round(history.Seconds, 1), validations = history.Validations }, JsonFormat) + "\n");
        var figure = Path.Combine(folder, "accuracy.png");
        new LineFigure($"Recall with {attention}", "step", "share of questions answered", [new("held out", [.. history.Validations.Select(point => (double)point.Step)], [.. history.Validations.Select(point => point.Value)], true)])
            .Save(figure);
        File.Delete(checkpoint);
        return new([weights, record, figure], [("accuracy", accuracy.ToString("F3", CultureInfo.InvariantCulture)), ("attention", attention)]);
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

    private static long StepsWithin(double minutes, RecallModel model, RecallTask task)
    {
        var (texts, targets) = task.Draw(TextsPerStep, 1);
        var times = new double[6];
        for (var i = 0; i < times.Length; i++)
        {
            var clock = System.Diagnostics.Stopwatch.StartNew();
            using var scope = NewDisposeScope();
            model.Loss(texts, targets).backward();
            times[i] = clock.Elapsed.TotalSeconds;
        }

        model.zero_grad();
        texts.Dispose();
        targets.Dispose();
        // The first ones compile; optimizer and validation take their part.
        return Math.Max(20, (long)(minutes * 60 / (times.Skip(2).Min() * 1.3)));
    }
}
