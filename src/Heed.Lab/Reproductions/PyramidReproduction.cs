using System.Diagnostics;
using System.Globalization;
using Heed.Heads;
using Heed.Lab.Videos;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>PSA: what pooling loses at the compute of binary block masks, where it cannot help, and what it saves.</summary>
internal sealed class PyramidReproduction : Reproduction
{
    private const int Heads = 4;
    private const int Width = 32;
    private const int Block = 64;

    // Shares of the blocks at levels 1, 2, 4 and 8, as in the plug-in's default, scaled to several densities.
    private static readonly double[] s_scales = [0.7, 1, 1.5, 2];

    public override string Slug => "psa";

    public override string Summary => "Error of pyramids beside binary block masks of equal density on moving blobs and on white noise, and time beside dense attention.";

    public override void Run(ReproductionRun run)
    {
        var (frames, side) = run.IsQuick ? (4, 16) : (8, 16);
        var rows = new List<IReadOnlyList<string>>();
        var errors = new List<(string Order, double Density, double Pyramid, double Binary)>();
        var seeds = new[] { 1, 2, 3 };
        foreach (var seed in seeds)
        {
            run.Seeds.Add(seed);
            foreach (var along in new[] { "raster order", "Gilbert order" })
            {
                for (var i = 0; i < s_scales.Length; i++)
                {
                    run.Tell($"seed {seed}, {along}", 0.5 * ((seed - 1) + (i / (double)s_scales.Length)) / seeds.Length);
                    var measured = run.Once($"error {seed} {along} {s_scales[i]} {frames}x{side}", () => ErrorsOf(seed, along, s_scales[i], frames, side, isNoise: false));
                    errors.Add((along, measured[0], measured[1], measured[2]));
                    rows.Add([seed.ToString(CultureInfo.InvariantCulture), along, Text(measured[0]), Text(measured[1]), Text(measured[2]), Text(measured[3])]);
                }
            }
        }

        run.Tables.Add(new("Relative error of the output on moving blobs", ["seed", "order", "density", "pyramid", "binary blocks", "binary density"], rows));
        var low = errors.Where(error => error.Density <= 0.3).ToList();
        var better = low.Count(error => error.Pyramid < error.Binary);
        run.Claim(
            "Pyramids lose less than binary block masks at equal compute.", "abstract: \"consistent gain over binary-mask sparse attention at equal budget\"",
            "a smaller error at every density up to 0.3, for every seed, in both orders",
            $"smaller in {better} of {low.Count} comparisons; mean error {Text(low.Average(error => error.Pyramid))} beside {Text(low.Average(error => error.Binary))}", better == low.Count);
        foreach (var along in new[] { "raster order", "Gilbert order" })
        {
            var points = errors.Where(error => error.Order == along).GroupBy(error => Math.Round(error.Density, 2)).OrderBy(group => group.Key).ToList();
            run.Figures.Add(new($"Moving blobs in {along}", "density", "relative error", [
                new("pyramid", [.. points.Select(point => point.Key)], [.. points.Select(point => point.Average(error => error.Pyramid))], true),
                new("binary blocks", [.. points.Select(point => point.Key)], [.. points.Select(point => point.Average(error => error.Binary))], true)]));
        }

        var raster = errors.Where(error => error.Order == "raster order").Average(error => error.Pyramid);
        var curve = errors.Where(error => error.Order == "Gilbert order").Average(error => error.Pyramid);
        run.Claim(
            "Blocks that are compact in space and time lose less by pooling.", "README: reordering by the Gilbert curve", "a smaller mean error in Gilbert order than in raster order",
            $"{Text(curve)} beside {Text(raster)}", curve < raster);

        var noise = seeds.Select(seed => run.Once($"noise {seed} {frames}x{side}", () => ErrorsOf(seed, "raster order", 1, frames, side, isNoise: true))).ToList();
        run.Claim(
            "On white noise pooling has nothing to hold on to, and the similarity cap switches it off.", "negative control; section on adaptive pooling",
            "the cap allows no pooled block in any seed", $"share of blocks pooled under the cap {Text(noise.Average(values => values[4]))}; without it the error is {Text(noise.Average(values => values[1]))} "
            + $"beside {Text(noise.Average(values => values[2]))} for binary blocks", noise.All(values => values[4] == 0));

        var length = run.IsQuick ? (Frames: 8, Side: 16) : (Frames: 16, Side: 32);
        run.Tell("time beside dense attention", 0.6);
        var speed = run.Once($"speed {length}", () => SpeedOf(length.Frames, length.Side, run.IsQuick ? 1 : 3));
        run.Claim(
            "The whole call, importance and level map included, is much faster than dense attention at 85 % sparsity.", "README: 85 % sparsity for CogVideoX-5B",
            run.IsQuick ? "faster than dense at 2,048 tokens" : "at least 4 times at 16,384 tokens and blocks of 128",
            $"{Text(speed[1])} times at density {Text(speed[0])}, {length.Frames * length.Side * length.Side:N0} tokens", speed[1] >= (run.IsQuick ? 1 : 4));

        run.Tell("causal attention", 0.9);
        var causal = seeds.Select(seed => run.Once($"causal {seed} {frames}x{side}", () => CausalErrors(seed, frames, side))).ToList();
        run.Tables.Add(new(
            "Causal attention by antidiagonal importance", ["seed", "density", "pyramid", "binary blocks"],
            [.. causal.Select((values, i) => (IReadOnlyList<string>)[seeds[i].ToString(CultureInfo.InvariantCulture), Text(values[0]), Text(values[1]), Text(values[2])])]));
        run.Claim(
            "The causal variant loses less than binary blocks of equal density, too.", "section on understanding", "a smaller error for every seed",
            $"{Text(causal.Average(values => values[1]))} beside {Text(causal.Average(values => values[2]))} at density {Text(causal.Average(values => values[0]))}", causal.All(values => values[1] < values[2]));
        run.Notes.Add("Synthetic features stand in for the activations of a video model: what is tested is the mechanism, not a model's quality. Binary blocks are the most important ones by the same importance, with as many of them "
            + "as give the pyramid's density, rounded up in their favour.");
    }

    /// <summary>Density, error of the pyramid, error of binary blocks, their density, and the share of blocks that would be pooled under the similarity cap.</summary>
    private static double[] ErrorsOf(int seed, string along, double scale, int frames, int side, bool isNoise)
    {
        using var still = no_grad();
        var tokens = frames * side * side;
        var (query, key, value) = BlobFeatures.Make(frames, side, side, Heads, Width, seed);
        if (isNoise)
        {
            using var generator = new Generator((ulong)seed);
            (query, key, value) = (randn([1, Heads, tokens, Width], generator: generator), randn([1, Heads, tokens, Width], generator: generator), randn([1, Heads, tokens, Width], generator: generator));
        }

        if (along == "Gilbert order")
        {
            var order = GilbertCurve.Order(side, side, frames);
            (query, key, value) = (order.Apply(query, 2), order.Apply(key, 2), order.Apply(value, 2));
        }

        var options = new PyramidOptions
        {
            QueryBlock = Block, KeyBlock = Block, Levels = [new(1, 0, 0.1 * scale), new(2, 0.1 * scale, 0.15 * scale), new(8, 0.15 * scale, 0.35 * scale), new(0, 0.35 * scale, 1)],
        };
        var level = new PyramidSelector(options).LevelsOf(query, key, isCausal: false);
        var cap = PyramidLevels.SimilarityCap(key, Block, 0.7, 0.65, 0.6);
        var pooled = PyramidLevels.Capped(level, cap).gt(1).to(float32).mean().item<float>();
        var density = PyramidLevels.Density(level);
        var binary = Math.Min(1, Math.Ceiling(density * (tokens / (double)Block)) / (tokens / (double)Block));
        var binaryLevel = new PyramidSelector(options with { Levels = [new(1, 0, binary), new(0, binary, 1)] }).LevelsOf(query, key, isCausal: false);
        var dense = Attention.Compute(query, key, value);
        double ErrorOf(Tensor map) => ((PyramidAttention.Forward(query, key, value, map, Block, Block) - dense).norm() / dense.norm()).item<float>();
        return [density, ErrorOf(level), ErrorOf(binaryLevel), PyramidLevels.Density(binaryLevel), pooled];
    }

    /// <summary>Density, error of the causal pyramid, and error of causal binary blocks of at least that density.</summary>
    private static double[] CausalErrors(int seed, int frames, int side)
    {
        using var still = no_grad();
        const int block = 32;
        var (query, key, value) = BlobFeatures.Make(frames, side, side, Heads, Width, seed);
        var options = new PyramidOptions
        {
            QueryBlock = block, KeyBlock = block, Importance = PyramidImportance.Antidiagonal, Stride = 8, Chunk = block,
            Levels = [new(1, 0, 0.1), new(2, 0.1, 0.2), new(4, 0.2, 0.35), new(8, 0.35, 0.6), new(0, 0.6, 1)],
        };
        var level = new PyramidSelector(options).LevelsOf(query, key, isCausal: true);
        var density = PyramidLevels.Density(level, isCausal: true);

        // The share that gives the same density: the diagonal and the first block are read in any case, so it is looked for.
        var share = 0.05;
        Tensor Binary() => new PyramidSelector(options with { Levels = [new(1, 0, share), new(0, share, 1)] }).LevelsOf(query, key, isCausal: true);
        var binary = Binary();
        while (PyramidLevels.Density(binary, isCausal: true) < density && share < 1)
        {
            share = Math.Min(1, share + 0.01);
            binary = Binary();
        }

        var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
        double ErrorOf(Tensor map) => ((PyramidAttention.Forward(query, key, value, map, block, block, isCausal: true) - dense).norm() / dense.norm()).item<float>();
        return [density, ErrorOf(level), ErrorOf(binary)];
    }

    /// <summary>Density, and how many times as fast the whole call is as dense attention: the best of alternating runs on both sides.</summary>
    private static double[] SpeedOf(int frames, int side, int runs)
    {
        using var still = no_grad();
        var (query, key, value) = BlobFeatures.Make(frames, side, side, Heads, 64, seed: 1);
        var selector = new PyramidSelector(new() { KeyBlock = 128 });
        using var level = selector.LevelsOf(query, key, isCausal: false);
        var (ours, dense) = (double.PositiveInfinity, double.PositiveInfinity);
        for (var i = 0; i <= runs; i++)
        {
            var (a, b) = (Seconds(new() { Selector = selector }), Seconds(AttentionOptions.Default));

            // The first run compiles and allocates.
            (ours, dense) = i == 0 ? (ours, dense) : (Math.Min(ours, a), Math.Min(dense, b));
        }

        return [PyramidLevels.Density(level), dense / ours];

        double Seconds(AttentionOptions options)
        {
            var start = Stopwatch.GetTimestamp();
            Attention.Compute(query, key, value, options).Dispose();
            return Stopwatch.GetElapsedTime(start).TotalSeconds;
        }
    }

    private static string Text(double value) => value.ToString("0.###", CultureInfo.InvariantCulture);
}
