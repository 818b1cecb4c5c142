using TorchSharp;

namespace Heed.Probes;

/// <summary>Massive activations: single elements of the residual stream far larger than the rest (arXiv 2402.17762), which accompany attention sinks.</summary>
public static class MassiveActivations
{
    /// <summary>The largest absolute activation.</summary>
    /// <param name="hiddenStates"><c>[..., B, N, C]</c>; dimensions before the last three (layers, for instance) are kept.</param>
    /// <returns>The maxima, of shape <c>[...]</c>.</returns>
    /// <exception cref="ArgumentException">There are fewer than three dimensions, or no element.</exception>
    public static torch.Tensor Maximum(torch.Tensor hiddenStates)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.dim() < 3 || hiddenStates.numel() == 0)
        {
            throw new ArgumentException($"Hidden states must be [..., batch, tokens, width] and not empty, not [{string.Join(", ", hiddenStates.shape)}].", nameof(hiddenStates));
        }

        using var scope = torch.NewDisposeScope();
        return hiddenStates.abs().amax([-3L, -2L, -1L]).MoveToOuterDisposeScope();
    }
}
