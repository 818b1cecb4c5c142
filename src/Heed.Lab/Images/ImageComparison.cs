using System.Diagnostics;
using System.Text.Json;
using System.Text.RegularExpressions;
using Heed.Lab.Benchmarks;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>How vision models are compared.</summary>
public sealed record ImageComparisonOptions
{
    /// <summary>Folder of the results, a file for every model and seed; those that are there are not measured again.</summary>
    public required string Folder { get; init; }

    /// <summary>The models, as <c>NAME:option=value,...</c>; empty: all.</summary>
    public IReadOnlyList<string> Models { get; init; } = [];

    /// <summary>Parameters that every model is scaled to.</summary>
    public long Parameters { get; init; } = 80_000;

    /// <summary>Seconds of training of a model and seed, on one thread.</summary>
    public double Seconds { get; init; } = 12;

    /// <summary>The seeds.</summary>
    public IReadOnlyList<int> Seeds { get; init; } = [1, 2, 3];
}

/// <summary>What one model reached with one seed.</summary>
/// <param name="Model">The model as it was asked for.</param>
/// <param name="Scaled">The model with the options that bring it to the common number of parameters.</param>
/// <param name="Seed">Seed of weights and order of the pictures.</param>
/// <param name="Parameters">Its number of parameters.</param>
/// <param name="Target">The common number.</param>
/// <param name="Budget">Seconds of training that were allowed.</param>
/// <param name="Steps">Steps of 64 pictures that the budget allowed.</param>
/// <param name="Seconds">Seconds that they took.</param>
/// <param name="Accuracy">Share of the 10,000 held-out pictures recognised.</param>
/// <param name="Loss">Mean cross-entropy on them, nats.</param>
/// <param name="MillisecondsPerPicture">Time of a picture in evaluation, in batches of 64.</param>
/// <param name="Course">Accuracy on the first held-out pictures between steps.</param>
/// <param name="Date">When, UTC.</param>
/// <param name="Machine">On what.</param>
public sealed record ComparedRun(
    string Model, string Scaled, int Seed, long Parameters, long Target, double Budget, long Steps, double Seconds, double Accuracy, double Loss, double MillisecondsPerPicture, IReadOnlyList<ValidationPoint> Course,
    DateTime Date, string Machine);

/// <summary>How far a comparison is.</summary>
/// <param name="Done">Runs done.</param>
/// <param name="Total">Runs in all.</param>
/// <param name="Model">The model that trains.</param>
/// <param name="Seed">Its seed.</param>
/// <param name="Training">Where its training stands; null between trainings.</param>
public sealed record ComparisonProgress(int Done, int Total, string Model, int Seed, TrainingProgress? Training);

/// <summary>Trains vision models on Fashion-MNIST with the same number of parameters, for the same time, on one thread each, and keeps what they reached.</summary>
public static partial class ImageComparison
{
    private const int TimedSteps = 9;
    private const int TrialSteps = 3;
    private const int WatchedPictures = 500;
    private const int Validations = 6;
    private const int InferenceBatch = 64;
    private const int InferenceRounds = 9;

    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <summary>Reads models as the command line names them: commas between them and between their options.</summary>
    /// <param name="text">For example <c>vit,mobilenet:ulsam=4,width=16,mlp-mixer</c>.</param>
    public static IReadOnlyList<string> ModelsOf(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        var models = new List<string>();
        foreach (var part in text.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries))
        {
            if (models.Count > 0 && part.Contains('=', StringComparison.Ordinal) && !part.Contains(':', StringComparison.Ordinal))
            {
                models[^1] += $",{part}";
            }
            else
            {
                models.Add(part);
            }
        }

        return models;
    }

    /// <summary>Measures what is not measured yet.</summary>
    /// <param name="options">What to compare.</param>
    /// <param name="data">Fashion-MNIST.</param>
    /// <param name="progress">Told after every step; null: nobody.</param>
    /// <param name="cancellation">Stops after the current step; finished runs are kept, the one under way is lost.</param>
    /// <returns>All runs that were asked for, in the order of models and seeds.</returns>
    /// <exception cref="ArgumentException">There is no such model, or an option is wrong.</exception>
    public static IReadOnlyList<ComparedRun> Run(ImageComparisonOptions options, FashionMnist data, Action<ComparisonProgress>? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(data);
        var names = options.Models.Count > 0 ? options.Models : [.. ImageModel.All.Select(model => model.Name)];
        // A misspelt model is better known before hours of training.
        foreach (var name in names)
        {
            ImageModel.Make(name, FashionMnist.Task).Dispose();
        }

        var threads = get_num_threads();
        set_num_threads(1);
        try
        {
            var runs = new List<ComparedRun>();
            foreach (var name in names)
            {
                (string Model, long Parameters)? scaled = null;
                foreach (var seed in options.Seeds)
                {
                    progress?.Invoke(new(runs.Count, names.Count * options.Seeds.Count, name, seed, null));
                    var file = FileOf(options, name, seed);
                    var run = Known(file, options, name, seed);
                    if (run is null)
                    {
                        scaled ??= ParameterBudget.Scale(name, FashionMnist.Task, options.Parameters);
                        run = Measure(options, data, name, scaled.Value.Model, seed, step => progress?.Invoke(new(runs.Count, names.Count * options.Seeds.Count, name, seed, step)), cancellation);
                        AtomicFile.WriteText(file, JsonSerializer.Serialize(run, s_format) + "\n");
                    }

                    runs.Add(run);
                }
            }

            return runs;
        }
        finally
        {
            set_num_threads(threads);
        }
    }

    /// <summary>All runs that a folder holds with the options' budget: also those of other models and seeds, which other processes may have measured.</summary>
    public static IReadOnlyList<ComparedRun> Found(ImageComparisonOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        return !Directory.Exists(options.Folder) ? []
            : [.. Directory.GetFiles(options.Folder, "*.json").Order(StringComparer.Ordinal).Select(Read).OfType<ComparedRun>().Where(run => run.Budget == options.Seconds && run.Target == options.Parameters)];
    }

    private static string FileOf(ImageComparisonOptions options, string model, int seed) => Path.Combine(options.Folder, $"{Unsafe().Replace(model, "_")}-{seed}.json");

    private static ComparedRun? Known(string file, ImageComparisonOptions options, string model, int seed) =>
        File.Exists(file) && Read(file) is { } run && run.Model == model && run.Seed == seed && run.Budget == options.Seconds && run.Target == options.Parameters ? run : null;

    // A file of something else, or of an earlier form, is as good as none.
    private static ComparedRun? Read(string file)
    {
        try
        {
            return JsonSerializer.Deserialize<ComparedRun>(File.ReadAllText(file), s_format) is { Model: not null, Scaled: not null, Course: not null } run ? run : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    private static ComparedRun Measure(ImageComparisonOptions options, FashionMnist data, string name, string scaled, int seed, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        using var scope = NewDisposeScope();
        var steps = Math.Max(Validations, (long)(options.Seconds / StepSeconds(scaled, data, cancellation)));
        manual_seed(seed);
        using var model = ImageModel.Make(scaled, FashionMnist.Task);
        var result = ImageTraining.Train(
            model, data.Train, data.Test, new() { Steps = steps, Seed = seed, Watched = WatchedPictures, ValidateEvery = Math.Max(1, steps / Validations) }, progress, cancellation);
        return new(
            name, scaled, seed, model.parameters().Sum(parameter => parameter.numel()), options.Parameters, options.Seconds, steps, result.Seconds, result.Accuracy, result.Loss, Inference(model, data.Test),
            result.Validations, DateTime.UtcNow, BenchmarkReport.Machine());
    }

    /// <summary>Seconds of a training step, the median after the first ones, on a model of its own.</summary>
    private static double StepSeconds(string scaled, FashionMnist data, CancellationToken cancellation)
    {
        using var scope = NewDisposeScope();
        manual_seed(0);
        using var model = ImageModel.Make(scaled, FashionMnist.Task);
        using var loop = ImageTraining.Loop(model, data.Train, data.Test, new() { Steps = TrialSteps + TimedSteps, Watched = 1, ValidateEvery = TrialSteps + TimedSteps });
        var times = new List<double>();
        var clock = Stopwatch.StartNew();
        loop.Run(
            _ =>
            {
                times.Add(clock.Elapsed.TotalSeconds);
                clock.Restart();
            }, cancellation);
        return times.Skip(TrialSteps).Order().ElementAt(TimedSteps / 2);
    }

    private static double Inference(ImageClassifier model, ImageData data)
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var images = data.Range(0, Math.Min(InferenceBatch, data.Count)).Images;
        var times = new List<double>();
        for (var round = 0; round < InferenceRounds; round++)
        {
            var clock = Stopwatch.StartNew();
            model.forward(images).Dispose();
            times.Add(clock.Elapsed.TotalMilliseconds / images.shape[0]);
        }

        return times.Order().ElementAt(InferenceRounds / 2);
    }

    [GeneratedRegex("[^a-zA-Z0-9.-]+")]
    private static partial Regex Unsafe();
}
