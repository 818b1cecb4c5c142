using System.Globalization;
using Heed.Kernels;
using Heed.Lab.Training;
using Heed.Models.Texts;
using static TorchSharp.torch;

namespace Heed.Lab.Backcopy;

/// <summary>What a layer does with the begin token, the mean over texts; of several heads the one that parks most.</summary>
/// <param name="SinkAttention">Weight on the begin token at tokens that are no triggers.</param>
/// <param name="SinkAttentionOfOthers">The same without the begin token's own row, which can look at nothing else.</param>
/// <param name="SinkAttentionAtTriggers">The same at triggers.</param>
/// <param name="LogitGap">By how much the begin token's score exceeds the mean of the others, at tokens that are no triggers.</param>
/// <param name="SinkValue">Norm of the begin token's value after the output matrix.</param>
/// <param name="OtherValue">Mean of that norm over the other tokens.</param>
/// <param name="SinkResidual">Norm of the residual stream behind the layer at the begin token.</param>
/// <param name="OtherResidual">Mean of that norm over the other tokens.</param>
public sealed record BackcopyLayerMeasures(
    double SinkAttention, double SinkAttentionOfOthers, double SinkAttentionAtTriggers, double LogitGap, double SinkValue, double OtherValue, double SinkResidual, double OtherResidual);

/// <summary>What a model does with texts that it has not seen.</summary>
/// <param name="CopyExcess">Mean divergence from the truth at triggers, nats.</param>
/// <param name="BigramExcess">The same at other tokens.</param>
/// <param name="Excess">The same at all tokens.</param>
/// <param name="EmbeddedSink">Norm of the begin token's embedding with its position.</param>
/// <param name="EmbeddedOther">Mean of that norm over the other tokens.</param>
/// <param name="Layers">What each layer does; a layer without attention has attention measures of 0.</param>
public sealed record BackcopyMeasures(double CopyExcess, double BigramExcess, double Excess, double EmbeddedSink, double EmbeddedOther, IReadOnlyList<BackcopyLayerMeasures> Layers);

/// <summary>A model for a bigram-backcopy language and how it is trained, as named on the command line: <c>softmax:layers=3,optimizer=sgd</c>.</summary>
public sealed record BackcopySettings
{
    /// <summary>The options that every model takes, with their defaults.</summary>
    public const string Usage = "layers=1,heads=1,width=48,length=48,norm=pre|post,noattention=2,noffn=0/1,linearffn=1,optimizer=adamw|sgd,lr=0.003,batch=32,triggers=3,rule=copy|skip|none,share=1";

    private const double AdamRate = 3e-3, SgdRate = 0.05;

    // Far from every training seed, which stays below it.
    private const int HeldOutSeed = int.MaxValue;

    /// <summary>The model's shape.</summary>
    public required BigramBackcopyOptions Model { get; init; }

    /// <summary>The language.</summary>
    public required BigramBackcopy Language { get; init; }

    /// <summary>The optimizer: AdamW with betas 0.9 and 0.99, or SGD with momentum 0.9.</summary>
    public TrainingOptimizer Optimizer { get; init; }

    /// <summary>Learning rate, the same at every step.</summary>
    public double LearningRate { get; init; } = AdamRate;

    /// <summary>Texts of a step.</summary>
    public int Batch { get; init; } = 32;

    /// <summary>Reads settings.</summary>
    /// <param name="text"><c>softmax</c> or <c>relu</c> with options.</param>
    /// <param name="table">Bigrams of the language.</param>
    /// <exception cref="ArgumentException">There is no such model, or an option is wrong.</exception>
    public static BackcopySettings Parse(string text, BigramTable table)
    {
        ArgumentNullException.ThrowIfNull(table);
        var specification = Specification.Parse(text);
        var normalizer = specification.Name switch
        {
            "softmax" => Normalizer.Softmax,
            "relu" => Normalizer.ReluOverPosition,
            _ => throw new ArgumentException($"There is no backcopy model '{specification.Name}'; there are: softmax, relu.", nameof(text)),
        };
        var model = new BigramBackcopyOptions
        {
            Vocabulary = table.Vocabulary, Normalizer = normalizer, Layers = specification.Integer("layers", 1, 1), Heads = specification.Integer("heads", 1, 1), Width = specification.Integer("width", 48, 1),
            Length = specification.Integer("length", 48, 2), PreNorm = specification.Choice("norm", true, ("pre", true), ("post", false)),
            WithoutAttention = Layers(specification, "noattention"), WithoutFeedForward = Layers(specification, "noffn"), LinearFeedForward = Layers(specification, "linearffn"),
        };
        var optimizer = specification.Choice("optimizer", TrainingOptimizer.AdamW, ("adamw", TrainingOptimizer.AdamW), ("sgd", TrainingOptimizer.Sgd));
        var settings = new BackcopySettings
        {
            Model = model, Optimizer = optimizer, LearningRate = specification.Number("lr", optimizer == TrainingOptimizer.Sgd ? SgdRate : AdamRate), Batch = specification.Integer("batch", 32, 1),
            Language = new(
                table, specification.Integer("triggers", 3, 0),
                specification.Choice("rule", BackcopyRule.Copy, ("copy", BackcopyRule.Copy), ("skip", BackcopyRule.SkipTrigger), ("none", BackcopyRule.None)), specification.Number("share", 1)),
        };
        specification.RefuseUnread();
        return settings;
    }

    /// <summary>A model with fresh weights.</summary>
    /// <param name="seed">Seed of the weights.</param>
    public BigramBackcopyTransformer Create(int seed)
    {
        manual_seed(seed);
        return new(Model);
    }

    /// <summary>What trains a model: fresh texts at every step, the mean cross-entropy of the next token at all places.</summary>
    /// <param name="model">The model.</param>
    /// <param name="seed">Seed of the texts.</param>
    /// <param name="steps">Number of steps.</param>
    /// <param name="observeEvery">Steps between two measurements.</param>
    /// <param name="identity">Settings that decide the result, a line <c>name=value</c> each.</param>
    /// <param name="checkpoint">Where checkpoints go; null: none.</param>
    public TrainingLoop Loop(BigramBackcopyTransformer model, int seed, long steps, long observeEvery, string identity = "", string? checkpoint = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        var plan = new TrainingPlan
        {
            // The authors clip nothing.
            Steps = steps, Optimizer = Optimizer, LearningRate = LearningRate, FinalShare = 1, WeightDecay = 1e-4, Beta2 = 0.99, ClipNorm = double.PositiveInfinity, ValidateEvery = observeEvery,
        };
        BackcopyMeasures? measured = null;
        return new(model, plan, string.Join('\n', identity, $"seed={seed}", TrainingCheckpoint.StepsLine(steps)), checkpoint)
        {
            Loss = step =>
            {
                var texts = Language.Sample(Batch, Model.Length, SeedOf(seed, step));
                return nn.functional.cross_entropy(model.forward(texts.narrow(1, 0, Model.Length)).flatten(0, 1), texts.narrow(1, 1, Model.Length).flatten());
            },
            Items = _ => (long)Batch * Model.Length,
            Validation = () => (measured = Measure(model)).Excess,
            Observe = () => Named(measured!),
        };
    }

    /// <summary>Measures a model on held-out texts, the same for every model of a language and a length.</summary>
    /// <param name="model">The model.</param>
    /// <param name="texts">Number of texts.</param>
    public BackcopyMeasures Measure(BigramBackcopyTransformer model, int texts = 64)
    {
        ArgumentNullException.ThrowIfNull(model);
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var probe = new BackcopyProbe(model);
        var tokens = HeldOut(texts);
        var triggers = Language.TriggerMask(tokens);
        var others = triggers.logical_not();
        var behind = others.clone();
        behind.select(1, 0).fill_(false);
        var (copy, bigram) = BackcopyRisk.Excess(model.forward(tokens), Language.Oracle(tokens), triggers);
        var share = Number(triggers.to(float64).mean());
        // A language without triggers has no risk at them.
        copy = share > 0 ? copy : 0;
        var layers = new List<BackcopyLayerMeasures>();
        foreach (var layer in probe.Layers)
        {
            var (sink, rest) = AtSink(layer.ResidualNorm());
            if (layer.Weights is null)
            {
                layers.Add(new(0, 0, 0, 0, 0, 0, sink, rest));
                continue;
            }

            var parked = layer.SinkAttention(others);
            var head = parked.argmax().item<long>();
            var (sinkValue, otherValue) = AtSink(layer.ValueNorm(model.get_parameter($"layers.{layer.Index}.attention.wo.weight")).select(1, head));
            // Queries 0 and 1 have no other keys to compare with.
            var gaps = layer.SinkLogitGap().select(1, head).narrow(1, 2, Model.Length - 2).masked_select(others.narrow(1, 2, Model.Length - 2));
            layers.Add(new(
                Number(parked[head]), Number(layer.SinkAttention(behind)[head]), share > 0 ? Number(layer.SinkAttention(triggers)[head]) : 0, gaps.numel() > 0 ? Number(gaps.mean()) : 0, sinkValue, otherValue, sink, rest));
        }

        var (embeddedSink, embeddedOther) = AtSink(probe.Embedded!.norm(-1));
        return new(copy, bigram, (share * copy) + ((1 - share) * bigram), embeddedSink, embeddedOther, layers);
    }

    /// <summary>Held-out texts as a model reads them, int64 <c>[texts, N]</c>.</summary>
    internal Tensor HeldOut(int texts)
    {
        using var all = Language.Sample(texts, Model.Length, HeldOutSeed);
        return all.narrow(1, 0, Model.Length).contiguous();
    }

    private static Dictionary<string, double> Named(BackcopyMeasures measures)
    {
        var named = new Dictionary<string, double> { ["copy excess"] = measures.CopyExcess, ["bigram excess"] = measures.BigramExcess };
        for (var layer = 0; layer < measures.Layers.Count; layer++)
        {
            var at = measures.Layers[layer];
            foreach (var (name, value) in new[]
            {
                ("sink attention", at.SinkAttention), ("sink attention of others", at.SinkAttentionOfOthers), ("sink attention at triggers", at.SinkAttentionAtTriggers), ("sink logit gap", at.LogitGap), ("sink value norm", at.SinkValue), ("other value norm", at.OtherValue),
                ("sink residual norm", at.SinkResidual), ("other residual norm", at.OtherResidual),
            })
            {
                named[string.Create(CultureInfo.InvariantCulture, $"{name}, layer {layer}")] = value;
            }
        }

        return named;
    }

    private static (double Sink, double Other) AtSink(Tensor norms) => (Number(norms.select(1, 0).mean()), Number(norms.narrow(1, 1, norms.shape[1] - 1).mean()));

    private static double Number(Tensor value) => value.to(float64).item<double>();

    private static int SeedOf(int seed, long step) => (int)(((seed * 1_000_003L) + step) % HeldOutSeed);

    private static int[] Layers(Specification specification, string option)
    {
        if (specification.Text(option) is not { } text)
        {
            return [];
        }

        var parts = text.Split('/').Select(part => int.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out var layer) ? layer : -1).ToArray();
        return parts.All(layer => layer >= 0) ? parts : throw new ArgumentException($"{option} of '{specification.Name}' lists layers with / between them, for example 0/2, not '{text}'.");
    }
}
