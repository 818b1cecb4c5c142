using Heed.Heads;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>A vision transformer whose head reads all layers through Gaussian attention (arXiv 2401.11143), with the control that weighs nothing.</summary>
internal static class GaussianModel
{
    public static ImageModel Entry { get; } = new(
        "gaam", "gaam[:patch=4,width=64,depth=3,heads=4,ratio=2,weighting=gaussian|identity|mha|gq,layer-heads=1,channels=16]",
        "A vision transformer whose head reads all layers, weighted by Gaussians around each feature's mean over the layers.", "gaussian-adaptive-attention",
        (specification, task) =>
        {
            var shape = BaselineModels.Shape(specification, task);
            var heads = specification.Integer("heads", 4, 1);
            var head = new LayerStackHeadOptions
            {
                Layers = shape.Depth, Features = shape.Width, Classes = task.Classes, Heads = specification.Integer("layer-heads", 1, 1), Channels = specification.Integer("channels", 16, 1),
                Weighting = specification.Text("weighting") switch
                {
                    null or "gaussian" => LayerWeighting.Gaussian,
                    "identity" => LayerWeighting.Identity,
                    "mha" => LayerWeighting.MultiHead,
                    "gq" => LayerWeighting.GroupedQueryGaussian,
                    var other => throw new ArgumentException($"weighting of 'gaam' is gaussian, identity, mha or gq, not '{other}'."),
                },
            };
            return new LayerStackClassifier(new(shape, place => new MultiHeadAttention(new() { Width = place.Width, Heads = heads }, place.Site) { Hooks = place.Hooks }), head);
        });
}
