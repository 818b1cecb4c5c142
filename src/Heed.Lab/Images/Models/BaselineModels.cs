using Heed.Heads;
using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>The models that mechanisms are compared with.</summary>
internal static class BaselineModels
{
    /// <summary>A vision transformer (arXiv 2010.11929).</summary>
    public static ImageModel VisionTransformer { get; } = new(
        "vit", "vit[:patch=4,width=64,depth=3,heads=4,ratio=2]", "A vision transformer: multi-head attention, learned positions, the mean of the tokens (arXiv 2010.11929).", null,
        (specification, task) =>
        {
            var heads = specification.Integer("heads", 4, 1);
            return new VisionTransformer(Shape(specification, task), place => new MultiHeadAttention(new() { Width = place.Width, Heads = heads }, place.Site) { Hooks = place.Hooks });
        });

    /// <summary>MLP-Mixer (arXiv 2105.01601).</summary>
    public static ImageModel MlpMixer { get; } = new(
        "mlp-mixer", "mlp-mixer[:patch=4,width=64,depth=3,tokens=128,ratio=2]", "MLP-Mixer: perceptrons over the tokens and over the width (arXiv 2105.01601).", null,
        (specification, task) =>
        {
            var hidden = specification.Integer("tokens", 128, 1);
            return new VisionTransformer(Shape(specification, task, positions: false), place => new TokenPerceptron(place.Grid * place.Grid, hidden));
        });

    /// <summary>The isotropic shape that baselines share: the options <c>patch</c>, <c>width</c>, <c>depth</c>, <c>ratio</c>.</summary>
    public static VisionTransformerOptions Shape(Specification specification, ImageTask task, bool positions = true, int width = 64) => new()
    {
        ImageSize = task.Size, Channels = task.Channels, Classes = task.Classes, PatchSize = specification.Integer("patch", 4, 1), Width = specification.Integer("width", width, 1),
        Depth = specification.Integer("depth", 3, 1), FeedForwardRatio = specification.Number("ratio", 2), Positions = positions,
    };
}
