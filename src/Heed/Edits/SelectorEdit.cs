using Heed.Masks;

namespace Heed.Edits;

/// <summary>Lets selectors choose the pairs of a trained model's attention: a training-free sparse mechanism in place of the dense one. A call keeps its causality, window and
/// whatever else its layer does.</summary>
public sealed class SelectorEdit : AttentionHook
{
    private readonly Func<AttentionSite, AttentionSelector?> _selectorAt;
    private readonly Dictionary<AttentionSite, AttentionSelector?> _selectors = [];

    /// <summary>Initializes the edit.</summary>
    /// <param name="selectorAt">A new selector for a site, asked once per site; null leaves the site as it is.</param>
    public SelectorEdit(Func<AttentionSite, AttentionSelector?> selectorAt)
    {
        ArgumentNullException.ThrowIfNull(selectorAt);
        _selectorAt = selectorAt;
    }

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => At(site) is null ? AttentionStages.None : AttentionStages.Inputs;

    /// <inheritdoc/>
    public override void OnInputs(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        call.Options = call.Options with { Selector = At(call.Site) };
    }

    private AttentionSelector? At(AttentionSite site)
    {
        if (!_selectors.TryGetValue(site, out var selector))
        {
            _selectors[site] = selector = _selectorAt(site);
        }

        return selector;
    }
}
