using Heed.Heads;
using Heed.Models.Texts;

namespace Heed.Lab.Texts;

/// <summary>Causal language models that differ in their attention.</summary>
internal static class AttentionModels
{
    /// <summary>The options that all share, as they are written.</summary>
    public const string ShapeUsage = "width=64,depth=3,heads=4,hidden=256";

    /// <summary>Multi-head attention, with learned or rotary positions.</summary>
    public static TextModel MultiHead { get; } = new(
        "mha", $"mha[:positions=learned,{ShapeUsage}]", "A causal transformer; positions: learned, rotary or none.", null,
        (specification, vocabulary, length) =>
        {
            var positions = specification.Choice("positions", "learned", ("learned", "learned"), ("rotary", "rotary"), ("none", "none"));
            var heads = specification.Integer("heads", 4, 1);
            return new CausalTransformer(Shape(specification, vocabulary, length, positions == "learned"), place => new MultiHeadAttention(
                new() { Width = place.Width, Heads = heads, Attention = AttentionOptions.CausalSelf }, place.Site,
                positions == "rotary" ? new RotaryPositions(new(place.Width / heads)) : null) { Hooks = place.Hooks });
        });

    /// <summary>Gated attention (arXiv 2505.06708) in every position and form.</summary>
    public static TextModel Gated { get; } = new(
        "gated", $"gated[:position=G1,granularity=elementwise,shared=off,combine=multiply,activation=sigmoid,source=input,{ShapeUsage}]",
        "A causal transformer with gates; position: G1 to G5 or none; granularity: elementwise or headwise; activation: sigmoid, silu, identity or ns-sigmoid; source: input or constant (arXiv 2505.06708).",
        "gated-attention",
        (specification, vocabulary, length) =>
        {
            var heads = specification.Integer("heads", 4, 1);
            var gate = ReadGate(specification);
            return new CausalTransformer(Shape(specification, vocabulary, length, positions: true), place => new GatedAttention(
                new() { Width = place.Width, Heads = heads, Gate = gate }, place.Site) { Hooks = place.Hooks });
        });

    /// <summary>The reduced transformers (arXiv 2410.13732).</summary>
    public static TextModel Reduced { get; } = new(
        "reduced", "reduced[:qk=shared,vo=separate,mlp=off,width=64,depth=6,heads=4,hidden=256]",
        "A causal transformer with fewer matrices; qk: separate, shared, collapsed, mirror or cholesky; vo: separate, collapsed or none (arXiv 2410.13732).", "minimal-transformer",
        (specification, vocabulary, length) =>
        {
            var reduction = Reduction.Read(specification);
            var shape = Shape(specification, vocabulary, length, positions: true, depth: 6);
            return new CausalTransformer(
                reduction.HasPerceptron ? shape : shape with { FeedForwardWidth = 0 }, place => reduction.Make(place.Width, causal: true, place.Site, place.Hooks));
        });

    /// <summary>Relative convolutional attention (arXiv 2308.03429) in the authors' Transformer-XL.</summary>
    public static TextModel RelativeConvolutional { get; } = Xl("rcmha", "relative positions and convolved projections (arXiv 2308.03429)", relative: true, convolution: true);

    /// <summary>The baseline with relative positions alone.</summary>
    public static TextModel Relative { get; } = Xl("rmha", "relative positions (arXiv 1901.02860)", relative: true, convolution: false);

    /// <summary>The baseline with convolutions alone.</summary>
    public static TextModel Convolutional { get; } = Xl("mdha", "absolute positions and convolved projections (arXiv 2109.08668)", relative: false, convolution: true);

    private static TextModel Xl(string name, string summary, bool relative, bool convolution) => new(
        name, $"{name}[:{(convolution ? "kernel=3," : "")}{ShapeUsage}]", $"A Transformer-XL layer stack with {summary}.", "rcmha",
        (specification, vocabulary, length) => new TransformerXL(new()
        {
            Vocabulary = vocabulary, Layers = specification.Integer("depth", 3, 1), FeedForwardWidth = specification.Integer("hidden", 256, 1), Positions = relative ? 0 : length,
            Attention = new()
            {
                Width = specification.Integer("width", 64, 1), Heads = specification.Integer("heads", 4, 1), IsRelative = relative, Reach = length, IsConvolutional = convolution,
                Kernel = convolution ? specification.Integer("kernel", 3, 1) : 3,
            },
        }));

    /// <summary>The shape from the options <c>width</c>, <c>depth</c> and <c>hidden</c>.</summary>
    public static CausalTransformerOptions Shape(Specification specification, int vocabulary, int length, bool positions, int depth = 3, int hidden = 256) => new()
    {
        Vocabulary = vocabulary, Length = length, Width = specification.Integer("width", 64, 1), Depth = specification.Integer("depth", depth, 1),
        FeedForwardWidth = specification.Integer("hidden", hidden, 0), Positions = positions,
    };

    /// <summary>A gate from the options that describe one.</summary>
    public static GateOptions ReadGate(Specification specification)
    {
        var gate = new GateOptions
        {
            Position = specification.Choice("position", GatePosition.SdpaOutput, ("none", GatePosition.None), ("G1", GatePosition.SdpaOutput), ("G2", GatePosition.Value), ("G3", GatePosition.Key),
                ("G4", GatePosition.Query), ("G5", GatePosition.DenseOutput)),
            Granularity = specification.Choice("granularity", GateGranularity.Elementwise, ("elementwise", GateGranularity.Elementwise), ("headwise", GateGranularity.Headwise)),
            HeadShared = specification.Choice("shared", false, ("on", true), ("off", false)),
            Combine = specification.Choice("combine", GateCombination.Multiply, ("multiply", GateCombination.Multiply), ("add", GateCombination.Add)),
            Activation = specification.Choice("activation", GateActivation.Sigmoid, ("sigmoid", GateActivation.Sigmoid), ("silu", GateActivation.SiLU), ("identity", GateActivation.Identity),
                ("ns-sigmoid", GateActivation.NonSparseSigmoid)),
            Source = specification.Choice("source", GateSource.Input, ("input", GateSource.Input), ("constant", GateSource.Constant)),
        };
        gate.Validate();
        return gate;
    }
}
