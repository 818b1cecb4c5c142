using Heed.Lab.Training;
using Heed.Models.BrainEncoders;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Brains;

/// <summary>What makes predictions from feature maps.</summary>
internal enum BrainArchitecture
{
    Transformer,
    Spatial,
    Linear,
    Ridge,
}

/// <summary>How well a model predicts held-out scenes, and where its queries look.</summary>
/// <param name="Content">Mean correlation over the vertices of content areas.</param>
/// <param name="Location">Mean correlation over those of location areas.</param>
/// <param name="OnObject">Share of scenes (and content areas) in which the query's largest weight lies on its category's object; null: the model has no maps.</param>
/// <param name="OnPatch">Share of scenes (and location areas) in which it lies on the area's patch.</param>
/// <param name="ContentEntropy">Mean entropy of content areas' maps, nats.</param>
/// <param name="LocationEntropy">That of location areas.</param>
/// <param name="ContentMoves">Share of pairs of consecutive scenes between which a content area's largest weight moves.</param>
/// <param name="LocationMoves">That of location areas.</param>
internal sealed record BrainResult(
    double Content, double Location, double? OnObject = null, double? OnPatch = null, double? ContentEntropy = null, double? LocationEntropy = null, double? ContentMoves = null, double? LocationMoves = null);

/// <summary>A brain model and what it learns from, as <c>transformer:position=sine,...</c> names them.</summary>
internal sealed record BrainSetting(BrainArchitecture Architecture = BrainArchitecture.Transformer, MapPosition Position = MapPosition.Sine, int Width = SyntheticBrain.Channels, int Heads = 4, int FeedForward = 64, int Layers = 1, double Dropout = 0, bool IsUniform = false, int Stride = 1, double Contrast = 3)
{
    public const int TrainingScenes = 2000;
    public const int TestScenes = 600;
    public const int Batch = 50;

    // Far from every training seed.
    private const int TestSeed = int.MaxValue;

    /// <summary>What can be trained.</summary>
    public static IReadOnlyList<RecipeModel> Models { get; } =
    [
        new("transformer", "transformer:position=sine|learned,heads=4,ff=64,layers=1,dropout=0,uniform=0,contrast=3", "a query per area that picks its patches scene by scene; uniform=1 takes the picking away", "brain-encoders"),
        new("spatial", "spatial:contrast=3", "a static map per area", null),
        new("linear", "linear:stride=1,contrast=3", "a convolution and a linear map of everything", null),
        new("ridge", "ridge:contrast=3", "ridge regression on everything, in closed form", null),
    ];

    /// <summary>Reads a setting.</summary>
    /// <exception cref="ArgumentException">There is no such model or option, or a value is out of its range.</exception>
    public static BrainSetting Parse(string text)
    {
        var specification = Specification.Parse(text);
        var contrast = specification.Number("contrast", 3);
        var setting = specification.Name switch
        {
            "transformer" => new BrainSetting(
                BrainArchitecture.Transformer, specification.Choice("position", MapPosition.Sine, ("sine", MapPosition.Sine), ("learned", MapPosition.Learned)), SyntheticBrain.Channels, specification.Integer("heads", 4, 1),
                specification.Integer("ff", 64, 1), specification.Integer("layers", 1, 1), specification.Number("dropout", 0), specification.Integer("uniform", 0, 0) > 0, Contrast: contrast),
            "spatial" => new BrainSetting(BrainArchitecture.Spatial, Contrast: contrast),
            "linear" => new BrainSetting(BrainArchitecture.Linear, Stride: specification.Integer("stride", 1, 1), Contrast: contrast),
            "ridge" => new BrainSetting(BrainArchitecture.Ridge, Contrast: contrast),
            _ => throw new ArgumentException($"The recipe brain trains {string.Join(", ", Models.Select(model => model.Name))}, not '{specification.Name}'."),
        };
        specification.RefuseUnread();
        return setting;
    }

    /// <summary>A new model; not for ridge, which is fitted.</summary>
    public BrainModel Make(int seed)
    {
        manual_seed(seed);
        const int queries = 2 * SyntheticBrain.Areas;
        BrainModel model = Architecture switch
        {
            BrainArchitecture.Transformer => new BrainEncoder(new()
            {
                Queries = queries, LeftVertices = SyntheticBrain.Vertices, RightVertices = SyntheticBrain.Vertices, Channels = SyntheticBrain.Channels, Width = Width, Heads = Heads, FeedForwardWidth = FeedForward,
                DecoderLayers = Layers, Position = Position, Dropout = Dropout,
            }),
            BrainArchitecture.Spatial => new SpatialFeatureEncoder(
                new() { Queries = queries, LeftVertices = SyntheticBrain.Vertices, RightVertices = SyntheticBrain.Vertices, Channels = SyntheticBrain.Channels }, SyntheticBrain.Side, SyntheticBrain.Side),
            _ => new ConvolutionalEncoder(SyntheticBrain.Channels, SyntheticBrain.Side, SyntheticBrain.Side, SyntheticBrain.Vertices, SyntheticBrain.Vertices, Stride),
        };
        if (IsUniform)
        {
            model.Hooks.Install(new BlindQueries());
        }

        return model;
    }

    /// <summary>The rule, the scenes to learn from and those held out.</summary>
    public (SyntheticBrain Brain, BrainScenes Training, BrainScenes Test) Data(int seed, int scenes = TrainingScenes)
    {
        var brain = new SyntheticBrain(seed, Contrast);
        return (brain, brain.Draw(scenes, seed + 1000), brain.Draw(TestScenes, TestSeed));
    }

    /// <summary>A loop over the scenes, in another order every time through.</summary>
    public TrainingLoop Loop(BrainModel model, BrainScenes training, BrainScenes test, long steps, int seed, string? checkpoint = null)
    {
        var plan = new TrainingPlan
        {
            Steps = steps, LearningRate = Architecture switch { BrainArchitecture.Spatial => 5e-3, BrainArchitecture.Linear => 5e-4, _ => 2e-3 }, FinalShare = 0.1, WeightDecay = 1e-4, Beta2 = 0.999, ClipNorm = 1,
            ValidateEvery = Math.Max(1, steps / 12),
        };
        var perPass = Math.Max(1, training.Count / Batch);
        return new(model, plan, string.Join('\n', "recipe=brain", $"setting={this}", $"seed={seed}", TrainingCheckpoint.StepsLine(steps)), checkpoint)
        {
            Loss = step =>
            {
                using var generator = new Generator(((ulong)seed * 1_000_000) + (ulong)(step / perPass));
                var chosen = randperm(training.Count, generator: generator).narrow(0, step % perPass * Batch, Math.Min(Batch, training.Count));
                var loss = BrainModel.Loss(Vertices(model, training.Features.index_select(0, chosen)), training.Left.index_select(0, chosen), training.Right.index_select(0, chosen));
                return model.Penalty() is { } penalty ? loss + penalty : loss;
            },
            Items = _ => Batch,
            Validation = () =>
            {
                var vertices = Vertices(model, test.Features);
                return (VertexCorrelation.Pearson(vertices.Left, test.Left).mean().item<double>() + VertexCorrelation.Pearson(vertices.Right, test.Right).mean().item<double>()) / 2;
            },
        };
    }

    /// <summary>Tests a trained model.</summary>
    public static BrainResult Test(BrainModel model, SyntheticBrain brain, BrainScenes test)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var prediction = model.Forward(test.Features, withAttention: true);
        var masks = prediction.Left.dim() == 3 ? SyntheticBrain.Masks() : null;
        var vertices = prediction.Vertices(masks, masks);
        var (content, location) = (VertexCorrelation.Pearson(vertices.Left, test.Left).mean().item<double>(), VertexCorrelation.Pearson(vertices.Right, test.Right).mean().item<double>());
        if (prediction.Attention.Count == 0)
        {
            return new(content, location);
        }

        var map = prediction.Attention[^1].to(float64);
        var peaks = map.argmax(-1);
        using Scalar smallest = double.Epsilon;
        var entropy = (map * map.clamp_min(smallest).log()).sum(-1).neg();
        Tensor Of(Tensor values, bool isLocation) => values.narrow(1, isLocation ? SyntheticBrain.Areas : 0, SyntheticBrain.Areas);
        double Share(Tensor flags) => flags.to(float64).mean().item<double>();
        double Moves(bool isLocation) => Of(peaks, isLocation) is var own ? Share(own.narrow(0, 1, own.shape[0] - 1).ne(own.narrow(0, 0, own.shape[0] - 1))) : 0;
        return new(
            content, location, Share(Of(peaks, false).eq(test.Places)), Share(Of(peaks, true).eq(tensor(brain.LocationPatches.ToArray()).unsqueeze(0))),
            Of(entropy, false).mean().item<double>(), Of(entropy, true).mean().item<double>(), Moves(false), Moves(true));
    }

    /// <summary>Fits ridge to both hemispheres and tests it.</summary>
    public static (BrainResult Result, double LeftPenalty, double RightPenalty) Ridge(BrainScenes training, BrainScenes test)
    {
        using var scope = NewDisposeScope();
        using var left = RidgeEncoder.Fit(training.Features, training.Left);
        using var right = RidgeEncoder.Fit(training.Features, training.Right);
        double Mean(RidgeEncoder ridge, Tensor responses) => VertexCorrelation.Pearson(ridge.Predict(test.Features), responses).mean().item<double>();
        return (new(Mean(left, test.Left), Mean(right, test.Right)), left.Penalty, right.Penalty);
    }

    private static (Tensor Left, Tensor Right) Vertices(BrainModel model, Tensor features)
    {
        var prediction = model.Forward(features);
        var masks = prediction.Left.dim() == 3 ? SyntheticBrain.Masks() : null;
        return prediction.Vertices(masks, masks);
    }

    /// <summary>Queries that ask for nothing: every place gets the same weight.</summary>
    private sealed class BlindQueries : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs;

        public override void OnInputs(AttentionCall call) => call.Query = zeros_like(call.Query);
    }
}
