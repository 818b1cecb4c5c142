using System.Globalization;
using Heed.Lab.Benchmarks;
using Heed.Lab.Images;
using Heed.Lab.Images.Models;
using Heed.Layers;
using Heed.Mixers;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>OverLoCK (arXiv 2502.20087): how far a dynamic kernel sees, what merging convolutions is worth, and a task that needs the overview, with its controls.</summary>
internal sealed class OverLoCKReproduction : Reproduction
{
    private static readonly (string Name, bool Context, FocusKernels Kernels)[] s_models =
        [("full", true, FocusKernels.Dynamic), ("no context", false, FocusKernels.Dynamic), ("static kernels", true, FocusKernels.Static)];

    public override string Slug => "overlock";

    public override string Summary =>
        "The receptive field of ContMix beside that of a static kernel; re-parameterised convolutions before and after merging; counting the shapes that a coloured cue names, with and without context and dynamic kernels.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        ReceptiveField(run);
        Merging(run);
        Cue(run);
    });

    private static void ReceptiveField(ReproductionRun run)
    {
        run.Tell("receptive field", 0);
        const int side = 21, kernel = 7;
        var (seen, outside, staticOutside) = run.Once("receptive field", () =>
        {
            using var module = new ContMix(16, kernel, 5);
            module.eval();
            var input = randn(1, 16, side, side).requires_grad_();
            Tensor Field(Tensor kernels)
            {
                input.grad = null;
                module.forward(kernels, kernels, input)[0, TensorIndex.Colon, side / 2, side / 2].sum().backward();
                var field = input.grad!.abs().sum(1)[0].clone();
                const int first = (side - kernel) / 2;
                field[first..(first + kernel), first..(first + kernel)] = 0;
                return field;
            }

            var whole = Field(input);
            return (whole.count_nonzero().item<long>(), (double)whole.sum().item<float>(), (double)Field(input.detach()).sum().item<float>());
        });
        const long expected = (side * side) - (kernel * kernel);
        run.Claim(
            "A dynamic kernel of fixed size depends on the whole map.", "section 3.3 (ContMix), figure 1", $"a gradient at every one of the {expected} positions outside the 7 x 7 window; exactly none where the kernels are held fixed",
            $"{seen} positions with a mass of {Text(outside)}; {Text(staticOutside)} with fixed kernels", seen == expected && staticOutside == 0);
    }

    private static void Merging(ReproductionRun run)
    {
        run.Tell("merging convolutions", 0.02);
        var (error, ratio) = run.Once("merging", () =>
        {
            using var quiet = no_grad();
            using var trained = new DilatedReparamConv(64, 13);
            using var merged = new DilatedReparamConv(64, 13, deploy: true);
            var input = randn(1, 64, 28, 28);
            trained.train();
            trained.forward(input);
            trained.eval();
            merged.eval();
            merged.TakeMerged(trained);
            var (before, after) = (trained.forward(input), merged.forward(input));
            var timing = PairedTimer.Measure(
                () => merged.forward(input).Dispose(), () => trained.forward(input).Dispose(), TimeSpan.FromSeconds(run.IsQuick ? 0.2 : 2), run.Cancellation);
            return ((double)((before - after).abs().max() / before.abs().max()).item<float>(), timing.Ratio!.Value);
        });
        run.Claim(
            "Training branches merge into one convolution exactly, and it is faster.", "section 3.2 (Dilated RepConv)", "relative difference <= 1e-5, and faster (64 channels, 28 x 28, side 13)",
            $"{error.ToString("0.0e0", CultureInfo.InvariantCulture)}, {Text(ratio)} times as fast", error > 1e-5 ? Verdict.NotConfirmed : run.IsQuick ? Verdict.Inconclusive : ratio > 1 ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    private static void Cue(ReproductionRun run)
    {
        var (steps, pictures, seeds) = run.IsQuick ? (4L, 256, new[] { 1 }) : (180L, 6000, [1, 2, 3]);
        var (train, test) = (CueTask.Make(pictures, 11), CueTask.Make(run.IsQuick ? 128 : 1000, 12));
        var results = s_models.ToDictionary(model => model.Name, _ => new List<double>());
        var done = 0;
        foreach (var seed in seeds)
        {
            run.Seeds.Add(seed);
            foreach (var (name, context, kernels) in s_models)
            {
                run.Tell($"{name}, seed {seed}", 0.05 + (0.95 * done++ / (seeds.Length * s_models.Length)));
                results[name].Add(run.Once($"cue {name} {seed} {steps}", () =>
                {
                    manual_seed(seed);
                    using var model = new OverLoCK(OverLoCKModel.Shape(CueTask.Task, 8, 1, context, kernels));
                    Parameters.InitializeByFan(model);
                    return ImageTraining.Train(model, train, test, new() { Steps = steps, Seed = seed, Watched = 100, ValidateEvery = steps }, cancellation: run.Cancellation).Accuracy;
                }));
            }
        }

        run.Tables.Add(new(
            $"Share of {test.Count:N0} held-out pictures whose shapes are counted right after {steps} steps of 64 (chance 0.25)", ["model", "mean", "seeds"],
            [.. s_models.Select(model => (IReadOnlyList<string>)[model.Name, Text(results[model.Name].Average()), string.Join(", ", results[model.Name].Select(Text))])]));
        var full = results["full"];
        // How far seeds alone move a result.
        var spread = results.Values.Average(values => values.Max() - values.Min());
        foreach (var (control, claim) in new[] { ("no context", "The overview's context helps."), ("static kernels", "Kernels that depend on the picture help.") })
        {
            var gain = full.Average() - results[control].Average();
            run.Claim(
                claim, "tables 6 and 7 (ablations of the context and of the mixer)", "mean accuracy above the control's by more than the spread over seeds", $"{Text(full.Average())} against {Text(results[control].Average())}; spread {Text(spread)}",
                run.IsQuick ? Verdict.Inconclusive : gain > spread ? Verdict.Confirmed : gain < -spread ? Verdict.NotConfirmed : Verdict.Inconclusive);
        }

        run.Notes.Add("The pictures are 32 x 32 where the specification has 64 x 64, and the model has a stem of stride 2, so that three seeds of three models take minutes. All three models have the same parameters; the controls leave some unused.");
        run.Notes.Add("Accuracies on ImageNet, COCO and ADE20K are out of reach here: the authors' checkpoints load by their own names.");
    }

    private static string Text(double value) => value.ToString("0.000", CultureInfo.InvariantCulture);
}
