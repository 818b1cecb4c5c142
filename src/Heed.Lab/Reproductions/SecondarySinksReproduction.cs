using System.Globalization;
using Heed.Edits;
using Heed.Lab.Figures;
using Heed.Models.Decoders;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Secondary attention sinks (arXiv 2512.22213): whether the detector finds planted sinks, and how the norm of the vector that makes a token a sink sets its sink score and lifetime, in a random decoder with planted
/// streams.</summary>
internal sealed class SecondarySinksReproduction : Reproduction
{
    private const int Depth = 24, Width = 64, Heads = 4, HeadWidth = 16, Tokens = 48, Vocabulary = 64;

    // Blocks that write the primary vector, take it back, and write the secondary one.
    private const int Primary = 2, Back = Depth - 1, Secondary = 10;
    private const int Place = 20;
    private const double PrimaryNorm = 80, Noise = 0.45, Threshold = 0.9;

    public override string Slug => "secondary-sinks";

    public override string Summary => "Recovery of planted sinks by the detector; sink score and lifetime of a token against the norm of its planted vector in a random decoder; the same by steering the norm.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        using var quiet = no_grad();
        Recovery(run);
        Curve(run);
        run.Notes.Add("The decoder is random, its sink vector, the keys that answer to it and the noise of its blocks are planted: this shows the geometric half of the claim (behind an RMS norm the direction counts, and the norm sets how long new updates take to turn it away), not that trained models do it.");
        run.Notes.Add("That secondary sinks exist in 11 model families, their levels, and that they are tokens without meaning cannot be tested here: models small enough to run do not develop them.");
    });

    private static string Text(double number, string format = "F2") => number.ToString(format, CultureInfo.InvariantCulture);

    private static string Each(IEnumerable<double> numbers, string format = "F2") => string.Join(", ", numbers.Select(number => Text(number, format)));

    /// <summary>Streams with sinks of known layers, anti-parallel ones and impostors of up to four layers, in noise.</summary>
    private static void Recovery(ReproductionRun run)
    {
        var streams = run.IsQuick ? 20 : 200;
        run.Tell("detector on planted streams", 0);
        var (exact, labels) = run.Once($"recovery {streams}", () =>
        {
            var (allLayers, allLabels) = (0, 0);
            for (var seed = 0; seed < streams; seed++)
            {
                using var scope = NewDisposeScope();
                var (states, expected, kinds) = Planted(seed);
                var map = SinkDetector.Detect(states, [0]);
                var same = Enumerable.Range(0, 40).All(layer => Enumerable.Range(0, 32).All(token => map[layer, token] == expected[layer, token]));
                allLayers += same ? 1 : 0;
                allLabels += same && map.Label().SequenceEqual(kinds) ? 1 : 0;
            }

            return (allLayers, allLabels);
        });
        run.Claim(
            "The detector finds creation layer, lifetime and kind of every sink.", "the method of the paper; planted streams of the specification",
            $"all layers of all sinks, and all labels, in every one of {streams} streams", $"layers exact in {exact} of {streams} streams, labels in {labels}", exact == streams && labels == streams);
    }

    private static (Tensor States, bool[,] Expected, SinkLabel[] Kinds) Planted(int seed)
    {
        const int layers = 40, tokens = 32, width = 64;
#pragma warning disable CA5394 // Repeatable streams are the purpose; nothing is secret.
        var random = new Random(seed);
        using var generator = new Generator((ulong)seed + 1);
        var states = randn([layers, tokens, width], dtype: float64, generator: generator);
        var vector = nn.functional.normalize(randn([width], dtype: float64, generator: generator), dim: 0);
        var expected = new bool[layers, tokens];
        var kinds = new SinkLabel[tokens];
        void Plant(int token, int first, int end, double norm, SinkLabel kind)
        {
            using TorchSharp.Scalar scale = norm;
            states.narrow(0, first, end - first).select(1, token).add_(vector.mul(scale));
            for (var layer = first; layer < end; layer++)
            {
                expected[layer, token] = true;
            }

            kinds[token] = kind;
        }

        Plant(0, 3, layers - 1, 100, SinkLabel.Primary);
        foreach (var token in Enumerable.Range(1, tokens - 1).OrderBy(_ => random.Next()).Take(6).Index())
        {
            // Four secondary sinks and two impostors; every other one points the other way.
            var life = token.Index < 4 ? random.Next(5, layers - SinkMap.PublishedSlack) : random.Next(1, SinkMap.PublishedNoise + 1);
            var first = random.Next(4, layers - 1 - life);
            Plant(token.Item, first, first + life, (token.Index % 2 == 0 ? 1 : -1) * (40 + (40 * random.NextDouble())), token.Index < 4 ? SinkLabel.Secondary : SinkLabel.Noise);
        }
#pragma warning restore CA5394
        return (states, expected, kinds);
    }

    private static void Curve(ReproductionRun run)
    {
        double[] norms = run.IsQuick ? [0, 20, 40, 80] : [0, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80];
        var (seeds, draws) = (run.IsQuick ? 1 : 3, run.IsQuick ? 2 : 8);
        var planted = new Point[seeds][];
        var steered = new Point[seeds][];
        for (var seed = 1; seed <= seeds; seed++)
        {
            var at = seed;
            run.Seeds.Add(seed);
            Point[] Measure(bool steering) => [.. norms.Select((norm, index) =>
            {
                run.Tell($"seed {at}, {(steering ? "steered" : "planted")} norm {norm}", (((at - 1.0) * 2) + (steering ? 1 : 0) + (index / (double)norms.Length)) / (2 * seeds));
                return run.Once($"curve {at} {draws} {norm} {steering}", () => Mean(at, norm, steering, draws, run));
            })];
            (planted[seed - 1], steered[seed - 1]) = (Measure(false), Measure(true));
        }

        double[] Rank(Point[][] arms, Func<Point, double> value) => [.. arms.Select(arm => Spearman(norms, [.. arm.Select(value)]))];
        var (score, life) = (Rank(planted, point => point.Score), Rank(planted, point => point.Lifetime));
        run.Claim(
            "The norm of the vector that a perceptron writes sets the sink score.", "abstract (qualitative); piloted by the specification: Spearman 0.99", "Spearman of norm and score above 0.9 in every seed, score at norm 0 below half of that at 80",
            $"Spearman {Each(score)}; score {Each(planted.Select(arm => arm[0].Score), "F3")} at norm 0, {Each(planted.Select(arm => arm[^1].Score), "F3")} at {PrimaryNorm}",
            score.All(rank => rank > 0.9) && planted.All(arm => arm[0].Score < arm[^1].Score / 2));
        run.Claim(
            "The norm sets the lifetime.", "abstract (qualitative); piloted by the specification: Spearman 0.93", "Spearman of norm and lifetime above 0.9 in every seed",
            $"Spearman {Each(life)}; {Each(planted.Select(arm => arm[0].Lifetime), "F1")} layers at norm 0, {Each(planted.Select(arm => arm[^1].Lifetime), "F1")} at {PrimaryNorm} (the window leaves {Back - Secondary})", life.All(rank => rank > 0.9));
        var weakened = planted.Select(arm => arm[^1].PrimaryScore / arm[0].PrimaryScore).ToArray();
        run.Claim(
            "The primary sink weakens where a secondary one appears.", "abstract (qualitative)", "the primary's score behind the creation layer at norm 80 below 0.9 of that at norm 0 in every seed",
            $"{Each(weakened)} of it; the secondary then has {Each(planted.Select(arm => arm[^1].Score / arm[^1].PrimaryScore))} of the primary's score", weakened.All(share => share < 0.9));
        Line(run, norms, planted);
        var apart = planted.Zip(steered, (one, two) => one.Zip(two, (a, b) => Math.Abs(a.Score - b.Score)).Max()).ToArray();
        var steeredRank = Rank(steered, point => point.Score);
        run.Claim(
            "Setting the norm of the perceptron's output changes the sink as planting it does.", "steering edit of the repository", "a vector of norm 80 steered to c: score within 0.05 of planting c, Spearman of c and score above 0.9, in every seed",
            $"largest difference of scores {Each(apart, "F3")}; Spearman {Each(steeredRank)}", apart.All(difference => difference < 0.05) && steeredRank.All(rank => rank > 0.9));
        run.Tables.Add(new(
            "A token against the norm of its vector (means over seeds and draws)", ["norm", "score", "lifetime", "predicted lifetime", "primary's score", "score, steered", "lifetime, steered"],
            [.. norms.Select((norm, index) => (IReadOnlyList<string>)[
                $"{norm}", Text(planted.Average(arm => arm[index].Score), "F3"), Text(planted.Average(arm => arm[index].Lifetime), "F1"), Text(planted.Average(arm => Predicted(norm, arm[index])), "F1"),
                Text(planted.Average(arm => arm[index].PrimaryScore), "F3"), Text(steered.Average(arm => arm[index].Score), "F3"), Text(steered.Average(arm => arm[index].Lifetime), "F1")])]));
        run.Figures.Add(new("Lifetime against the norm of the planted vector", "norm", "layers",
        [
            .. planted.Select((arm, seed) => new FigureLine($"seed {seed + 1}", norms, [.. arm.Select(point => point.Lifetime)])),
            new("predicted", norms, [.. norms.Select((norm, index) => planted.Average(arm => Predicted(norm, arm[index])))]),
        ]));
    }

    /// <summary>Where blocks add updates of squared length e across the vector, its cosine falls below the threshold after so many layers.</summary>
    private static double Predicted(double norm, Point point) => Math.Clamp(((((1 / (Threshold * Threshold)) - 1) * norm * norm) - point.Across) / point.Update, 0, Back - Secondary);

    private static void Line(ReproductionRun run, double[] norms, Point[][] planted)
    {
        var correlations = planted.Select(arm => Correlation([.. norms.Select((norm, index) => Predicted(norm, arm[index]))], [.. arm.Select(point => point.Lifetime)])).ToArray();
        var ratios = planted.Select(arm => norms.Select((norm, index) => (Predicted: Predicted(norm, arm[index]), arm[index].Lifetime)).Where(pair => pair.Predicted is > 1 && pair.Predicted < Back - Secondary)
            .Select(pair => pair.Lifetime / pair.Predicted).DefaultIfEmpty(1).Average()).ToArray();
        run.Claim(
            "The lifetime follows from the geometry: the time that new updates take to turn the vector away.", "derived by the specification: (0.2346 c^2 - a) / e layers; piloted: correlation 0.98, over-predicted by a third",
            "correlation of measured and predicted lifetime above 0.9 in every seed", $"correlation {Each(correlations)}; measured over predicted {Each(ratios)} where the line neither starts nor ends", correlations.All(correlation => correlation > 0.9));
    }

    private static Point Mean(int seed, double norm, bool steering, int draws, ReproductionRun run)
    {
        using var model = Model(seed);
        var points = Enumerable.Range(0, draws).Select(draw =>
        {
            run.Cancellation.ThrowIfCancellationRequested();
            return Measure(model, seed, norm, steering, draw);
        }).ToArray();
        return new(
            points.Average(point => point.Score), points.Average(point => point.PrimaryScore), points.Average(point => point.Lifetime), points.Average(point => point.Across), points.Average(point => point.Update));
    }

    private static Point Measure(Decoder model, int seed, double norm, bool steering, int draw)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)((seed * 1000) + draw));
        var ids = randint(0, Vocabulary, [1, Tokens], dtype: ScalarType.Int64, generator: generator);
        var direction = Direction(seed);
        var stream = new PlantedStream(direction, steering ? PrimaryNorm : norm, generator);
        var residuals = new ResidualProbe([0]);
        using var trace = new ModelTrace(new() { Points = [StreamPoint.BlockOutput] });
        using var statistics = new AttentionStatisticsProbe(new() { MassPerKey = true });
        using var steer = new SinkNormSteering(Secondary, direction, norm);
        // The planted output first, then what the edit makes of it.
        using var planted = model.Hooks.Install(stream);
        using var edited = steering ? model.Hooks.Install(steer) : null;
        using var watched = model.Hooks.Install(residuals);
        using var traced = trace.Install(model.Hooks);
        using var counted = model.Hooks.Install(statistics);
        model.forward(ids);
        var sinks = residuals.Detect();

        // Layers that read the stream behind the creation block.
        var scores = statistics.Sites.Where(site => site.Layer is > Secondary and < Back).Select(site => SinkScore.Compute(statistics[site]).mean([0L, 1L])).ToArray();
        var states = trace.Stream();
        Tensor AcrossOf(Tensor state) => state - (state.matmul(direction).unsqueeze(-1) * direction);
        var created = AcrossOf(states[Secondary][Place]);
        var steps = Enumerable.Range(Secondary + 1, Back - Secondary - 1).Select(layer => AcrossOf(states[layer][Place] - states[layer - 1][Place]).square().sum().item<float>());
        return new(
            scores.Average(score => (double)score[Place].item<float>()), scores.Average(score => (double)score[0].item<float>()), sinks.Lifetime[Place], created.square().sum().item<float>(), steps.Average(step => (double)step));
    }

    private static Tensor Direction(int seed)
    {
        using var generator = new Generator((ulong)seed + 77);
        return nn.functional.normalize(randn([Width], generator: generator), dim: 0);
    }

    /// <summary>A random decoder whose queries all look for what the sink's direction writes into the keys: along the slowest of the positions' rotations, which hardly turns within the text.</summary>
    private static Decoder Model(int seed)
    {
        const double bias = 1, gain = 2.6;
        var model = new Decoder(
            new()
            {
                VocabularySize = Vocabulary, HiddenSize = Width, IntermediateSize = 2 * Width, Layers = Depth, Heads = Heads, KeyValueHeads = Heads, HeadWidth = HeadWidth, QueryKeyValueBias = true, RotaryTheta = 1e9,
                ContextLength = Tokens,
            },
            seed);
        var direction = Direction(seed);
        using TorchSharp.Scalar strength = gain, offset = bias;
        foreach (var (name, parameter) in model.named_parameters())
        {
            for (var head = 0; head < Heads; head++)
            {
                var row = (head * HeadWidth) + (HeadWidth / 2) - 1;
                if (name.EndsWith("q_proj.bias", StringComparison.Ordinal))
                {
                    parameter[row].add_(offset);
                }
                else if (name.EndsWith("k_proj.weight", StringComparison.Ordinal))
                {
                    parameter[row].add_(direction.mul(strength));
                }
            }
        }

        return model;
    }

    private static double Spearman(double[] x, double[] y) => Correlation(Ranks(x), Ranks(y));

    private static double[] Ranks(double[] values) => [.. values.Select(value => values.Count(other => other < value) + ((values.Count(other => other == value) - 1) / 2.0))];

    private static double Correlation(double[] x, double[] y)
    {
        var (meanX, meanY) = (x.Average(), y.Average());
        var covariance = x.Zip(y, (a, b) => (a - meanX) * (b - meanY)).Sum();
        var spread = Math.Sqrt(x.Sum(a => (a - meanX) * (a - meanX)) * y.Sum(b => (b - meanY) * (b - meanY)));
        return spread == 0 ? 0 : covariance / spread;
    }

    /// <summary>What a token did.</summary>
    /// <param name="Score">Attention received in the layers behind its creation, mean over layers and heads.</param>
    /// <param name="PrimaryScore">The primary sink's.</param>
    /// <param name="Lifetime">Layers at which the detector calls it a sink.</param>
    /// <param name="Across">Squared length of its stream across the vector at its creation.</param>
    /// <param name="Update">Mean squared length of what a block adds across it.</param>
    private sealed record Point(double Score, double PrimaryScore, double Lifetime, double Across, double Update);

    /// <summary>Writes the vectors at the feed-forward outputs of their blocks, and noise of one size at every block.</summary>
    private sealed class PlantedStream(Tensor direction, double norm, Generator generator) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.FeedForwardOutput;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            using TorchSharp.Scalar size = Noise;
            states = states + randn(states.shape, generator: generator).mul(size);
            var (place, length) = site.Layer switch
            {
                Primary => (0, PrimaryNorm),
                Back => (0, -PrimaryNorm),
                Secondary => (Place, norm),
                _ => (-1, 0.0),
            };
            if (place >= 0)
            {
                using TorchSharp.Scalar scale = length;
                states[0, place].add_(direction.mul(scale));
            }

            return states;
        }
    }
}
