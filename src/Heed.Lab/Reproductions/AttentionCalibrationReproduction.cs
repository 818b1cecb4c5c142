using System.Globalization;
using Heed.Edits;
using Heed.Heads;
using Heed.Lab.Search;
using Heed.Lab.Training;
using Heed.Layers;
using Heed.Models.Texts;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Attention calibration (arXiv 2406.15765): sinks behind the first token in a decoder trained from scratch, a search for the heads whose calibration helps, and what those heads do on fresh prompts against all, random and the excluded ones.</summary>
internal sealed class AttentionCalibrationReproduction : Reproduction
{
    private const double Beta = 0.4, Threshold = 0.1;
    private const int Layers = 2, Heads = 4, Width = 64, RandomDraws = 5, AtOnce = 250, Pairs = 5;

    // Below this share of right answers without noise, a model has not learned its task and says nothing.
    private const double Learned = 0.95;

    // Far from the seeds of training steps.
    private const int SearchSeed = 1_500_000_000, TestSeed = 1_600_000_000, LevelSeed = 1_700_000_000;

    // McNemar's test of one head in one direction, as the specification has it.
    private const double Significance = 0.01;

    public override string Slug => "attention-calibration";

    public override string Summary => "A decoder trained to answer by key: sinks behind the first, calibration of single heads on 500 prompts, the heads that gain on 2,000 fresh prompts against none, all, random and the others.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        var (seeds, steps, searched, tested) = run.IsQuick ? (1, 8, 20, 40) : (3, 600, 500, 2000);
        var results = new List<(int Seed, Condition Condition)>();
        var trained = new List<(int Seed, Trained Result)>();
        for (var seed = 1; seed <= seeds; seed++)
        {
            var first = seed;
            run.Seeds.Add(seed);
            run.Tell($"seed {seed}", (seed - 1) / (double)seeds);
            var result = run.Once($"calibration {seed} {steps} {searched} {tested}", () => Measure(first, steps, searched, tested, run, (first - 1) / (double)seeds, 1.0 / seeds));
            trained.Add((seed, result));
            results.Add((first, result.Noisy));
        }

        run.Tables.Add(new(
            $"Decoder of {Layers} layers, {Heads} heads, width {Width}, after {steps} steps; sinks on the prompts that were searched, unedited",
            ["seed", "condition", "layer.head", "columns flagged behind the first, a prompt", "mean weight in them", "accuracy with this head calibrated, change", "lost", "gained", "p lost", "p gained", "kept"],
            [.. results.SelectMany(result => result.Condition.Tried.Select(head => (IReadOnlyList<string>)[
                $"{result.Seed}", result.Condition.Name, $"{head.Layer}.{head.Head}", Text(head.Flagged, "F2"), Text(head.Mass, "F3"), Signed(head.Change), $"{head.Lost}", $"{head.Gained}", Small(head.LostChance), Small(head.GainedChance), head.Kept ? "yes" : ""]))]));
        run.Tables.Add(new(
            $"Accuracy on {tested:N0} fresh prompts of {KeyValueTask.Questions} questions",
            ["seed", "condition", "accuracy without noise", "none", "kept", "heads kept", "all", "excluded", $"random, mean of {RandomDraws}", "kept less random", "2 s.e."],
            [.. results.Select(result => (IReadOnlyList<string>)[
                $"{result.Seed}", result.Condition.Name, Text(trained.Single(at => at.Seed == result.Seed).Result.Accuracy), Text(result.Condition.None), Text(result.Condition.Kept), $"{result.Condition.Tried.Count(head => head.Kept)} of {Layers * Heads}",
                Text(result.Condition.All), Text(result.Condition.Excluded), Text(result.Condition.Random), Signed(result.Condition.Kept - result.Condition.Random), Text(2 * result.Condition.StandardError, "F4")])]));
        State(run, [.. results.Select(result => result.Condition)], trained.TrueForAll(result => result.Result.Accuracy >= Learned));
        run.Notes.Add("The paper's gain (up to 7.30 % for Llama-30B) is told of instruction-tuned models; a decoder of 0.1 million parameters stands in. Both layers are searched, though the method leaves out the first two and the last.");
        run.Notes.Add("Room to gain comes from noise on the embeddings, in each run the first level at which the unedited model answers less than 95 % (or the last); longer prompts than in training, the other way to leave room, need positions that this model has not learned. The test takes questions as independent; those of a prompt share its pairs.");
    });

    private static void State(ReproductionRun run, Condition[] conditions, bool hasLearned)
    {
        string Each(Func<Condition, string> of) => string.Join("; ", conditions.Select(condition => $"{condition.Name}: {of(condition)}"));
        void Claim(string claim, string source, string expected, string measured, Func<Condition, bool> holds)
        {
            var held = conditions.Select(holds).ToArray();
            run.Claim(
                claim, source, expected, hasLearned ? measured : $"not learned: {measured}",
                !hasLearned || run.IsQuick ? Verdict.Inconclusive : held.All(yes => yes) ? Verdict.Confirmed : held.Any(yes => yes) ? Verdict.Inconclusive : Verdict.NotConfirmed);
        }

        Claim(
            "Tokens behind the first are attention sinks, too, in some heads.", "sections 1 and 3", "on average at least one column flagged behind the first in some head, in every run",
            Each(condition => $"{condition.Tried.Count(head => head.Flagged >= 1)} of {condition.Tried.Length} heads, at most {Text(condition.Tried.Max(head => head.Flagged), "F1")} columns"), condition => condition.Tried.Any(head => head.Flagged >= 1));
        Claim(
            "Not all sinks help: calibrating one head can raise accuracy, calibrating another can lower it.", "section 3.2 (head-wise study)", $"McNemar's test below {Significance} in both directions among the single heads, in every run",
            Each(condition => $"{condition.Tried.Count(head => head.GainedChance < Significance)} heads gain and {condition.Tried.Count(head => head.LostChance < Significance)} lose, changes {Signed(condition.Tried.Min(head => head.Change))} to {Signed(condition.Tried.Max(head => head.Change))}"),
            condition => condition.Tried.Any(head => head.GainedChance < Significance) && condition.Tried.Any(head => head.LostChance < Significance));
        Claim(
            "Calibration of the heads that gain raises accuracy on fresh prompts.", "abstract: up to 7.30 % on average for Llama-30B; piloted by the specification: no gain",
            "some head kept, accuracy with the kept heads at least that without, and above that with random heads by more than two standard errors, in every run",
            Each(condition => $"none {Text(condition.None)}, kept {Text(condition.Kept)}, random {Text(condition.Random)}"),
            condition => condition.Tried.Any(head => head.Kept) && condition.Kept >= condition.None && condition.Kept > condition.Random + (2 * condition.StandardError));
        Claim(
            "Choosing heads matters: calibrating all of them is worse than those that gain.", "section 3.2; piloted by the specification: 0.784 kept, 0.586 all", "accuracy with all heads below that with the kept ones in every run",
            Each(condition => $"all {Text(condition.All)}, excluded {Text(condition.Excluded)}, kept {Text(condition.Kept)}"), condition => condition.All < condition.Kept);
    }

    private static Trained Measure(int seed, int steps, int searched, int tested, ReproductionRun run, double from, double share)
    {
        manual_seed(seed);
        using var model = new CausalTransformer(
            new() { Vocabulary = KeyValueTask.Vocabulary, Length = KeyValueTask.Length(Pairs), Width = Width, Depth = Layers, FeedForwardWidth = 4 * Width },
            place => new MultiHeadAttention(new() { Width = Width, Heads = Heads, Attention = AttentionOptions.CausalSelf }, place.Site) { Hooks = place.Hooks });
        Parameters.InitializeByFan(model);
        using (no_grad())
        {
            // As libtorch starts embeddings: smaller ones drown in what the first layer adds.
            model.get_parameter("embedding.weight")!.normal_(0, 1);
            model.get_parameter("positions")!.normal_(0, 1);
        }

        var plan = new TrainingPlan { Steps = steps, WarmupSteps = Math.Min(20, steps / 10), LearningRate = 2e-3, FinalShare = 0.1, WeightDecay = 0.01, Beta2 = 0.99, ValidateEvery = steps };
        using var loop = new TrainingLoop(model, plan, "key value")
        {
            Loss = step =>
            {
                var drawn = (int)((seed * 1_000_003L) + step);
                var (tokens, answers) = KeyValueTask.Draw(64, Pairs, drawn);
                return nn.functional.cross_entropy(Answering(model, tokens).flatten(0, 1), answers.flatten());
            },
        };
        run.Tell($"seed {seed}: training", from);
        loop.Run(null, run.Cancellation);
        double Accuracy(double noise) => Mean(Right(model, KeyValueTask.Draw(400, Pairs, LevelSeed), noise, run.Cancellation));
        double[] noises = [0.25, 0.5, 0.75, 1, 1.5, 2];
        var noise = noises.FirstOrDefault(level => Accuracy(level) < Learned, noises[^1]);
        run.Tell($"seed {seed}: searching", from + (0.4 * share));
        return new(Accuracy(0), Try(model, noise, seed, searched, tested, run.Cancellation));
    }

    private static Condition Try(CausalTransformer model, double noise, int seed, int searched, int tested, CancellationToken cancellation)
    {
        IDisposable Calibrate(IReadOnlyList<(int Layer, int Head)> heads) => model.Hooks.Install(new CalibrationEdit(heads, Threshold, Beta));
        using var scope = NewDisposeScope();
        var search = KeyValueTask.Draw(searched, Pairs, SearchSeed + seed);
        // What the metric saw, in the order in which the search asks: without, then every head.
        var answers = new List<bool[]>();
        var found = HeadSearch.Run(
            new()
            {
                Layers = [.. Enumerable.Range(0, Layers)], Heads = Heads, Edit = Calibrate, LowerIsBetter = false,
                Metric = stop =>
                {
                    answers.Add(Right(model, search, noise, stop));
                    return Mean(answers[^1]);
                },
            }, cancellation: cancellation);
        var sinks = Sinks(model, search.Tokens, noise);
        var tried = found.Heads.Select((head, at) =>
        {
            var lost = answers[0].Zip(answers[1 + at], (before, after) => before && !after).Count(changed => changed);
            var gained = answers[0].Zip(answers[1 + at], (before, after) => !before && after).Count(changed => changed);
            return new Tried(head.Layer, head.Head, sinks[at].Flagged, sinks[at].Mass, head.Gain, lost, gained, Tail(lost, lost + gained), Tail(gained, lost + gained), head.Kept);
        }).ToArray();

        var test = KeyValueTask.Draw(tested, Pairs, TestSeed + seed);
        bool[] With(IReadOnlyList<(int Layer, int Head)> heads)
        {
            using var edited = heads.Count > 0 ? Calibrate(heads) : null;
            return Right(model, test, noise, cancellation);
        }

        (int Layer, int Head)[] all = [.. found.Heads.Select(head => (head.Layer, head.Head))];
        var random = new Random(seed);
        var (none, kept) = (With([]), With(found.Kept));
        var draws = Enumerable.Range(0, RandomDraws).Select(_ =>
        {
            random.Shuffle(all);
            return With([.. all.Take(found.Kept.Count)]);
        }).ToArray();
        var differences = kept.Select((right, at) => (right ? 1.0 : 0) - draws.Average(draw => draw[at] ? 1.0 : 0)).ToArray();
        var mean = differences.Average();
        var error = Math.Sqrt(differences.Sum(difference => (difference - mean) * (difference - mean)) / (differences.Length - 1.0) / differences.Length);
        return new(string.Create(CultureInfo.InvariantCulture, $"seed {seed}, noise of {noise} deviations"), tried, Mean(none), Mean(kept), Mean(With(all)), Mean(With([.. all.Except(found.Kept)])), draws.Average(Mean), error);
    }

    private static Tensor Answering(CausalTransformer model, Tensor tokens) => model.forward(tokens).index_select(1, tensor(KeyValueTask.Asked(Pairs)));

    private static bool[] Right(CausalTransformer model, (Tensor Tokens, Tensor Answers) prompts, double noise, CancellationToken cancellation)
    {
        var right = new List<bool>();
        using var quiet = no_grad();
        using var noisy = noise > 0 ? model.Hooks.Install(new EmbeddingNoise(noise)) : null;
        for (long first = 0; first < prompts.Tokens.shape[0]; first += AtOnce)
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var count = Math.Min(AtOnce, prompts.Tokens.shape[0] - first);
            var answers = prompts.Answers.narrow(0, first, count);
            right.AddRange(Answering(model, prompts.Tokens.narrow(0, first, count)).argmax(-1).eq(answers).contiguous().data<bool>().ToArray());
        }

        return [.. right];
    }

    // Flagged columns behind the first flagged one, and the share of the weights that lies in them, by layer and head.
    private static (double Flagged, double Mass)[] Sinks(CausalTransformer model, Tensor tokens, double noise)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var maps = new AttentionMapProbe();
        using var noisy = noise > 0 ? model.Hooks.Install(new EmbeddingNoise(noise)) : null;
        using (model.Hooks.Install(maps))
        {
            model.forward(tokens.narrow(0, 0, Math.Min(AtOnce, tokens.shape[0])));
        }

        return [.. maps.Sites.OrderBy(site => site.Layer).SelectMany(site =>
        {
            var later = SinkMask.FromAttention(maps[site], Threshold).WithoutFirst().IsSink.to(float32);
            var (flagged, mass) = (later.sum(-1).mean([0L]), (maps[site] * later.unsqueeze(-2)).sum(-1).mean([0L, 2L]));
            return Enumerable.Range(0, Heads).Select(head => ((double)flagged[head].item<float>(), (double)mass[head].item<float>()));
        })];
    }

    // P(X >= count) of so many fair tosses.
    private static double Tail(int count, int tosses)
    {
        double term = -tosses * Math.Log(2), sum = 0;
        for (var heads = 0; heads <= tosses; heads++)
        {
            sum += heads >= count ? Math.Exp(term) : 0;
            term += Math.Log(tosses - heads) - Math.Log(heads + 1);
        }

        return Math.Min(1, sum);
    }

    private static double Mean(bool[] right) => right.Average(answer => answer ? 1.0 : 0);

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static string Signed(double number) => number.ToString("+0.000;-0.000;0", CultureInfo.InvariantCulture);

    private static string Small(double chance) => chance.ToString(chance < 0.001 ? "E0" : "F3", CultureInfo.InvariantCulture);

    /// <summary>A head that was tried alone.</summary>
    private sealed record Tried(int Layer, int Head, double Flagged, double Mass, double Change, int Lost, int Gained, double LostChance, double GainedChance, bool Kept);

    /// <summary>A way to leave room, and the accuracies of all arms on fresh prompts.</summary>
    private sealed record Condition(string Name, Tried[] Tried, double None, double Kept, double All, double Excluded, double Random, double StandardError);

    /// <summary>A trained model.</summary>
    private sealed record Trained(double Accuracy, Condition Noisy);

    /// <summary>Adds the same noise to the embeddings of every forward pass, in units of their standard deviation.</summary>
    private sealed class EmbeddingNoise(double deviations) : StreamHook
    {
        private ulong _call;

        public override bool ActsAt(StreamSite site) => site is { Layer: 0, Point: StreamPoint.BlockInput };

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            using var generator = new Generator(++_call);
            using TorchSharp.Scalar scale = deviations * states.std().item<float>();
            return states + (randn(states.shape, generator: generator) * scale);
        }
    }
}
