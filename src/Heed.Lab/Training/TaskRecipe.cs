using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>Trains a small model on a small task, with an attention or a whole model of the user's choice: to compare mechanisms. Leaves the weights, a record, and figures of the loss and
/// of what was measured between steps.</summary>
/// <typeparam name="TModel">The model.</typeparam>
public abstract class TaskRecipe<TModel> : TrainingRecipe
    where TModel : nn.Module
{
    // As many points as a figure shows apart.
    private const int PointsOfFigure = 200;

    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <summary>The attention, or where <see cref="TrainingRecipe.Models"/> are listed the model, where none is asked for.</summary>
    protected abstract string DefaultChoice { get; }

    /// <summary>The steps where nobody says how many.</summary>
    protected abstract long DefaultSteps { get; }

    /// <summary>What is measured between steps, as the figure's axis says it.</summary>
    protected abstract string Measure { get; }

    /// <summary>Threads where nobody says how many; 0: every processor. A very small model may be slower on several.</summary>
    protected virtual int DefaultThreads => 0;

    /// <summary>Whether a text of the user's own can be trained on.</summary>
    protected virtual bool TakesText => false;

    /// <summary>Whether the recipe reads data from a folder.</summary>
    protected virtual bool TakesData => false;

    private string Kind => Models.Count > 0 ? "model" : "attention";

    /// <inheritdoc/>
    public sealed override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        Check(options);
        var folder = options.Output;
        var checkpoint = Path.Combine(folder, "checkpoint.bin");
        if (File.Exists(checkpoint) && !options.Resume)
        {
            throw new ArgumentException($"A run that was stopped lies in '{checkpoint}': go on with it by --resume, or delete it to start afresh.");
        }

        if (options.Threads > 0 || DefaultThreads > 0)
        {
            set_num_threads(options.Threads > 0 ? options.Threads : DefaultThreads);
        }

        var choice = (Models.Count > 0 ? options.Model : options.Attention) ?? DefaultChoice;
        Prepare(options, notice);
        using var model = Create(choice, options.Seed);
        Directory.CreateDirectory(folder);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, choice, options.Seed) : DefaultSteps);
        using var loop = LoopOf(model, choice, options.Seed, steps, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.parameters().Sum(parameter => parameter.numel()):N0} parameters, {choice}, {steps:N0} steps of {loop.Items(0):N0} {ItemName}, {get_num_threads()} thread(s).");
        loop.Run(progress, cancellation);
        var history = loop.History;
        var measures = Measures(model, history);
        List<string> files = [Path.Combine(folder, "model.safetensors"), Path.Combine(folder, "training.json"), Path.Combine(folder, "held-out.png"), Path.Combine(folder, "loss.png")];
        SafetensorsWriter.Write(files[0], model.state_dict(), new Dictionary<string, string> { ["format"] = "pt", [Kind] = choice });
        AtomicFile.WriteText(files[1], JsonSerializer.Serialize(
            new Dictionary<string, object>
            {
                ["recipe"] = Name, [Kind] = choice, ["seed"] = options.Seed, ["steps"] = steps, ["seconds"] = Math.Round(history.Seconds, 1),
                ["measures"] = measures.ToDictionary(measure => measure.Name, measure => measure.Value), ["validations"] = history.Validations,
            }, s_format) + "\n");
        var points = history.Averaged(PointsOfFigure);
        new LineFigure(
            $"{Name} with {choice}", "step", Measure,
            [new("held out", [.. history.Validations.Select(point => (double)point.Step)], [.. history.Validations.Select(point => point.Value)], Markers: true)]).Save(files[2]);
        new LineFigure($"{Name} with {choice}", "step", "training loss", [new("training", [.. points.Select(point => (double)point.Step)], [.. points.Select(point => point.Loss)])]).Save(files[3]);
        foreach (var (file, figure) in Figures(history))
        {
            files.Add(Path.Combine(folder, file));
            figure.Save(files[^1]);
        }

        files.AddRange(WriteMore(model, choice, options, measures));
        File.Delete(checkpoint);
        return new(files, [.. measures.Select(measure => (measure.Name, measure.Value.ToString("0.###", CultureInfo.InvariantCulture))), (Kind, choice)]);
    }

    /// <summary>A new model.</summary>
    /// <param name="choice">Its attention, or the model.</param>
    /// <param name="seed">Seed of its weights.</param>
    /// <exception cref="ArgumentException">There is no such attention or model here.</exception>
    protected abstract TModel Create(string choice, int seed);

    /// <summary>What trains the model.</summary>
    protected abstract TrainingLoop LoopOf(TModel model, string choice, int seed, long steps, string? checkpoint);

    /// <summary>What the trained model reaches, by name.</summary>
    protected abstract IReadOnlyList<(string Name, double Value)> Measures(TModel model, TrainingHistory history);

    /// <summary>Reads what the run needs, before the model is made.</summary>
    protected virtual void Prepare(RecipeOptions options, Action<string> notice)
    {
    }

    /// <summary>Figures beside those of loss and validation, with the names of their files.</summary>
    protected virtual IReadOnlyList<(string File, LineFigure Figure)> Figures(TrainingHistory history) => [];

    /// <summary>Writes files beside the weights, for example what a command needs to load them again.</summary>
    /// <returns>The files written.</returns>
    protected virtual IReadOnlyList<string> WriteMore(TModel model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures) => [];

    private void Check(RecipeOptions options)
    {
        if (options.TextFile is not null && !TakesText)
        {
            throw new ArgumentException($"The recipe {Name} has its own {ItemName}: leave --text out.");
        }

        if (options.DataFolder is not null && !TakesData)
        {
            throw new ArgumentException($"The recipe {Name} reads no data from a folder: leave --data out.");
        }

        if (Models.Count == 0)
        {
            RefuseModel(options);
        }
        else if (options.Attention is not null)
        {
            throw new ArgumentException($"The recipe {Name} trains a model of your choice, not an attention: give --model with one of {string.Join(", ", Models.Select(model => model.Name))} in place of --attention.");
        }
    }

    // On a model of its own: running means of norms would remember the trial.
    private long StepsWithin(double minutes, string choice, int seed)
    {
        using var model = Create(choice, seed);
        using var loop = LoopOf(model, choice, 0, 1, null);
        var times = new double[6];
        for (var i = 0; i < times.Length; i++)
        {
            var clock = Stopwatch.StartNew();
            using var scope = NewDisposeScope();
            loop.Loss(i).backward();
            times[i] = clock.Elapsed.TotalSeconds;
        }

        // The first ones compile; optimizer and validation take their part.
        return Math.Max(20, (long)(minutes * 60 / (times.Skip(2).Min() * 1.3)));
    }
}
