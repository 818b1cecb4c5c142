using System.Globalization;
using Heed.Explanations;
using Heed.Lab.Figures;
using Heed.Lab.Inspection;
using Heed.Lab.Speech;
using Heed.Models.Speech;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>Cross-attention against saliency (arXiv 2509.18010): small recognisers of synthesised speech, explained by occlusion; correlations of heads, layers and their mean with the saliency of the sound and of the encoder's
/// output beside the saliency's own reliability, deletion curves, and word times against the synthesiser's.</summary>
internal sealed class CrossAttentionSaliencyReproduction : Reproduction
{
    private const int CorpusSeed = 1, HeldOutSeed = 2_000_003, PercentStep = 10;

    private static readonly string[] s_maps = ["saliency (SPES)", "attention, mean of all heads", "random"];

    public override string Slug => "cross-attention-saliency";

    public override string Summary => "A recogniser of synthesised commands: how far its cross-attention agrees with occlusion saliency of the sound and of the encoder's output, what deletion says, and how well attention times words.";

    public override void Run(ReproductionRun run) => OnOneThread(() =>
    {
        var (seeds, training, explained, steps) = run.IsQuick ? (1, 24, 2, 6) : (3, 1500, 8, 1000);
        run.Tell("eSpeak NG speaks", 0);
        using var heldOut = SpokenCorpus.Speak(run.IsQuick ? 6 : 100, HeldOutSeed, cancellation: run.Cancellation);
        // What the synthesiser speaks depends on what it spoke before: always both, in this order, whatever of the run is remembered.
        using var corpus = SpokenCorpus.Speak(training, CorpusSeed, progress: count => run.Tell($"eSpeak NG speaks: {count} of {training}", 0.05 * count / training), cancellation: run.Cancellation);
        var errors = new List<double>();
        var found = new List<Explained>();
        for (var seed = 1; seed <= seeds; seed++)
        {
            var begun = 0.05 + (0.95 * (seed - 1) / seeds);
            using var model = Trained(run, seed, corpus, steps, heldOut, begun);
            run.Seeds.Add(seed);
            errors.Add(run.Once($"error rate {steps} {seed}", () => SpeechTraining.WordErrorRate(model, heldOut)));
            for (var index = 0; index < explained; index++)
            {
                run.Tell($"seed {seed}: explaining utterance {index + 1} of {explained}", begun + (0.95 / seeds * (0.6 + (0.4 * index / explained))));
                var at = ((seed - 1) * explained) + index;
                found.Add(run.Once($"explained {at} {steps} {training} {seed}", () => Explain(model, heldOut.Utterances[at], at, run)));
            }
        }

        Report(run, errors, found);
    });

    private static SpeechTransformer Trained(ReproductionRun run, int seed, SpokenCorpus corpus, int steps, SpokenCorpus heldOut, double begun)
    {
        // Its weights are what is remembered of the training.
        var weights = run.Once($"weights {corpus.Utterances.Count} {steps} {seed}", () =>
        {
            manual_seed(seed);
            using var fresh = new SpeechTransformer(SpeechTraining.Configuration());
            using var loop = SpeechTraining.Loop(fresh, corpus, heldOut, new() { Steps = steps, Seed = seed, ValidateEvery = steps, Watched = run.IsQuick ? 2 : 32, Batch = run.IsQuick ? 4 : 16 });
            loop.Run(progress => run.Tell($"seed {seed}: training, step {progress.Step} of {steps}, loss {Text(progress.Loss)}", begun + (0.19 * progress.Step / steps)), run.Cancellation);
            using var buffer = new MemoryStream();
            using (var writer = new BinaryWriter(buffer))
            {
                fresh.save(writer);
            }

            return Convert.ToBase64String(buffer.ToArray());
        });
        var model = new SpeechTransformer(SpeechTraining.Configuration());
        using var reader = new BinaryReader(new MemoryStream(Convert.FromBase64String(weights)));
        using (no_grad())
        {
            model.load(reader);
        }

        model.eval();
        return model;
    }

    private static Explained Explain(SpeechTransformer model, Utterance utterance, int index, ReproductionRun run)
    {
        var (masks, encoderMasks) = run.IsQuick ? (30, 40) : (600, 2000);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var features = utterance.Features;
        var encoded = model.Encode(features.unsqueeze(0));
        var written = model.Transcribe(encoded, new() { MaximumTokens = 14 })[0];
        long[] said = [.. utterance.Tokens.SkipLast(1)];

        // Six steps of training write nothing that could be explained: a quick run explains what was said.
        long[] text = [.. run.IsQuick ? said : written.Tokens, SpokenCorpus.EndToken];
        var tokens = tensor(text);
        using var maps = model.CrossAttention(encoded, tokens);
        var frames = encoded.States.shape[1];

        // Two halves from masks that share nothing: their agreement bounds what anything can agree with them.
        using var first = model.ExplainInput(features, tokens, SpeechInspection.Occlusion(masks / 2, (2 * index) + 1), cancellation: run.Cancellation);
        using var second = model.ExplainInput(features, tokens, SpeechInspection.Occlusion(masks / 2, (2 * index) + 2), cancellation: run.Cancellation);
        EncoderOutputOptions Half(int half) => new() { Masks = encoderMasks / 2, Seed = (2 * index) + half };
        var (one, two) = (model.ExplainEncoderOutput(encoded, tokens, Half(1), run.Cancellation), model.ExplainEncoderOutput(encoded, tokens, Half(2), run.Cancellation));
        var (input, encoder) = ((first.Audio + second.Audio) / 2, (one + two) / 2);
        var (soundMap, encoderMap) = (ByToken(input), ByToken(encoder));
        var plain = AttentionSaliency.Correlate(maps.Weights, soundMap, encoderMap);
        var raw = AttentionSaliency.Correlate(maps.Weights, input, encoder);
        var standard = AttentionSaliency.Correlate(maps.Weights, soundMap, encoderMap, new() { StandardizeOverTokens = true });
        var mean = AttentionSaliency.Correlate(maps.Weights, soundMap, null, new() { Pooling = SaliencyPooling.Mean });
        using var normal = first.Normalize();
        using var other = second.Normalize();
        var sentence = (normal.Sentence().Audio + other.Sentence().Audio) / 2;
        using var chance = new Generator((ulong)index);
        var curves = new[] { sentence, Spread(maps.Mean(), features), rand(features.shape, generator: chance) }
            .Select(map => Accuracies(model, features, map, said)).ToArray();
        return new(
            Of(plain), Of(standard), Of(raw), mean.Input!.Overall, AttentionSaliency.Pearson(AttentionSaliency.Pool(ByToken(first.Audio), frames), AttentionSaliency.Pool(ByToken(second.Audio), frames)),
            AttentionSaliency.Pearson(ByToken(one), ByToken(two)), curves, Starts(utterance, written, maps, frames));
    }

    private static Tensor ByToken(Tensor map) => AttentionSaliency.StandardizeEachToken(map);

    private static Correlations Of(AttentionSaliencyResult result) => new(
        [.. result.Input!.ByHead.SelectMany(layer => layer)], [.. result.Input.ByLayer], result.Input.Overall,
        [.. result.EncoderOutput!.ByHead.SelectMany(layer => layer)], [.. result.EncoderOutput.ByLayer], result.EncoderOutput.Overall, result.Agreement!.Value);

    // Attention knows no frequency: every bin of a frame counts as the frame does.
    private static Tensor Spread(Tensor attention, Tensor features)
    {
        using var scope = NewDisposeScope();
        var frames = features.shape[0];
        var states = tensor(Enumerable.Range(0, (int)frames).Select(frame => frame * attention.shape[1] / frames).ToArray());
        return attention.mean([0L]).index_select(0, states).unsqueeze(1).expand(frames, features.shape[1]).contiguous().MoveToOuterDisposeScope();
    }

    // Word accuracy, 0 to 1, at 0, 10 ... 100 percent hidden.
    private static double[] Accuracies(SpeechTransformer model, Tensor features, Tensor map, long[] said)
    {
        using var scope = NewDisposeScope();
        var hidden = DeletionCurve.Create(features, map, PercentStep);
        return [.. model.Transcribe(model.Encode(hidden), new() { MaximumTokens = 14 }).Select(text => Math.Max(0, 1 - ((double)SpeechTraining.EditDistance(said, text.Tokens) / said.Length)))];
    }

    // Errors of the starts of all words but the first, in milliseconds: by time warping, by area, and of words spread evenly. Of sentences written down without error.
    private static double[][] Starts(Utterance utterance, SpeechTranscript written, CrossAttentionMaps maps, long frames)
    {
        var words = utterance.Words;
        if (!written.Tokens.SequenceEqual(utterance.Tokens.SkipLast(1)) || maps.Weights.shape[2] != words.Count + 1)
        {
            return [];
        }

        const double milliseconds = 40;
        var attention = maps.Mean();
        var warped = BlockAligner.DtwStarts(attention);
        var blocks = BlockAligner.Sbaam(attention.narrow(0, 0, words.Count), [.. Enumerable.Range(0, words.Count)]);
        double Error(double frame, int word) => Math.Abs((frame * milliseconds) - (1000 * words[word].Start));
        return [.. Enumerable.Range(1, words.Count - 1).Select(word => new[] { Error(warped[word], word), Error(blocks[word - 1], word), Error((double)word * frames / words.Count, word) })];
    }

    private static void Report(ReproductionRun run, List<double> errors, List<Explained> found)
    {
        double Mean(Func<Explained, double> of) => found.Select(of).Where(double.IsFinite).DefaultIfEmpty(0).Average();
        var heads = found[0].Plain.InputHeads.Length;
        var layers = found[0].Plain.InputLayers.Length;
        double[] Rows(Func<Explained, double[]> of, int count) => [.. Enumerable.Range(0, count).Select(at => Mean(one => of(one)[at]))];
        IReadOnlyList<string> Row(string name, Func<Correlations, double> input, Func<Correlations, double> encoder) =>
            [name, Text(Mean(one => input(one.Plain))), Text(Mean(one => encoder(one.Plain))), Text(Mean(one => input(one.Standard))), Text(Mean(one => encoder(one.Standard))), Text(Mean(one => input(one.Raw))), Text(Mean(one => encoder(one.Raw)))];
        run.Tables.Add(new(
            $"Pearson's correlation of cross-attention with saliency, mean of {found.Count} held-out utterances (saliency of each token normalised; of the sound max-pooled to the encoder's frames)",
            ["attention", "sound", "encoder's output", "sound, both standardised over tokens", "encoder's output, both standardised over tokens", "sound, saliency as it is", "encoder's output, saliency as it is"],
            [
                .. Enumerable.Range(0, heads).Select(at => Row($"layer {at / (heads / layers)}, head {at % (heads / layers)}", one => one.InputHeads[at], one => one.EncoderHeads[at])),
                .. Enumerable.Range(0, layers).Select(at => Row($"layer {at}, mean", one => one.InputLayers[at], one => one.EncoderLayers[at])),
                Row("all, mean", one => one.Input, one => one.Encoder),
            ]));
        var (soundHalf, encoderHalf) = (Mean(one => one.InputHalves), Mean(one => one.EncoderHalves));
        // What two halves agree by, all masks together would agree with as many others (Spearman and Brown).
        double Whole(double half) => 2 * half / (1 + half);
        var (soundCeiling, encoderCeiling) = (Whole(soundHalf), Whole(encoderHalf));
        run.Tables.Add(new("Reliability of the saliency itself: the ceiling of any correlation with it", ["saliency", "two halves of the masks", "stepped up to all masks"],
        [
            ["of the sound", Text(soundHalf), Text(soundCeiling)], ["of the encoder's output", Text(encoderHalf), Text(encoderCeiling)],
            ["of the sound with that of the encoder's output", Text(Mean(one => one.Plain.Agreement)), ""],
        ]));
        var curves = Enumerable.Range(0, s_maps.Length).Select(map => Rows(one => one.Curves[map], (100 / PercentStep) + 1)).ToArray();
        var areas = curves.Select(DeletionCurve.Auc).ToArray();
        run.Tables.Add(new("Deletion: word accuracy while the most important cells are hidden, area over percent (lower: the map is the better explanation)", ["map", "area", "accuracy at 10 %", "at 30 %"],
            [.. s_maps.Select((name, map) => (IReadOnlyList<string>)[name, Text(areas[map], "F1"), Text(curves[map][1], "F2"), Text(curves[map][3], "F2")])]));
        run.Figures.Add(new("Word accuracy while cells are hidden", "percent hidden", "word accuracy", [.. s_maps.Select((name, map) => new FigureLine(name, [.. Enumerable.Range(0, curves[map].Length).Select(at => (double)at * PercentStep)], curves[map], Markers: true))]));
        var starts = found.SelectMany(one => one.Starts).ToArray();
        string[] methods = ["time warping", "attended area (SBAAM)", "words spread evenly"];
        double Median(int method) => starts.Length == 0 ? 0 : starts.Select(word => word[method]).Order().ElementAt(starts.Length / 2);
        run.Tables.Add(new($"Error of word starts against the synthesiser's, {starts.Length} words (frames of 40 ms)", ["method", "median, ms", "mean, ms"],
            [.. methods.Select((name, method) => (IReadOnlyList<string>)[name, Text(Median(method), "F0"), Text(starts.Select(word => word[method]).DefaultIfEmpty(0).Average(), "F0")])]));
        var perSeed = found.Chunk(found.Count / errors.Count).ToArray();
        run.Tables.Add(new("Model by model: what varies with the seed of weights and batches", ["seed", "word error rate", "correlation with the sound", "with the encoder's output", "with the sound, mean-pooled"],
            [.. perSeed.Select((part, at) => (IReadOnlyList<string>)[
                $"{at + 1}", $"{Text(100 * errors[at], "F1")} %", Text(part.Average(one => one.Plain.Input)), Text(part.Average(one => one.Plain.Encoder)), Text(part.Average(one => one.MeanPooled))])]));
        Claims(run, errors.Max(), (Mean(one => one.Plain.Input), Mean(one => one.Plain.Encoder)), (soundCeiling, encoderCeiling), Mean(one => one.MeanPooled),
            Rows(one => one.Plain.InputLayers, layers), Rows(one => one.Plain.EncoderLayers, layers), areas, [Median(0), Median(1), Median(2)]);
        run.Notes.Add($"The recognisers have 0.5 million parameters and a vocabulary of 40 words; their word error rate on {(run.IsQuick ? 6 : 100)} held-out utterances is {Text(100 * errors.Average(), "F1")} % on average. The paper studies models of hundreds of millions on open speech.");
        run.Notes.Add("Verdicts go by saliency in SPES' own normalisation, token by token; the first columns of the table. Whether the paper normalised before it correlated could not be sourced: the other forms stand beside.");
        run.Notes.Add($"Each of {errors.Count} model(s) explains utterances of its own; verdicts go by the means over all of them. The paper's number of masks for the encoder's output could not be sourced.");
    }

    private static void Claims(
        ReproductionRun run, double errors, (double Sound, double Encoder) overall, (double Sound, double Encoder) ceiling, double meanPooled, double[] soundLayers, double[] encoderLayers, double[] areas, double[] starts)
    {
        Verdict Unless(bool trained, Verdict verdict) => run.IsQuick || !trained ? Verdict.Inconclusive : verdict;
        Verdict Word(bool holds) => holds ? Verdict.Confirmed : Verdict.NotConfirmed;
        var trained = errors < 0.1;
        var state = trained && !run.IsQuick ? "" : $"; the model is barely trained (word error rate {Text(100 * errors, "F0")} %)";
        run.Claim(
            "Cross-attention explains the encoder's output better than the sound, and the sound better than nothing.", "abstract: about 50 % of the relevance of the input, 52 to 75 % of that of the encoder's output at best",
            "correlation of the mean of all heads with the saliency of the encoder's output above that with the saliency of the sound, which is above 0",
            $"{Text(overall.Encoder)} and {Text(overall.Sound)}{state}", Unless(trained, Word(overall.Encoder > overall.Sound && overall.Sound > 0)));
        run.Claim(
            "Cross-attention is half an explanation: it agrees with saliency, but less than saliency agrees with itself.", "abstract and title",
            "both correlations above 0.1 and at least 0.1 below the reliability of the saliency; refuted if near zero, or within 0.05 of it",
            $"sound {Text(overall.Sound)} of at most {Text(ceiling.Sound)}, encoder's output {Text(overall.Encoder)} of at most {Text(ceiling.Encoder)}{state}",
            Unless(trained, overall.Sound > 0.1 && overall.Encoder > 0.1 && ceiling.Sound - overall.Sound >= 0.1 && ceiling.Encoder - overall.Encoder >= 0.1 ? Verdict.Confirmed
                : overall.Sound <= 0.1 || overall.Encoder <= 0.1 || ceiling.Sound - overall.Sound < 0.05 || ceiling.Encoder - overall.Encoder < 0.05 ? Verdict.NotConfirmed : Verdict.Inconclusive));
        run.Claim(
            "The mean over heads and layers is as good as the best of them.", "abstract: aggregation over heads and layers beats single heads and layers",
            "correlation of the mean of all heads within 0.02 of that of the best layer, or above it, for both saliencies",
            $"sound {Text(overall.Sound)} against {Text(soundLayers.Max())}, encoder's output {Text(overall.Encoder)} against {Text(encoderLayers.Max())}{state}",
            Unless(trained, Word(overall.Sound >= soundLayers.Max() - 0.02 && overall.Encoder >= encoderLayers.Max() - 0.02)));
        run.Claim(
            "Max pooling over frequency and time is the best reduction of saliency to the encoder's frames.", "from a summary of the paper, not verified there: correlation 0.582",
            "correlation with max-pooled saliency above that with mean-pooled saliency by more than 0.01; refuted if below by as much",
            $"{Text(overall.Sound)} and {Text(meanPooled)}{state}",
            Unless(trained, overall.Sound > meanPooled + 0.01 ? Verdict.Confirmed : overall.Sound < meanPooled - 0.01 ? Verdict.NotConfirmed : Verdict.Inconclusive));
        run.Claim(
            "Saliency says better than attention what the model cannot do without.", "arXiv 2411.01710 and section on deletion: hiding the right cells first makes the output collapse early",
            "area under the deletion curve smaller for saliency than for attention, and for attention than for a random map",
            $"{Text(areas[0], "F1")}, {Text(areas[1], "F1")} and {Text(areas[2], "F1")}{state}",
            Unless(trained, areas[0] < areas[1] && areas[1] < areas[2] ? Verdict.Confirmed : areas[0] < areas[1] && areas[0] < areas[2] ? Verdict.Inconclusive : Verdict.NotConfirmed));
        run.Claim(
            "Words can be timed by cross-attention.", "the use that the paper questions; SBAAM, ACL 2024", "median error of word starts, by either method, below half of that of words spread evenly",
            $"{Text(starts[0], "F0")} ms by time warping, {Text(starts[1], "F0")} ms by area, {Text(starts[2], "F0")} ms spread evenly{state}",
            Unless(trained, Word(Math.Max(starts[0], starts[1]) < starts[2] / 2)));
    }

    private static string Text(double number, string format = "F3") => number.ToString(format, CultureInfo.InvariantCulture);

    /// <summary>Correlations of one utterance.</summary>
    private sealed record Correlations(double[] InputHeads, double[] InputLayers, double Input, double[] EncoderHeads, double[] EncoderLayers, double Encoder, double Agreement);

    /// <summary>What one utterance gave.</summary>
    private sealed record Explained(Correlations Plain, Correlations Standard, Correlations Raw, double MeanPooled, double InputHalves, double EncoderHalves, double[][] Curves, double[][] Starts);
}
