using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>Which tokens are attention sinks, by one of several detectors, and the score that decided: a token is a sink where its score exceeds the threshold (strictly).</summary>
/// <remarks>Every detector works on batches; the leading dimensions of what it reads are kept. The tensors belong to the caller's dispose scope.</remarks>
/// <param name="Score">The score of every token.</param>
/// <param name="IsSink">Boolean, of the same shape.</param>
/// <example>
/// <code>
/// using var probe = new AttentionStatisticsProbe(new() { MassPerKey = true });
/// using (model.Hooks.Install(probe)) { model.forward(ids); }
/// var sinks = SinkMask.FromStatistics(probe[probe.Sites[3]]);     // [B, H, N] of layer 3, without the map
/// </code>
/// </example>
public readonly record struct SinkMask(Tensor Score, Tensor IsSink)
{
    /// <summary>The default threshold of the attention received (arXiv 2406.15765).</summary>
    public const double AttentionThreshold = 0.1;

    /// <summary>The default threshold of the cosine (arXiv 2512.22213).</summary>
    public const double CosineThreshold = 0.9;

    /// <summary>The default threshold of the norm over the median norm: this project's choice. Published outlier tokens stand clear of it by far.</summary>
    public const double NormThreshold = 4;

    /// <summary>Tokens whose score exceeds a threshold.</summary>
    /// <param name="score">Any scores.</param>
    /// <param name="threshold">The threshold, exclusive.</param>
    public static SinkMask Above(Tensor score, double threshold)
    {
        ArgumentNullException.ThrowIfNull(score);
        using Scalar limit = threshold;
        return new(score, score.gt(limit));
    }

    /// <summary>Keys that receive much attention, per head (arXiv 2406.15765, steps 1 and 2): <see cref="SinkScore"/> above the threshold.</summary>
    /// <param name="weights">Maps <c>[..., Nq, Nk]</c>, for example <c>[B, H, N, N]</c>.</param>
    /// <param name="threshold">The threshold of the mean weight received.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <returns>Score and mask <c>[..., Nk]</c>.</returns>
    /// <exception cref="ArgumentException">These are no maps; see <see cref="SinkScore.Compute(Tensor, bool, bool, long?)"/>.</exception>
    public static SinkMask FromAttention(Tensor weights, double threshold = AttentionThreshold, bool causal = true) => Above(SinkScore.Compute(weights, causal), threshold);

    /// <summary>Keys that receive much attention, per head, from streamed statistics.</summary>
    /// <param name="statistics">Statistics with <see cref="AttentionStatistics.MassPerKey"/>.</param>
    /// <param name="threshold">The threshold of the mean weight received.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <param name="window">How many keys a row sees at most, itself included; null: all up to itself.</param>
    /// <returns>Score and mask <c>[B, H, Nk]</c>.</returns>
    /// <exception cref="ArgumentException">The mass was not asked for.</exception>
    public static SinkMask FromStatistics(AttentionStatistics statistics, double threshold = AttentionThreshold, bool causal = true, long? window = null) =>
        Above(SinkScore.Compute(statistics, causal, window), threshold);

    /// <summary>Tokens with massive activations in the sink dimensions (arXiv 2503.03321): the sink value max over d of |x_d / sqrt(mean(x^2) + epsilon)|.</summary>
    /// <param name="hiddenStates">Inputs of a layer, before its norm: <c>[..., N, C]</c>, for example <c>[B, N, C]</c>.</param>
    /// <param name="dimensions">The sink dimensions, from 0; see <see cref="SinkDimensions"/>.</param>
    /// <param name="threshold">The threshold of the sink value; null: <see cref="SinkDimensions.Threshold"/> of the width (20 for the published models). No value exceeds sqrt(C).</param>
    /// <param name="epsilon">Added to the mean square.</param>
    /// <returns>Score and mask <c>[..., N]</c>, the score in float32 or wider.</returns>
    /// <exception cref="ArgumentException">The shape is another, or there is no such dimension.</exception>
    public static SinkMask FromMassiveDimensions(Tensor hiddenStates, IReadOnlyList<long> dimensions, double? threshold = null, double epsilon = 1e-6)
    {
        CheckStates(hiddenStates);
        ArgumentNullException.ThrowIfNull(dimensions);
        var width = hiddenStates.shape[^1];
        if (dimensions.Count == 0 || dimensions.Any(dimension => dimension < 0 || dimension >= width))
        {
            throw new ArgumentException($"Sink dimensions are at least one of 0 to {width - 1}, not {(dimensions.Count == 0 ? "none" : string.Join(", ", dimensions))}.", nameof(dimensions));
        }

        using var scope = NewDisposeScope();
        var share = SinkDimensions.RootMeanSquareShare(hiddenStates, epsilon);
        var value = share.index_select(-1, tensor(dimensions.ToArray(), device: hiddenStates.device)).amax([-1L]);
        return Above(value, threshold ?? SinkDimensions.Threshold(width)).MoveToOuterDisposeScope();
    }

    /// <summary>Tokens whose hidden state is (anti-)parallel to the first token's (arXiv 2512.22213): |cos| above the threshold. The first token itself is one of them.</summary>
    /// <param name="hiddenStates">Outputs of a layer, <c>[..., N, C]</c>.</param>
    /// <param name="threshold">The threshold of the absolute cosine.</param>
    /// <param name="first">The token that is known to be a sink.</param>
    /// <returns>Score and mask <c>[..., N]</c>.</returns>
    /// <exception cref="ArgumentException">The shape is another, or there is no such token.</exception>
    public static SinkMask FromCosine(Tensor hiddenStates, double threshold = CosineThreshold, long first = 0)
    {
        CheckStates(hiddenStates);
        if (first < 0 || first >= hiddenStates.shape[^2])
        {
            throw new ArgumentException($"There are tokens 0 to {hiddenStates.shape[^2] - 1}, not {first}.", nameof(first));
        }

        using var scope = NewDisposeScope();
        return Above(Cosine(hiddenStates, hiddenStates.narrow(-2, first, 1)).abs(), threshold).MoveToOuterDisposeScope();
    }

    /// <summary>Tokens whose hidden state is far longer than the others': norm over the median norm of the sequence above the threshold.</summary>
    /// <param name="hiddenStates">Outputs of a layer, <c>[..., N, C]</c>.</param>
    /// <param name="threshold">The threshold of the ratio.</param>
    /// <returns>Score and mask <c>[..., N]</c>.</returns>
    /// <exception cref="ArgumentException">The shape is another.</exception>
    public static SinkMask FromNorm(Tensor hiddenStates, double threshold = NormThreshold)
    {
        CheckStates(hiddenStates);
        using var scope = NewDisposeScope();
        using Scalar least = 1e-30;
        var norm = Norm(hiddenStates);
        var middle = sort(norm, -1).values.narrow(-1, (norm.shape[^1] - 1) / 2, 1);
        return Above(norm / middle.clamp_min(least), threshold).MoveToOuterDisposeScope();
    }

    /// <summary>This mask without the first sink of every row of tokens (ACT spares it: normally the begin token).</summary>
    public SinkMask WithoutFirst()
    {
        using var scope = NewDisposeScope();
        using Scalar one = 1;
        var later = IsSink.cumsum(-1, ScalarType.Int64).gt(one);
        return new(Score, IsSink.logical_and(later).MoveToOuterDisposeScope());
    }

    /// <summary>Cosine along the last dimension, 0 where either vector is zero.</summary>
    internal static Tensor Cosine(Tensor states, Tensor direction)
    {
        using Scalar least = 1e-8;
        var (wide, reference) = (Wide(states), Wide(direction));
        return (wide * reference).sum(-1) / (Norm(wide).clamp_min(least) * Norm(reference).clamp_min(least));
    }

    /// <summary>Euclidean norm along the last dimension, in float32 or wider.</summary>
    internal static Tensor Norm(Tensor states) => linalg.norm(Wide(states), dims: [-1]);

    private static Tensor Wide(Tensor states) => states.dtype is ScalarType.BFloat16 or ScalarType.Float16 ? states.to(float32) : states;

    private static void CheckStates(Tensor hiddenStates)
    {
        ArgumentNullException.ThrowIfNull(hiddenStates);
        if (hiddenStates.dim() < 2 || hiddenStates.numel() == 0)
        {
            throw new ArgumentException($"Hidden states must be [..., tokens, width] and not empty, not [{string.Join(", ", hiddenStates.shape)}].", nameof(hiddenStates));
        }
    }

    private SinkMask MoveToOuterDisposeScope() => new(Score.MoveToOuterDisposeScope(), IsSink.MoveToOuterDisposeScope());
}
