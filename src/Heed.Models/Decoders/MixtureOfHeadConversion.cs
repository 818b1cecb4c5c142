using Heed.Heads;

namespace Heed.Models.Decoders;

/// <summary>Turns trained decoders into mixtures of heads (arXiv 2410.11842, section 3.3).</summary>
public static class MixtureOfHeadConversion
{
    /// <summary>Gives every layer a router without parameters: the first heads are shared, and of the others each token uses those whose queries are longest. Checkpoints keep their names; loss jumps at first and is won back by some training.</summary>
    /// <param name="decoder">The decoder.</param>
    /// <param name="sharedFraction">Share of the query heads that every token uses, 0 to 1.</param>
    /// <param name="activeFraction">Share of the query heads that a token uses, the shared ones included, 0 to 1. 1: all heads.</param>
    /// <param name="balanceWeight">Weight of the load-balance loss in training (the authors: 0.01), the mean over the layers; attached to the layers' outputs, so that a training loop need not add it.</param>
    /// <exception cref="ArgumentException">A share is out of range, or there would be heads that no token ever uses.</exception>
    /// <exception cref="InvalidOperationException">A layer's attention has a gate on its outputs or chooses its keys itself.</exception>
    public static void ConvertToMoH(this Decoder decoder, double sharedFraction = 0.5, double activeFraction = 0.75, double balanceWeight = 0)
    {
        ArgumentNullException.ThrowIfNull(decoder);
        var router = () => QueryNormHeadRouter.OfFractions(decoder.Configuration.Heads, sharedFraction, activeFraction, balanceWeight / decoder.Configuration.Layers);
        _ = router();
        if (decoder.Layers.Any(layer => layer.SelfAttention is not { Options.Gate.Position: GatePosition.None }))
        {
            throw new InvalidOperationException("Only plain attention can become a mixture of heads: this decoder's has a gate or dynamic masks.");
        }

        foreach (var layer in decoder.Layers)
        {
            layer.SelfAttention!.Router = router();
        }
    }

    /// <summary>Undoes <see cref="ConvertToMoH"/>: all heads are used again.</summary>
    /// <param name="decoder">The decoder.</param>
    public static void ConvertToAllHeads(this Decoder decoder)
    {
        ArgumentNullException.ThrowIfNull(decoder);
        foreach (var attention in decoder.Layers.Select(layer => layer.SelfAttention).OfType<GatedAttention>())
        {
            attention.Router = null;
        }
    }
}
