using Heed.Lab.Mechanisms;
using Heed.Masks;

namespace Heed.Lab.Inspection;

/// <summary>Counts which share of a layer's pairs its selector has computed. It asks selectors of its own, so that those in use see every call once.</summary>
/// <param name="selectorAt">New selectors by site.</param>
/// <param name="windowOf">Width of a layer's own window; null: none.</param>
/// <param name="shares">Receives the share of the pairs of each head, by layer: above 1 where a selector computes more pairs than the layer has.</param>
internal sealed class ComputedShareProbe(Func<AttentionSite, AttentionSelector?> selectorAt, Func<int, int?> windowOf, Dictionary<int, double[]> shares) : AttentionHook
{
    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs;

    public override void OnInputs(AttentionCall call)
    {
        using var scope = TorchSharp.torch.NewDisposeScope();
        var options = call.Options with { Selector = null };
        var computed = selectorAt(call.Site)?.Select(call.Query, call.Key, call.Value, options, call.Site);
        var tokens = call.Query.size(2);
        var window = Math.Min(windowOf(call.Site.Layer) ?? tokens, tokens);
        var all = (window * (window + 1) / 2) + ((tokens - window) * window);
        shares[call.Site.Layer] = [.. Enumerable.Range(0, (int)call.Query.size(1)).Select(head => computed is null ? 1 : ComputedPairs.Count(computed, 0, head) / (double)all)];
    }
}
