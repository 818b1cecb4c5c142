using System.Globalization;
using Heed.Heads;
using Heed.Kernels;
using Heed.Lab.Figures;
using Heed.Lab.Images;
using Heed.Lab.Training;
using Heed.Layers;
using Heed.Mixers;
using Heed.Models.Images;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>MambaOut (arXiv 2405.07992): whether a state-space model is needed where sequences are short and not causal, whether it helps where they are long, what a causal mask costs, and when a sequence is long.</summary>
internal sealed class MambaOutReproduction : Reproduction
{
    private const int TestPictures = 2000;

    public override string Slug => "mambaout";

    public override string Summary => "Gated convolution beside the same block with a scan on Fashion-MNIST, labelling of long sequences, causal attention, and the cost formula.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Cost(run);
        Labelling(run);
        Classification(run);
        run.Notes.Add("Not reproduced: ImageNet, COCO and ADE20K. 49 tokens are short by the paper's border (6 x 48 = 288), 128 labels are not long by it: what makes them need memory is the task.");
    });

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static void Cost(ReproductionRun run)
    {
        run.Tell("cost of a block", 0);
        var rows = new List<string[]>();
        var agree = true;
        foreach (var (grid, width) in new[] { (7, 32), (14, 48), (20, 16) })
        {
            var counted = Counted(grid, width);
            var formula = SequenceLength.BlockOperations(grid * grid, width);
            agree &= counted == formula;
            rows.Add([$"{grid * grid}", $"{width}", $"{formula.Linear:N0}", $"{counted.Linear:N0}", $"{formula.Quadratic:N0}", $"{counted.Quadratic:N0}", SequenceLength.IsLong(grid * grid, width) ? "long" : "short"]);
        }

        run.Tables.Add(new("Operations of a transformer block", ["tokens", "width", "linear: formula", "linear: counted", "quadratic: formula", "quadratic: counted", "sequence"], rows));
        run.Claim(
            "A block takes 24 D^2 L + 4 D L^2 operations, so a sequence is long from 6 D tokens on.", "section 3.2, equations 6 to 8", "the same numbers counted at the products of a block that runs", agree ? "the same in all rows" : "not the same", agree);
    }

    /// <summary>Operations of one block's matrix products: of linear layers by their weights, of attention by the shapes that a hook sees.</summary>
    private static (double Linear, double Quadratic) Counted(int grid, int width)
    {
        using var model = new VisionTransformer(
            new() { ImageSize = grid, PatchSize = 1, Channels = 1, Classes = 2, Width = width, Depth = 1 }, place => new MultiHeadAttention(new() { Width = width, Heads = 4 }, place.Site) { Hooks = place.Hooks });
        var counter = new ProductCounter();
        using var installed = model.Hooks.Install(counter);
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        model.forward(randn(1, 1, grid, grid));
        double linear = model.named_parameters().Where(entry => entry.name.StartsWith("blocks.", StringComparison.Ordinal) && entry.parameter.dim() == 2).Sum(entry => 2.0 * entry.parameter.numel() * grid * grid);
        return (linear, counter.Operations);
    }

    private static void Labelling(ReproductionRun run)
    {
        var (seeds, steps) = run.IsQuick ? (1, 4) : (2, 250);
        (string Name, bool Mamba, int Depth)[] arms = run.IsQuick
            ? [("gated convolution x 2", false, 2), ("Mamba x 2", true, 2)]
            : [("gated convolution x 2", false, 2), ("gated convolution x 4", false, 4), ("gated convolution x 8", false, 8), ("Mamba x 2", true, 2)];
        var rows = new List<string[]>();
        var lines = new List<FigureLine>();
        var scores = new List<double[]>();
        foreach (var (name, mamba, depth) in arms)
        {
            var results = Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"labelling: {name}, seed {seed}", 0.02 + (0.4 * ((rows.Count * seeds) + seed - 1) / (arms.Length * seeds)));
                return run.Once($"labelling {name} {steps} {seed}", () => KeyLabels.Train(mamba, depth, seed, steps, run.Cancellation));
            }).ToList();
            double[] mean = [.. Enumerable.Range(0, results[0].Length).Select(measure => results.Average(result => result[measure]))];
            scores.Add(mean);
            rows.Add([name, $"{mean[0]:N0}", Text(mean[1]), Text(mean[2]), Text(mean[3])]);
            lines.Add(new(name, [.. KeyLabels.Distances.Select(distance => (double)distance)], mean[4..], true));
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new(
            $"Every token's most recent key, {KeyLabels.Length} tokens, {steps} steps (chance: {Text(1.0 / KeyLabels.Keys, "F2")})",
            ["model", "parameters", "accuracy", $"at most {KeyLabels.Near} tokens from the key", $"more than {KeyLabels.Far}"], rows));
        run.Figures.Add(new("Accuracy by the distance of the key", "distance in tokens, at least", "accuracy", lines));
        var (convolution, scan) = (scores[0], scores[^1]);
        run.Claim(
            "Where labels depend on what is far, the state-space model helps.", "hypothesis 2; tables 2 and 3: MambaOut-Tiny 45.1 box AP, VMamba-T 46.5",
            "far accuracy above 0.8 for Mamba x 2 and below 0.5 for gated convolution x 2, near accuracy above 0.9 for both",
            $"far: Mamba {Text(scan[3])}, gated convolution {Text(convolution[3])}; near: {Text(scan[2])}, {Text(convolution[2])}",
            run.IsQuick ? Verdict.Inconclusive : scan[3] > 0.8 && convolution[3] < 0.5 && Math.Min(scan[2], convolution[2]) > 0.9 ? Verdict.Confirmed : Verdict.NotConfirmed);
        if (!run.IsQuick)
        {
            run.Claim(
                "With more convolution blocks the receptive field grows and the gap closes.", "control of the specification", "far accuracy rises from 2 to 4 to 8 blocks, by more than 0.1 in all",
                string.Join(", ", scores.Take(3).Select((score, arm) => $"{arms[arm].Depth} blocks {Text(score[3])}")), scores[0][3] < scores[1][3] && scores[1][3] < scores[2][3] && scores[2][3] - scores[0][3] > 0.1);
        }
    }

    private static void Classification(ReproductionRun run)
    {
        var data = new Lazy<FashionMnist>(() => FashionMnist.Load());
        var (seeds, steps, pictures) = run.IsQuick ? (1, 3, 300) : (3, 250, 10_000);
        var task = FashionMnist.Task;
        MambaOutOptions Shape(ScanPattern? pattern) => new()
        {
            Channels = task.Channels, Classes = task.Classes, Depths = [4], Widths = [48], Scan = pattern is null ? null : channels => new StateSpaceScan(channels, pattern, states: 8),
        };
        ImageClassifier Transformer(bool causal) => new VisionTransformer(
            new() { ImageSize = task.Size, PatchSize = 4, Channels = task.Channels, Classes = task.Classes, Width = 48, Depth = 4, FeedForwardRatio = 2 },
            place => new MultiHeadAttention(
                new() { Width = place.Width, Heads = 4, Attention = causal ? new AttentionOptions { Causal = Causality.AlignedToStart } : AttentionOptions.Default }, place.Site) { Hooks = place.Hooks });
        var budget = Parameters(new MambaOut(Shape(null)));
        (string Name, Func<ImageClassifier> Make)[] arms =
        [
            ("gated convolution", () => new MambaOut(Shape(null))), ("with a scan in four directions", () => WithinBudget(Shape(ScanPattern.Cross2d), budget)),
            ("with a scan in one direction", () => WithinBudget(Shape(ScanPattern.Raster), budget)), ("attention", () => Transformer(false)), ("attention with a causal mask", () => Transformer(true)),
        ];
        var rows = new List<string[]>();
        var measured = new List<double[][]>();
        foreach (var (name, make) in arms)
        {
            var results = Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"Fashion-MNIST: {name}, seed {seed}", 0.42 + (0.58 * ((rows.Count * seeds) + seed - 1) / (arms.Length * seeds)));
                return run.Once($"accuracy {name} {steps} {pictures} {seed}", () =>
                {
                    manual_seed(seed);
                    using var model = make();
                    Layers.Parameters.InitializeByFan(model);
                    var result = ImageTraining.Train(
                        model, data.Value.Train.Take(pictures, seed), data.Value.Test.Take(run.IsQuick ? 200 : TestPictures), new() { Steps = steps, Seed = seed, ValidateEvery = steps }, cancellation: run.Cancellation);
                    return new[] { result.Accuracy, result.Seconds, model.parameters().Sum(parameter => parameter.numel()) };
                });
            }).ToArray();
            measured.Add(results);
            rows.Add([name, $"{results[0][2]:N0}", Text(Mean(measured.Count - 1, 0)), string.Join(", ", results.Select(result => Text(result[0]))), Text(Mean(measured.Count - 1, 1), "F0")]);
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new($"Fashion-MNIST, 7 x 7 tokens: {pictures:N0} pictures, {steps} steps of 64", ["mixer", "parameters", "accuracy", "of each seed", "seconds"], rows));
        var spread = measured.Take(3).Max(results => results.Max(result => result[0]) - results.Min(result => result[0]));
        var best = Math.Max(Mean(1, 0), Mean(2, 0));
        run.Claim(
            "Where sequences are short and not causal, a state-space model is not needed.", "hypothesis 1; table 1: MambaOut-Small 84.1 with 79 % of the operations of LocalVMamba-S (83.7)",
            $"gated convolution at least as accurate as both scans at the same number of parameters and in less time; refuted only where a scan wins by more than the seeds differ",
            $"gated convolution {Text(Mean(0, 0))}, scans {Text(Mean(1, 0))} and {Text(Mean(2, 0))}; seeds differ by {Text(spread)}; time {Text(Mean(0, 1), "F0")}, {Text(Mean(1, 1), "F0")} and {Text(Mean(2, 1), "F0")} s",
            run.IsQuick ? Verdict.Inconclusive : Mean(0, 0) >= best && Mean(0, 1) < Math.Min(Mean(1, 1), Mean(2, 1)) ? Verdict.Confirmed : best - Mean(0, 0) > spread ? Verdict.NotConfirmed : Verdict.Inconclusive);
        run.Claim(
            "A causal mask costs a vision transformer accuracy.", "figure 3b (no figures)", "accuracy with the mask below that without, in the mean over the seeds",
            $"{Text(Mean(3, 0))} without, {Text(Mean(4, 0))} with a causal mask", run.IsQuick ? Verdict.Inconclusive : Mean(4, 0) < Mean(3, 0) ? Verdict.Confirmed : Verdict.NotConfirmed);

        double Mean(int arm, int measure) => measured[arm].Average(result => result[measure]);
    }

    private static long Parameters(ImageClassifier model)
    {
        using (model)
        {
            return model.parameters().Sum(parameter => parameter.numel());
        }
    }

    /// <summary>The model with as wide an expansion as the budget allows: a scan has parameters of its own.</summary>
    private static MambaOut WithinBudget(MambaOutOptions options, long budget)
    {
        var hidden = (int)(options.ExpansionRatio * options.Widths[0]);
        var excess = Parameters(new MambaOut(options)) - budget;

        // A hidden channel takes a row of fc1 for the gate, one for the signal, and a column of fc2, in every block.
        var perChannel = (long)options.Depths[0] * ((3 * options.Widths[0]) + 2);
        hidden -= (int)((excess + perChannel - 1) / perChannel);

        // Half a channel more than wanted, since the product is truncated.
        return new(options with { ExpansionRatio = (hidden + 0.5) / options.Widths[0] });
    }

    private sealed class ProductCounter : AttentionHook
    {
        public double Operations { get; private set; }

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs;

        public override void OnInputs(AttentionCall call) =>
            Operations += 2.0 * call.Query.shape[0] * call.Query.shape[1] * call.Query.shape[2] * call.Key.shape[2] * (call.Query.shape[3] + call.Value.shape[3]);
    }
}

/// <summary>Sequences of six symbols, four of them keys, each token labelled with the most recent key.</summary>
internal static class KeyLabels
{
    public const int Length = 128;
    public const int Keys = 4;
    public const int Near = 6;
    public const int Far = 20;
    private const int Symbols = 6;
    private const int Width = 24;
    private const int Batch = 16;
    private const double KeyShare = 1.0 / 24;

    /// <summary>Lower ends of the bins of distance.</summary>
    public static IReadOnlyList<int> Distances { get; } = [0, 4, 7, 10, 13, 16, 21, 26, 31, 41];

    /// <summary>Number of parameters; accuracy of all tokens, of near and of far ones; and of each bin of distance.</summary>
    public static double[] Train(bool mamba, int depth, int seed, int steps, CancellationToken cancellation)
    {
        manual_seed(seed);
        using var model = new Labeller(mamba, depth);
        using var loop = new TrainingLoop(
            model, new() { Steps = steps, WarmupSteps = Math.Min(20, steps / 4), LearningRate = 4e-3, FinalShare = 0.01, WeightDecay = 0.01, Beta2 = 0.99, ValidateEvery = steps }, $"{mamba} {depth} {seed} {steps}")
        {
            Loss = step =>
            {
                var (symbols, labels, _) = Sequences(Batch, (seed * 1_000_003) + (int)step);
                return nn.functional.cross_entropy(model.forward(tensor(symbols).view(Batch, Length)).flatten(0, 1), tensor(labels));
            },
        };
        loop.Run(null, cancellation);
        model.eval();
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        const int held = 64;
        var (given, wanted, distances) = Sequences(held, -seed);
        var right = model.forward(tensor(given).view(held, Length)).argmax(2).flatten().eq(tensor(wanted)).data<bool>().ToArray();
        double Accuracy(Func<int, bool> counts)
        {
            var chosen = right.Where((_, token) => counts(distances[token])).ToList();
            return chosen.Count == 0 ? 0 : chosen.Count(isRight => isRight) / (double)chosen.Count;
        }

        return
        [
            model.parameters().Sum(parameter => parameter.numel()), Accuracy(_ => true), Accuracy(distance => distance <= Near), Accuracy(distance => distance > Far),
            .. Distances.Select((first, bin) => Accuracy(distance => distance >= first && (bin == Distances.Count - 1 || distance < Distances[bin + 1]))),
        ];
    }

    private static (long[] Symbols, long[] Labels, int[] Distances) Sequences(int count, int seed)
    {
#pragma warning disable CA5394 // Repeatable sequences are the purpose; nothing is secret.
        var random = new Random(seed);
        var (symbols, labels, distances) = (new long[count * Length], new long[count * Length], new int[count * Length]);
        for (var at = 0; at < symbols.Length; at++)
        {
            var isStart = at % Length == 0;
            var isKey = isStart || random.NextDouble() < KeyShare;
            symbols[at] = isKey ? random.Next(Keys) : random.Next(Keys, Symbols);
            (labels[at], distances[at]) = isKey ? (symbols[at], 0) : (labels[at - 1], distances[at - 1] + 1);
        }
#pragma warning restore CA5394

        return (symbols, labels, distances);
    }

    private sealed class Labeller : nn.Module<Tensor, Tensor>
    {
        private readonly Embedding embed;
        private readonly ModuleList<LayerNorm> norms;
        private readonly ModuleList<nn.Module<Tensor, Tensor>> mixers;
        private readonly LayerNorm norm;
        private readonly Linear head;

        public Labeller(bool mamba, int depth)
            : base(nameof(Labeller))
        {
            embed = nn.Embedding(Symbols, Width);
            norms = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ => nn.LayerNorm(Width))]);
            mixers = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ =>
                mamba ? (nn.Module<Tensor, Tensor>)new MambaMixer(new() { Width = Width, States = 8 }) : new SequenceConvolution(Width, 64, 7))]);
            norm = nn.LayerNorm(Width);
            head = nn.Linear(Width, Keys);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor symbols)
        {
            using var scope = NewDisposeScope();
            var hidden = embed.forward(symbols);
            for (var layer = 0; layer < mixers.Count; layer++)
            {
                hidden = hidden + mixers[layer].forward(norms[layer].forward(hidden));
            }

            return head.forward(norm.forward(hidden)).MoveToOuterDisposeScope();
        }
    }

    /// <summary>The gated convolution of <see cref="GatedCnnBlock"/> along a sequence, looking both ways.</summary>
    private sealed class SequenceConvolution : GatedMixer
    {
        private readonly Linear fc1;
        private readonly Parameter weight;
        private readonly Linear fc2;
        private readonly int _width;
        private readonly int _hidden;

        public SequenceConvolution(int width, int hidden, int kernel)
            : base(nameof(SequenceConvolution))
        {
            (_width, _hidden) = (width, hidden);
            fc1 = nn.Linear(width, 2 * hidden);
            weight = Parameters.Make([width, 1, 1, kernel], tensor => tensor.uniform_(-1 / Math.Sqrt(kernel), 1 / Math.Sqrt(kernel)));
            fc2 = nn.Linear(hidden, width);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            return Mix(input).MoveToOuterDisposeScope();
        }

        protected override (Tensor Gate, Tensor Context) Branches(Tensor input)
        {
            var all = fc1.forward(input);
            var signal = all.narrow(2, (2 * _hidden) - _width, _width).transpose(1, 2).unsqueeze(2);
            var convolved = DepthwiseConvolution.Apply(signal, weight).squeeze(2).transpose(1, 2);
            return (nn.functional.gelu(all.narrow(2, 0, _hidden)), cat([all.narrow(2, _hidden, _hidden - _width), convolved], 2));
        }

        protected override Tensor Output(Tensor gated) => fc2.forward(gated);
    }
}
