using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Training;

/// <summary>A small transformer on a grid that takes noise off striped textures, with full attention or with neighborhood attention (arXiv 2504.16922) of any window, stride and dilation.</summary>
public sealed class GridRecipe : TrainingRecipe
{
    private const long DefaultSteps = 600;

    private static readonly JsonSerializerOptions Format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "grid";

    /// <inheritdoc/>
    public override string Summary => "A small transformer on a 16 x 16 grid that takes noise off textures; --attention full or gna:w=4,stride=2,dilation=1.";

    /// <inheritdoc/>
    public override string ValidationUnit => "dB";

    /// <inheritdoc/>
    public override string ItemName => "pictures";

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        var attention = options.Attention ?? "full";
        var checkpoint = Path.Combine(options.Output, "checkpoint.bin");
        if (options.TextFile is not null)
        {
            throw new ArgumentException("The recipe grid makes its own pictures: leave --text out.");
        }

        if (File.Exists(checkpoint) && !options.Resume)
        {
            throw new ArgumentException($"A run that was stopped lies in '{checkpoint}': go on with it by --resume, or delete it to start afresh.");
        }

        if (options.Threads > 0)
        {
            set_num_threads(options.Threads);
        }

        manual_seed(options.Seed);
        using var model = new GridDenoiser(attention);
        Directory.CreateDirectory(options.Output);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, model, attention) : DefaultSteps);
        using var loop = GridTraining.Loop(model, attention, steps, options.Seed, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{attention}: {model.parameters().Sum(parameter => parameter.numel()):N0} parameters, {steps:N0} steps, {get_num_threads()} threads.");
        loop.Run(progress, cancellation);
        var decibels = loop.History.Validations[^1].Value;
        var (weights, record) = (Path.Combine(options.Output, "model.safetensors"), Path.Combine(options.Output, "training.json"));
        SafetensorsWriter.Write(
            weights, model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal),
            new Dictionary<string, string> { ["format"] = "pt", ["attention"] = attention }, ScalarType.Float32);
        AtomicFile.WriteText(record, JsonSerializer.Serialize(
            new { attention, options.Seed, Steps = steps, Minutes = Math.Round(loop.History.Seconds / 60, 2), HeldOutDecibels = Math.Round(decibels, 3), loop.History.Validations }, Format) + "\n");
        File.Delete(checkpoint);
        return new(
            [weights, record],
            [("held-out PSNR, dB", decibels.ToString("F2", CultureInfo.InvariantCulture)), ("minutes", (loop.History.Seconds / 60).ToString("F1", CultureInfo.InvariantCulture))]);
    }

    // Steps on a throw-away copy: neither weights nor optimizer of the run are touched.
    private static long StepsWithin(double minutes, GridDenoiser model, string attention)
    {
        using var loop = GridTraining.Loop(model, attention, 1, 0);
        var times = new double[4];
        for (var i = 0; i < times.Length; i++)
        {
            var clock = Stopwatch.StartNew();
            using var scope = NewDisposeScope();
            loop.Loss(i).backward();
            times[i] = clock.Elapsed.TotalSeconds;
        }

        model.zero_grad();
        return Math.Max(20, (long)(minutes * 60 / (times.Skip(1).Order().ElementAt(1) * 1.15)));
    }
}
