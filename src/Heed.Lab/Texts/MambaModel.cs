using Heed.Mixers;
using Heed.Models.Texts;

namespace Heed.Lab.Texts;

/// <summary>Causal language models that mix tokens by a selective scan.</summary>
internal static class MambaModel
{
    /// <summary>Mamba (arXiv 2312.00752): no attention, no positions, no perceptrons but the mixers' own gates.</summary>
    public static TextModel Entry { get; } = new(
        "mamba", "mamba[:states=16,kernel=4,expand=2,width=64,depth=6,hidden=0]", "Selective scans instead of attention, in time linear in the length (arXiv 2312.00752); hidden: width of perceptrons between them, 0: none.",
        "visual-mamba",
        (specification, vocabulary, length) =>
        {
            var (states, kernel, expand) = (specification.Integer("states", 16, 1), specification.Integer("kernel", 4, 1), specification.Number("expand", 2));
            var shape = AttentionModels.Shape(specification, vocabulary, length, positions: false, depth: 6, hidden: 0);
            return new CausalTransformer(shape, place => new MambaMixer(new() { Width = place.Width, States = states, Kernel = kernel, Expand = expand }));
        });
}
