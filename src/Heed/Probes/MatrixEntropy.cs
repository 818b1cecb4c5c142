using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The entropy of the eigenvalues of a sequence's Gram matrix (matrix-based Rényi entropy; auxiliary in arXiv 2512.22213): how many directions the hidden states use. A massive sink vector lowers it.</summary>
public static class MatrixEntropy
{
    /// <summary>The entropy of hidden states.</summary>
    /// <param name="hiddenStates"><c>[..., N, D]</c>; computed in float64.</param>
    /// <param name="order">The order a above 0: 1 is -sum p ln p, others ln(sum p^a) / (1 - a), with p the eigenvalues over their sum.</param>
    /// <returns>float64 <c>[...]</c>, in nats; from 0 (all parallel) to ln(min(N, D)). Zeros give 0.</returns>
    /// <exception cref="ArgumentException">There are fewer than two dimensions or no element, or the order is not a positive number.</exception>
    public static Tensor Compute(Tensor hiddenStates, double order = 1)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.dim() < 2 || hiddenStates.numel() == 0)
        {
            throw new ArgumentException($"Hidden states must be [..., tokens, width] and not empty, not [{string.Join(", ", hiddenStates.shape)}].", nameof(hiddenStates));
        }

        if (!(order > 0) || double.IsInfinity(order))
        {
            throw new ArgumentException($"The order of an entropy is a positive number, not {order}.", nameof(order));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        using Scalar zero = 0, least = double.Epsilon, exponent = order, rest = 1 - order;
        var states = hiddenStates.to(float64);
        var other = states.transpose(-1, -2);
        var gram = states.shape[^2] < states.shape[^1] ? matmul(states, other) : matmul(other, states);
        var eigenvalues = linalg.eigvalsh(gram).clamp_min(zero);
        var shares = eigenvalues / eigenvalues.sum(-1, keepdim: true).clamp_min(least);
        var entropy = order == 1 ? xlogy(shares, shares).sum(-1).neg() : shares.pow(exponent).sum(-1).clamp_min(least).log().div(rest);
        return entropy.masked_fill(eigenvalues.sum(-1).eq(zero), zero).MoveToOuterDisposeScope();
    }
}
