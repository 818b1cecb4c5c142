using Heed.Lab.Scenes;
using Heed.Models.VisionLanguage;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>What the reproductions on scenes share: training, and differences with their standard errors.</summary>
internal static class SceneModels
{
    /// <summary>Steps that make a model that works in less than a minute of one core.</summary>
    public const int Steps = 350;

    /// <summary>Trains a model on scenes.</summary>
    /// <param name="seed">Seed of weights and scenes.</param>
    /// <param name="steps">Steps.</param>
    /// <param name="run">Cancels.</param>
    /// <param name="change">Changes the pictures' tokens of a batch before the decoder reads them; null: nothing.</param>
    public static VisionLanguageModel Train(int seed, int steps, ReproductionRun run, Func<SceneBatch, Tensor, Tensor>? change = null)
    {
        var model = SceneTask.Create(new(), seed);
        using var loop = CaptionRecipe.Loop(model, seed, steps, loss: change is null ? null : batch => SceneTask.Loss(model, batch, patches => change(batch, patches)), validates: false);
        loop.Run(null, run.Cancellation);
        return model;
    }

    /// <summary>Mean and standard error of differences, pair by pair.</summary>
    public static (double Mean, double Error) Difference(IReadOnlyList<double> first, IReadOnlyList<double> second)
    {
        var differences = first.Zip(second, (left, right) => left - right).ToArray();
        var mean = differences.Average();
        return (mean, Math.Sqrt(differences.Sum(value => (value - mean) * (value - mean)) / Math.Max(1, differences.Length - 1) / differences.Length));
    }
}
