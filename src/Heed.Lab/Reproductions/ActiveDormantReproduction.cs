using System.Globalization;
using Heed.Edits;
using Heed.Lab.Backcopy;
using Heed.Lab.Figures;
using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Active-dormant heads (arXiv 2410.13835): sinks of softmax and of ReLU attention, what heads lose when they are moved, residual peaks under AdamW and SGD, and the reduced dynamics.</summary>
internal sealed class ActiveDormantReproduction : Reproduction
{
    private const int DynamicsSteps = 300_000, Contexts = 8;

    public override string Slug => "active-dormant-heads";

    public override string Summary => "Small transformers on the bigram-backcopy language: sinks and drained values with softmax and ReLU, heads removed and moved, residual peaks under AdamW and SGD, the reduced dynamics of logit and value.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        OneLayer(run);
        ThreeLayers(run);
        Dynamics(run);
        run.Notes.Add("Models of 0.04 million parameters on texts of 48 characters (three layers: 32): the paper has width 256 and 256 characters. The text's bigrams are those of tiny Shakespeare, as the authors'.");
        run.Notes.Add("Left out: the long run of 100,000 steps, ReLU attention in three layers, and the paper's figures on Llama and OLMo, whose weights do not fit here; `heed inspect` looks for dormant heads in any decoder.");
    });

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    private static string Each(IEnumerable<double> numbers, string format = "F3") => string.Join(", ", numbers.Select(number => Text(number, format)));

    private static Verdict Decide(bool[] holds) => holds.All(yes => yes) ? Verdict.Confirmed : holds.Any(yes => yes) ? Verdict.Inconclusive : Verdict.NotConfirmed;

    private static void OneLayer(ReproductionRun run)
    {
        var (seeds, steps) = run.IsQuick ? (1, 12) : (3, 800);
        var trained = new Dictionary<string, Trained[]>();
        foreach (var name in (string[])["softmax", "relu"])
        {
            trained[name] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"one layer, {name}, seed {seed}", 0.3 * ((trained.Count * seeds) + seed - 1) / (2 * seeds));
                return run.Once($"one layer {name} {seed} {steps}", () => Train(BackcopySettings.Parse(name, BigramTable.Shakespeare), seed, steps, run));
            })];
        }

        run.Seeds.UnionWith(Enumerable.Range(1, seeds));
        double[] Of(string name, Func<BackcopyLayerMeasures, double> value) => [.. trained[name].Select(result => value(result.Last.Layers[0]))];
        double[] Copy(string name) => [.. trained[name].Select(result => result.Last.CopyExcess)];
        run.Tables.Add(new(
            $"One layer, one head, width 48, after {steps} steps (each seed)",
            ["attention", "on the begin token, elsewhere", "the same without the begin token's own row", "at triggers", "its logit above the others", "its value's norm", "other values' norm", "divergence at triggers, nats", "elsewhere"],
            [.. trained.Keys.Select(name => (IReadOnlyList<string>)[
                name, Each(Of(name, at => at.SinkAttention)), Each(Of(name, at => at.SinkAttentionOfOthers)), Each(Of(name, at => at.SinkAttentionAtTriggers)), Each(Of(name, at => at.LogitGap), "F1"), Each(Of(name, at => at.SinkValue), "F2"), Each(Of(name, at => at.OtherValue), "F2"),
                Each(Copy(name)), Each(trained[name].Select(result => result.Last.BigramExcess))])]));
        run.Figures.Add(new(
            "Attention on the begin token at tokens that are no triggers", "step", "share",
            [.. trained.Select(arm => new FigureLine(arm.Key, [.. arm.Value[0].Course.Select(point => point.Step)], [.. arm.Value[0].Course.Select(point => point.SinkAttention)]))]));
        const string claim = "A softmax head that copies parks its attention on the first token wherever it has nothing to copy, and that token's value drains.";
        const string source = "figure 3; the authors' run of 10,000 steps: 0.811 on the begin token, value norm 5.20 to 1.42";
        const string expected = "at tokens that are no triggers at least 0.6 on the begin token, at triggers at most 0.05, its value at most 0.4 of the others', divergence at triggers below 0.15 nats, in every seed";
        var softmax = trained["softmax"].Select(result => result.Last.Layers[0]).ToArray();
        var ratios = softmax.Select(at => at.SinkValue / at.OtherValue).ToArray();
        var measured = $"{Each(softmax.Select(at => at.SinkAttention))}; at triggers {Each(softmax.Select(at => at.SinkAttentionAtTriggers))}; value ratio {Each(ratios, "F2")}; divergence {Each(Copy("softmax"))}";
        const string without = "With ReLU attention, whose rows need not sum to 1, the same head learns the same task without a sink.";
        const string withoutSource = "figure 4; the authors' run: below 0.0005 from step 100 on at equal risks";
        const string withoutExpected = "at most 0.05 on the begin token at tokens that are no triggers (its own row counted, as the authors do), divergence at triggers below 0.15 nats, in every seed";
        var withoutMeasured = $"{Each(Of("relu", at => at.SinkAttention))} (without its own row {Each(Of("relu", at => at.SinkAttentionOfOthers))}); divergence {Each(Copy("relu"))}";
        if (run.IsQuick)
        {
            run.Claim(claim, source, expected, $"{steps} steps only: {measured}", Verdict.Inconclusive);
            run.Claim(without, withoutSource, withoutExpected, $"{steps} steps only: {withoutMeasured}", Verdict.Inconclusive);
        }
        else
        {
            run.Claim(claim, source, expected, measured, Decide([.. softmax.Select((at, seed) => at is { SinkAttention: >= 0.6, SinkAttentionAtTriggers: <= 0.05 } && ratios[seed] <= 0.4 && Copy("softmax")[seed] < 0.15)]));
            run.Claim(without, withoutSource, withoutExpected, withoutMeasured, Decide([.. Of("relu", at => at.SinkAttention).Zip(Copy("relu"), (sink, copy) => sink <= 0.05 && copy < 0.15)]));
        }

        Interventions(run, trained["softmax"], steps);
    }

    private static void Interventions(ReproductionRun run, Trained[] trained, int steps)
    {
        run.Tables.Add(new(
            "What the head of the softmax model loses when it is changed (mean over seeds)", ["change", "divergence at triggers, nats", "elsewhere, nats"],
            [.. trained[0].Changed.Select((changed, at) => (IReadOnlyList<string>)[
                changed.Name, Text(trained.Average(result => result.Changed[at].Copy)), Text(trained.Average(result => result.Changed[at].Bigram))])]));
        Changed[] Of(string name) => [.. trained.Select(result => result.Changed.Single(changed => changed.Name == name))];
        var (none, parked, removed, astray, sink) = (Of(Change.None), Of(Change.DormantToSink), Of(Change.Removed), Of(Change.DormantAstray), Of(Change.AllToSink));
        double[] Loss(Changed[] changed, Func<Changed, double> of) => [.. changed.Zip(none, (after, before) => of(after) - of(before))];
        const string claim = "Where the head is dormant the sink does nothing: all of its weight there can go to the begin token. What it does at triggers is lost with the head.";
        const string source = "section 2 and figure 2 (interventions)";
        const string expected = "dormant rows forced onto the begin token cost less than 0.1 nats there; removing the head, or moving it to the begin token, costs over 1 nat at triggers; forcing dormant rows onto the token before (control) costs more than onto the begin token; in every seed";
        var measured = $"forced {Each(Loss(parked, at => at.Bigram))}; removed {Each(Loss(removed, at => at.Copy), "F2")} and moved {Each(Loss(sink, at => at.Copy), "F2")} at triggers; control {Each(Loss(astray, at => at.Bigram))}";
        run.Claim(
            claim, source, expected, run.IsQuick ? $"{steps} steps only: {measured}" : measured,
            run.IsQuick ? Verdict.Inconclusive : Decide([.. Enumerable.Range(0, trained.Length).Select(seed =>
                Loss(parked, at => at.Bigram)[seed] < 0.1 && Loss(removed, at => at.Copy)[seed] > 1 && Loss(sink, at => at.Copy)[seed] > 1 && Loss(astray, at => at.Bigram)[seed] > Loss(parked, at => at.Bigram)[seed])]));
    }

    private static void ThreeLayers(ReproductionRun run)
    {
        var (seeds, steps) = run.IsQuick ? (1, 6) : (3, 3000);
        var trained = new Dictionary<string, Trained[]>();
        foreach (var optimizer in (string[])["adamw", "sgd"])
        {
            trained[optimizer] = [.. Enumerable.Range(1, seeds).Select(seed =>
            {
                run.Tell($"three layers, {optimizer}, seed {seed}", 0.3 + (0.6 * ((trained.Count * seeds) + seed - 1) / (2 * seeds)));
                return run.Once(
                    $"three layers {optimizer} {seed} {steps}",
                    () => Train(BackcopySettings.Parse($"softmax:layers=3,width=32,length=32,batch=16,optimizer={optimizer}", BigramTable.Shakespeare), seed, steps, run));
            })];
        }

        static int SinkLayer(Trained result) => Enumerable.Range(0, 3).MaxBy(layer => result.Last.Layers[layer].SinkAttention);
        static (double Sink, double Other) Before(BackcopyMeasures measures, int layer) =>
            layer == 0 ? (measures.EmbeddedSink, measures.EmbeddedOther) : (measures.Layers[layer - 1].SinkResidual, measures.Layers[layer - 1].OtherResidual);
        static double Ratio(Trained result)
        {
            var (sink, other) = Before(result.Last, SinkLayer(result));
            return sink / other;
        }

        static double Growth(Trained result) => Before(result.Last, SinkLayer(result)).Sink / Before(result.First, SinkLayer(result)).Sink;
        run.Tables.Add(new(
            $"Three layers, width 32, after {steps} steps: the residual stream at the begin token",
            ["optimizer", "seed", "sink layer", "attention on the begin token by layer", "norm before the sink layer", "others there", "ratio", "over its start", "norm behind layers 0, 1, 2", "others", "divergence, nats"],
            [.. trained.SelectMany(arm => arm.Value.Select((result, seed) => (IReadOnlyList<string>)[
                arm.Key, $"{seed + 1}", $"{SinkLayer(result)}", Each(result.Last.Layers.Select(layer => layer.SinkAttention), "F2"), Text(Before(result.Last, SinkLayer(result)).Sink, "F1"), Text(Before(result.Last, SinkLayer(result)).Other, "F1"),
                Text(Ratio(result), "F2"), Text(Growth(result), "F2"), Each(result.Last.Layers.Select(layer => layer.SinkResidual), "F1"), Each(result.Last.Layers.Select(layer => layer.OtherResidual), "F1"), Text(result.Last.Excess)]))]));
        run.Figures.Add(new(
            "Norm of the residual stream at the begin token, the largest behind layers 0 and 1 (seed 1)", "step", "norm",
            [.. trained.Select(arm => new FigureLine(arm.Key, [.. arm.Value[0].Course.Select(point => point.Step)], [.. arm.Value[0].Course.Select(point => point.Peak)]))]));
        var (adam, sgd) = (trained["adamw"], trained["sgd"]);
        const string claim = "In three layers one layer becomes the sink.";
        const string source = "section 3; piloted by the specification: 0.85 at 1,600 steps, and which layer depends on size and seed";
        const string expected = "under AdamW at least 0.6 on the begin token at tokens that are no triggers in the layer with most, in every seed";
        var measured = string.Join(", ", adam.Select(result => $"layer {SinkLayer(result)}: {Text(result.Last.Layers[SinkLayer(result)].SinkAttention, "F2")}"));
        const string peak = "AdamW grows a residual peak at the first token; SGD does not.";
        const string peakSource = "figure 8; norm behind layer 0 at 10,000 steps: AdamW 140.7, SGD 20.4. Not settled by the specification's pilots";
        const string peakExpected = "before the sink layer (its input), both the norm over its start and the ratio to other tokens larger under AdamW than under SGD, in every seed";
        var peakMeasured = $"over the start {Each(adam.Select(Growth), "F2")} (AdamW) and {Each(sgd.Select(Growth), "F2")} (SGD); ratio {Each(adam.Select(Ratio), "F2")} and {Each(sgd.Select(Ratio), "F2")}";
        if (run.IsQuick)
        {
            run.Claim(claim, source, expected, $"{steps} steps only: {measured}", Verdict.Inconclusive);
            run.Claim(peak, peakSource, peakExpected, $"{steps} steps only: {peakMeasured}", Verdict.Inconclusive);
            return;
        }

        run.Claim(claim, source, expected, measured, Decide([.. adam.Select(result => result.Last.Layers[SinkLayer(result)].SinkAttention >= 0.6)]));
        // Either half alone decides nothing.
        run.Claim(peak, peakSource, peakExpected, peakMeasured, Decide([.. adam.Zip(sgd, (first, second) => Growth(first) > Growth(second)), .. adam.Zip(sgd, (first, second) => Ratio(first) > Ratio(second))]));
    }

    private static Trained Train(BackcopySettings settings, int seed, int steps, ReproductionRun run)
    {
        using var model = settings.Create(seed);
        var first = settings.Measure(model);
        using var loop = settings.Loop(model, seed, steps, Math.Max(1, steps / 20));
        loop.Run(null, run.Cancellation);
        var layers = settings.Model.Layers;
        var course = loop.History.Validations.Select(point => new CoursePoint(
            point.Step, point.Observed!["sink attention, layer 0"], Enumerable.Range(0, Math.Max(1, layers - 1)).Max(layer => point.Observed[$"sink residual norm, layer {layer}"]))).ToArray();
        return new(first, settings.Measure(model), course, layers == 1 ? Change.Measure(settings, model) : []);
    }

    private static void Dynamics(ReproductionRun run)
    {
        var steps = run.IsQuick ? 1000 : DynamicsSteps;
        var seeds = run.IsQuick ? 1 : 3;
        (string Name, bool FixLogits, bool FixValue, int Contexts)[] arms =
        [
            ("value fixed", false, true, 1), ("logits fixed", true, false, 1), ("both free, random contexts", false, false, Contexts), ("both free, one context", false, false, 1),
        ];
        var results = arms.Select((arm, at) => Enumerable.Range(1, seeds).Select(seed =>
        {
            run.Tell($"reduced dynamics: {arm.Name}, seed {seed}", 0.9 + (0.1 * ((at * seeds) + seed - 1) / (arms.Length * seeds)));
            return run.Once($"dynamics {arm.Name} {seed} {steps}", () => Descend(arm.FixLogits, arm.FixValue, arm.Contexts, seed, steps, run.Cancellation));
        }).ToArray()).ToArray();
        run.Tables.Add(new(
            $"Reduced dynamics, {steps:N0} steps of gradient descent (each seed)",
            ["what moves", "mean logit at the end", "its slope over log t, last decade", "largest less smallest logit", "slope of the value's log norm over log t", "loss at the end"],
            [.. arms.Select((arm, at) => (IReadOnlyList<string>)[
                arm.Name, Each(results[at].Select(result => result.Logit), "F2"), Each(results[at].Select(result => result.LogitSlope), "F2"), Each(results[at].Select(result => result.Spread)),
                Each(results[at].Select(result => result.ValueSlope), "F2"), string.Join(", ", results[at].Select(result => result.Loss.ToString("E1", CultureInfo.InvariantCulture)))])]));
        var (valueFixed, logitsFixed, random, single) = (results[0], results[1], results[2], results[3]);
        void State(string claim, string expected, string measured, bool[] holds) => run.Claim(
            claim, "section 2 (theorems on the reduced model); simulated by the specification", expected, run.IsQuick ? $"{steps} steps only: {measured}" : measured, run.IsQuick ? Verdict.Inconclusive : Decide(holds));
        State(
            "With a value to which the prediction is blind, sink logits grow like half the logarithm of time.", "slope over the last decade from 0.5 to 0.65 in every seed", $"slope {Each(valueFixed.Select(result => result.LogitSlope), "F2")}",
            [.. valueFixed.Select(result => result.LogitSlope is >= 0.5 and <= 0.65)]);
        State(
            "With logits fixed, the value converges geometrically.", "the logarithm of the distance to the end is linear in time (R2 at least 0.98) and more so than in log time, in every seed",
            $"R2 {Each(logitsFixed.Select(result => result.GeometricFit))} in time, {Each(logitsFixed.Select(result => result.PowerFit))} in log time", [.. logitsFixed.Select(result => result.GeometricFit >= 0.98 && result.GeometricFit > result.PowerFit)]);
        State(
            "Logits and value reinforce each other: logits grow like half the logarithm of time while the value drains like the root of time.", "slope of logits 0.5 to 0.65, of the value's log norm -0.65 to -0.35, in every seed",
            $"{Each(random.Select(result => result.LogitSlope), "F2")}; {Each(random.Select(result => result.ValueSlope), "F2")}", [.. random.Select(result => result is { LogitSlope: >= 0.5 and <= 0.65, ValueSlope: >= -0.65 and <= -0.35 })]);
        State(
            "Sink logits of all tokens concentrate on one value.", "largest less smallest logit below 0.02 at the end, tokens equally frequent, in every seed", Each(random.Select(result => result.Spread)), [.. random.Select(result => result.Spread < 0.02)]);
        State(
            "It is the randomness of contexts that keeps the sink growing: with one context the value cancels it and logits stop.", "slope of logits below 0.05 over the last decade and loss below 1e-6, in every seed",
            $"slope {Each(single.Select(result => result.LogitSlope))}; loss {string.Join(", ", single.Select(result => result.Loss.ToString("E1", CultureInfo.InvariantCulture)))}", [.. single.Select(result => result.LogitSlope < 0.05 && result.Loss < 1e-6)]);
    }

    private static Descent Descend(bool fixLogits, bool fixValue, int contexts, int seed, int steps, CancellationToken cancellation)
    {
        const int tokens = 3, size = 10;
        var random = new Random(seed);
        double[] Draws() => [.. Enumerable.Range(0, size).Select(_ => random.NextDouble())];
        double[] Shares()
        {
            var draws = Draws();
            var sum = draws.Sum();
            return [.. draws.Select(draw => draw / sum)];
        }

        // As the authors draw them, but for the tokens' shares: those are equal, for the concentration of logits is told of tokens that occur equally often.
        var next = Enumerable.Range(0, tokens).Select(_ => Shares()).ToArray();
        var noise = Enumerable.Range(0, contexts).Select(_ => Draws().Select(draw => 10 * draw).ToArray()).ToArray();
        double[] Normal() => [.. Enumerable.Range(0, size).Select(_ => Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()))];
        var dynamics = new ReducedSinkDynamics(
            new() { Next = next, Shares = [.. Enumerable.Repeat(1.0 / tokens, tokens)], Contexts = noise, ContextMass = 10, FixLogits = fixLogits, FixValue = fixValue },
            [.. Enumerable.Range(0, tokens).Select(_ => random.NextDouble())], Normal());
        // The last decade by logarithm; the convergence of the value early, before it drowns in rounding.
        var late = Enumerable.Range(0, 21).Select(point => (int)Math.Round(steps * Math.Pow(10, (point / 20.0) - 1))).ToHashSet();
        var (times, logits, norms) = (new List<double>(), new List<double>(), new List<double>());
        var (early, values) = (new List<double>(), new List<double[]>());
        var every = Math.Max(1, steps / 3000);
        double loss = 0;
        for (var step = 1; step <= steps; step++)
        {
            loss = dynamics.Step();
            if (step % 1000 == 0)
            {
                cancellation.ThrowIfCancellationRequested();
            }

            if (late.Contains(step))
            {
                var mean = dynamics.Beta.Average();
                times.Add(Math.Log(step));
                logits.Add(dynamics.Alpha.Average());
                norms.Add(Math.Log(Math.Max(double.Epsilon, Math.Sqrt(dynamics.Beta.Sum(value => (value - mean) * (value - mean))))));
            }

            if (step % every == 0 && step <= steps / 50)
            {
                early.Add(step);
                values.Add([.. dynamics.Beta]);
            }
        }

        // The second half of the early points: the fast directions are over.
        var end = dynamics.Beta;
        var distances = values.Select(value => Math.Log(Math.Max(double.Epsilon, Math.Sqrt(value.Zip(end, (a, b) => (a - b) * (a - b)).Sum())))).ToArray();
        var (half, tail) = (early.Skip(early.Count / 2).ToArray(), distances.Skip(early.Count / 2).ToArray());
        return new(
            dynamics.Alpha.Average(), Fit(times, logits).Slope, dynamics.Alpha.Max() - dynamics.Alpha.Min(), Fit(times, norms).Slope, loss, Fit(half, tail).Determination, Fit([.. half.Select(step => Math.Log(step))], tail).Determination);
    }

    private static (double Slope, double Determination) Fit(IReadOnlyList<double> x, IReadOnlyList<double> y)
    {
        var (meanX, meanY) = (x.Average(), y.Average());
        double covariance = 0, varianceX = 0, varianceY = 0;
        for (var i = 0; i < x.Count; i++)
        {
            covariance += (x[i] - meanX) * (y[i] - meanY);
            varianceX += (x[i] - meanX) * (x[i] - meanX);
            varianceY += (y[i] - meanY) * (y[i] - meanY);
        }

        return (covariance / varianceX, varianceY > 0 ? covariance * covariance / (varianceX * varianceY) : 0);
    }

    /// <summary>A point of a training course.</summary>
    private sealed record CoursePoint(double Step, double SinkAttention, double Peak);

    /// <summary>What a changed head costs: divergence from the truth in nats.</summary>
    private sealed record Changed(string Name, double Copy, double Bigram);

    /// <summary>A trained model, before and after.</summary>
    private sealed record Trained(BackcopyMeasures First, BackcopyMeasures Last, CoursePoint[] Course, Changed[] Changed);

    /// <summary>What gradient descent on the reduced model came to.</summary>
    private sealed record Descent(double Logit, double LogitSlope, double Spread, double ValueSlope, double Loss, double GeometricFit, double PowerFit);

    /// <summary>Changes of the only head of a model.</summary>
    private static class Change
    {
        public const string None = "none", Removed = "head removed", AllToSink = "all rows on the begin token", DormantToSink = "dormant rows on the begin token", DormantRemoved = "dormant rows removed",
            DormantAstray = "dormant rows on the token before";

        public static Changed[] Measure(BackcopySettings settings, BigramBackcopyTransformer model)
        {
            using var scope = NewDisposeScope();
            var length = settings.Model.Length;
            var dormant = settings.Language.TriggerMask(settings.HeldOut(Texts)).logical_not();
            var first = zeros(length, length);
            first.select(1, 0).fill_(1);
            var before = nn.functional.one_hot((arange(length, dtype: int64) - 1).clamp(0), length).to(float32);
            (string Name, AttentionHook? Hook)[] changes =
            [
                (None, null), (Removed, HeadScaling.Zero((0, 0))), (AllToSink, new MoveToSink([(0, 0)])), (DormantToSink, new ForcedRows(dormant, first)),
                (DormantRemoved, new ForcedRows(dormant, zeros_like(first))), (DormantAstray, new ForcedRows(dormant, before)),
            ];
            return [.. changes.Select(change =>
            {
                using var installed = change.Hook is null ? null : model.Hooks.Install(change.Hook);
                var measures = settings.Measure(model, Texts);
                return new Changed(change.Name, measures.CopyExcess, measures.BigramExcess);
            })];
        }

        private const int Texts = 64;
    }

    /// <summary>Gives chosen rows of every map other weights.</summary>
    /// <param name="rows">Boolean <c>[B, N]</c>.</param>
    /// <param name="weights">Their weights <c>[N, N]</c>.</param>
    private sealed class ForcedRows(Tensor rows, Tensor weights) : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Weights;

        public override Tensor OnWeights(AttentionCall call, Tensor map) => where(rows.unsqueeze(1).unsqueeze(-1), weights, map);
    }
}
