using Heed.Heads;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>The reduced vision transformers (arXiv 2410.13732) as recipes know them.</summary>
internal static class ReducedModel
{
    /// <summary>The entry.</summary>
    public static ImageModel Entry { get; } = new(
        "reduced", "reduced[:qk=shared,vo=separate,mlp=off,heads=4,patch=4,width=64,depth=6,ratio=2]",
        "A vision transformer with fewer matrices; qk: separate, shared, collapsed, mirror or cholesky; vo: separate, collapsed or none (arXiv 2410.13732).", "minimal-transformer", Make);

    private static VisionTransformer Make(Specification specification, ImageTask task)
    {
        var queryKey = specification.Choice("qk", QueryKeyMode.Shared, ("separate", QueryKeyMode.Separate), ("shared", QueryKeyMode.Shared), ("collapsed", QueryKeyMode.Collapsed),
            ("mirror", QueryKeyMode.SymmetricMirror), ("cholesky", QueryKeyMode.SymmetricCholesky));
        var valueOutput = specification.Choice("vo", ValueOutputMode.Separate, ("separate", ValueOutputMode.Separate), ("collapsed", ValueOutputMode.Collapsed), ("none", ValueOutputMode.None));
        var perceptron = specification.Choice("mlp", false, ("on", true), ("off", false));

        // Modes that have one head get it without being told.
        var heads = specification.Integer("heads", queryKey is QueryKeyMode.Separate or QueryKeyMode.Shared && valueOutput == ValueOutputMode.Separate ? 4 : 1, 1);
        var shape = BaselineModels.Shape(specification, task);
        shape = shape with { Depth = specification.Integer("depth", 6, 1), FeedForwardRatio = perceptron ? shape.FeedForwardRatio : 0 };
        return new(shape, place => new ReducedAttention(place.Width, heads, queryKey, valueOutput, site: place.Site) { Hooks = place.Hooks });
    }
}
