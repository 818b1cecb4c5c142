using System.Globalization;
using Heed.Lab.Benchmarks;
using Heed.Masks;
using Heed.Models.VideoTransformers;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>FreeSwim (arXiv 2511.14712): the window's exact properties, what the override does, what a cache saves, and drawing at twice the training size with a small model of discs on stripes.</summary>
internal sealed class FreeSwimReproduction : Reproduction
{
    // Pixels of a side in training and in sampling; the classes are colours.
    private const int Small = 16, Large = 32, Colours = 3;

    private const double Strength = 0.7, Guidance = 3, Shift = 3;

    public override string Slug => "freeswim";

    public override string Summary => "Counts keys of inward and cut windows; tells the override's effect; times cached against uncached steps; trains a small model on 16 x 16 pictures of one disc and samples 32 x 32 ones.";

    public override void Run(ReproductionRun run)
    {
        ReceptiveField(run);
        Override(run);
        Cost(run);
        Extrapolation(run);
    }

    private static void ReceptiveField(ReproductionRun run)
    {
        run.Tell("receptive field", 0);
        // 1088 x 1920 with a model of 480 x 832: 68 x 120 tokens, windows of 31 x 53.
        var (height, width, halfHeight, halfWidth) = (68L, 120L, 15L, 26L);
        long Keys(long r, long c) => Count(InwardWindow.Bounds(r, height, halfHeight)) * Count(InwardWindow.Bounds(c, width, halfWidth));
        long Cut(long r, long c) => (Math.Min(r + halfHeight, height - 1) - Math.Max(r - halfHeight, 0) + 1) * (Math.Min(c + halfWidth, width - 1) - Math.Max(c - halfWidth, 0) + 1);
        var positions = (from r in Enumerable.Range(0, (int)height) from c in Enumerable.Range(0, (int)width) select (r, c)).ToList();
        var (inward, cut) = (positions.Select(at => Keys(at.r, at.c)).ToList(), positions.Select(at => Cut(at.r, at.c)).ToList());
        var expected = ((2 * halfHeight) + 1) * ((2 * halfWidth) + 1);
        run.Claim(
            "Every query keeps the receptive field of training.", "abstract; section on inward windows", $"all queries of a 68 x 120 grid see {expected} keys a frame; cut windows see fewer at borders",
            $"{inward.Min()} to {inward.Max()} inward, {cut.Min()} to {cut.Max()} cut", inward.All(count => count == expected) && cut.Min() < expected && cut.Max() == expected);

        static long Count((long First, long Last) bounds) => bounds.Last - bounds.First + 1;
    }

    private static void Override(ReproductionRun run)
    {
        run.Tell("override", 0.02);
        var (windowChange, fullChange) = run.Once("override", () =>
        {
            using var quiet = no_grad();
            using var model = new WanTransformer(new() { Heads = 2, HeadWidth = 18, InputChannels = 3, OutputChannels = 3, TextWidth = 4, FrequencyWidth = 16, FeedForwardWidth = 64, Layers = 2, PatchSize = (1, 1, 1) }, seed: 1);
            model.parameters().Where(parameter => parameter.dim() == 2).ToList().ForEach(parameter => parameter.mul_(10));
            var (latents, prompt, time) = (randn([1, 3, 1, 12, 12]), randn(1, 2, 4), full([1], 500, dtype: float32));
            Tensor Predict(bool overrides)
            {
                using var session = FreeSwimEdit.Apply(model, new() { HalfHeight = 2, HalfWidth = 2, Overrides = overrides });
                return session.Step(latents, time, prompt).Conditional;
            }

            var (with, without) = (Predict(true), Predict(false));
            return new[] { (with[0] - without[0]).abs().max().item<float>(), (double)(with[1] - without[1]).abs().max().item<float>() };
        }) is [var first, var second] ? (first, second) : default;
        run.Claim(
            "The full branch's cross-attention replaces the window branch's, and nothing else.", "section on the dual path", "the window branch changes, the full branch does not (1e-4, rounding)",
            $"window branch by up to {windowChange:E1}, full branch by up to {fullChange:E1}", windowChange > 1e-3 && fullChange < 1e-4);
    }

    private static void Cost(ReproductionRun run)
    {
        run.Tell("cost", 0.05);
        var (height, width) = run.IsQuick ? (8, 12) : (32, 48);
        var table = new List<IReadOnlyList<string>>();
        var (sharesHold, fastest) = (true, 0.0);
        foreach (var interval in run.IsQuick ? [2] : new[] { 2, 5 })
        {
            var figures = run.Once($"cost {height}x{width} {interval}", () =>
            {
                using var quiet = no_grad();
                using var model = new WanTransformer(new() { Heads = 2, HeadWidth = 64, InputChannels = 4, OutputChannels = 4, TextWidth = 64, FrequencyWidth = 64, FeedForwardWidth = 512, Layers = 2, PatchSize = (1, 1, 1) });
                var (latents, prompt, negative, time) = (randn([1, 4, 1, height, width]), randn(1, 8, 64), randn(1, 8, 64), full([1], 500, dtype: float32));
                (long Full, double Milliseconds) Steps(int? cache)
                {
                    using var session = FreeSwimEdit.Apply(model, new() { HalfHeight = height / 4, HalfWidth = width / 4, CacheInterval = cache });
                    long runs = 0;
                    var clock = System.Diagnostics.Stopwatch.StartNew();
                    for (var step = 0; step < interval; step++)
                    {
                        using var inner = NewDisposeScope();
                        var prediction = session.Step(latents, time, prompt, negative);
                        runs += prediction.Conditional.shape[0] - 1 + prediction.Unconditional.shape[0] - 1;
                    }

                    return (runs, clock.Elapsed.TotalMilliseconds);
                }

                var ratios = new List<double>();
                (long Full, double Milliseconds) uncached = default, cached = default;
                for (var repeat = 0; repeat < (run.IsQuick ? 2 : 5); repeat++)
                {
                    (uncached, cached) = (Steps(null), Steps(interval));
                    ratios.Add(uncached.Milliseconds / cached.Milliseconds);
                }

                return new[] { uncached.Full, cached.Full, PairedTimer.Median(ratios) };
            });
            sharesHold &= figures[0] == 2 * interval * figures[1];
            fastest = Math.Max(fastest, figures[2]);
            table.Add([$"{interval}", $"{figures[0]:0}", $"{figures[1]:0}", Text(figures[2])]);
        }

        run.Tables.Add(new($"Cost of so many steps on {height} x {width} tokens", ["interval m", "full-branch passes uncached", "cached", "time uncached / cached"], table));
        run.Claim(
            "A cache of interval m cuts the full branch's passes by 2m.", "section on caching", "exactly 2m times fewer", sharesHold ? "exactly 2m times fewer" : "another number", sharesHold);
        run.Claim(
            "Cross-attention caching more than doubles the speed.", "README (> 2x)", ">= 2 at the larger interval", $"{fastest:0.00} times", run.IsQuick ? Verdict.Inconclusive : fastest >= 2 ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    private static void Extrapolation(ReproductionRun run)
    {
        var typical = HighPower(Pictures(64, 777, Small).Pictures);
        var (steps, samples, sampleSteps) = run.IsQuick ? (2, 1, 3) : (1500, 6, 20);
        using var model = new WanTransformer(
            new() { Heads = 4, HeadWidth = 18, InputChannels = 3, OutputChannels = 3, TextWidth = 4, FrequencyWidth = 64, FeedForwardWidth = 144, Layers = run.IsQuick ? 1 : 4, PatchSize = (1, 1, 1) }, seed: 1);
        var weights = run.Once($"weights {steps}", () => Train(run, model, steps));
        using (no_grad())
        {
            foreach (var (parameter, values) in model.parameters().Zip(weights))
            {
                parameter.copy_(tensor(values).view(parameter.shape));
            }
        }

        var window = new FreeSwimOptions { HalfHeight = Small / 2, HalfWidth = Small / 2, LogRatio = Math.Log(2 * Small * Small) / Math.Log(Small * Small) };
        var variants = new (string Name, FreeSwimOptions? Options)[]
        {
            ("full attention", null), ("inward window", window with { Overrides = false }), ("cut window", window with { Overrides = false, CutsWindows = true }),
            ("window + override", window), ("... cache 2", window with { CacheInterval = 2 }), ("... cache 4", window with { CacheInterval = 4 }),
        };
        var table = new List<IReadOnlyList<string>>();
        var measures = new Dictionary<(string Name, double Strength), double[]>();
        foreach (var strength in run.IsQuick ? [Strength] : new[] { Strength, 1.0 })
        {
            foreach (var (name, options) in variants.Where(variant => !run.IsQuick || variant.Options is null or { CutsWindows: false, CacheInterval: null }))
            {
                run.Tell($"sampling: {name}, strength {strength}", 0.6 + (0.4 * measures.Count / (2.0 * variants.Length)));
                // Objects too many or too few, error of the high frequencies, all pixels for the distances.
                var all = run.Once($"sample {name} {strength} {steps} {samples}", () =>
                {
                    using var quiet = no_grad();
                    var pixels = new List<double>();
                    var (objects, detail) = (0.0, 0.0);
                    for (var seed = 0; seed < samples; seed++)
                    {
                        using var inner = NewDisposeScope();
                        var picture = Sample(model, options, seed, strength, sampleSteps);
                        objects += Math.Abs(Discs(picture, seed % Colours) - 1) / (double)samples;
                        detail += Math.Abs(Math.Log(HighPower(picture) / typical)) / samples;
                        pixels.AddRange(picture.to(float64).flatten().data<double>().ToArray());
                        run.Cancellation.ThrowIfCancellationRequested();
                    }

                    return (double[])[objects, detail, .. pixels];
                });
                measures[(name, strength)] = all;
                var distance = measures.TryGetValue(("window + override", strength), out var reference) ? Math.Sqrt(all.Skip(2).Zip(reference.Skip(2), (a, b) => (a - b) * (a - b)).Average()) : double.NaN;
                table.Add([name, Text(strength), Text(all[0]), Text(all[1]), double.IsNaN(distance) ? "" : Text(distance)]);
            }
        }

        for (var seed = 0; seed < samples; seed++)
        {
            run.Seeds.Add(seed);
        }

        run.Tables.Add(new($"32 x 32 pictures of a model trained on 16 x 16 for {steps} steps", ["attention", "strength", "|discs - 1|", "high-frequency error (log)", "RMS distance to window + override"], table));
        var (alone, both, whole) = (measures[("inward window", Strength)], measures[("window + override", Strength)], measures[("full attention", Strength)]);
        run.Claim(
            "Windows alone repeat objects, the override keeps one.", "abstract; section on the dual path", "fewer superfluous discs with the override than with the window alone",
            $"strength {Strength}: {alone[0]:0.00} alone, {both[0]:0.00} with the override" + (run.IsQuick ? "" : $"; strength 1: {measures[("inward window", 1.0)][0]:0.00} and {measures[("window + override", 1.0)][0]:0.00}"),
            run.IsQuick ? Verdict.Inconclusive : Fewer());
        run.Claim(
            "Windows of the training size keep fine texture that full attention loses.", "abstract", "smaller error of high frequencies than full attention",
            $"{both[1]:0.00} with window and override, {whole[1]:0.00} with full attention", run.IsQuick ? Verdict.Inconclusive : both[1] < whole[1] ? Verdict.Confirmed : Verdict.NotConfirmed);
        run.Notes.Add("One model of four layers was trained; seeds are those of the samples. At strength 0.7 the start is an upscaled 16 x 16 sample, which fixes the layout: repetition is rare there.");
        run.Notes.Add("Not tried: the paper's video models and its VBench comparison.");

        Verdict Fewer()
        {
            var (a, b) = (alone[0] + measures[("inward window", 1.0)][0], both[0] + measures[("window + override", 1.0)][0]);
            return b < a ? Verdict.Confirmed : a == b ? Verdict.Inconclusive : Verdict.NotConfirmed;
        }
    }

    /// <summary>Flow matching on pictures of one disc; a tenth of the prompts is dropped for guidance.</summary>
    private static float[][] Train(ReproductionRun run, WanTransformer model, int steps)
    {
        using var optimizer = optim.AdamW(model.parameters(), lr: 2e-3, weight_decay: 0.01);
        model.train();
        for (var step = 0; step < steps; step++)
        {
            using var scope = NewDisposeScope();
            using var generator = new Generator((ulong)(1000 + step));
            foreach (var group in optimizer.ParamGroups)
            {
                group.LearningRate = 2e-3 * Math.Min(1, (step + 1) / 50.0) * (0.5 + (0.5 * Math.Cos(Math.PI * step / steps))) + 1e-5;
            }

            var batch = run.IsQuick ? 2 : 16;
            var (pictures, prompts) = Pictures(batch, step, Small);
            prompts = prompts * rand([batch, 1, 1], generator: generator).gt(0.1).to(float32);
            var sigma = rand([batch], generator: generator);
            var noise = randn(pictures.shape, generator: generator);
            var weight = sigma.view([batch, 1, 1, 1, 1]);
            var loss = nn.functional.mse_loss(model.forward((pictures * (1 - weight)) + (noise * weight), sigma * 1000, prompts), noise - pictures);
            optimizer.zero_grad();
            loss.backward();
            nn.utils.clip_grad_norm_(model.parameters(), 1);
            optimizer.step();
            run.Tell($"training, step {step + 1} of {steps}", 0.1 + (0.5 * step / steps));
        }

        model.eval();
        return [.. model.parameters().Select(parameter => parameter.detach().cpu().flatten().data<float>().ToArray())];
    }

    /// <summary>Pictures <c>[B, 3, 1, side, side]</c> of one disc in the colour of the class on grey stripes, and their prompts <c>[B, 1, 4]</c>.</summary>
    private static (Tensor Pictures, Tensor Prompts) Pictures(int count, int seed, int side)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)(1_000_000 + seed));
        Tensor Uniform(double from, double to) => (rand([count, 1, 1], generator: generator) * (to - from)) + from;
        var (y, x) = (arange(side, dtype: float32).view(1, side, 1), arange(side, dtype: float32).view(1, 1, side));
        var (angle, phase) = (Uniform(0, Math.PI), Uniform(0, 2 * Math.PI));
        // Stripes of four pixels, whatever the size.
        var ground = ((((x * angle.cos()) + (y * angle.sin())) * (Math.PI / 2)) + phase).sin() * 0.5;
        var (row, column) = (Uniform(0.35 * side, 0.65 * side), Uniform(0.35 * side, 0.65 * side));
        var inside = (y - row).square() + (x - column).square() < Math.Pow(0.25 * side, 2);
        var colours = randint(Colours, [count], generator: generator);
        var colour = nn.functional.one_hot(colours, Colours).to(float32).view(count, Colours, 1, 1) * 2 - 1;
        var pictures = where(inside.unsqueeze(1), colour, ground.unsqueeze(1)).unsqueeze(2);
        return (pictures.MoveToOuterDisposeScope(), Prompt(colours).MoveToOuterDisposeScope());
    }

    private static Tensor Prompt(Tensor colours) => nn.functional.pad(nn.functional.one_hot(colours, Colours).to(float32), [0, 1], value: 1).unsqueeze(1);

    /// <summary>A large picture <c>[3, side, side]</c>: a small one is drawn, enlarged, noised and drawn on.</summary>
    private static Tensor Sample(WanTransformer model, FreeSwimOptions? options, int seed, double strength, int steps)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)(500 + seed));
        var prompt = Prompt(tensor(new long[] { seed % Colours }));
        var nothing = zeros_like(prompt);
        Tensor Plain(Tensor latents, double sigma)
        {
            var time = full([1], sigma * 1000, dtype: float32);
            var without = model.forward(latents, time, nothing);
            return without + ((model.forward(latents, time, prompt) - without) * Guidance);
        }

        var sigmas = Enumerable.Range(0, steps + 1).Select(i => 1 - (i / (double)steps)).Select(sigma => Shift * sigma / (1 + ((Shift - 1) * sigma))).ToArray();
        var small = Denoise(randn([1, 3, 1, Small, Small], generator: generator), 0, Plain);
        var large = nn.functional.interpolate(small.squeeze(2), [Large, Large], mode: InterpolationMode.Bilinear, align_corners: false).unsqueeze(2);
        var first = steps - (int)(steps * strength);
        var start = (large * (1 - sigmas[first])) + (randn(large.shape, generator: generator) * sigmas[first]);
        if (options is null)
        {
            return Denoise(start, first, Plain).squeeze(2).squeeze(0).MoveToOuterDisposeScope();
        }

        using var session = FreeSwimEdit.Apply(model, options);
        return Denoise(start, first, (latents, sigma) => session.Step(latents, full([1], sigma * 1000, dtype: float32), prompt, nothing, Guidance).Guided).squeeze(2).squeeze(0).MoveToOuterDisposeScope();

        // Euler steps along the flow.
        Tensor Denoise(Tensor latents, int from, Func<Tensor, double, Tensor> predict)
        {
            for (var step = from; step < steps; step++)
            {
                latents = latents + (predict(latents, sigmas[step]) * (sigmas[step + 1] - sigmas[step]));
            }

            return latents;
        }
    }

    /// <summary>Connected regions of the class's colour that hold at least a fiftieth of the picture.</summary>
    private static int Discs(Tensor picture, int colour)
    {
        var others = Enumerable.Range(0, Colours).Where(other => other != colour).Select(other => picture[other]).ToArray();
        var isColour = (picture[colour] - ((others[0] + others[1]) / 2)).gt(1).data<bool>().ToArray();
        var side = (int)picture.shape[^1];
        var count = 0;
        for (var start = 0; start < isColour.Length; start++)
        {
            var size = 0;
            var open = new Stack<int>([start]);
            while (open.TryPop(out var at))
            {
                if (!isColour[at])
                {
                    continue;
                }

                isColour[at] = false;
                size++;
                var (row, column) = (at / side, at % side);
                foreach (var (r, c) in new[] { (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1) })
                {
                    if (r >= 0 && r < side && c >= 0 && c < side)
                    {
                        open.Push((r * side) + c);
                    }
                }
            }

            count += size * 50 >= isColour.Length ? 1 : 0;
        }

        return count;
    }

    /// <summary>Power per pixel at an eighth of a cycle per pixel and above, of the mean of the channels: stripes of four pixels are at a quarter.</summary>
    private static double HighPower(Tensor pictures)
    {
        var side = pictures.shape[^1];
        var grey = pictures.reshape([-1, Colours, side, side]).mean([1L]);
        var power = fft.fft2(grey - grey.mean([-1L, -2L], keepdim: true)).abs().square() / (side * side);
        var frequency = fft.fftfreq(side).square();
        var high = (frequency.view(-1, 1) + frequency).ge(1.0 / 64);
        return power.masked_select(high).sum().item<float>() / (power.shape[0] * side * side);
    }

    private static string Text(double value) => value.ToString("0.00", CultureInfo.InvariantCulture);
}
