using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>The reduced vision transformers (arXiv 2410.13732) as recipes know them.</summary>
internal static class ReducedModel
{
    /// <summary>The entry.</summary>
    public static ImageModel Entry { get; } = new(
        "reduced", "reduced[:qk=shared,vo=separate,mlp=off,heads=4,patch=4,width=64,depth=6,ratio=2]",
        "A vision transformer with fewer matrices; qk: separate, shared, collapsed, mirror or cholesky; vo: separate, collapsed or none (arXiv 2410.13732).", "minimal-transformer",
        (specification, task) =>
        {
            var reduction = Reduction.Read(specification);
            var shape = BaselineModels.Shape(specification, task);
            return new VisionTransformer(
                shape with { Depth = specification.Integer("depth", 6, 1), FeedForwardRatio = reduction.HasPerceptron ? shape.FeedForwardRatio : 0 },
                place => reduction.Make(place.Width, causal: false, place.Site, place.Hooks));
        });
}
