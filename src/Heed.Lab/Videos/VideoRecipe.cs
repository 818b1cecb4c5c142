using System.Globalization;
using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Checkpoints;
using static TorchSharp.torch;

namespace Heed.Lab.Videos;

/// <summary>Trains a <see cref="VideoDenoiser"/> on moving discs with a chosen attention: what sparse attention costs in loss, in minutes.</summary>
public sealed class VideoRecipe : TrainingRecipe
{
    /// <summary>The attention where none is asked for.</summary>
    public const string DefaultAttention = "vmoba";

    private const int ClipsPerStep = 4;
    private const int HeldOut = 32;
    private const int HeldOutSeed = int.MaxValue;
    private const long DefaultSteps = 1500;

    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "video";

    /// <inheritdoc/>
    public override string Summary => $"A small denoiser of clips of moving discs by flow matching, with --attention {VideoAttentions.Usage}.";

    /// <inheritdoc/>
    public override string ValidationUnit => "mean squared error of the velocity";

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.TextFile is not null)
        {
            throw new ArgumentException("The recipe video generates its own clips: leave --text out.");
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
        var shares = new List<double>();
        using var model = new VideoDenoiser(VideoAttentions.Of(attention, shares.Add), options.Seed);
        Directory.CreateDirectory(folder);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, model) : DefaultSteps);
        using var loop = Loop(model, attention, options.Seed, steps, checkpoint);
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.ParameterCount:N0} parameters, {attention}, {steps:N0} steps of {ClipsPerStep} clips of {VideoDenoiser.Grid * VideoDenoiser.Grid * VideoDenoiser.Grid} tokens.");
        loop.Run(progress, cancellation);
        shares.Clear();
        var loss = HeldOutLoss(model);
        double? kept = shares.Count > 0 ? shares.Average() : null;
        var weights = Path.Combine(folder, "model.safetensors");
        SafetensorsWriter.Write(weights, model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal));
        var record = Path.Combine(folder, "video.json");
        AtomicFile.WriteText(record, JsonSerializer.Serialize(
            new { attention, options.Seed, steps, loss, kept, seconds = Math.Round(loop.History.Seconds, 1), validations = loop.History.Validations }, s_format) + "\n");
        var figure = Path.Combine(folder, "loss.png");
        new LineFigure(
            $"Denoising with {attention}", "step", "held-out loss",
            [new("held out", [.. loop.History.Validations.Select(point => (double)point.Step)], [.. loop.History.Validations.Select(point => point.Value)], true)]).Save(figure);
        File.Delete(checkpoint);
        List<(string, string)> measures = [("held-out loss", loss.ToString("F4", CultureInfo.InvariantCulture)), ("attention", attention)];
        if (kept is { } share)
        {
            measures.Add(("kept share", share.ToString("F3", CultureInfo.InvariantCulture)));
        }

        return new([weights, record, figure], measures);
    }

    /// <summary>A loop over generated clips; validation tells the loss on clips that no training step draws.</summary>
    internal static TrainingLoop Loop(VideoDenoiser model, string attention, int seed, long steps, string? checkpoint = null)
    {
        var plan = new TrainingPlan
        {
            Steps = steps, WarmupSteps = Math.Min(50, steps / 10), LearningRate = 3e-3, FinalShare = 0.05, WeightDecay = 0.01, Beta2 = 0.99, ClipNorm = 1, ValidateEvery = Math.Max(100, steps / 10),
        };
        var identity = string.Join('\n', "recipe=video", $"attention={attention}", $"seed={seed}", TrainingCheckpoint.StepsLine(steps), $"plan={JsonSerializer.Serialize(plan)}");
        return new TrainingLoop(model, plan, identity, checkpoint)
        {
            Loss = step =>
            {
                var at = SeedOf(seed, step);
                return model.Loss(MovingDiscs.Draw(ClipsPerStep, at), at);
            },
            Items = _ => ClipsPerStep * VideoDenoiser.Grid * VideoDenoiser.Grid * VideoDenoiser.Grid,
            Validation = () => HeldOutLoss(model),
        };
    }

    /// <summary>The loss on the held-out clips, the same for every seed.</summary>
    internal static double HeldOutLoss(VideoDenoiser model)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        return model.Loss(MovingDiscs.Draw(HeldOut, HeldOutSeed), HeldOutSeed).item<float>();
    }

    private static int SeedOf(int seed, long step) => (int)(((seed * 1_000_003L) + step) % (int.MaxValue - 1));

    private static long StepsWithin(double minutes, VideoDenoiser model)
    {
        var times = new double[6];
        for (var i = 0; i < times.Length; i++)
        {
            var clock = System.Diagnostics.Stopwatch.StartNew();
            using var scope = NewDisposeScope();
            model.Loss(MovingDiscs.Draw(ClipsPerStep, i), i).backward();
            times[i] = clock.Elapsed.TotalSeconds;
        }

        model.zero_grad();
        // The first ones compile; optimizer and validation take their part.
        return Math.Max(20, (long)(minutes * 60 / (times.Skip(2).Min() * 1.3)));
    }
}
