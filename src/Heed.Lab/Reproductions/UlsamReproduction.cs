using System.Globalization;
using Heed.Lab.Images;
using Heed.Lab.Images.Models;
using Heed.Mixers;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Subspace attention, ULSAM (arXiv 2006.15102): what replacing blocks of MobileNet-V2 saves, exactly, and what it does to accuracy in a small MobileNet, with its controls.</summary>
internal sealed class UlsamReproduction : Reproduction
{
    private const int Width = 16;

    // The last block, of 64 channels, is kept, removed, or replaced.
    private static readonly (string Name, int Blocks, int Splits)[] s_models = [("as it is", 4, 0), ("one block removed", 3, 0), ("replaced, 1 subspace", 4, 1), ("replaced, 4 subspaces", 4, 4)];

    public override string Slug => "ulsam";

    public override string Summary => "Parameters and multiply-adds of MobileNet-V2 with blocks replaced by subspace attention; Fashion-MNIST with one block kept, removed, or replaced.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Cost(run);
        Accuracy(run);
    });

    private static void Cost(ReproductionRun run)
    {
        run.Tell("costs", 0);
        var (parameters, operations) = Millions(run, "MobileNet-V2", MobileNet.V2Options);
        var table = new List<IReadOnlyList<string>> { (string[])["MobileNet-V2", Text(parameters), Text(operations), "", ""] };
        foreach (var (name, options, published, publishedOperations, headline) in new[]
        {
            ("blocks 13 and 16 replaced", MobileNet.UlsamImageNet, 2.96, 262.0, 13.0), ("blocks 12, 13, 15 and 16 replaced", MobileNet.UlsamFineGrained, 2.54, 224.0, 25.0),
        })
        {
            var (lessParameters, lessOperations) = Millions(run, name, options);
            var (first, second) = (100 * (parameters - lessParameters) / parameters, 100 * (operations - lessOperations) / operations);
            table.Add([name, Text(lessParameters), Text(lessOperations), $"{Text(first)} %", $"{Text(second)} %"]);
            run.Claim(
                $"Replacing blocks of MobileNet-V2 takes about {headline} % of parameters and operations away.", $"abstract; slides: {published} M and {publishedOperations} M of 3.4 M and 300 M",
                $"both shares within 1 point of {headline} %", $"{name}: {Text(first)} % of the parameters and {Text(second)} % of the multiply-adds", Math.Abs(first - headline) <= 1 && Math.Abs(second - headline) <= 1);
        }

        run.Tables.Add(new("MobileNet-V2 on 224 x 224 pixels, millions", ["model", "parameters", "multiply-adds", "fewer parameters", "fewer multiply-adds"], table));
        using var module = new SubspaceAttention(512, 4);
        var filters = module.named_parameters().Where(entry => entry.name.EndsWith("conv_dws.weight", StringComparison.Ordinal) || entry.name.EndsWith("conv_point.weight", StringComparison.Ordinal)).Sum(entry => entry.parameter.numel());
        run.Claim(
            "At 512 channels on 14 x 14 the module has about 1 k weights and costs 0.2 M operations.", "slides (SE has 33 k, BAM 84 k)", "filter weights within 10 % of 1,000; multiply-adds within 10 % of 0.2 M",
            $"{filters:N0} weights ({module.parameters().Sum(parameter => parameter.numel()):N0} parameters with biases and norms), {Text(filters * 196 / 1e6)} M multiply-adds",
            Math.Abs(filters - 1000) <= 100 && Math.Abs((filters * 196 / 1e6) - 0.2) <= 0.02);
        run.Notes.Add("Which blocks the paper replaces could not be recovered. Of all choices of blocks that keep size and channels, only one of the two of 96 channels with one of the two of 160 gives the figures of the ImageNet row, and only all four those of the fine-grained rows; which of two equal blocks is open.");
    }

    private static (double Parameters, double Operations) Millions(ReproductionRun run, string name, MobileNetOptions options)
    {
        var parameters = run.Once($"parameters {name}", () =>
        {
            using var model = new MobileNet(options);
            return model.parameters().Sum(parameter => parameter.numel());
        });
        return (parameters / 1e6, MobileNet.MultiplyAdds(options, 224) / 1e6);
    }

    private static void Accuracy(ReproductionRun run)
    {
        const string Source = "abstract; slides: 71.52 against 71.25 on ImageNet with g = 4";
        const string Claim = "A block replaced by subspace attention loses no accuracy, and attention is better than nothing in its place.";
        const string Expected = "4 subspaces: mean within one deviation over seeds of the whole model, or above; and above the model without the block";
        if (!FashionMnist.IsInstalled())
        {
            run.Claim(Claim, Source, Expected, "not measured: the Debian package dataset-fashion-mnist is not installed", Verdict.Inconclusive);
            return;
        }

        var (steps, pictures, seeds) = run.IsQuick ? (4L, 256, new[] { 1 }) : (940L, 10_000, [1, 2, 3]);
        var data = FashionMnist.Load();
        var (train, test) = (data.Train.Take(pictures, 1), data.Test.Take(run.IsQuick ? 200 : 5000));
        var results = s_models.ToDictionary(model => model.Name, _ => new List<double>());
        var sizes = new Dictionary<string, long>();
        var done = 0;
        foreach (var seed in seeds)
        {
            run.Seeds.Add(seed);
            foreach (var (name, blocks, splits) in s_models)
            {
                run.Tell($"{name}, seed {seed}", 0.05 + (0.95 * done++ / (seeds.Length * s_models.Length)));
                var (accuracy, size) = run.Once($"accuracy {name} {seed} {steps}", () =>
                {
                    manual_seed(seed);
                    using var model = new MobileNet(MobileNetModel.Shape(train.Task, Width, blocks, splits, [5]));
                    var result = ImageTraining.Train(model, train, test, new() { Steps = steps, Seed = seed, Watched = 200, ValidateEvery = steps }, cancellation: run.Cancellation);
                    return (result.Accuracy, model.parameters().Sum(parameter => parameter.numel()));
                });
                results[name].Add(accuracy);
                sizes[name] = size;
            }
        }

        run.Tables.Add(new(
            $"Fashion-MNIST, {train.Count:N0} pictures to train on, {steps} steps of 64, {test.Count:N0} held out", ["model", "parameters", "mean accuracy", "seeds"],
            [.. s_models.Select(model => (IReadOnlyList<string>)[model.Name, $"{sizes[model.Name]:N0}", Text(results[model.Name].Average()), string.Join(", ", results[model.Name].Select(Text))])]));
        double Mean(int model) => results[s_models[model].Name].Average();
        var deviation = results.Values.Average(Deviation);
        run.Claim(
            Claim, Source, Expected, $"{Text(Mean(3))} with {sizes[s_models[3].Name]:N0} parameters; {Text(Mean(0))} with all {sizes[s_models[0].Name]:N0}, {Text(Mean(1))} without the block; deviation {Text(deviation)}",
            run.IsQuick ? Verdict.Inconclusive : Mean(3) >= Mean(0) - deviation && Mean(3) > Mean(1) ? Verdict.Confirmed : Verdict.NotConfirmed);
        run.Claim(
            "Four subspaces are better than one.", "slides: 71.64 against 71.31 (inserted)", "mean of 4 subspaces above that of 1 by more than the deviation over seeds", $"{Text(Mean(3))} against {Text(Mean(2))}; deviation {Text(deviation)}",
            run.IsQuick || Math.Abs(Mean(3) - Mean(2)) <= deviation ? Verdict.Inconclusive : Mean(3) > Mean(2) ? Verdict.Confirmed : Verdict.NotConfirmed);
        run.Notes.Add("The host is a MobileNet of five separable layers, 16 channels in the first convolution, in place of ImageNet models; the module is trained with it.");
    }

    private static double Deviation(List<double> values) =>
        values.Count < 2 ? 0 : Math.Sqrt(values.Sum(value => (value - values.Average()) * (value - values.Average())) / (values.Count - 1));

    private static string Text(double value) => value.ToString("0.000", CultureInfo.InvariantCulture);
}
