using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>The hidden dimensions in which a model's sinks carry massive activations (arXiv 2503.03321): they belong to the language model and are the same for every text.</summary>
public static class SinkDimensions
{
    /// <summary>Those of Llama-2-7B, as published.</summary>
    public static IReadOnlyList<long> Llama2With7B { get; } = [2533, 1415];

    /// <summary>Those of Llama-2-13B, as published.</summary>
    public static IReadOnlyList<long> Llama2With13B { get; } = [2100, 4743];

    /// <summary>The dimensions in which the first token stands out: those of the largest mean |x / rms(x)| over the middle layers.</summary>
    /// <param name="hiddenStates">Residual streams of all layers, <c>[L, N, C]</c> or <c>[L, B, N, C]</c>.</param>
    /// <param name="count">How many dimensions, 1 to C.</param>
    /// <param name="position">The token that is known to be a sink: the first.</param>
    /// <param name="layers">The layers that count; null: the middle half.</param>
    /// <returns>The dimensions, the most massive first.</returns>
    /// <exception cref="ArgumentException">The shape is another, or there is no such token, layer or number of dimensions.</exception>
    public static long[] FromBos(Tensor hiddenStates, int count = 2, long position = 0, Range? layers = null)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.dim() is not (3 or 4) || hiddenStates.numel() == 0)
        {
            throw new ArgumentException($"Hidden states must be [layers, tokens, width] or [layers, batch, tokens, width] and not empty, not [{string.Join(", ", hiddenStates.shape)}].", nameof(hiddenStates));
        }

        var (depth, tokens, width) = ((int)hiddenStates.shape[0], hiddenStates.shape[^2], hiddenStates.shape[^1]);
        if (count < 1 || count > width || position < 0 || position >= tokens)
        {
            throw new ArgumentException($"Of {width} dimensions at tokens 0 to {tokens - 1}, {count} at token {position} cannot be chosen.", nameof(count));
        }

        var chosen = layers ?? new Range(depth / 4, Math.Max((depth / 4) + 1, depth - (depth / 4)));
        var (first, length) = chosen.GetOffsetAndLength(depth);
        if (length == 0)
        {
            throw new ArgumentException($"No layer of {depth} lies in {chosen}: name at least one.", nameof(layers));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var share = RootMeanSquareShare(hiddenStates.narrow(0, first, length).select(-2, position), 1e-6);
        var means = share.reshape(-1, width).mean([0L]).to(float64).cpu().data<double>().ToArray();
        return [.. Enumerable.Range(0, (int)width).OrderByDescending(dimension => means[dimension]).ThenBy(dimension => dimension).Take(count).Select(dimension => (long)dimension)];
    }

    /// <summary>The threshold of the sink value for a model's width: 20 from 4,096 on, and below in proportion to sqrt(C), so that a sink dimension holds the same share of a token's energy (9.8 %). The value is bounded by
    /// sqrt(C): the published 20 cannot be reached below a width of 400.</summary>
    /// <param name="width">Width C, at least 1.</param>
    public static double Threshold(long width)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        return 20 * Math.Min(1, Math.Sqrt(width / 4096.0));
    }

    /// <summary>|x / sqrt(mean(x^2) + epsilon)|, in float32 or wider.</summary>
    internal static Tensor RootMeanSquareShare(Tensor states, double epsilon)
    {
        var wide = states.dtype is ScalarType.BFloat16 or ScalarType.Float16 ? states.to(float32) : states;
        using Scalar small = epsilon;
        return (wide * wide.square().mean([-1L], keepdim: true).add(small).rsqrt()).abs();
    }
}
