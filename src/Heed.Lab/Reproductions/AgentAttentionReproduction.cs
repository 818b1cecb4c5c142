using System.Globalization;
using Heed.Lab.Benchmarks;
using Heed.Lab.Images;
using Heed.Lab.Training;
using Heed.Mixers;
using Heed.Models.Diffusion;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Agent attention (arXiv 2312.08874): how its cost grows, what its parts are worth on pictures, its rank, and what becomes of a denoiser that it is put into without training.</summary>
internal sealed class AgentAttentionReproduction : Reproduction
{
    private const string Shape = "patch=2,width=32,depth=2,heads=2";

    private static readonly (string Name, string Model)[] Arms =
    [
        ("softmax attention", $"vit:{Shape}"), ("9 agents", $"agent:{Shape},agents=9"), ("25 agents", $"agent:{Shape},agents=25"), ("9 agents, no convolution", $"agent:{Shape},agents=9,conv=off"),
        ("9 agents, no position biases", $"agent:{Shape},agents=9,bias=off"), ("linear attention (elu + 1)", $"linear:{Shape}"),
    ];

    public override string Slug => "agent-attention";

    public override string Summary => "Growth of time and memory, accuracy on Fashion-MNIST part by part, rank of the map, and a denoiser edited without training.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Growth(run);
        Rank(run);
        Accuracy(run);
        Denoiser(run);
        run.Notes.Add("Not reproduced: ImageNet, and the gain in FID that the paper reports for Stable Diffusion, which needs that model and its data.");
        run.Notes.Add("The vision models are smaller than the specification's (2 blocks of width 32 instead of 4 of 64) so that 18 runs fit into minutes on one core; 14 x 14 tokens as there.");
    });

    private static string Text(double number, string format = "F2") => number.ToString(format, CultureInfo.InvariantCulture);

    private static void Growth(ReproductionRun run)
    {
        const int agents = 49, width = 32;
        long[] lengths = run.IsQuick ? [256, 512] : [256, 512, 1024, 2048, 4096, 8192, 16384];
        var rows = new List<string[]>();
        var times = new List<(long Length, double Agent, double Dense)>();
        foreach (var length in lengths)
        {
            run.Tell($"{length} tokens", 0.1 * times.Count / lengths.Length);
            var measured = run.Once($"time {length}", () =>
            {
                using var quiet = no_grad();
                Tensor Make(long tokens) => randn(1, 1, tokens, width);
                var (query, key, value, middle) = (Make(length), Make(length), Make(length), Make(agents));
                void Agent() => AgentAttention.Compute(query, middle, key, value).Dispose();
                void Dense() => Attention.Compute(query, key, value).Dispose();
                void Written() => matmul(softmax(matmul(query, key.transpose(-1, -2)), -1), value).Dispose();
                var (ours, dense, _) = PairedTimer.Measure(Agent, Dense, TimeSpan.FromSeconds(run.IsQuick ? 0.05 : 0.5), run.Cancellation);
                return new[] { ours, dense!.Value, PairedTimer.PeakGrowth(Agent) ?? 0, length <= 8192 ? InScope(Written) : double.NaN };
            });
            times.Add((length, measured[0], measured[1]));
            rows.Add([$"{length}", Text(measured[0], "F3"), Text(measured[1], "F3"), $"{measured[2] / 1e6:F1}", double.IsNaN(measured[3]) ? "not run" : $"{measured[3] / 1e6:F1}"]);
        }

        run.Tables.Add(new("One head of 32, 49 agents, one thread", ["tokens", "agents, ms", "softmax (Heed), ms", "agents, peak MB", "softmax written out, peak MB"], rows));
        run.Figures.Add(new(
            "Time of one head", "log2 of the number of tokens", "log10 of the time in ms",
            [
                new("49 agents", [.. times.Select(time => Math.Log2(time.Length))], [.. times.Select(time => Math.Log10(time.Agent))], true),
                new("softmax", [.. times.Select(time => Math.Log2(time.Length))], [.. times.Select(time => Math.Log10(time.Dense))], true),
            ]));
        var longer = times.Where(time => run.IsQuick || time.Length >= 1024).ToList();
        var (slope, dense) = (SelectorBenchmarks.Slope([.. longer.Select(time => (time.Length, time.Agent))]), SelectorBenchmarks.Slope([.. longer.Select(time => (time.Length, time.Dense))]));
        run.Claim(
            "Agent attention costs O(N n d) where softmax attention costs O(N^2 d).", "section 3.2: linear complexity", "growth exponents from 1,024 tokens on: agents 0.8 to 1.2, softmax 1.8 to 2.2",
            $"agents {Text(slope)}, softmax {Text(dense)}", run.IsQuick ? Verdict.Inconclusive : slope is > 0.8 and < 1.2 && dense is > 1.8 and < 2.2 ? Verdict.Confirmed : Verdict.NotConfirmed);
        var crossing = times.Where(time => time.Agent < time.Dense).Select(time => time.Length).DefaultIfEmpty(long.MaxValue).Min();
        run.Claim(
            "It is the cheaper from a few times n tokens on.", "equal products at N = 2 n; piloted by the specification: N = 2 n to 4 n", "faster at 256 tokens (5 n) or 512 at the latest",
            crossing == long.MaxValue ? "never faster" : $"faster from {crossing} tokens on (of the lengths measured)", run.IsQuick ? Verdict.Inconclusive : crossing <= 512 ? Verdict.Confirmed : Verdict.NotConfirmed);

        double InScope(Action work) => PairedTimer.PeakGrowth(() =>
        {
            using var scope = NewDisposeScope();
            work();
        }) ?? 0;
    }

    private static void Rank(ReproductionRun run)
    {
        var ranks = run.Once("ranks", () =>
        {
            using var quiet = no_grad();
            const int side = 14, agents = 9, width = 64;
            using var full = new AgentAttention2d(new() { Width = width, Heads = 1, Grid = (side, side), Agents = agents });
            using var bare = new AgentAttention2d(new() { Width = width, Heads = 1, Grid = (side, side), Agents = agents, Convolution = false });
            full.to(float64);
            bare.to(float64);
            var (query, key) = (randn(1, 1, side * side, width, dtype: float64), randn(1, 1, side * side, width, dtype: float64));
            var middle = AgentAttention.Pool(query.squeeze(1), side, side, 3).unsqueeze(1);
            var map = AgentAttention.Compute(query, middle, key, eye(side * side, dtype: float64).view(1, 1, side * side, side * side))[0, 0];
            var tokens = randn(1, side * side, width, dtype: float64);
            long Of(AgentAttention2d layer) => linalg.matrix_rank(layer.forward(tokens)[0] - layer.get_parameter("proj.bias")!, 1e-9).item<long>();
            return new[] { linalg.matrix_rank(map, 1e-10).item<long>(), Of(bare), Of(full) };
        });
        run.Claim(
            "A head's map has a rank of at most n, and the convolution of the values lifts the output's.", "section 3.3: the convolution restores feature diversity", "map 9, output 9 without convolution, 64 (full) with it",
            $"map {ranks[0]}, output {ranks[1]} without, {ranks[2]} with", ranks[0] <= 9 && ranks[1] <= 9 && ranks[2] == 64);
    }

    private static void Accuracy(ReproductionRun run)
    {
        if (!FashionMnist.IsInstalled())
        {
            run.Notes.Add("Accuracy and denoising were left out: they need Fashion-MNIST (Debian package dataset-fashion-mnist).");
            return;
        }

        var (steps, seeds) = run.IsQuick ? (4, 1) : (600, 3);
        var data = new Lazy<(ImageData Train, ImageData Test)>(() => FashionMnist.Load() is var both ? (both.Train, both.Test.Take(run.IsQuick ? 250 : 2000, 1)) : default);
        var accuracies = new double[Arms.Length][];
        var rows = new List<string[]>();
        for (var arm = 0; arm < Arms.Length; arm++)
        {
            accuracies[arm] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"{Arms[arm].Name}, seed {seed}", 0.1 + (0.7 * ((arm * seeds) + seed - 1) / (Arms.Length * seeds)));
                return run.Once($"accuracy {Arms[arm].Model} {seed} {steps}", () =>
                {
                    manual_seed(seed);
                    using var model = ImageModel.Make(Arms[arm].Model, FashionMnist.Task);
                    return ImageTraining.Train(model, data.Value.Train, data.Value.Test, new() { Steps = steps, Batch = 32, Seed = seed, ValidateEvery = steps, Watched = 250 }, cancellation: run.Cancellation).Accuracy;
                });
            })];
            rows.Add([Arms[arm].Name, Text(100 * accuracies[arm].Average()), string.Join(", ", accuracies[arm].Select(accuracy => Text(100 * accuracy)))]);
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new($"Fashion-MNIST, 196 tokens, {steps} steps of 32 pictures: accuracy in percent", ["attention", "mean", "seeds"], rows));
        double Mean(int arm) => 100 * accuracies[arm].Average();
        Verdict Judge(bool holds) => run.IsQuick ? Verdict.Inconclusive : holds ? Verdict.Confirmed : Verdict.NotConfirmed;
        var best = Math.Max(Mean(1), Mean(2));
        run.Claim(
            "Agent attention is as accurate as softmax attention or more.", "table: DeiT-T 72.2 to 74.9 on ImageNet", "the better of 9 and 25 agents at most 0.3 points behind softmax attention",
            $"{Text(best)} against {Text(Mean(0))}", Judge(best >= Mean(0) - 0.3));
        run.Claim("It is more accurate than linear attention.", "section 3: expressiveness of softmax at linear cost", "above elu + 1", $"{Text(best)} against {Text(Mean(5))}", Judge(best > Mean(5)));
        var (convolution, bias) = (Mean(1) - Mean(3), Mean(1) - Mean(4));
        run.Claim(
            "Both the convolution and the biases help, the convolution more.", "ablation of the paper (order; figures not at hand)", "removing the convolution costs more than removing the biases, both cost something",
            $"without convolution {Text(-convolution)} points, without biases {Text(-bias)}", Judge(convolution > bias && bias > 0));
    }

    private static void Denoiser(ReproductionRun run)
    {
        if (!FashionMnist.IsInstalled())
        {
            return;
        }

        var seeds = run.IsQuick ? 1 : 3;
        var steps = run.IsQuick ? 3 : 150;
        var measured = Enumerable.Range(1, seeds).Select(seed =>
        {
            run.Tell($"denoiser, seed {seed}", 0.8 + (0.2 * (seed - 1) / seeds));
            return run.Once($"denoiser {seed} {steps}", () => TinyDenoiser.Measure(seed, steps, run.IsQuick, run.Cancellation));
        }).ToList();
        double Mean(int column) => measured.Average(row => row[column]);
        run.Tables.Add(new(
            "Noise prediction on 16 x 16 pictures, attention of 256 tokens replaced without training", ["attention", "mean squared error", "time of a batch of 16, ms"],
            [
                ["as trained", Text(Mean(0), "F4"), Text(Mean(3))], ["tokens merged (ratio 0.4)", Text(Mean(1), "F4"), Text(Mean(4))], ["tokens merged, 16 agents", Text(Mean(2), "F4"), Text(Mean(5))],
            ]));
        Verdict Judge(bool holds) => run.IsQuick ? Verdict.Inconclusive : holds ? Verdict.Confirmed : Verdict.NotConfirmed;
        run.Claim(
            "Agents in a trained denoiser cost no more quality than merging tokens.", "Stable Diffusion 1.5: FID 28.42 against 29.01 at r = 50 %", "error with agents at most 5 % above that of merging alone",
            $"{Text(Mean(2), "F4")} against {Text(Mean(1), "F4")} (as trained {Text(Mean(0), "F4")})", Judge(Mean(2) <= 1.05 * Mean(1)));
        run.Claim(
            "They make it faster than merging alone.", "Stable Diffusion 1.5: 1.42 against 1.53 s a picture at r = 50 %", "less time for a batch of 16 at 256 tokens", $"{Text(Mean(5))} ms against {Text(Mean(4))} ms (as trained {Text(Mean(3))} ms)",
            Judge(Mean(5) < Mean(4)));
    }
}

/// <summary>Predicts the noise in small pictures: a convolution in, one transformer block over all 256 positions, a convolution out.</summary>
internal sealed class TinyDenoiser : nn.Module<Tensor, Tensor, Tensor>
{
    private const int Side = 16;
    private const int Width = 32;
    private readonly Conv2d enter;
    private readonly Linear level;
    private readonly Parameter positions;
    private readonly BasicTransformerBlock block;
    private readonly Conv2d leave;

    private TinyDenoiser()
        : base(nameof(TinyDenoiser))
    {
        enter = nn.Conv2d(1, Width, 3, padding: 1);
        level = nn.Linear(1, Width);
        positions = Layers.Parameters.Make([1, Side * Side, Width], tensor => Layers.Parameters.DrawNormal(tensor));
        block = new(Width, 2, Width / 2, Width);
        leave = nn.Conv2d(Width, 1, 3, padding: 1);
        RegisterComponents();
        Layers.Parameters.Keep(this);
    }

    /// <summary>Errors as trained, with merged tokens, with agents; then the times of the three in milliseconds.</summary>
    public static double[] Measure(int seed, int steps, bool quick, CancellationToken cancellation)
    {
        manual_seed(seed);
        using var model = new TinyDenoiser();
        var pictures = FashionMnist.LoadTest().Take(quick ? 128 : 4096, seed);
        var batches = pictures.Batches(16, seed);
        using (var loop = new TrainingLoop(model, new() { Steps = steps, WarmupSteps = 10, LearningRate = 2e-3, FinalShare = 0.1, ValidateEvery = steps }, $"denoiser {seed}")
        {
            Loss = step =>
            {
                manual_seed((1_000_003L * seed) + step);
                return model.Error(Small(batches(step).Images));
            },
        })
        {
            loop.Run(null, cancellation);
        }

        model.eval();
        using var still = no_grad();
        var held = FashionMnist.LoadTest().Take(quick ? 32 : 512, 1000 + seed);
        var (shares, times) = (new double[3], new double[3]);
        for (var form = 0; form < 3; form++)
        {
            using var edit = form == 0 ? null : AgentEdit.Apply(model, (Side, Side), [(0, new() { Ratio = 0.4, AgentRatio = form == 1 ? 0 : 0.95, StrideX = form == 1 ? 2 : 4, StrideY = form == 1 ? 2 : 4 })]);
            manual_seed(77 + seed);
            for (var first = 0; first < held.Count; first += 16)
            {
                using var scope = NewDisposeScope();
                shares[form] += model.Error(Small(held.Range(first, 16).Images)).item<float>() * 16 / held.Count;
            }

            var (noisy, at) = (randn(16, 1, Side, Side), full(16, 1, 0.5));
            times[form] = PairedTimer.Measure(() => model.forward(noisy, at).Dispose(), null, TimeSpan.FromSeconds(quick ? 0.05 : 0.5), cancellation).Ours;
        }

        return [.. shares, .. times];
    }

    public override Tensor forward(Tensor noisy, Tensor noise)
    {
        using var scope = NewDisposeScope();
        var context = level.forward(noise).unsqueeze(1);
        var tokens = enter.forward(noisy).flatten(2).transpose(1, 2) + positions + context;
        return leave.forward(block.forward(tokens, context).transpose(1, 2).reshape(-1, Width, Side, Side)).MoveToOuterDisposeScope();
    }

    /// <summary>Pictures of 28 x 28 as 16 x 16.</summary>
    private static Tensor Small(Tensor images) => nn.functional.interpolate(images, [Side, Side], mode: InterpolationMode.Bilinear, align_corners: false);

    /// <summary>The mean squared error of the predicted noise, at levels drawn evenly.</summary>
    private Tensor Error(Tensor pictures)
    {
        var share = rand(pictures.shape[0], 1);
        var angle = (share * (Math.PI / 2)).view(-1, 1, 1, 1);
        var noise = randn_like(pictures);
        return nn.functional.mse_loss(forward((pictures * angle.cos()) + (noise * angle.sin()), share), noise);
    }
}
