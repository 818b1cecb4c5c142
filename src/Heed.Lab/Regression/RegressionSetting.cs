using Heed.Lab.Training;
using Heed.Models.Regression;
using static TorchSharp.torch;

namespace Heed.Lab.Regression;

/// <summary>A model of linear regression in context and the task that it learns, as <c>softmax:heads=4,start=default,...</c> names them.</summary>
/// <param name="Heads">Heads.</param>
/// <param name="IsLinear">Whether the model is the baseline without softmax.</param>
/// <param name="DividesByLength">Whether that is divided by the length of the context.</param>
/// <param name="Start">What queries and keys start from.</param>
/// <param name="Tasks">One task or two.</param>
/// <param name="Dimensions">Covariates.</param>
/// <param name="ContextLength">Pairs of a context in training.</param>
/// <param name="NoiseStd">Standard deviation of the noise.</param>
/// <param name="Correlation">ρ of neighbouring covariates.</param>
/// <param name="Mean">Mean of the covariates.</param>
internal sealed record RegressionSetting(
    int Heads = 2, bool IsLinear = false, bool DividesByLength = false, IclStart Start = IclStart.Default, int Tasks = 1, int Dimensions = 5, int ContextLength = 40,
    double NoiseStd = LinearRegressionTask.UsualNoiseStd, double Correlation = 0, double Mean = 0)
{
    public const int Batch = 128;
    public const double LearningRate = 5e-3;

    private const string TaskUsage = "tasks=1,d=5,length=40,noise=0.316,rho=0,mean=0";

    // Far from every training seed, which counts up from a multiple of ten million.
    private const ulong HeldOutSeed = 999_999_999_999;

    private const int HeldOutBatch = 4000;

    /// <summary>What can be trained.</summary>
    public static IReadOnlyList<RecipeModel> Models { get; } =
    [
        new("softmax", $"softmax:heads=2,start=default|small|opposed-small|opposed,{TaskUsage}", "one softmax attention layer of full-width heads; heads=4,... alone means the same", "in-context-linear-regression"),
        new("linear", $"linear:heads=2,per-length=0,start=default,{TaskUsage}", "the same without softmax; per-length=1 divides by the length of the context", null),
    ];

    /// <summary>Reads a setting.</summary>
    /// <exception cref="ArgumentException">There is no such model or option, or a value is out of its range.</exception>
    public static RegressionSetting Parse(string text)
    {
        // The name may be left out: heads=4,start=opposed.
        var specification = Specification.Parse(!text.Contains(':', StringComparison.Ordinal) && text.Contains('=', StringComparison.Ordinal) ? $"softmax:{text}" : text);
        if (specification.Name is not ("softmax" or "linear"))
        {
            throw new ArgumentException($"The recipe regression trains softmax or linear, not '{specification.Name}': for example --model softmax:heads=4.");
        }

        var isLinear = specification.Name == "linear";
        var tasks = specification.Integer("tasks", 1, 1);
        var setting = new RegressionSetting(
            specification.Integer("heads", 2, 1), isLinear, isLinear && specification.Integer("per-length", 0, 0) > 0,
            specification.Choice("start", IclStart.Default, ("default", IclStart.Default), ("small", IclStart.SmallIdentity), ("opposed-small", IclStart.OpposedSmallIdentity), ("opposed", IclStart.Opposed)),
            tasks, specification.Integer("d", tasks == 1 ? 5 : 6, tasks == 1 ? 1 : 3), specification.Integer("length", 40, 1), specification.Number("noise", LinearRegressionTask.UsualNoiseStd), specification.Number("rho", 0),
            specification.Number("mean", 0));
        specification.RefuseUnread();
        if (tasks > 2 || (tasks == 2 && (setting.Correlation != 0 || setting.Mean != 0)))
        {
            throw new ArgumentException("There are one or two tasks, and covariates of two are independent with mean 0: give tasks=1 or tasks=2, and rho and mean with one task only.");
        }

        // What a task cannot be it says itself, before anything is trained.
        using var scope = NewDisposeScope();
        setting.Sample(1, 1, 0);
        return setting;
    }

    /// <summary>Covariates of each of two tasks: two thirds of all, so that they share a third.</summary>
    public int TaskWidth => ((2 * Dimensions) + 1) / 3;

    /// <summary>The task of one regression, at the setting's length.</summary>
    public LinearRegressionTask Task => new(Dimensions, ContextLength, NoiseStd) { Correlation = Correlation, Mean = Mean };

    /// <summary>A new model.</summary>
    public IclAttention Make(int seed)
    {
        manual_seed(seed);
        return IsLinear ? new IclLinearAttention(Dimensions, Heads, Tasks, DividesByLength, Start) : new IclSoftmaxAttention(Dimensions, Heads, Tasks, Start);
    }

    /// <summary>Contexts; the same seed gives the same.</summary>
    public (Tensor ZQuery, Tensor Z, Tensor Target) Sample(int batch, int length, ulong seed)
    {
        using var generator = new Generator(seed);
        return Tasks == 1 ? (Task with { ContextLength = length }).Sample(batch, generator) : new MultiTaskLinearRegression(Dimensions, TaskWidth, TaskWidth, length, NoiseStd).Sample(batch, generator);
    }

    /// <summary>Contexts that no training step draws, in parts; the same for every seed of training.</summary>
    public IEnumerable<(Tensor ZQuery, Tensor Z, Tensor Target)> HeldOut(int count, int length)
    {
        for (var part = 0; part * HeldOutBatch < count; part++)
        {
            using var scope = NewDisposeScope();
            yield return Sample(Math.Min(HeldOutBatch, count - (part * HeldOutBatch)), length, HeldOutSeed + (ulong)part);
        }
    }

    /// <summary>Mean squared error on held-out contexts.</summary>
    /// <param name="model">The model.</param>
    /// <param name="count">How many contexts; at 20,000 the standard error is about 0.003.</param>
    /// <param name="length">Their length.</param>
    public double Error(IclAttention model, int count, int length)
    {
        using var quiet = no_grad();
        return HeldOut(count, length).Average(part => nn.functional.mse_loss(model.forward(part.ZQuery, part.Z), part.Target).item<float>());
    }

    /// <summary>Trains on fresh contexts.</summary>
    public TrainingLoop Loop(IclAttention model, long steps, int seed, long validations = 60, string? checkpoint = null)
    {
        // Adam without decay, the learning rate down to a tenth of its start at the end.
        var plan = new TrainingPlan { Steps = steps, LearningRate = LearningRate, FinalShare = 0.05, WeightDecay = 0, Beta2 = 0.999, ClipNorm = 1e6, ValidateEvery = Math.Max(1, steps / validations) };
        return new(model, plan, string.Join('\n', "recipe=regression", $"setting={this}", $"seed={seed}", TrainingCheckpoint.StepsLine(steps)), checkpoint)
        {
            Loss = step =>
            {
                var (zQuery, z, target) = Sample(Batch, ContextLength, ((ulong)seed * 10_000_000) + (ulong)step);
                return nn.functional.mse_loss(model.forward(zQuery, z), target);
            },
            Items = _ => Batch,
            Validation = () => Error(model, HeldOutBatch, ContextLength),
            Observe = () => Circuits(model),
        };
    }

    private static Dictionary<string, double> Circuits(IclAttention model) =>
        Enumerable.Range(0, model.OutputCount).SelectMany(output => model.Measure(output).Heads.SelectMany(head => new[]
        {
            (Name: $"omega {head.Head}", Value: head.Slope), (Name: model.OutputCount == 1 ? $"mu {head.Head}" : $"mu {head.Head} of y{output + 1}", Value: head.Weight),
        })).DistinctBy(entry => entry.Name).ToDictionary(entry => entry.Name, entry => entry.Value);
}
