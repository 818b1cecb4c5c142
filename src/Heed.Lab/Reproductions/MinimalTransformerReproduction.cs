using System.Globalization;
using Heed.Heads;
using Heed.Lab.Images;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Reduced transformers (arXiv 2410.13732): what accuracy costs in parameters on Fashion-MNIST, overfitting, and the exact properties.</summary>
internal sealed class MinimalTransformerReproduction : Reproduction
{
    // The paper's variants; "minimum" has one matrix per layer.
    private static readonly (string Name, string Model)[] s_arms =
    [
        ("full", "qk=separate,mlp=on,heads=4"), ("no MLP", "qk=separate,heads=4"), ("no MLP, symmetric", "qk=shared,heads=4"), ("no MLP, one query-key matrix", "qk=collapsed"), ("minimum", "qk=collapsed,vo=none"),
    ];

    public override string Slug => "minimal-transformer";

    public override string Summary => "Accuracy against parameters of reduced vision transformers on Fashion-MNIST, their overfitting, and exact collapses.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Exact(run);
        Reduce(run);
        Overfit(run);
        run.Notes.Add("Fashion-MNIST stands in for MNIST and CIFAR-10; width 48, four layers, patches of 7 x 7 (the paper's patch and width are not known to us); minutes instead of 500 epochs.");
        run.Notes.Add("Not reproduced: the trial on ImageNet, which the paper itself calls inconclusive.");
    });

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static void Exact(ReproductionRun run)
    {
        run.Tell("exact properties", 0);
        var (collapse, outside, shared, separate) = run.Once("exact", () =>
        {
            using var quiet = no_grad();
            var layers = Enumerable.Range(0, 6).Select(_ => new ReducedAttention(32, 1, QueryKeyMode.Separate, ValueOutputMode.Separate)).ToList();
            layers.ForEach(layer => layer.to(float64));
            using var collapsed = AttentionReduction.CollapseStack(layers);
            var x = randn(4, 16, 32, dtype: float64);
            var expected = layers.Aggregate(x, (tokens, layer) => layer.forward(tokens));
            var deviation = ((collapsed.forward(x) - expected).abs().max() / expected.abs().max()).item<double>();

            using var minimum = new ReducedAttention(32, 1, QueryKeyMode.Collapsed, ValueOutputMode.None);
            minimum.to(float64);
            var output = minimum.forward(x);
            var beyond = maximum((output - x.amax([1L], keepdim: true)).max(), (x.amin([1L], keepdim: true) - output).max()).item<double>();
            double Least(QueryKeyMode mode)
            {
                using var module = new ReducedAttention(32, 1, mode, ValueOutputMode.None);
                module.to(float64);
                return x.matmul(module.Similarity().squeeze(0)).mul(x).sum(-1).min().item<double>();
            }

            layers.ForEach(layer => layer.Dispose());
            return (deviation, beyond, Math.Min(Least(QueryKeyMode.Shared), Least(QueryKeyMode.SymmetricCholesky)), Least(QueryKeyMode.Separate));
        });
        run.Claim(
            "A stack of attention without residuals, norms and perceptrons collapses exactly into one query-key matrix a layer and one matrix at the end.", "section 4: 4 S N^2 parameters become (S + 1) N^2",
            "six layers of width 32: relative deviation below 1e-10 in float64", collapse.ToString("E1", CultureInfo.InvariantCulture), collapse < 1e-10);
        run.Claim(
            "Without value and output matrices every output is a convex combination of inputs; shared or triangular factors make a token at least as similar to itself as nothing, which separate ones do not.",
            "sections 3 and 4", "nothing outside the inputs' box (1e-12); least x W x not below -1e-9 for shared and Cholesky, below 0 for separate",
            $"{outside.ToString("E1", CultureInfo.InvariantCulture)} beyond the box; least x W x {Text(shared, "F4")} and {Text(separate, "F2")}", outside <= 1e-12 && shared > -1e-9 && separate < 0);
    }

    private static void Reduce(ReproductionRun run)
    {
        var seeds = run.IsQuick ? 1 : 3;
        var (pictures, steps) = run.IsQuick ? (640, 30) : (6000, 750);
        var arms = run.IsQuick ? s_arms[..1].Append(s_arms[^1]).ToArray() : s_arms;
        var data = FashionMnist.Load();
        var rows = new List<string[]>();
        var results = new Dictionary<string, Outcome[]>();
        foreach (var (name, options) in arms)
        {
            results[name] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"{name}, seed {seed}", 0.02 + (0.68 * ((results.Count * seeds) + seed - 1) / (arms.Length * seeds)));
                return run.Once($"train {name} {seed} {pictures} {steps}", () => Train(options, data, pictures, steps, seed, run));
            })];
            var outcomes = results[name];
            rows.Add([
                name, $"{outcomes[0].Parameters:N0}", $"{(double)outcomes[0].Parameters / results["full"][0].Parameters:P0}", Text(Overdetermination.Ratio(pictures, 10, outcomes[0].Parameters), "F2"),
                Text(outcomes.Average(outcome => outcome.TrainingLoss)), Text(outcomes.Average(outcome => outcome.Loss)), $"{outcomes.Average(outcome => outcome.Accuracy):P1}",
                string.Join(", ", outcomes.Select(outcome => outcome.Accuracy.ToString("P1", CultureInfo.InvariantCulture))),
            ]);
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new(
            $"{pictures:N0} pictures, {steps:N0} steps of 64, mean over {seeds} seed(s)",
            ["model", "parameters", "of the full model", "overdetermination Q", "training loss", "held-out loss", "held-out accuracy", "of each seed"], rows));
        const string claim = "Most of a small vision transformer can be left out at a small cost in accuracy.";
        const string source = "sections 6.1 and 7: about 25 % of the parameters without MLP and symmetric, under 10 % at the minimum, with accuracy close to the full model on MNIST";
        const string expected = "models without MLP lose less than 2 points of accuracy, the minimum less than 6";
        if (run.IsQuick)
        {
            run.Claim(claim, source, expected, $"thirty steps only: {rows[0][6]} full, {rows[^1][6]} minimum", Verdict.Inconclusive);
            return;
        }

        double Accuracy(string name) => results[name].Average(outcome => outcome.Accuracy);
        double Loss(string name) => results[name].Average(outcome => outcome.Loss);
        double Lost(string name) => 100 * (Accuracy("full") - Accuracy(name));
        var without = s_arms[1..^1].Select(arm => Lost(arm.Name)).ToArray();
        run.Claim(
            claim, source, expected, $"points lost: {string.Join(", ", s_arms[1..].Select(arm => $"{arm.Name} {Text(Lost(arm.Name), "F1")} ({(double)results[arm.Name][0].Parameters / results["full"][0].Parameters:P0} of the parameters)"))}",
            without.All(lost => lost < 2) && Lost("minimum") < 6);
        var differences = results["no MLP"].Zip(results["no MLP, symmetric"], (separate, symmetric) => separate.Loss - symmetric.Loss).ToArray();
        run.Claim(
            "A symmetric similarity generalises at least as well as a free one.", "sections 6.1 and 6.2: lower validation loss on both sets", "held-out loss of the symmetric model without MLP not above that of the asymmetric one",
            $"{Text(Loss("no MLP, symmetric"))} against {Text(Loss("no MLP"))} (differences of the seeds {string.Join(", ", differences.Select(difference => Text(difference)))})",
            differences.Average() >= 0 ? Verdict.Confirmed : differences.Max() > 0 ? Verdict.Inconclusive : Verdict.NotConfirmed);
    }

    private static void Overfit(ReproductionRun run)
    {
        if (run.IsQuick)
        {
            return;
        }

        const int pictures = 2000, steps = 1250;
        var data = FashionMnist.Load();
        var curves = new Dictionary<string, Outcome>();
        foreach (var index in new[] { 0, 2, 4 })
        {
            var (name, options) = s_arms[index];
            run.Tell($"overfitting: {name}", 0.7 + (0.3 * curves.Count / 3));
            curves[name] = run.Once($"overfit {name} {pictures} {steps}", () => Train(options, data, pictures, steps, 1, run));
        }

        run.Tables.Add(new(
            $"Forty epochs of {pictures:N0} pictures, one seed", ["model", "Q", "training loss", "held-out loss", "held-out accuracy"],
            [.. curves.Select(curve => (IReadOnlyList<string>)[
                curve.Key, Text(Overdetermination.Ratio(pictures, 10, curve.Value.Parameters), "F2"), Text(curve.Value.TrainingLoss), Text(curve.Value.Loss), $"{curve.Value.Accuracy:P1}"])]));
        var (full, symmetric, minimum) = (curves["full"], curves["no MLP, symmetric"], curves["minimum"]);
        run.Claim(
            "Trained until the full model overfits, reduced models have the lower validation loss.", "sections 6.2 and 7: the minimum has a better validation loss than the full model on CIFAR-10 after 500 epochs",
            "after 40 epochs of 2,000 pictures the held-out losses of both reduced models are below the full model's",
            $"full {Text(full.Loss)} (training {Text(full.TrainingLoss)}), symmetric {Text(symmetric.Loss)} ({Text(symmetric.TrainingLoss)}), minimum {Text(minimum.Loss)} ({Text(minimum.TrainingLoss)})",
            full.TrainingLoss > 0.5 * full.Loss ? Verdict.Inconclusive : symmetric.Loss < full.Loss && minimum.Loss < full.Loss ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    private static Outcome Train(string options, FashionMnist data, int pictures, int steps, int seed, ReproductionRun run)
    {
        manual_seed(seed);
        using var model = ImageModel.Make($"reduced:{options},patch=7,width=48,depth=4,ratio=4", FashionMnist.Task);
        var train = data.Train.Take(pictures, seed);
        var test = run.IsQuick ? data.Test.Take(500) : data.Test;
        var trained = ImageTraining.Train(model, train, test, new() { Steps = steps, Seed = seed, LearningRate = 2e-3, WeightDecay = 0, ValidateEvery = steps, Watched = 64 }, cancellation: run.Cancellation);
        return new(trained.Accuracy, trained.Loss, ImageTraining.Test(model, train, Math.Min(pictures, 2000), run.Cancellation).Loss, model.parameters().Sum(parameter => parameter.numel()));
    }

    /// <summary>What a model reaches on held-out pictures, and its loss on those of the training.</summary>
    private sealed record Outcome(double Accuracy, double Loss, double TrainingLoss, long Parameters);
}
