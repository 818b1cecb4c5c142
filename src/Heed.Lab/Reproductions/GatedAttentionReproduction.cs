using System.Globalization;
using Heed.Heads;
using Heed.Lab.Corpora;
using Heed.Lab.Texts;
using Heed.Lab.Training;
using Heed.Layers;
using Heed.Models.Texts;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Gated attention (arXiv 2505.06708): what gates do at queries that need attention and at others, sinks and loss of small language models by position of the gate, stability, and longer contexts.</summary>
internal sealed class GatedAttentionReproduction : Reproduction
{
    private const int Length = 64, Width = 48, Hidden = 192, Depth = 3, SinkSkip = 16;

    private static readonly (string Name, string Options, int GateParameters)[] s_arms =
    [
        ("no gate", "position=none", 0), ("G1 elementwise", "position=G1", Width * Width), ("G1 headwise", "position=G1,granularity=headwise", Width * 4), ("G2 elementwise", "position=G2", Width * Width),
        ("G3 elementwise", "position=G3", Width * Width), ("G4 elementwise", "position=G4", Width * Width), ("G5", "position=G5", Width * Width),
        ("G1, NS-sigmoid", "position=G1,activation=ns-sigmoid", Width * Width), ("G1, constant", "position=G1,source=constant", Width),
    ];

    public override string Slug => "gated-attention";

    public override string Summary => "Gates at queries that copy and at others, sinks and losses of small language models with gates in nine places and forms, large learning rates, longer contexts.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        Backcopy(run);
        var data = new TextData(KingJamesText.Load());
        Language(run, data);
        if (!run.IsQuick)
        {
            Stability(run, data);
            Extension(run, data);
        }

        run.Notes.Add("Models of 0.1 million parameters on bytes, minutes of training: the paper has 1.7 and 15 billion. Sinks of small models are weak; all figures are reported.");
        run.Notes.Add("Equal parameters: what a gate adds is taken off the perceptron.");
    });

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static string Each(IEnumerable<double> numbers, string format = "F3") => string.Join(", ", numbers.Select(number => Text(number, format)));

    private static void Backcopy(ReproductionRun run)
    {
        var seeds = run.IsQuick ? 1 : 3;
        (string Name, GateOptions Gate, int Steps)[] arms =
        [
            ("no gate", GateOptions.None, 2000), ("G1 headwise", new() { Granularity = GateGranularity.Headwise }, 2000), ("G1 elementwise", new(), 700), ("G2 elementwise", new() { Position = GatePosition.Value }, 700),
        ];
        arms = run.IsQuick ? [.. arms.Take(2).Select(arm => arm with { Steps = 30 })] : arms;
        var results = new Dictionary<string, Copying[]>();
        foreach (var (name, gate, steps) in arms)
        {
            results[name] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"backcopy: {name}, seed {seed}", 0.35 * ((results.Count * seeds) + seed - 1) / (arms.Length * seeds));
                return run.Once($"backcopy {name} {seed} {steps}", () => TrainCopying(gate, seed, steps, run));
            })];
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        run.Tables.Add(new(
            "Bigram-backcopy, one layer, one head of 32 (mean over seeds)", ["gate", "steps", "loss at copying queries", "loss elsewhere", "mean gate at copying queries", "mean gate elsewhere", "share on the first token elsewhere"],
            [.. arms.Select(arm => (IReadOnlyList<string>)[
                arm.Name, $"{arm.Steps}", Text(results[arm.Name].Average(result => result.CopyingLoss)), Text(results[arm.Name].Average(result => result.OtherLoss)),
                arm.Gate.Position == GatePosition.SdpaOutput ? Text(results[arm.Name].Average(result => result.CopyingGate), "F2") : "", arm.Gate.Position == GatePosition.SdpaOutput ? Text(results[arm.Name].Average(result => result.OtherGate), "F2") : "",
                Text(results[arm.Name].Average(result => result.FirstShare))])]));
        var (none, gated) = (results["no gate"], results["G1 headwise"]);
        const string claim = "The gate is sparse and depends on the query: it opens where attention is needed and closes elsewhere.";
        const string source = "section 4.2; piloted by the specification: 0.94 at copying queries against 0.21, at 2,500 steps 0.95 against 0.04";
        const string expected = "mean gate above 0.7 at copying queries and below 0.3 elsewhere in every seed, copying loss at most 0.05 above the ungated";
        if (run.IsQuick)
        {
            run.Claim(claim, source, expected, $"thirty steps only: {Text(gated[0].CopyingGate, "F2")} and {Text(gated[0].OtherGate, "F2")}", Verdict.Inconclusive);
            return;
        }

        run.Claim(
            claim, source, expected,
            $"{Each(gated.Select(result => result.CopyingGate), "F2")} at copying queries, {Each(gated.Select(result => result.OtherGate), "F2")} elsewhere; copying loss {Text(gated.Average(result => result.CopyingLoss))} against {Text(none.Average(result => result.CopyingLoss))}",
            gated.All(result => result is { CopyingGate: > 0.7, OtherGate: < 0.3 }) && gated.Average(result => result.CopyingLoss) <= none.Average(result => result.CopyingLoss) + 0.05);
        var pairs = none.Zip(gated, (without, with) => without.FirstShare > with.FirstShare).Count(less => less);
        run.Claim(
            "With the gate, a head that has nothing to do need not park on the first token.", "section 4.3: the first token's share falls from 46.7 % to 4.8 %; piloted by the specification at 2,500 steps: 0.61 and 0.42",
            "share on the first token at queries that do not copy smaller with the gate in all three seeds after 2,000 steps",
            $"without {Each(none.Select(result => result.FirstShare), "F2")}, with {Each(gated.Select(result => result.FirstShare), "F2")}",
            pairs == 3 ? Verdict.Confirmed : pairs == 0 ? Verdict.NotConfirmed : Verdict.Inconclusive);
    }

    private static Copying TrainCopying(GateOptions gate, int seed, int steps, ReproductionRun run)
    {
        manual_seed(seed);
        using var model = new CausalTransformer(
            new() { Vocabulary = BackcopyTask.Vocabulary, Length = BackcopyTask.Length, Width = 32, Depth = 1, FeedForwardWidth = 128 },
            place => new GatedAttention(new() { Width = 32, Heads = 1, Gate = gate }, place.Site) { Hooks = place.Hooks });
        Parameters.InitializeByFan(model);
        var plan = new TrainingPlan { Steps = steps, WarmupSteps = Math.Min(20, steps / 10), LearningRate = 3e-3, FinalShare = 1, WeightDecay = 0.01, Beta2 = 0.999, ValidateEvery = steps };
        using var loop = new TrainingLoop(model, plan, "backcopy") { Loss = step => BackcopyTask.Losses(model, BackcopyTask.Texts(32, (seed * 100_003) + (int)step)).All };
        loop.Run(null, run.Cancellation);

        using var quiet = no_grad();
        using var maps = new AttentionMapProbe();
        using var gates = new GateReader();
        using var first = model.Hooks.Install(maps);
        using var second = model.Hooks.Install(gates);
        var texts = BackcopyTask.Texts(256, int.MaxValue);
        var (all, copying) = BackcopyTask.Losses(model, texts);
        var input = texts.narrow(1, 0, BackcopyTask.Length);
        var asks = BackcopyTask.IsCopying(input);

        // The first query can look at nothing but the first token.
        var rests = asks.logical_not().logical_and(arange(BackcopyTask.Length, dtype: int64).gt(0).unsqueeze(0));
        double Mean(Tensor values, Tensor where) => values.masked_select(where).mean().item<float>();
        var share = asks.to(float32).mean().item<float>();
        var copied = copying.item<float>();
        var onFirst = Mean(maps[maps.Sites[0]].select(-1, 0).select(1, 0), rests);
        if (gates.Scores is not { } scores)
        {
            return new(copied, (all.item<float>() - (share * copied)) / (1 - share), 0, 0, onFirst);
        }

        var mean = scores.mean([-1L]).select(1, 0);
        return new(copied, (all.item<float>() - (share * copied)) / (1 - share), Mean(mean, asks), Mean(mean, rests), onFirst);
    }

    private static void Language(ReproductionRun run, TextData data)
    {
        var (seeds, steps) = run.IsQuick ? (1, 6) : (2, 250);
        var arms = run.IsQuick ? s_arms[..2] : s_arms;
        var results = new Dictionary<string, Reading[]>();
        foreach (var arm in arms)
        {
            results[arm.Name] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"language model: {arm.Name}, seed {seed}", 0.35 + (0.4 * ((results.Count * seeds) + seed - 1) / (arms.Length * seeds)));
                return run.Once($"text {arm.Name} {seed} {steps}", () => TrainReading(arm.Options, arm.GateParameters, data, seed, steps, 3e-3, run));
            })];
        }

        double Loss(string name) => results[name].Average(result => result.Loss);
        double Sink(string name) => results[name].Average(result => result.FirstShare);
        run.Tables.Add(new(
            $"Language models of {Depth} layers of width {Width} after {steps} steps of 16 x {Length} bytes (mean over {seeds} seed(s))",
            ["gate", "parameters", "held-out loss, nats", "of each seed", "share on the first token (queries from 16 on)", "largest activation", "mean gate"],
            [.. arms.Select(arm => (IReadOnlyList<string>)[
                arm.Name, $"{results[arm.Name][0].Parameters:N0}", Text(Loss(arm.Name)), Each(results[arm.Name].Select(result => result.Loss)), Text(Sink(arm.Name)), Text(results[arm.Name].Average(result => result.Largest), "F1"),
                results[arm.Name][0].MeanGate is { } ? Text(results[arm.Name].Average(result => result.MeanGate ?? 0), "F2") : ""])]));
        const string claim = "A gate on the attention output lowers the loss at equal parameters.";
        const string source = "table 1: perplexity 6.026 without, 5.761 with";
        const string expected = "held-out loss of G1 elementwise below that without a gate in every seed";
        if (run.IsQuick)
        {
            run.Claim(claim, source, expected, $"six steps only: {Text(Loss("G1 elementwise"))} against {Text(Loss("no gate"))}", Verdict.Inconclusive);
            return;
        }

        var (none, gated, closed) = (results["no gate"], results["G1 elementwise"], results["G1, NS-sigmoid"]);
        var lower = none.Zip(gated, (without, with) => with.Loss < without.Loss).ToArray();
        run.Claim(claim, source, expected, $"{Each(gated.Select(result => result.Loss))} against {Each(none.Select(result => result.Loss))}",
            lower.All(better => better) ? Verdict.Confirmed : lower.Any(better => better) ? Verdict.Inconclusive : Verdict.NotConfirmed);
        var larger = none.Zip(gated, (without, with) => with.FirstShare >= without.FirstShare).ToArray();
        run.Claim(
            "The gate takes the sink away; a gate that cannot close does not.", "table 4: share on the first token 0.467 without a gate, 0.048 with G1, 0.451 with the NS-sigmoid",
            "mean share with G1 below those without a gate and with the NS-sigmoid; refuted if it is not below the former in any seed",
            $"G1 {Each(gated.Select(result => result.FirstShare))}, no gate {Each(none.Select(result => result.FirstShare))}, NS-sigmoid {Each(closed.Select(result => result.FirstShare))}",
            larger.All(refuted => refuted) ? Verdict.NotConfirmed : Sink("G1 elementwise") < Sink("no gate") && Sink("G1 elementwise") < Sink("G1, NS-sigmoid") ? Verdict.Confirmed : Verdict.Inconclusive);
        var best = Math.Max(Loss("G1 elementwise"), Loss("G2 elementwise"));
        var others = new[] { "G3 elementwise", "G4 elementwise", "G5" }.Min(Loss);
        run.Claim(
            "Gates on the values and on the attention output help most.", "table 1: G1 5.761 and G2 5.820 against G3 6.016, G4 5.981, G5 6.017", "losses of G1 and G2 both below those of G3, G4 and G5",
            string.Join(", ", s_arms[1..7].Where(arm => !arm.Name.Contains("headwise", StringComparison.Ordinal)).Select(arm => $"{arm.Name[..2]} {Text(Loss(arm.Name))}")), best < others);
    }

    private static void Stability(ReproductionRun run, TextData data)
    {
        const int steps = 120;
        double[] rates = [1e-3, 3e-3, 1e-2, 3e-2];
        double[][] losses = [.. s_arms[..2].Select((arm, at) => rates.Select(rate =>
        {
            run.Tell($"learning rate {rate}: {arm.Name}", 0.75 + (0.06 * at));
            return run.Once($"rate {arm.Name} {rate} {steps}", () => TrainReading(arm.Options, arm.GateParameters, data, 1, steps, rate, run).Loss);
        }).ToArray())];
        run.Tables.Add(new(
            $"Held-out loss after {steps} steps by learning rate (not a number: diverged)", ["gate", .. rates.Select(rate => rate.ToString("G2", CultureInfo.InvariantCulture))],
            [.. losses.Select((row, at) => (IReadOnlyList<string>)[s_arms[at].Name, .. row.Select(loss => Text(loss))])]));
        // A run that ends above a unigram guess has not learned: the bytes' entropy is about 3 nats.
        double Largest(double[] row) => rates.Zip(row).Where(pair => pair.Second < 3).Select(pair => pair.First).DefaultIfEmpty(0).Max();
        double Best(double[] row) => rates[Array.IndexOf(row, row.Where(double.IsFinite).DefaultIfEmpty(double.NaN).Min())];
        var (none, gated) = (losses[0], losses[1]);
        run.Claim(
            "With the gate training bears larger learning rates.", "table 2: at 8e-3 the 48-layer baseline diverges, the gated model trains", "the largest rate that learns and the best rate are not smaller with G1, one of them larger",
            $"largest {Largest(none):G2} without and {Largest(gated):G2} with; best {Best(none):G2} and {Best(gated):G2}",
            Largest(gated) < Largest(none) || Best(gated) < Best(none) ? Verdict.NotConfirmed : Largest(gated) > Largest(none) || Best(gated) > Best(none) ? Verdict.Confirmed : Verdict.Inconclusive);
    }

    private static void Extension(ReproductionRun run, TextData data)
    {
        const int steps = 250, seeds = 2;
        double[][][] losses = [.. new[] { false, true }.Select(gate => Enumerable.Range(1, seeds).Select(seed =>
        {
            run.Tell($"twice the context, {(gate ? "G1" : "no gate")}, seed {seed}", 0.87 + (gate ? 0.065 : 0));
            return run.Once($"extension {gate} {seed} {steps}", () => TrainExtended(gate, data, seed, steps, run));
        }).ToArray())];
        double Increase(double[] pair) => pair[1] - pair[0];
        run.Tables.Add(new(
            $"Rotary models trained on {Length} bytes, read with {2 * Length} and angles halved: held-out loss", ["gate", "seed", $"{Length} bytes", $"{2 * Length} bytes", "increase"],
            [.. losses.SelectMany((arm, at) => arm.Select((pair, seed) => (IReadOnlyList<string>)[at == 0 ? "no gate" : "G1 elementwise", $"{seed + 1}", Text(pair[0]), Text(pair[1]), Text(Increase(pair))]))]));
        var smaller = losses[0].Zip(losses[1], (without, with) => Increase(with) < Increase(without)).ToArray();
        run.Claim(
            "Stretching the context costs a gated model less.", "table 5: RULER at 64k tokens by YaRN 37.51 without, 66.60 with the gate", "smaller increase of the loss with G1 in both seeds",
            $"with {Each(losses[1].Select(Increase))}, without {Each(losses[0].Select(Increase))}", smaller.All(less => less) ? Verdict.Confirmed : smaller.Any(less => less) ? Verdict.Inconclusive : Verdict.NotConfirmed);
    }

    private static Reading TrainReading(string options, int gateParameters, TextData data, int seed, int steps, double rate, ReproductionRun run)
    {
        manual_seed(seed);
        var hidden = Hidden - (int)Math.Round(gateParameters / ((2.0 * Width) + 1));
        using var model = (CausalTransformer)TextModel.Make($"gated:{options},width={Width},depth={Depth},heads=4,hidden={hidden}", TextData.Vocabulary, Length);
        var parameters = model.parameters().Sum(parameter => parameter.numel());
        TextTrainingResult trained;
        try
        {
            trained = TextTraining.Train(model, data, new() { Steps = steps, Length = Length, Seed = seed, LearningRate = rate, ValidateEvery = steps, Watched = 1 }, cancellation: run.Cancellation);
        }
        catch (InvalidOperationException)
        {
            // The loss stopped being a number, which is what is asked about.
            return new(double.NaN, double.NaN, double.NaN, null, parameters);
        }

        using var quiet = no_grad();
        using var maps = new AttentionMapProbe();
        var gates = new GateProbe();
        List<Tensor> states = [];
        using (model.Hooks.Install(maps))
        using (model.Hooks.Install(gates))
        {
            model.forward(data.HeldOut(0, 64, Length).Input, states).Dispose();
        }

        return new(
            trained.HeldOut.Loss, maps.Sites.Average(site => (double)AttentionSinks.FirstTokenShare(maps[site], SinkSkip).item<float>()), states.Average(state => (double)MassiveActivations.Maximum(state).item<float>()),
            gates.Sites.Count == 0 ? null : gates.Sites.Average(site => gates[site].MeanScore), parameters);
    }

    private static double[] TrainExtended(bool gate, TextData data, int seed, int steps, ReproductionRun run)
    {
        CausalTransformer Make(int length, RotaryScaling? scaling) => new(
            new() { Vocabulary = TextData.Vocabulary, Length = length, Width = Width, Depth = Depth, FeedForwardWidth = Hidden - (gate ? 24 : 0), Positions = false },
            place => new MultiHeadAttention(
                new() { Width = Width, Heads = 4, Attention = AttentionOptions.CausalSelf }, place.Site, new RotaryPositions(new(Width / 4, scaling: scaling)), gate ? new HeadGate(new()) : null) { Hooks = place.Hooks });
        manual_seed(seed);
        using var model = Make(Length, null);
        var trained = TextTraining.Train(model, data, new() { Steps = steps, Length = Length, Seed = seed, ValidateEvery = steps, Watched = 1 }, cancellation: run.Cancellation);
        using var longer = Make(2 * Length, new LinearRotaryScaling(2));
        using (no_grad())
        {
            foreach (var (name, parameter) in model.named_parameters())
            {
                longer.get_parameter(name)!.copy_(parameter);
            }
        }

        return [trained.HeldOut.Loss, TextTraining.Test(longer, data, 2 * Length, cancellation: run.Cancellation).Loss];
    }

    /// <summary>What a trained model does with the backcopy texts.</summary>
    private sealed record Copying(double CopyingLoss, double OtherLoss, double CopyingGate, double OtherGate, double FirstShare);

    /// <summary>What a trained language model does with held-out text.</summary>
    private sealed record Reading(double Loss, double FirstShare, double Largest, double? MeanGate, long Parameters);

    /// <summary>Keeps the gate of the latest call.</summary>
    private sealed class GateReader : AttentionHook, IDisposable
    {
        public Tensor? Scores { get; private set; }

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs;

        public override void OnInputs(AttentionCall call)
        {
            Dispose();
            Scores = call.Options.Gate?.detach().DetachFromDisposeScope();
        }

        public void Dispose() => Scores?.Dispose();
    }
}
