using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>Keeps the w most important keys of a call, by an importance that is computed from its values (arXiv 2508.02124): for models that were trained so, and to draw and measure such
/// masks. It is no training-free speed-up: without training, the importance says nothing.</summary>
public sealed class DynamicMaskSelector : AttentionSelector
{
    private readonly int _windowSize;
    private readonly Func<Tensor, Tensor> _importance;

    /// <summary>Initializes the selector.</summary>
    /// <param name="windowSize">w, from 1.</param>
    /// <param name="importance">From values <c>[B, Hkv, n, D]</c> to importances <c>[B, Hkv, n]</c>, for example <see cref="DynamicMask.Importance"/> with a layer's parameters.</param>
    /// <exception cref="ArgumentException">w is less than 1.</exception>
    public DynamicMaskSelector(int windowSize, Func<Tensor, Tensor> importance)
    {
        ArgumentNullException.ThrowIfNull(importance);
        _windowSize = windowSize >= 1 ? windowSize : throw new ArgumentException($"A dynamic mask keeps at least one key, not {windowSize}.", nameof(windowSize));
        _importance = importance;
    }

    /// <inheritdoc/>
    public override void Apply(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        call.Options = DynamicMask.Restrict(call.Options, call.Query, call.Key, _importance(call.Value), _windowSize);
    }
}
