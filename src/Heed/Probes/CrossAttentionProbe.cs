using TorchSharp;

namespace Heed.Probes;

/// <summary>The cross-attention of a model, all layers and heads as one tensor.</summary>
public sealed class CrossAttentionMaps : IDisposable
{
    internal CrossAttentionMaps(torch.Tensor weights, IReadOnlyList<AttentionSite> sites) => (Weights, Sites) = (weights.DetachFromDisposeScope(), sites);

    /// <summary>Puts weights that come from elsewhere into the same shape.</summary>
    /// <param name="weights"><c>[layers, heads, I, T']</c>; copied.</param>
    /// <exception cref="ArgumentException">They have another shape.</exception>
    public static CrossAttentionMaps Of(torch.Tensor weights)
    {
        ArgumentNullException.ThrowIfNull(weights);
        return weights.dim() == 4 && weights.numel() > 0
            ? new(weights.detach().clone(), [.. Enumerable.Range(0, (int)weights.shape[0]).Select(layer => new AttentionSite(layer, AttentionKind.Cross, $"layers.{layer}"))])
            : throw new ArgumentException($"Cross-attention must be [layers, heads, tokens, frames] and not empty, not {AttentionShape.Text(weights)}.", nameof(weights));
    }

    /// <summary>The weights <c>[layers, heads, I, T']</c>. This object's own.</summary>
    public torch.Tensor Weights { get; }

    /// <summary>The calls that they come from, in the order of the layers.</summary>
    public IReadOnlyList<AttentionSite> Sites { get; }

    /// <summary>The mean over layers and heads.</summary>
    /// <param name="layers">Which layers; null: all.</param>
    /// <param name="heads">Which heads of each; null: all.</param>
    /// <returns><c>[I, T']</c>.</returns>
    /// <exception cref="ArgumentException">There is no such layer or head, or a list is empty.</exception>
    public torch.Tensor Mean(IReadOnlyList<int>? layers = null, IReadOnlyList<int>? heads = null)
    {
        using var scope = torch.NewDisposeScope();
        return Choose(Choose(Weights, 0, layers, "layer"), 1, heads, "head").mean([0L, 1L]).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose() => Weights.Dispose();

    private static torch.Tensor Choose(torch.Tensor weights, int dimension, IReadOnlyList<int>? chosen, string what)
    {
        if (chosen is null)
        {
            return weights;
        }

        if (chosen.Count == 0 || chosen.Any(index => index < 0 || index >= weights.shape[dimension]))
        {
            throw new ArgumentException($"The {what}s are 0 to {weights.shape[dimension] - 1}, one at least, and {(chosen.Count == 0 ? "none" : string.Join(", ", chosen))} was asked for.", $"{what}s");
        }

        return weights.index_select(dimension, torch.tensor(chosen.Select(index => (long)index).ToArray(), device: weights.device));
    }
}

/// <summary>Collects the cross-attention of an encoder-decoder model: what each token of the text read of the encoder's frames.</summary>
public static class CrossAttentionProbe
{
    /// <summary>Runs a model and collects the maps of all its cross-attention calls. Calls stay fused.</summary>
    /// <param name="hooks">The model's hooks.</param>
    /// <param name="run">Runs it once, on one text and one input: a teacher-forced pass gives a row for every token.</param>
    /// <param name="budget">The most bytes that the maps may take.</param>
    /// <returns>All layers' maps; the caller's to dispose.</returns>
    /// <exception cref="InvalidOperationException">The model made no cross-attention call, its maps differ in shape or have a batch of more than one, or they do not fit the budget.</exception>
    public static CrossAttentionMaps Collect(AttentionHooks hooks, Action run, long budget = 256L << 20)
    {
        ArgumentNullException.ThrowIfNull(hooks);
        ArgumentNullException.ThrowIfNull(run);
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        using var probe = new AttentionMapProbe(at: site => site.Kind == AttentionKind.Cross, budget: budget);
        using (hooks.Install(probe))
        {
            run();
        }

        if (probe.LeftOut.Count > 0)
        {
            throw new InvalidOperationException($"The cross-attention of {probe.LeftOut.Count} calls, '{probe.LeftOut[0]}' first, did not fit {budget} bytes: give a larger budget, or explain a shorter text.");
        }

        if (probe.Sites.Count == 0)
        {
            throw new InvalidOperationException("The model made no cross-attention call: give an encoder-decoder model, and run its decoder.");
        }

        AttentionSite[] sites = [.. probe.Sites.OrderBy(site => site.Layer)];
        var maps = sites.Select(site => probe[site]).ToArray();
        if (maps.FirstOrDefault(map => map.shape[0] != 1 || !map.shape.AsSpan().SequenceEqual(maps[0].shape)) is { } odd)
        {
            throw new InvalidOperationException($"Cross-attention is collected of one text at a time, in layers of one shape: [{string.Join(", ", odd.shape)}] was found beside [{string.Join(", ", maps[0].shape)}].");
        }

        return new(torch.cat(maps), sites);
    }
}
