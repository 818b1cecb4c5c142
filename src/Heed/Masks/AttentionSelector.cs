using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>
/// Chooses, from a call's queries and keys, which pairs are computed: what a training-free sparse mechanism is. Given as <see cref="AttentionOptions.Selector"/>, to a
/// module or through an edit to a trained model; the door applies it and computes what it chose.
/// </summary>
/// <remarks>One instance serves the calls of one layer: a selector may remember what it chose for an earlier decoding step of the same sequence. Selectors never call
/// the door.</remarks>
public abstract class AttentionSelector
{
    /// <summary>Rewrites a call into what is to be computed: sets <see cref="AttentionOptions.BlockMask"/> or <c>AttentionOptions.KeyRuns</c>, biases, causality
    /// and so on in <see cref="AttentionCall.Options"/> (the selector itself is no longer in them), or puts other keys and values in place of the call's. The choice has
    /// no gradient; what is put in place of keys and values is differentiable. What it makes belongs to the current dispose scope.</summary>
    /// <param name="call">The call, with <c>[B, H, Nq, D]</c> queries and <c>[B, Hkv, Nk, D]</c> keys. Its causality, window and mask must still hold afterwards.</param>
    /// <exception cref="ArgumentException">The call's shapes or options do not suit the mechanism.</exception>
    public abstract void Apply(AttentionCall call);

    /// <summary>As <see cref="Apply"/>, but the keys stay the call's own, so that the map has a column for each of them: for hooks that look at scores, weights or statistics. Differs
    /// only for mechanisms that put other keys in place, and may then cost O(Nq Nk) memory.</summary>
    /// <param name="call">The call.</param>
    /// <exception cref="ArgumentException">As <see cref="Apply"/>.</exception>
    public virtual void ApplyKeepingKeys(AttentionCall call) => Apply(call);

    /// <summary>What would be computed, without computing it: to draw it, to measure it, to use it twice.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="options">The call's options; null: the defaults.</param>
    /// <param name="site">Where the call stands.</param>
    /// <returns>The rewritten call.</returns>
    /// <exception cref="ArgumentException">As <see cref="Apply"/>.</exception>
    public AttentionCall Select(Tensor query, Tensor key, Tensor value, AttentionOptions? options = null, AttentionSite site = default)
    {
        AttentionShape.Read(query, key, value).Check(options ?? AttentionOptions.Default, query);
        var call = new AttentionCall(site, query, key, value, (options ?? AttentionOptions.Default) with { Selector = null });
        Apply(call);
        return call;
    }
}
