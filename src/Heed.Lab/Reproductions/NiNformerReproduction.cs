using System.Diagnostics;
using System.Globalization;
using Heed.Lab.Images;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>NiNformer (arXiv 2403.02411) against MLP-Mixer and ViT on Fashion-MNIST, with the two controls that the paper leaves out: a Mixer with as many parameters, and a sum in place of the
/// product.</summary>
internal sealed class NiNformerReproduction : Reproduction
{
    private const int Pictures = 10_000, HeldOut = 5_000, Epochs = 4, Batch = 64;

    // Three blocks each, but for the Mixer that has as many parameters as the gated one.
    private static readonly (string Name, string Model)[] s_arms =
    [
        ("NiNformer", "ninformer:depth=3,dropout=0"), ("MLP-Mixer", "mlp-mixer:depth=3"), ("MLP-Mixer, as many parameters", "mlp-mixer:depth=5"), ("ViT", "vit:depth=3"),
        ("NiNformer with a sum", "ninformer:depth=3,dropout=0,combine=sum"),
    ];

    public override string Slug => "ninformer";

    public override string Summary => "NiNformer, MLP-Mixer and ViT on Fashion-MNIST, with a Mixer of as many parameters and a sum in place of the gating product.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        var seeds = run.IsQuick ? 1 : 3;
        var steps = run.IsQuick ? 12 : Epochs * (Pictures / Batch);
        FashionMnist? data = null;
        var accuracies = new Dictionary<string, double[]>();
        var rows = new List<string[]>();
        foreach (var (name, model) in s_arms)
        {
            var results = Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"{name}, seed {seed}", ((rows.Count * seeds) + seed - 1) / (double)(s_arms.Length * seeds));
                return run.Once($"train {model} {seed} {steps}", () => Train(model, seed, steps, data ??= FashionMnist.Load(), run));
            }).ToList();
            accuracies[name] = [.. results.Select(result => result[0])];
            rows.Add([name, Text(results[0][1], "N0"), Percent(accuracies[name].Average()), Percent(Deviation(accuracies[name])), string.Join(", ", accuracies[name].Select(Percent)), Text(results.Average(result => result[2]), "F3")]);
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new(
            $"Fashion-MNIST, {Pictures:N0} pictures to train on, {steps:N0} steps of {Batch}, Adam 0.001 with a cosine, {(run.IsQuick ? 500 : HeldOut):N0} held out",
            ["model", "parameters", "accuracy, %", "deviation over seeds", "accuracy of each seed", "loss, nats"], rows));
        const string Source = "abstract: better than ViT, MLP-Mixer and local ViT on CIFAR-10, CIFAR-100 and MNIST (its tables were not available)";
        Compare("Better than a ViT of the same depth and width.", Source, "ViT");
        Compare("Better than an MLP-Mixer of the same depth and width.", Source, "MLP-Mixer");
        Compare("Better than an MLP-Mixer with as many parameters: the gain is not their number.", "a control that the paper does not make", "MLP-Mixer, as many parameters");
        Compare("The product gates: a sum in its place is worse.", "section 3: the gating function; a control that the paper does not make", "NiNformer with a sum");
        var (gated, mixer) = Times(run);
        run.Claim(
            "Inference is marginally slower than MLP-Mixer's.", "third-party summary of the paper, without a figure", "at most 1.25 times the time of the MLP-Mixer of the same depth and width",
            $"{Text(gated / mixer, "F2")} times ({Text(gated, "F3")} against {Text(mixer, "F3")} ms a picture)", run.IsQuick ? Verdict.Inconclusive : gated <= 1.25 * mixer ? Verdict.Confirmed : Verdict.NotConfirmed);
        run.Notes.Add("Every matrix of every model starts from the uniform distribution of its framework's default (within one over the root of its inputs), and no model has dropout, so that the mixers alone differ. "
            + "\"Better\" is a difference of means above the larger of the two standard deviations over the seeds.");
        run.Notes.Add("Not reproduced: CIFAR-10, CIFAR-100 and 100 epochs.");

        void Compare(string claim, string source, string baseline)
        {
            var (ours, theirs) = (accuracies["NiNformer"], accuracies[baseline]);
            var (difference, spread) = (ours.Average() - theirs.Average(), Math.Max(Deviation(ours), Deviation(theirs)));
            run.Claim(
                claim, source, "mean accuracy above its by more than the deviation over the seeds",
                $"{Percent(ours.Average())} against {Percent(theirs.Average())} %: a difference of {Percent(difference)}, deviation {Percent(spread)}",
                run.IsQuick || Math.Abs(difference) <= spread ? Verdict.Inconclusive : difference > 0 ? Verdict.Confirmed : Verdict.NotConfirmed);
        }
    });

    private static double Deviation(double[] values) => values.Length < 2 ? 0 : Math.Sqrt(values.Sum(value => Math.Pow(value - values.Average(), 2)) / (values.Length - 1));

    private static string Percent(double share) => Text(100 * share, "F2");

    private static string Text(double number, string format) => number.ToString(format, CultureInfo.InvariantCulture);

    /// <summary>Accuracy, number of parameters and loss.</summary>
    private static double[] Train(string name, int seed, int steps, FashionMnist data, ReproductionRun run)
    {
        manual_seed(seed);
        using var model = ImageModel.Make(name, FashionMnist.Task);
        var result = ImageTraining.Train(
            model, data.Train.Take(Pictures, seed: 0), data.Test.Take(run.IsQuick ? 500 : HeldOut),
            new() { Steps = steps, Batch = Batch, Seed = seed, LearningRate = 1e-3, WeightDecay = 0, Beta2 = 0.999, ClipNorm = double.PositiveInfinity, WarmupSteps = 0, Watched = 1, ValidateEvery = steps }, cancellation: run.Cancellation);
        return [result.Accuracy, model.parameters().Sum(parameter => parameter.numel()), result.Loss];
    }

    /// <summary>Milliseconds of a picture in evaluation, the two in turn.</summary>
    private static (double Gated, double Mixer) Times(ReproductionRun run)
    {
        var times = run.Once($"inference {run.IsQuick}", () =>
        {
            using var quiet = no_grad();
            using var gated = ImageModel.Make(s_arms[0].Model, FashionMnist.Task);
            using var mixer = ImageModel.Make(s_arms[1].Model, FashionMnist.Task);
            gated.eval();
            mixer.eval();
            using var images = randn(Batch, 1, 28, 28);
            var rounds = Enumerable.Range(0, run.IsQuick ? 5 : 25).Select(_ => new[] { Time(gated, images), Time(mixer, images) }).Skip(2).ToList();
            return Enumerable.Range(0, 2).Select(which => rounds.Select(round => round[which]).Order().ElementAt(rounds.Count / 2) / Batch).ToArray();
        });
        return (times[0], times[1]);
    }

    private static double Time(ImageClassifier model, Tensor images)
    {
        var clock = Stopwatch.StartNew();
        model.forward(images).Dispose();
        return clock.Elapsed.TotalMilliseconds;
    }
}
