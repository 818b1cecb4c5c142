using System.Diagnostics;
using System.Globalization;
using Heed.Heads;
using Heed.Lab.Videos;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>VMoBA: the table of operations, what the threshold keeps, training beside full attention and flat MoBA, and time over length.</summary>
internal sealed class VMoBAReproduction : Reproduction
{
    private const string Full = "full";

    // A quarter of the blocks: rather more than a threshold of 0.25 keeps, so that what is compared is never to the flat blocks' disadvantage.
    private const string Flat = "moba:block=32,k=4";
    private const string Mixed = "vmoba:threshold=0.25";

    public override string Slug => "vmoba";

    public override string Summary => "Table of operations; training of a small video denoiser with full attention, flat MoBA and VMoBA; what the threshold keeps; time over length.";

    public override void Run(ReproductionRun run)
    {
        CountOperations(run);
        Train(run);
        MeasureTime(run);
        run.Notes.Add("The denoiser has 3 layers of width 64 over 512 tokens and trains on generated clips: the paper's models are a thousand times larger, and their quality is judged on VBench, which is out of reach here.");
    }

    private static void CountOperations(ReproductionRun run)
    {
        // Wan 2.1 with 1.3 billion parameters: 30 layers, width 1536, feed-forward 8960, 300 text tokens.
        static VideoTransformerSize Size(double tokens) => new(tokens, 300, 1536, 8960, 30);
        (string Name, double Ours, double Paper)[] table =
        [
            ("full, 76K", MixtureOfBlocksCost.Operations(Size(75600), 0, 0), 1246.78), ("full, 55K", MixtureOfBlocksCost.Operations(Size(55296), 0, 0), 705.02),
            ("full, 56K", MixtureOfBlocksCost.Operations(Size(56160), 0, 0), 724.97), ("VMoBA, 55K", MixtureOfBlocksCost.Operations(Size(55296), (8, 48, 72), 0.19), 248.68),
            ("VMoBA, 56K", MixtureOfBlocksCost.Operations(Size(56160), (7, 24, 36), 0.18), 248.39),
        ];
        run.Tables.Add(new(
            "Teraflops of a forward pass", ["model", "counted here", "paper"], [.. table.Select(row => (IReadOnlyList<string>)[row.Name, Text(row.Ours / 1e12, "0.00"), Text(row.Paper, "0.00")])]));
        var worst = table.Max(row => Math.Abs((row.Ours / 1e12) - row.Paper) / row.Paper);
        run.Claim(
            "VMoBA takes 2.83 and 2.92 times fewer operations than full attention.", "table 2", "every figure of the table within 0.1 %",
            $"largest difference {worst:P3}; ratios {Text(table[1].Ours / table[3].Ours, "0.00")} and {Text(table[2].Ours / table[4].Ours, "0.00")}", worst < 1e-3);
    }

    private static void Train(ReproductionRun run)
    {
        var steps = run.IsQuick ? 12 : 500;
        int[] seeds = run.IsQuick ? [1] : [1, 2, 3];
        string[] variants = run.IsQuick ? [Full, Flat, Mixed] : [Full, Flat, Mixed, "vmoba:threshold=0.25,scope=query", "vmoba:threshold=0.25,cycle=12"];
        var results = new Dictionary<string, List<Trained>>();
        var done = 0;
        foreach (var seed in seeds)
        {
            run.Seeds.Add(seed);
            foreach (var variant in variants)
            {
                var share = done++ / (double)(seeds.Length * variants.Length);
                results.TryAdd(variant, []);
                results[variant].Add(run.Once($"train {variant} {seed} {steps}", () => TrainOne(run, variant, seed, steps, share, seeds.Length * variants.Length)));
            }
        }

        run.Tables.Add(new(
            $"Held-out loss after {steps} steps, mean over {seeds.Length} seed(s)", ["attention", "loss", "smallest", "largest", "pairs kept"],
            [.. results.Select(entry => (IReadOnlyList<string>)[entry.Key, Text(entry.Value.Average(one => one.Loss), "0.0000"), Text(entry.Value.Min(one => one.Loss), "0.0000"),
                Text(entry.Value.Max(one => one.Loss), "0.0000"), Text(entry.Value.Average(one => one.Kept), "0.000")])]));
        var (full, flat, mixed) = (Mean(Full), Mean(Flat), Mean(Mixed));
        var (flatKept, mixedKept) = (results[Flat].Average(one => one.Kept), results[Mixed].Average(one => one.Kept));
        var measured = $"VMoBA {Text(mixed, "0.0000")} keeping {Text(mixedKept, "0.000")}, flat MoBA {Text(flat, "0.0000")} keeping {Text(flatKept, "0.000")}, full {Text(full, "0.0000")}";
        run.Claim(
            "VMoBA trains better than MoBA with flat blocks.", "table 2: dynamic degree 56.91 beside 5.80; figure 1: 68.34 beside 56.88",
            "a loss no larger than flat MoBA's at an equal or smaller kept share, mean of three seeds", measured,
            run.IsQuick ? Verdict.Inconclusive : mixed <= flat && mixedKept <= flatKept ? Verdict.Confirmed : mixed <= flat ? Verdict.Inconclusive : Verdict.NotConfirmed);
        run.Claim(
            "VMoBA trains as well as full attention.", "figure 1: 68.34 beside 68.25; figure 7", "a loss within 5 % of full attention's, mean of three seeds",
            $"{(mixed / full) - 1:+0.0 %;-0.0 %} ({measured})", run.IsQuick ? Verdict.Inconclusive : mixed <= 1.05 * full ? Verdict.Confirmed : Verdict.NotConfirmed);
        var spread = results[Mixed].Average(one => one.Spread);
        run.Claim(
            "A threshold keeps what a head needs: less than tau on average, and more for some heads than for others.", "table 3c: tau 0.25 keeps 0.19; figure 4",
            "a kept share below 0.25 on average, and heads that differ", $"kept {Text(mixedKept, "0.000")}; the heads of a layer differ by {Text(spread, "0.000")} (largest less smallest, mean over layers)",
            run.IsQuick ? Verdict.Inconclusive : mixedKept < 0.25 && spread > 0 ? Verdict.Confirmed : Verdict.NotConfirmed);

        double Mean(string variant) => results[variant].Average(one => one.Loss);
    }

    private static Trained TrainOne(ReproductionRun run, string variant, int seed, int steps, double share, int runs)
    {
        var kept = new List<double>();
        using var model = new VideoDenoiser(VideoAttentions.Of(variant, kept.Add), seed);
        using var loop = VideoRecipe.Loop(model, variant, seed, steps);
        loop.Run(progress => run.Tell($"{variant}, seed {seed}, step {progress.Step}", 0.9 * (share + (progress.Step / (double)steps / runs))), run.Cancellation);
        kept.Clear();
        var loss = VideoRecipe.HeldOutLoss(model);
        return new(loss, kept.Count == 0 ? 1 : kept.Average(), variant.StartsWith("vmoba", StringComparison.Ordinal) ? SpreadOf(model, variant) : 0);
    }

    /// <summary>How much the heads of a layer differ in what they keep, on held-out clips.</summary>
    private static double SpreadOf(VideoDenoiser model, string variant)
    {
        using var still = no_grad();
        var spreads = new List<double>();
        using var watched = new VideoDenoiser((query, key, value, layer) =>
        {
            var cells = VideoDenoiser.Grid;
            var partition = VMoBALayer.PartitionOf(layer, new()
            {
                Width = 1, Heads = 1, Resolution = [cells, cells, cells], TemporalBlock = 0.5, SpatialBlock = (2, 2), SpatioTemporalBlock = (2, 4, 4),
            });
            using var selection = MixtureOfBlocks.Select(partition.Apply(query, 2), partition.Apply(key, 2), new() { BlockSize = partition.BlockSize });
            var shares = Enumerable.Range(0, selection.Batches).SelectMany(_ => Enumerable.Range(0, selection.Heads), (batch, head) => (head, Share: selection.KeptShareOf(batch, head)))
                .GroupBy(entry => entry.head).Select(group => group.Average(entry => entry.Share)).ToList();
            spreads.Add(shares.Max() - shares.Min());
            return VideoAttentions.Of(variant)(query, key, value, layer);
        }, seed: 0);
        watched.load_state_dict(model.state_dict());
        watched.Loss(MovingDiscs.Draw(4, int.MaxValue), 1).Dispose();
        return spreads.Average();
    }

    private static void MeasureTime(ReproductionRun run)
    {
        (int Frames, int Rows, int Columns, double Temporal, (long, long) Spatial, (long, long, long) Both)[] grids =
            [(8, 8, 16, 1, (2, 2), (2, 2, 4)), (8, 16, 32, 1, (2, 4), (2, 4, 8)), (16, 32, 32, 2, (4, 8), (4, 8, 8))];
        var measured = new List<(int Tokens, double Ratio, double Kept)>();
        foreach (var grid in run.IsQuick ? grids[..2] : grids)
        {
            var tokens = grid.Frames * grid.Rows * grid.Columns;
            run.Tell($"time at {tokens:N0} tokens", 0.92);
            var result = run.Once($"time {tokens}", () => TimeOf(grid.Frames, grid.Rows, grid.Columns, grid.Temporal, grid.Spatial, grid.Both, run.IsQuick ? 1 : 3));
            measured.Add((tokens, result[0], result[1]));
        }

        run.Figures.Add(new(
            "Forward and backward beside dense attention", "tokens", "times as fast", [new("mean of the three kinds of layer", [.. measured.Select(one => (double)one.Tokens)], [.. measured.Select(one => one.Ratio)], true)]));
        run.Claim(
            "Training is faster on long sequences, by more the longer they are.", "table 2: 1.48 times at 55K; table 5: 1.00 times at 33K, 0.86 times at 13K",
            "forward and backward at least 1.48 times as fast as dense attention at the longest length, and the ratio grows",
            string.Join(", ", measured.Select(one => $"{Text(one.Ratio, "0.00")} times at {one.Tokens:N0} tokens keeping {Text(one.Kept, "0.00")}")),
            run.IsQuick ? Verdict.Inconclusive : measured[^1].Ratio >= 1.48 && measured[^1].Ratio > measured[0].Ratio ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    /// <summary>How many times as fast a cycle of three layers is as three layers of dense attention, forward and backward, and what they keep.</summary>
    private static double[] TimeOf(int frames, int rows, int columns, double temporal, (long, long) spatial, (long, long, long) both, int runs)
    {
        var layer = new VMoBALayerOptions { Width = 1, Heads = 1, Resolution = [frames, rows, columns], TemporalBlock = temporal, SpatialBlock = spatial, SpatioTemporalBlock = both };
        var inputs = BlobFeatures.Make(frames, rows, columns, 4, 64, seed: 1);
        var (query, key, value) = (inputs.Query.requires_grad_(), inputs.Key.requires_grad_(), inputs.Value.requires_grad_());
        var partitions = Enumerable.Range(0, 3).Select(index => VMoBALayer.PartitionOf(index, layer)).ToArray();
        var (ours, dense) = (double.PositiveInfinity, double.PositiveInfinity);
        for (var i = 0; i <= runs; i++)
        {
            var a = partitions.Sum(partition => Seconds(() => VMoBALayer.Attend(query, key, value, partition, new() { BlockSize = partition.BlockSize })));
            var b = 3 * Seconds(() => Attention.Compute(query, key, value));

            // The first run compiles and allocates.
            (ours, dense) = i == 0 ? (ours, dense) : (Math.Min(ours, a), Math.Min(dense, b));
        }

        var kept = partitions.Average(partition =>
        {
            using var selection = MixtureOfBlocks.Select(partition.Apply(query, 2), partition.Apply(key, 2), new() { BlockSize = partition.BlockSize });
            return selection.KeptShare;
        });
        return [dense / ours, kept];

        double Seconds(Func<Tensor> attend)
        {
            using var scope = NewDisposeScope();
            var start = Stopwatch.GetTimestamp();
            attend().sum().backward();
            var seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
            foreach (var leaf in new[] { query, key, value })
            {
                leaf.grad?.Dispose();
                leaf.grad = null;
            }

            return seconds;
        }
    }

    private static string Text(double value, string format) => value.ToString(format, CultureInfo.InvariantCulture);

    /// <summary>What a run of training came to.</summary>
    private sealed record Trained(double Loss, double Kept, double Spread);
}
