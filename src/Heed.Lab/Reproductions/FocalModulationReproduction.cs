using System.Globalization;
using Heed.Heads;
using Heed.Lab.Benchmarks;
using Heed.Lab.Images;
using Heed.Mixers;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Focal modulation (arXiv 2203.11926): how time and memory grow, accuracy beside attention in the same network, what each part adds, and where the modulator looks.</summary>
internal sealed class FocalModulationReproduction : Reproduction
{
    private const int TestPictures = 2000;

    private static readonly (string Name, string Model)[] Arms =
    [
        ("modulation", "focalnet:width=48,depth=3"), ("attention, 4 heads", "vit:width=48,depth=3"), ("modulation without gates", "focalnet:width=48,depth=3,gates=off"),
        ("modulation without global level", "focalnet:width=48,depth=3,global=off"), ("modulation, one level of 3 x 3", "focalnet:width=48,depth=3,levels=1"),
    ];

    public override string Slug => "focal-modulation";

    public override string Summary => "Growth of time and memory, accuracy beside attention on Fashion-MNIST with ablations, and where the modulator looks.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Scaling(run);
        Accuracy(run);
        Pointing(run);
        run.Notes.Add("Small data and 7 x 7 tokens favour the bias of convolutions: the comparison says nothing about ImageNet. Not reproduced: the published models, detection and segmentation.");
    });

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static void Scaling(ReproductionRun run)
    {
        int[] sides = run.IsQuick ? [14, 28] : [14, 28, 56, 80];
        var rows = new List<string[]>();
        var measured = sides.Select(side =>
        {
            run.Tell($"{side} x {side} tokens", 0.02 * rows.Count);
            var result = run.Once($"time {side}", () =>
            {
                using var quiet = no_grad();
                using var modulation = new FocalModulation(64);
                using var attention = new MultiHeadAttention(new() { Width = 64, Heads = 4 });
                var map = randn(1, side, side, 64);
                var tokens = map.view(1, side * side, 64);
                void Ours() => modulation.forward(map).Dispose();
                void Theirs() => attention.forward(tokens).Dispose();
                var (ours, theirs, _) = PairedTimer.Measure(Ours, Theirs, TimeSpan.FromSeconds(run.IsQuick ? 0.1 : 1.5), run.Cancellation);
                return new[] { ours, theirs!.Value, PairedTimer.PeakGrowth(Ours) ?? double.NaN, PairedTimer.PeakGrowth(Theirs) ?? double.NaN };
            });
            string Megabytes(double bytes) => double.IsNaN(bytes) ? "unknown" : Text(bytes / 1e6, "F1");
            rows.Add([$"{side * side}", Text(result[0]), Text(result[1]), Megabytes(result[2]), Megabytes(result[3])]);
            return (Length: (long)side * side, Ours: result[0], Theirs: result[1]);
        }).ToList();
        run.Tables.Add(new("Forward pass at width 64, one picture", ["tokens", "modulation, ms", "attention, ms", "modulation, MB", "attention, MB"], rows));
        var (ours, theirs) = (SelectorBenchmarks.Slope([.. measured.Select(point => (point.Length, point.Ours))]), SelectorBenchmarks.Slope([.. measured.Select(point => (point.Length, point.Theirs))]));
        run.Claim(
            "The cost of focal modulation is linear in the number of tokens, that of attention is not.", "section 3.2: complexity linear in H W", "fitted exponent of time from 196 to 6,400 tokens below 1.25 for modulation, above 1.5 for attention",
            $"modulation {Text(ours, "F2")}, attention {Text(theirs, "F2")}", run.IsQuick ? Verdict.Inconclusive : ours < 1.25 && theirs > 1.5 ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    private static void Accuracy(ReproductionRun run)
    {
        var data = new Lazy<FashionMnist>(() => FashionMnist.Load());
        var (seeds, steps, pictures) = run.IsQuick ? (1, 4, 500) : (3, 600, 10_000);
        var arms = run.IsQuick ? Arms[..2] : Arms;
        var rows = new List<string[]>();
        var means = new Dictionary<string, double[]>();
        foreach (var (name, model) in arms)
        {
            var results = Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"Fashion-MNIST: {name}, seed {seed}", 0.1 + (0.7 * ((rows.Count * seeds) + seed - 1) / (arms.Length * seeds)));
                return run.Once($"accuracy {model} {steps} {pictures} {seed}", () =>
                {
                    manual_seed(seed);
                    using var made = ImageModel.Make(model, FashionMnist.Task);
                    var result = ImageTraining.Train(
                        made, data.Value.Train.Take(pictures, seed), data.Value.Test.Take(run.IsQuick ? 200 : TestPictures), new() { Steps = steps, Seed = seed, ValidateEvery = steps }, cancellation: run.Cancellation);
                    return new[] { result.Accuracy, result.Seconds, made.parameters().Sum(parameter => parameter.numel()) };
                });
            }).ToList();
            means[name] = [.. results.Select(result => result[0])];
            rows.Add([name, $"{results[0][2]:N0}", Text(means[name].Average()), string.Join(", ", means[name].Select(accuracy => Text(accuracy))), Text(results.Average(result => result[1]), "F0")]);
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new($"Fashion-MNIST: {pictures:N0} pictures, {steps} steps of 64", ["mixer", "parameters", "accuracy", "of each seed", "seconds"], rows));
        double Mean(int arm) => means[Arms[arm].Name].Average();
        run.Claim(
            "In the same network and training, focal modulation is at least as accurate as attention.", "README, isotropic models: 74.1 against 72.2 for DeiT-Ti", "mean accuracy over the seeds not below that of attention",
            $"modulation {Text(Mean(0))}, attention {Text(Mean(1))}", run.IsQuick ? Verdict.Inconclusive : Mean(0) >= Mean(1) ? Verdict.Confirmed : Verdict.NotConfirmed);
        if (run.IsQuick)
        {
            return;
        }

        var ablations = new[] { 2, 3, 4 };
        var all = ablations.All(arm => Mean(0) > Mean(arm));
        double Spread(string name) => means[name].Max() - means[name].Min();
        var clear = ablations.All(arm => Math.Abs(Mean(0) - Mean(arm)) > Math.Max(Spread(Arms[0].Name), Spread(Arms[arm].Name)));
        run.Claim(
            "Gates, the global level and more than one level each add accuracy.", "section 4.4, table 10: every part helps", "the whole above each ablation by more than the seeds differ; inconclusive where differences are inside that spread",
            string.Join(", ", ablations.Select(arm => $"{Arms[arm].Name} {Text(Mean(arm))}").Prepend($"whole {Text(Mean(0))}")), !clear ? Verdict.Inconclusive : all ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    private static void Pointing(ReproductionRun run)
    {
        var (seeds, steps) = run.IsQuick ? (1, 4) : (3, 250);
        var rows = new List<string[]>();
        var results = Enumerable.Range(1, seeds).Select(seed =>
        {
            run.Tell($"pointing: seed {seed}", 0.8 + (0.2 * (seed - 1) / seeds));
            var result = run.Once($"pointing {steps} {seed}", () => Point(seed, steps, run.IsQuick ? 100 : 500, run.Cancellation));
            rows.Add([$"{seed}", .. result.Select(value => Text(value))]);
            return result;
        }).ToList();
        run.Tables.Add(new("One object of four kinds on clutter, trained for the kind alone", ["seed", "accuracy", "longest modulator on the object", "chance: the object's share of the cells", "before training"], rows));
        double Mean(int measure) => results.Average(result => result[measure]);
        run.Claim(
            "The modulator of the last block looks at the object though nothing but its kind was taught.", "section 4.5, figure 4 (pictures only)", "the longest modulator lies on the object in at least twice as many pictures as by chance, in every seed, with accuracy above 0.8",
            $"{Text(Mean(1))} against {Text(Mean(2))} by chance ({Text(Mean(3))} before training), accuracy {Text(Mean(0))}",
            run.IsQuick || Mean(0) <= 0.8 ? Verdict.Inconclusive : results.All(result => result[1] >= 2 * result[2]) ? Verdict.Confirmed : Verdict.NotConfirmed);
    }

    /// <summary>Accuracy, share of pictures whose longest modulator lies on the object, the object's share of the cells, and the same share before training.</summary>
    private static double[] Point(int seed, int steps, int pictures, CancellationToken cancellation)
    {
        const int patch = 4;
        var train = ObjectsOnClutter.Make(4000, seed);
        var test = ObjectsOnClutter.Make(pictures, 1000 + seed);
        manual_seed(seed);
        using var model = (FocalNet)ImageModel.Make($"focalnet:patch={patch},width=48,depth=3", ObjectsOnClutter.Task);
        var before = Hits();
        var trained = ImageTraining.Train(model, train.Data, test.Data, new() { Steps = steps, Seed = seed, ValidateEvery = steps }, cancellation: cancellation);
        return [trained.Accuracy, Hits(), test.CellShare(patch), before];

        double Hits()
        {
            using var quiet = no_grad();
            using var scope = NewDisposeScope();
            model.eval();
            var lengths = linalg.norm(model.LastModulator(test.Data.Range(0, pictures).Images), dims: [1L]);
            var cells = lengths.flatten(1).argmax(1).data<long>().ToArray();
            return cells.Where((cell, picture) => test.IsOnObject(picture, cell, patch)).Count() / (double)pictures;
        }
    }
}

/// <summary>Pictures of one object (disc, square, cross or ring) among strokes and noise, and where it is.</summary>
internal sealed class ObjectsOnClutter
{
    private const int Side = 32;
    private const int Radius = 5;
    private const int Strokes = 12;

    private readonly (int Row, int Column)[] _centres;

    private ObjectsOnClutter(ImageData data, (int Row, int Column)[] centres) => (Data, _centres) = (data, centres);

    /// <summary>The task.</summary>
    public static ImageTask Task => new(Side, 1, 4);

    /// <summary>The pictures.</summary>
    public ImageData Data { get; }

    /// <summary>Makes pictures; the same seed makes the same.</summary>
    public static ObjectsOnClutter Make(int count, int seed)
    {
#pragma warning disable CA5394 // Repeatable pictures are the purpose; nothing is secret.
        var random = new Random(seed);
        var pixels = new byte[count * Side * Side];
        var labels = new byte[count];
        var centres = new (int Row, int Column)[count];
        for (var picture = 0; picture < count; picture++)
        {
            var canvas = pixels.AsSpan(picture * Side * Side, Side * Side);
            foreach (ref var pixel in canvas)
            {
                pixel = (byte)random.Next(90);
            }

            for (var stroke = 0; stroke < Strokes; stroke++)
            {
                var (row, column, length, isRow) = (random.Next(Side), random.Next(Side), random.Next(3, 9), random.Next(2) == 0);
                for (var i = 0; i < length; i++)
                {
                    var (y, x) = isRow ? (row, column + i) : (row + i, column);
                    if (y < Side && x < Side)
                    {
                        canvas[(y * Side) + x] = (byte)random.Next(150, 256);
                    }
                }
            }

            labels[picture] = (byte)random.Next(4);
            centres[picture] = (random.Next(Radius, Side - Radius), random.Next(Radius, Side - Radius));
            for (var y = -Radius; y <= Radius; y++)
            {
                for (var x = -Radius; x <= Radius; x++)
                {
                    var distance = Math.Sqrt((y * y) + (x * x));
                    var isInside = labels[picture] switch
                    {
                        0 => distance <= Radius,
                        1 => Math.Max(Math.Abs(y), Math.Abs(x)) <= Radius - 1,
                        2 => Math.Min(Math.Abs(y), Math.Abs(x)) <= 1,
                        _ => distance <= Radius && distance > Radius - 2.2,
                    };
                    var (row, column) = (centres[picture].Row + y, centres[picture].Column + x);
                    if (isInside && row < Side && column < Side)
                    {
                        canvas[(row * Side) + column] = (byte)random.Next(150, 256);
                    }
                }
            }
        }
#pragma warning restore CA5394

        return new(new(Task, ["disc", "square", "cross", "ring"], pixels, labels), centres);
    }

    /// <summary>Whether the middle of a cell of <paramref name="patch"/> x <paramref name="patch"/> pixels lies within the square around the object.</summary>
    public bool IsOnObject(int picture, long cell, int patch)
    {
        var cells = Side / patch;
        var (row, column) = ((cell / cells * patch) + ((patch - 1) / 2.0), (cell % cells * patch) + ((patch - 1) / 2.0));
        return Math.Abs(row - _centres[picture].Row) <= Radius && Math.Abs(column - _centres[picture].Column) <= Radius;
    }

    /// <summary>Share of all cells that lie on their picture's object.</summary>
    public double CellShare(int patch)
    {
        var cells = Side / patch * (Side / patch);
        return Enumerable.Range(0, Data.Count).Sum(picture => Enumerable.Range(0, cells).Count(cell => IsOnObject(picture, cell, patch))) / (double)(Data.Count * cells);
    }
}
