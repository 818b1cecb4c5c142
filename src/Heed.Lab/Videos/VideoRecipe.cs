using System.Text.Json;
using Heed.Lab.Training;
using static TorchSharp.torch;

namespace Heed.Lab.Videos;

/// <summary>Trains a <see cref="VideoDenoiser"/> on moving discs with a chosen attention: what sparse attention costs in loss, in minutes.</summary>
public sealed class VideoRecipe : TaskRecipe<VideoDenoiser>
{
    private const int ClipsPerStep = 4;
    private const int HeldOut = 32;
    private const int HeldOutSeed = int.MaxValue;

    // What the attention of the model that is being trained says of every call.
    private readonly List<double> _kept = [];

    /// <inheritdoc/>
    public override string Name => "video";

    /// <inheritdoc/>
    public override string Summary => $"A small denoiser of clips of moving discs by flow matching, with --attention {VideoAttentions.Usage}.";

    /// <inheritdoc/>
    public override string ValidationUnit => "mean squared error of the velocity";

    /// <inheritdoc/>
    protected override string DefaultChoice => "vmoba";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1500;

    /// <inheritdoc/>
    protected override string Measure => "held-out loss";

    /// <inheritdoc/>
    protected override VideoDenoiser Create(string choice, int seed) => new(VideoAttentions.Of(choice, _kept.Add), seed);

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(VideoDenoiser model, string choice, int seed, long steps, string? checkpoint) => Loop(model, choice, seed, steps, checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(VideoDenoiser model, TrainingHistory history)
    {
        _kept.Clear();
        var loss = HeldOutLoss(model);
        return _kept.Count > 0 ? [("held-out loss", loss), ("kept share", _kept.Average())] : [("held-out loss", loss)];
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
}
