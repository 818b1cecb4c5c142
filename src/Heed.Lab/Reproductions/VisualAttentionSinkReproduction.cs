using System.Globalization;
using Heed.Edits;
using Heed.Lab.Inspection;
using Heed.Lab.Scenes;
using Heed.Models.VisionLanguage;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Visual attention sinks and VAR (arXiv 2503.03321): whether a small vision-language model has visual sinks, and, with planted ones, what redistributing their attention does to answers about noisy pictures.</summary>
internal sealed class VisualAttentionSinkReproduction : Reproduction
{
    private const int Patch = 8, PlantedSinks = 4, QuestionSeed = 800_001;

    // In which hidden dimensions sinks are planted; any two would do.
    private static readonly long[] s_planted = [0, 1];

    private static readonly double[] s_noises = [12, 25, 40, 55, 70, 90, 110];

    private static readonly string[] s_arms = ["no edit", "VAR", "VAR without selection of heads", "VAR towards text", "VAR with random sinks", "sinks masked", "as many random patches masked"];

    public override string Slug => "visual-attention-sink";

    public override string Summary => "Whether a small vision-language model has visual sinks; with planted ones, VAR against no edit, no selection of heads, text as target and random sinks.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        var (seeds, steps, count) = run.IsQuick ? (1, 15, 50) : (3, SceneModels.Steps, 1334);
        run.Tell("existence: model without planted sinks", 0);
        var existing = run.Once($"existence {steps} {count}", () => Existence(steps, Math.Min(count, 500), run));
        var planted = Enumerable.Range(1, seeds).Select(seed =>
        {
            run.Tell($"planted sinks, seed {seed}", seed / (seeds + 1.0));
            return run.Once($"planted {seed} {steps} {count}", () => Planted(seed, steps, count, run));
        }).ToArray();
        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        Report(run, existing, planted, steps);
    });

    private static Existing Existence(int steps, int count, ReproductionRun run)
    {
        using var model = SceneModels.Train(1, steps, run);
        model.eval();
        var questions = SceneAnswers.Questions(count, QuestionSeed, new());
        var accuracy = Share(SceneAnswers.Colours(model, questions, cancellation: run.Cancellation));
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var dimensions = AnswerInspector.SinkDimensionsOf(model);
        var (embeddings, layout) = model.Embed(SceneAnswers.Prompts(questions), model.EncodeImages(SceneTask.Images([.. questions.Select(question => question.Scene)])));
        var states = new List<Tensor>();
        model.Language.ForwardEmbeddings(embeddings, null, states, lastOnly: true);
        var image = layout.Only(TokenKind.Image);

        // As published, layers from 2 on.
        var masks = states.SkipLast(1).Skip(2).Select(state => SinkMask.FromMassiveDimensions(state, dimensions)).ToArray();
        var largest = masks.Max(mask => mask.Score.narrow(1, image.Start, image.Length).max().item<float>());
        var begin = masks.Average(mask => mask.Score.select(1, 0).mean().item<float>());
        var sinks = masks.Select(mask => mask.IsSink.narrow(1, image.Start, image.Length)).Aggregate((left, right) => left.logical_or(right)).data<bool>().ToArray();
        var ground = questions.SelectMany(question => question.Scene.Occupied(Patch)).Select(occupied => !occupied).ToArray();
        var found = sinks.Count(sink => sink);
        return new(accuracy, largest, begin, found / (double)sinks.Length, found == 0 ? 0 : sinks.Zip(ground).Count(pair => pair.First && pair.Second) / (double)found, ground.Count(flag => flag) / (double)ground.Length);
    }

    private static PlantedResult Planted(int seed, int steps, int count, ReproductionRun run)
    {
        using var model = SceneModels.Train(seed, steps, run, (batch, patches) => Plant(patches, batch.Scenes, Places(batch.Scenes, new Random(batch.Scenes[0].Objects[0].Left + seed))));
        model.eval();

        // The noise at which answers become unsure, on questions of their own: the first at which fewer than four of five are right.
        double Usual(double noise, int number)
        {
            var trial = SceneAnswers.Questions(number, QuestionSeed + 17 + seed, new() { Noise = noise });
            var places = Places([.. trial.Select(question => question.Scene)], new Random(seed));
            return Share(SceneAnswers.Colours(model, trial, (patches, first) => PlantAt(patches, trial, places, first), run.Cancellation));
        }

        var clean = Usual(s_noises[0], Math.Min(count, 500));
        var noise = s_noises.Append(double.NaN).First(noise => double.IsNaN(noise) || Usual(noise, Math.Min(count, 300)) < 0.8);
        noise = double.IsNaN(noise) ? s_noises[^1] : noise;
        var questions = SceneAnswers.Questions(count, QuestionSeed + 1000 + seed, new() { Noise = noise });
        var sinks = Places([.. questions.Select(question => question.Scene)], new Random(seed + 50));
        var answers = s_arms.Select(arm =>
        {
            var random = new Random(seed + 99);
            using var installed = Install(model, arm);
            return SceneAnswers.Colours(
                model, questions,
                (patches, first) =>
                {
                    var at = sinks.Skip(first).Take((int)patches.shape[0]).ToArray();
                    installed.Take(installed.IsRandom ? [.. at.Select(_ => Enumerable.Range(0, (int)patches.shape[1]).OrderBy(_ => random.Next()).Take(PlantedSinks).ToArray())] : at);
                    return PlantAt(patches, questions, sinks, first);
                },
                run.Cancellation);
        }).ToArray();
        return new(clean, noise, [.. answers.Select(flags => flags.Select(right => right ? 1.0 : 0).ToArray())]);
    }

    private static ArmEdit Install(VisionLanguageModel model, string arm) => arm switch
    {
        "no edit" => new(null),
        "VAR" => new(new RedistributionEdit(s_planted).InstallOn(model.Hooks)),
        "VAR without selection of heads" => new(new RedistributionEdit(s_planted, rho: double.PositiveInfinity, minimumImageAttention: 0).InstallOn(model.Hooks)),
        _ => new(arm, model.Hooks),
    };

    // Four patches of ground in every scene.
    private static int[][] Places(IReadOnlyList<Scene> scenes, Random random) => [.. scenes.Select(scene =>
    {
        var occupied = scene.Occupied(Patch);
        var ground = Enumerable.Range(0, occupied.Length).Where(patch => !occupied[patch]).ToArray();
        random.Shuffle(ground);
        return ground[..PlantedSinks];
    })];

    private static Tensor PlantAt(Tensor patches, IReadOnlyList<(Scene Scene, SceneThing Asked)> questions, int[][] places, int first)
    {
        var count = (int)patches.shape[0];
        return Plant(patches, [.. questions.Skip(first).Take(count).Select(question => question.Scene)], places[first..(first + count)]);
    }

    private static Tensor Plant(Tensor patches, IReadOnlyList<Scene> scenes, int[][] places)
    {
        var (tokens, width) = ((int)patches.shape[1], (int)patches.shape[2]);
        var added = new float[scenes.Count * tokens * width];
        var strength = (float)(3 * Math.Sqrt(width));
        for (var row = 0; row < scenes.Count; row++)
        {
            foreach (var place in places[row])
            {
                foreach (var dimension in s_planted)
                {
                    added[(((row * tokens) + place) * width) + dimension] = strength;
                }
            }
        }

        return patches + tensor(added).view(scenes.Count, tokens, width);
    }

    private static double Share(bool[] flags) => flags.Count(flag => flag) / (double)flags.Length;

    private static void Report(ReproductionRun run, Existing existing, PlantedResult[] planted, int steps)
    {
        double[] All(string arm) => [.. planted.SelectMany(result => result.Right[Array.IndexOf(s_arms, arm)])];
        var (plain, var) = (All("no edit"), All("VAR"));
        run.Tables.Add(new(
            $"Planted sinks: questions answered right, of {plain.Length:N0} about noisy pictures ({planted.Length} seed(s); models after {steps} steps of 32 pictures)", ["arm", "right, %", "of each seed", "less the unedited model, points", "standard error"],
            [.. s_arms.Select((arm, at) =>
            {
                var (gain, error) = SceneModels.Difference(All(arm), plain);
                return (IReadOnlyList<string>)[arm, Percent(All(arm).Average()), string.Join(", ", planted.Select(result => Percent(result.Right[at].Average()))), Percent(gain), Percent(error)];
            })]));
        run.Tables.Add(new(
            "The models", ["model", "right on clean pictures, %", "noise of the test pictures (of 255)"],
            [["without planted sinks", Percent(existing.Accuracy), ""], .. planted.Select((result, at) => (IReadOnlyList<string>)[$"planted, seed {at + 1}", Percent(result.Clean), Text(result.Noise, "F0")])]));
        Verdict Of(bool holds) => run.IsQuick ? Verdict.Inconclusive : holds ? Verdict.Confirmed : Verdict.NotConfirmed;
        var threshold = SinkDimensions.Threshold(new SceneModelOptions().Width);
        run.Claim(
            "Some image tokens are sinks: they carry massive activations in the dimensions of the begin token.", "section 3 (models of 7 and 13 billion parameters)",
            $"an image token exceeds the threshold scaled to the width, {Text(threshold, "F2")}, in a layer from 2 on", $"{Percent(existing.Share)} % of the image tokens do; the largest value is {Text(existing.Largest, "F2")}, the begin token's mean {Text(existing.Begin, "F2")}",
            Of(existing.Share > 0));
        run.Claim(
            "Visual sinks lie on the background.", "table 6: above 90 %", "above 90 % of them on patches without an object",
            existing.Share > 0 ? $"{Percent(existing.OnGround)} %, where {Percent(existing.Ground)} % of all patches show ground alone" : "there are none to tell", existing.Share > 0 ? Of(existing.OnGround > 0.9) : Verdict.Inconclusive);
        var (masked, random) = (SceneModels.Difference(plain, All("sinks masked")), SceneModels.Difference(plain, All("as many random patches masked")));
        run.Claim(
            "Masking sinks does nothing, masking as many random image tokens hurts.", "abstract and figure 3", "planted sinks: the loss of accuracy within two standard errors of zero, that of random patches beyond",
            $"{Percent(masked.Mean)} points ({Percent(masked.Error)}) against {Percent(random.Mean)} ({Percent(random.Error)})", Of(Math.Abs(masked.Mean) <= 2 * masked.Error && random.Mean > 2 * random.Error));
        var gained = SceneModels.Difference(var, plain);
        run.Claim(
            "Handing the sinks' attention to the rest of the picture helps.", "table 1: GQA 62.0 to 63.5, VizWiz 50.0 to 53.7", "accuracy with VAR not below that without an edit, planted sinks",
            $"{Percent(var.Average())} against {Percent(plain.Average())} %: {Percent(gained.Mean)} points ({Percent(gained.Error)})", run.IsQuick ? Verdict.Inconclusive : gained.Mean < 0 ? Verdict.NotConfirmed : gained.Mean > 2 * gained.Error ? Verdict.Confirmed : Verdict.Inconclusive);
        foreach (var (arm, source) in new[]
        {
            ("VAR without selection of heads", "table 4: without it the model collapses"), ("VAR towards text", "table 5: worse than the baseline"), ("VAR with random sinks", "a control that the paper does not make"),
        })
        {
            var (mean, error) = SceneModels.Difference(var, All(arm));
            run.Claim($"VAR is better than {arm}.", source, "accuracy higher by more than two standard errors", $"{Percent(mean)} points ({Percent(error)})", Of(mean > 2 * error));
        }

        run.Notes.Add("A model of half a million parameters that sees pictures of six by six patches. Sinks are planted by adding three times the root of the width to two dimensions of four ground patches' embeddings, in training too, so that the model has learned to live with them.");
        run.Notes.Add("Only layers 2 and 3 of four are edited, rows after the picture, with the released code's options (rho 0.5, least image attention 0.2, share kept 0.6). Standard errors are of differences question by question.");
    }

    private static string Text(double number, string format) => number.ToString(format, CultureInfo.InvariantCulture);

    private static string Percent(double share) => (100 * share).ToString("F1", CultureInfo.InvariantCulture);

    private sealed record Existing(double Accuracy, double Largest, double Begin, double Share, double OnGround, double Ground);

    private sealed record PlantedResult(double Clean, double Noise, double[][] Right);

    /// <summary>What an arm put into the model, until it is disposed.</summary>
    private sealed class ArmEdit : IDisposable
    {
        private readonly IDisposable? _installed;
        private readonly ColumnHook? _hook;

        public ArmEdit(IDisposable? installed) => _installed = installed;

        public ArmEdit(string arm, AttentionHooks hooks)
        {
            _hook = new(arm);
            (_installed, IsRandom) = (hooks.Install(_hook), arm.Contains("random", StringComparison.Ordinal));
        }

        /// <summary>Whether the arm takes other columns than the sinks.</summary>
        public bool IsRandom { get; }

        public void Dispose() => _installed?.Dispose();

        /// <summary>Says which columns of the batch that is read next count as sinks, counted from the first image token.</summary>
        public void Take(int[][] columns)
        {
            if (_hook is not null)
            {
                _hook.Taken = columns;
            }
        }
    }

    /// <summary>The arms that no edit of the library is: another target, other columns, masked columns.</summary>
    private sealed class ColumnHook(string arm) : AttentionHook
    {
        public int[][] Taken { get; set; } = [];

        public override AttentionStages StagesAt(AttentionSite site) => arm.Contains("masked", StringComparison.Ordinal) ? AttentionStages.Scores : site.Layer >= 2 ? AttentionStages.Weights : AttentionStages.None;

        public override Tensor OnScores(AttentionCall call, Tensor scores)
        {
            using var scope = NewDisposeScope();
            using TorchSharp.Scalar nothing = double.NegativeInfinity;
            var (columns, image) = Columns(call, scores.shape[3]);
            var rows = arange(scores.shape[2], dtype: int64).ge(image.End).view(-1, 1);
            return scores.masked_fill(columns.view(columns.shape[0], 1, 1, -1).logical_and(rows), nothing).MoveToOuterDisposeScope();
        }

        public override Tensor OnWeights(AttentionCall call, Tensor weights)
        {
            using var scope = NewDisposeScope();
            var (columns, image) = Columns(call, weights.shape[3]);
            if (arm != "VAR towards text")
            {
                return VisualAttentionRedistribution.Apply(weights, columns, image.Start, image.Length).MoveToOuterDisposeScope();
            }

            var places = arange(weights.shape[3], dtype: int64);
            var pictured = places.ge(image.Start).logical_and(places.lt(image.End));
            var rows = arange(weights.shape[2], dtype: int64).ge(image.End).view(1, 1, -1).logical_and(VisualAttentionRedistribution.ImageCentric(weights, columns, pictured)).unsqueeze(-1);
            return MapEdit.Redistribute(weights, columns.view(columns.shape[0], 1, 1, -1), pictured.logical_not().view(1, 1, 1, -1), VisualAttentionRedistribution.DefaultSinkScale, rows).MoveToOuterDisposeScope();
        }

        private (Tensor Columns, TokenSpan Image) Columns(AttentionCall call, long keys)
        {
            var image = call.Layout!.Only(TokenKind.Image);
            var batch = Taken;
            var flags = new bool[batch.Length * keys];
            for (var row = 0; row < batch.Length; row++)
            {
                foreach (var column in batch[row])
                {
                    flags[(row * keys) + image.Start + column] = true;
                }
            }

            return (tensor(flags).view(batch.Length, keys), image);
        }
    }
}
