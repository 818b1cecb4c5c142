using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>Trains a small model on data that the recipe generates, with an attention of the user's choice: to compare mechanisms in minutes. Leaves the weights, a record and a figure of what
/// was measured between steps.</summary>
/// <typeparam name="TModel">The model.</typeparam>
public abstract class GeneratedTaskRecipe<TModel> : TrainingRecipe
    where TModel : nn.Module
{
    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <summary>The attention where none is asked for.</summary>
    protected abstract string DefaultAttention { get; }

    /// <summary>The steps where nobody says how many.</summary>
    protected abstract long DefaultSteps { get; }

    /// <summary>What is measured between steps, as the figure's axis says it.</summary>
    protected abstract string Measure { get; }

    /// <summary>Threads where nobody says how many; 0: every processor. A very small model is slower on two.</summary>
    protected virtual int DefaultThreads => 0;

    /// <inheritdoc/>
    public sealed override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(notice);
        if (options.TextFile is not null)
        {
            throw new ArgumentException($"The recipe {Name} generates its own {ItemName}: leave --text out.");
        }

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

        var attention = options.Attention ?? DefaultAttention;
        using var model = Create(attention, options.Seed);
        Directory.CreateDirectory(folder);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, model, attention) : DefaultSteps);
        using var loop = LoopOf(model, attention, options.Seed, steps, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.parameters().Sum(parameter => parameter.numel()):N0} parameters, {attention}, {steps:N0} steps of {loop.Items(0):N0} {ItemName}, {get_num_threads()} thread(s).");
        loop.Run(progress, cancellation);
        var history = loop.History;
        var measures = Measures(model, history);
        var (weights, record, figure) = (Path.Combine(folder, "model.safetensors"), Path.Combine(folder, "training.json"), Path.Combine(folder, "held-out.png"));
        SafetensorsWriter.Write(
            weights, model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal),
            new Dictionary<string, string> { ["format"] = "pt", ["attention"] = attention });
        AtomicFile.WriteText(record, JsonSerializer.Serialize(
            new
            {
                Recipe = Name, attention, options.Seed, steps, Seconds = Math.Round(history.Seconds, 1), Measures = measures.ToDictionary(measure => measure.Name, measure => measure.Value), history.Validations,
            }, s_format) + "\n");
        new LineFigure(
            $"{Name} with {attention}", "step", Measure,
            [new("held out", [.. history.Validations.Select(point => (double)point.Step)], [.. history.Validations.Select(point => point.Value)], Markers: true)]).Save(figure);
        File.Delete(checkpoint);
        return new(
            [weights, record, figure],
            [.. measures.Select(measure => (measure.Name, measure.Value.ToString("0.###", CultureInfo.InvariantCulture))), ("attention", attention)]);
    }

    /// <summary>A new model.</summary>
    /// <param name="attention">Its attention.</param>
    /// <param name="seed">Seed of its weights.</param>
    /// <exception cref="ArgumentException">There is no such attention here.</exception>
    protected abstract TModel Create(string attention, int seed);

    /// <summary>What trains the model.</summary>
    protected abstract TrainingLoop LoopOf(TModel model, string attention, int seed, long steps, string? checkpoint);

    /// <summary>What the trained model reaches, by name.</summary>
    protected abstract IReadOnlyList<(string Name, double Value)> Measures(TModel model, TrainingHistory history);

    // Losses without steps: neither weights nor optimizer of the run are touched.
    private long StepsWithin(double minutes, TModel model, string attention)
    {
        using var loop = LoopOf(model, attention, 0, 1, null);
        var times = new double[6];
        for (var i = 0; i < times.Length; i++)
        {
            var clock = Stopwatch.StartNew();
            using var scope = NewDisposeScope();
            loop.Loss(i).backward();
            times[i] = clock.Elapsed.TotalSeconds;
        }

        model.zero_grad();
        // The first ones compile; optimizer and validation take their part.
        return Math.Max(20, (long)(minutes * 60 / (times.Skip(2).Min() * 1.3)));
    }
}
