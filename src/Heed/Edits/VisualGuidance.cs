using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>Guidance of generation by what the picture adds (inherited by arXiv 2501.12206 from PAI): the log-probabilities with the picture are pushed away from those without it.</summary>
public static class VisualGuidance
{
    /// <summary>The strength of the reported runs.</summary>
    public const double DefaultGamma = 1.1;

    /// <summary>The cutoff of the reported runs.</summary>
    public const double DefaultCutoff = 0.1;

    /// <summary>gamma (p - u) + u with p and u the log-softmax of both logits; minus infinity where the token has less than <paramref name="cutoff"/> times the probability of the likeliest one in p.</summary>
    /// <param name="logits">Logits of the text with the picture, finite or minus infinity, <c>[..., V]</c>.</param>
    /// <param name="unconditionalLogits">Logits of the same text without the picture (and without edits), <c>[..., V]</c>.</param>
    /// <param name="gamma">The strength, finite; 1 leaves p as it is but for the cutoff.</param>
    /// <param name="cutoff">Above 0 and at most 1.</param>
    /// <returns>The combined log-probabilities (not normalised), of the shape of the logits. Differentiable.</returns>
    /// <exception cref="ArgumentException">The shapes differ, or a number is out of range.</exception>
    public static Tensor Combine(Tensor logits, Tensor unconditionalLogits, double gamma = DefaultGamma, double cutoff = DefaultCutoff)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(unconditionalLogits);
        if (!logits.shape.SequenceEqual(unconditionalLogits.shape) || logits.dim() < 1)
        {
            throw new ArgumentException(
                $"Both logits have one shape [..., V]; [{string.Join(", ", logits.shape)}] and [{string.Join(", ", unconditionalLogits.shape)}] were given.", nameof(unconditionalLogits));
        }

        if (!double.IsFinite(gamma))
        {
            throw new ArgumentException($"The strength of guidance is a finite number, not {gamma}.", nameof(gamma));
        }

        if (!(cutoff > 0 && cutoff <= 1))
        {
            throw new ArgumentException($"The cutoff of guidance is above 0 and at most 1, not {cutoff}.", nameof(cutoff));
        }

        using var scope = NewDisposeScope();
        using Scalar strength = gamma, least = Math.Log(cutoff), nothing = double.NegativeInfinity;
        var with = nn.functional.log_softmax(logits, -1);
        var without = nn.functional.log_softmax(unconditionalLogits, -1);
        var rejected = with.lt(with.amax([-1L], keepdim: true).add(least));
        return ((with - without) * strength + without).masked_fill(rejected, nothing).MoveToOuterDisposeScope();
    }
}
