using System.Text.Json;
using Heed.Lab.Figures;
using Heed.Lab.Training;
using Heed.Models;
using Heed.Models.Regression;
using static TorchSharp.torch;

namespace Heed.Lab.Regression;

/// <summary>Trains one attention layer on linear regression in context (arXiv 2503.12734) and draws what its heads become: ω and μ over steps beside the loss.</summary>
public sealed class RegressionRecipe : TaskRecipe<IclAttention>
{
    // Standard error about 0.003.
    private const int TestContexts = 20_000;

    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    /// <inheritdoc/>
    public override string Name => "regression";

    /// <inheritdoc/>
    public override string Summary => "One attention layer that learns linear regression from the pairs in its context, with the course of its circuits; --model heads=4,start=opposed ...";

    /// <inheritdoc/>
    public override string ItemName => "contexts";

    /// <inheritdoc/>
    public override string ValidationUnit => "mean squared error";

    /// <inheritdoc/>
    public override IReadOnlyList<RecipeModel> Models => RegressionSetting.Models;

    /// <inheritdoc/>
    protected override string DefaultChoice => "softmax:heads=4";

    /// <inheritdoc/>
    protected override long DefaultSteps => 1500;

    /// <inheritdoc/>
    protected override string Measure => "held-out mean squared error";

    /// <inheritdoc/>
    protected override int DefaultThreads => 1;

    /// <inheritdoc/>
    protected override IclAttention Create(string choice, int seed) => RegressionSetting.Parse(choice).Make(seed);

    /// <inheritdoc/>
    protected override TrainingLoop LoopOf(IclAttention model, string choice, int seed, long steps, string? checkpoint) => RegressionSetting.Parse(choice).Loop(model, steps, seed, checkpoint: checkpoint);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string Name, double Value)> Measures(IclAttention model, TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        return [("held-out mean squared error", history.Validations[^1].Value)];
    }

    /// <inheritdoc/>
    protected override IReadOnlyList<string> WriteMore(IclAttention model, string choice, RecipeOptions options, IReadOnlyList<(string Name, double Value)> measures)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);
        using var scope = NewDisposeScope();
        var setting = RegressionSetting.Parse(choice);
        var file = Path.Combine(options.Output, "circuits.json");
        var theory = new IclTheory(setting.Dimensions, setting.ContextLength, setting.NoiseStd * setting.NoiseStd);
        AtomicFile.WriteText(file, JsonSerializer.Serialize(
            new
            {
                Model = choice,
                Errors = new[] { Math.Max(1, setting.ContextLength / 2), setting.ContextLength, (5 * setting.ContextLength) / 2 }.Distinct()
                    .Select(length => new { Length = length, Error = setting.Error(model, TestContexts, length) }),
                BestGradientStep = setting is { Tasks: 1, Correlation: 0, Mean: 0 } ? theory.BestGradientStep().Loss : (double?)null,
                Outputs = Enumerable.Range(0, setting.Tasks).Select(output => model.Measure(output) is var measured ? new { measured.Heads, measured.Diagonality, measured.Homogeneity, measured.ZeroSum, measured.SignAgreement } : null),
            }, s_format) + "\n");
        return [file];
    }

    /// <summary>A figure of one of a head's two numbers over the steps.</summary>
    internal static LineFigure Course(IReadOnlyList<ValidationPoint> course, string what, string title) => new(
        title, "step", what == "omega" ? "ω of every head" : "μ of every head",
        [.. course[0].Observed!.Keys.Where(name => name.StartsWith(what, StringComparison.Ordinal)).Select(name => new FigureLine(
            $"head {name[(what.Length + 1)..]}", [.. course.Select(point => (double)point.Step)], [.. course.Select(point => point.Observed![name])]))]);

    /// <inheritdoc/>
    protected override IReadOnlyList<(string File, LineFigure Figure)> Figures(TrainingHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        return [("omega.png", Course(history.Validations, "omega", "Slopes of the heads")), ("mu.png", Course(history.Validations, "mu", "Weights of the heads"))];
    }
}
