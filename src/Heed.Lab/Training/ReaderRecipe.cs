using System.Globalization;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using Heed.Lab.Corpora;
using Heed.Lab.Figures;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;
using static TorchSharp.torch;
using Decoder = Heed.Models.Decoders.Decoder;

namespace Heed.Lab.Training;

/// <summary>
/// A small reader of English: a Llama-type decoder of 2.8 million parameters over a byte-level vocabulary of 2,048 tokens, trained on the King James text (or any other) with short windows first
/// and windows of the full context at the end. It is the model that <c>heed inspect</c> and <c>heed generate</c> use where no other is named.
/// </summary>
public sealed class ReaderRecipe : TrainingRecipe
{
    private const int VocabularySize = 2048;
    private const int Context = 2048;
    private const int TokensPerStep = 1024;
    private const long DefaultSteps = 2_400;

    // Weights are stored rounded; float16 keeps three bits more than bfloat16, and no weight comes near its range.
    private const ScalarType StoredType = ScalarType.Float16;

    // How much of a run reads windows of which length.
    private static readonly (double Until, int Window)[] Stages = [(0.75, 256), (0.92, 1024), (1.0, Context)];

    private static readonly JsonSerializerOptions JsonFormat = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    /// <inheritdoc/>
    public override string Name => "reader";

    /// <inheritdoc/>
    public override string Summary => "A decoder of 2.8 million parameters that reads English: the King James text, or any text given with --text.";

    /// <inheritdoc/>
    public override RecipeResult Run(RecipeOptions options, Action<string> notice, Action<TrainingProgress> progress, CancellationToken cancellation)
    {
        RefuseModel(options);
        if (options.DataFolder is not null)
        {
            throw new ArgumentException("The recipe reader reads no data from a folder: give a text with --text FILE.");
        }

        var folder = options.Output;
        var checkpoint = CheckpointOf(folder);
        if (File.Exists(checkpoint) && !options.Resume)
        {
            throw new ArgumentException($"A run that was stopped lies in '{checkpoint}': go on with it by --resume, or delete it to start afresh.");
        }

        // A misspelt mechanism is better known before the data are read.
        var swap = options.Attention is { } attention ? AttentionSwap.Parse(attention) : null;
        if (options.Threads > 0)
        {
            set_num_threads(options.Threads);
        }

        var corpus = options.TextFile is null ? KingJamesText.Load() : TextCorpus.FromFile(options.TextFile);
        // A folder that cannot be made is better known now than at the first checkpoint.
        Directory.CreateDirectory(folder);
        var vocabulary = BytePairTrainer.Train(corpus.TrainingText, VocabularySize);
        var tokenizer = TokenizerJson.Read(Encoding.UTF8.GetBytes(vocabulary.ToJsonString(JsonFormat) + "\n"));
        var stream = tokenizer.EncodeIds(corpus.TrainingText, addBegin: false).Select(token => (int)token).ToArray();
        notice($"{corpus.Name}: {corpus.Training.Count:N0} texts to train on ({stream.Length:N0} tokens), {corpus.HeldOut.Count:N0} held out.");

        var configuration = ConfigurationOf(tokenizer);
        using var whole = new PretrainedModel(new Decoder(configuration, options.Seed), tokenizer);
        var model = whole.Model;
        using var swapped = swap?.Apply(model);
        var batches = new Batches(stream, tokenizer.BeginTokenId!.Value, options.Seed);
        var steps = options.Steps ?? (options.Resume && File.Exists(checkpoint) ? TrainingCheckpoint.StepsOf(checkpoint) : null)
            ?? (options.Minutes is { } minutes ? StepsWithin(minutes, model, batches, notice) : DefaultSteps);
        var plan = PlanOf(steps);
        batches.Steps = steps;
        var watched = new BitsPerByte(corpus.HeldOut.Where((_, index) => index % Math.Max(1, corpus.HeldOut.Count / 6) == 0), tokenizer, Context);
        using var loop = new TrainingLoop(model, plan, IdentityOf(configuration, corpus, plan, options), checkpoint)
        {
            Loss = step => batches.Loss(model, step), Items = batches.TokensOf, Validation = () => watched.Measure(model, cancellation),
        };
        if (options.Resume)
        {
            notice(loop.TryResume() ? $"Going on after step {loop.Step:N0} of {steps:N0}." : "There is no stopped run to go on with: starting afresh.");
        }

        notice($"{model.ParameterCount:N0} parameters, {steps:N0} steps of {TokensPerStep:N0} or more tokens, {get_num_threads()} threads.");
        loop.Run(progress, cancellation);
        notice("Measuring on all held-out texts.");
        return Ship(whole, corpus, stream.Length, loop.History, plan, options, cancellation);
    }

    private static string CheckpointOf(string folder) => Path.Combine(folder, "checkpoint.bin");

    private static DecoderConfiguration ConfigurationOf(TextTokenizer tokenizer) => new()
    {
        Family = DecoderFamily.Llama, VocabularySize = tokenizer.VocabularySize, HiddenSize = 192, IntermediateSize = 512, Layers = 6, Heads = 6, KeyValueHeads = 3, HeadWidth = 32,
        ContextLength = Context, NormEpsilon = 1e-5, RotaryTheta = 10_000, TieEmbeddings = true, BeginTokenId = tokenizer.BeginTokenId,
    };

    private static TrainingPlan PlanOf(long steps) => new()
    {
        Steps = steps, WarmupSteps = Math.Min(100, steps / 10), LearningRate = 2e-3, FinalShare = 0.03, WeightDecay = 0.1, Beta2 = 0.98, ClipNorm = 1, ValidateEvery = Math.Max(1, steps / 10),
    };

    private static string IdentityOf(DecoderConfiguration configuration, TextCorpus corpus, TrainingPlan plan, RecipeOptions options) => string.Join(
        '\n',
        "recipe=reader", $"attention={options.Attention ?? "its own"}", $"text={corpus.Name} {corpus.Sha256[..12]}", $"seed={options.Seed}", TrainingCheckpoint.StepsLine(plan.Steps), $"plan={JsonSerializer.Serialize(plan)}",
        $"stages={string.Join(' ', Stages)} of {TokensPerStep}", $"model={JsonSerializer.Serialize(configuration)}");

    // The time of a step of every stage, without touching weights or optimizer.
    private static long StepsWithin(double minutes, Decoder model, Batches batches, Action<string> notice)
    {
        double secondsPerStep = 0;
        double before = 0;
        foreach (var (until, window) in Stages)
        {
            var times = new double[4];
            for (var i = 0; i < times.Length; i++)
            {
                var clock = System.Diagnostics.Stopwatch.StartNew();
                using var scope = NewDisposeScope();
                batches.LossOf(model, window, i).backward();
                times[i] = clock.Elapsed.TotalSeconds;
            }

            model.zero_grad();
            // The first one compiles and allocates.
            secondsPerStep += (until - before) * times.Skip(1).Order().ElementAt(1);
            before = until;
        }

        // Optimizer, validations and checkpoints take their part.
        var steps = Math.Max(20, (long)(minutes * 60 / (secondsPerStep * 1.15)));
        notice($"A step takes {secondsPerStep:F2} s: {steps:N0} steps in {minutes:G4} minutes.");
        return steps;
    }

    private static RecipeResult Ship(
        PretrainedModel whole, TextCorpus corpus, long trainingTokens, TrainingHistory history, TrainingPlan plan, RecipeOptions options, CancellationToken cancellation)
    {
        var folder = options.Output;
        var heldOut = new BitsPerByte(corpus.HeldOut, whole.Tokenizer!, Context);
        var exact = heldOut.Measure(whole.Model, cancellation);
        whole.Save(folder, StoredType);
        double rounded;
        using (var shipped = PretrainedModel.Load(folder))
        using (options.Attention is { } attention ? AttentionSwap.Parse(attention).Apply(shipped.Model) : null)
        {
            rounded = heldOut.Measure(shipped.Model, cancellation);
        }

        var page = corpus.HeldOut.FirstOrDefault(document => document.Name == "John 3") ?? corpus.HeldOut[0];
        var run = new ReaderRun
        {
            Command = $"heed train reader --steps {plan.Steps} --seed {options.Seed}" + (options.Attention is null ? "" : $" --attention {options.Attention}")
                + (options.TextFile is null ? "" : $" --text {Path.GetFileName(options.TextFile)}"),
            Attention = options.Attention,
            Seed = options.Seed,
            Steps = plan.Steps,
            TokensPerStep = TokensPerStep,
            Tokens = history.Items,
            Minutes = Math.Round(history.Seconds / 60, 1),
            Threads = get_num_threads(),
            Parameters = whole.Model.ParameterCount,
            Text = corpus.Name,
            TextSha256 = corpus.Sha256,
            TrainingBytes = corpus.Training.Sum(document => (long)Encoding.UTF8.GetByteCount(document.Text)),
            TrainingTokens = trainingTokens,
            TrainingTexts = corpus.Training.Count,
            HeldOutBytes = heldOut.Bytes,
            HeldOutTexts = corpus.HeldOut.Count,
            Page = page.Name,
            WeightType = StoredType.ToString().ToLowerInvariant(),
            HeldOutBitsPerByteBeforeRounding = Math.Round(exact, 4),
            HeldOutBitsPerByte = Math.Round(rounded, 4),
            Windows = Stages.Select(stage => $"{stage.Window:N0} tokens {(stage.Until < 1 ? $"up to {stage.Until:P0} of the steps" : "to the end")}").ToList(),
            Plan = plan,
            Validations = history.Validations.Select(point => new ValidationPoint(point.Step, Math.Round(point.Value, 4))).ToList(),
            Training = history.Averaged(150).Select(point => new TrainingPoint(
                point.Step, Math.Round(point.Loss, 4), Math.Round(point.LearningRate, 6), Math.Round(point.GradientNorm, 3))).ToList(),
        };
        AtomicFile.WriteText(Path.Combine(folder, "page.txt"), page.Text);
        AtomicFile.WriteText(Path.Combine(folder, "training.json"), JsonSerializer.Serialize(run, JsonFormat) + "\n");
        AtomicFile.WriteText(Path.Combine(folder, "README.md"), ReaderCard.Write(run, whole.Configuration, options.TextFile is null));
        LossFigure(run).Save(Path.Combine(folder, "loss.png"));
        File.Delete(CheckpointOf(folder));
        return new RecipeResult(
            ((string[])["config.json", "model.safetensors", "tokenizer.json", "page.txt", "README.md", "training.json", "loss.png"]).Select(file => Path.Combine(folder, file)).ToList(),
            [("held-out bits per byte", rounded.ToString("F3", CultureInfo.InvariantCulture)), ("minutes", run.Minutes.ToString("F1", CultureInfo.InvariantCulture))]);
    }

    private static LineFigure LossFigure(ReaderRun run)
    {
        // The training loss is in nats per token.
        var bitsPerByte = run.TrainingTokens / (Math.Log(2) * run.TrainingBytes);
        return new LineFigure($"reader: {run.Text}", "step", "bits per byte",
        [
            new("training", run.Training.Select(point => (double)point.Step).ToList(), run.Training.Select(point => point.Loss * bitsPerByte).ToList()),
            new("held out", run.Validations.Select(point => (double)point.Step).ToList(), run.Validations.Select(point => point.Value).ToList(), Markers: true),
        ]);
    }

    /// <summary>The tokens of a step.</summary>
    private sealed class Batches(int[] stream, int begin, int seed)
    {
        private readonly Dictionary<int, WindowSampler> _samplers = Stages.ToDictionary(stage => stage.Window, stage => new WindowSampler(stream, stage.Window, seed));

        public long Steps { get; set; }

        public Tensor Loss(Decoder model, long step)
        {
            var (window, stepOfStage) = StageOf(step);
            return LossOf(model, window, stepOfStage);
        }

        public long TokensOf(long step)
        {
            var (window, _) = StageOf(step);
            return (long)SequencesOf(window) * window;
        }

        public Tensor LossOf(Decoder model, int window, long stepOfStage)
        {
            var count = SequencesOf(window);
            var input = new long[count * window];
            var target = new long[count * window];
            for (var i = 0; i < count; i++)
            {
                var tokens = _samplers[window][(stepOfStage * count) + i];
                input[i * window] = begin;
                for (var j = 0; j < window; j++)
                {
                    target[(i * window) + j] = tokens[j];
                    if (j + 1 < window)
                    {
                        input[(i * window) + j + 1] = tokens[j];
                    }
                }
            }

            var logits = model.forward(tensor(input).view(count, window));
            return nn.functional.cross_entropy(logits.view(count * window, -1), tensor(target));
        }

        private static int SequencesOf(int window) => Math.Max(1, TokensPerStep / window);

        private (int Window, long StepOfStage) StageOf(long step)
        {
            var first = 0L;
            foreach (var (until, window) in Stages)
            {
                var end = (long)Math.Round(until * Steps);
                if (step < end)
                {
                    return (window, step - first);
                }

                first = end;
            }

            throw new ArgumentOutOfRangeException(nameof(step), step, "The step is past the end of the run.");
        }
    }
}
