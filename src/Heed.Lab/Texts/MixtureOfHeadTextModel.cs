using Heed.Heads;
using Heed.Models.Texts;

namespace Heed.Lab.Texts;

/// <summary>Causal transformers whose attention is a mixture of heads (arXiv 2410.11842).</summary>
internal static class MixtureOfHeadTextModel
{
    /// <summary>The entry.</summary>
    public static TextModel Entry { get; } = new(
        "moh", "moh[:router=two-stage,heads=8,shared=4,routed=2,balance=0.01,width=64,depth=3,hidden=256]",
        "A causal transformer whose tokens each use some shared heads and their own of the others; router: two-stage (learned) or query-norm (arXiv 2410.11842).", "moh",
        (specification, vocabulary, length) =>
        {
            var (heads, shared, routed) = (specification.Integer("heads", 8, 1), specification.Integer("shared", 4, 0), specification.Integer("routed", 2, 0));
            var byLength = specification.Choice("router", false, ("two-stage", false), ("query-norm", true));
            var shape = AttentionModels.Shape(specification, vocabulary, length, positions: true);
            var balance = specification.Number("balance", 0.01) / shape.Depth;
            return new CausalTransformer(shape, place => byLength
                ? new GatedAttention(new() { Width = place.Width, Heads = heads }, place.Site) { Hooks = place.Hooks, Router = new(heads, shared, routed) { BalanceWeight = balance } }
                : new MixtureOfHeadAttention(
                    new() { Width = place.Width, Heads = heads, SharedHeads = shared, RoutedHeads = routed, BalanceWeight = balance, Attention = AttentionOptions.CausalSelf }, place.Site) { Hooks = place.Hooks });
        });
}
