using Heed.Heads;
using Heed.Models.Images;

namespace Heed.Lab.Images.Models;

/// <summary>A vision transformer whose attention is a mixture of heads (arXiv 2410.11842).</summary>
internal static class MixtureOfHeadModel
{
    public static ImageModel Entry { get; } = new(
        "moh", "moh[:heads=8,shared=4,routed=2,balance=0.01,patch=4,width=64,depth=3,ratio=2]",
        "A vision transformer whose tokens each use some shared heads and their own of the others; routed: how many of them (arXiv 2410.11842).", "moh", Make);

    private static VisionTransformer Make(Specification specification, ImageTask task)
    {
        var (heads, shared, routed) = (specification.Integer("heads", 8, 1), specification.Integer("shared", 4, 0), specification.Integer("routed", 2, 0));
        var balance = specification.Number("balance", 0.01);
        var shape = BaselineModels.Shape(specification, task);
        return new(shape, place => Attention(place, heads, shared, routed, balance / shape.Depth));
    }

    /// <summary>The attention of a block.</summary>
    public static MixtureOfHeadAttention Attention(TokenMixerPlace place, int heads, int shared, int routed, double balance) => new(
        new() { Width = place.Width, Heads = heads, SharedHeads = shared, RoutedHeads = routed, BalanceWeight = balance, Grid = (place.Grid, place.Grid) }, place.Site)
    {
        Hooks = place.Hooks,
    };
}
