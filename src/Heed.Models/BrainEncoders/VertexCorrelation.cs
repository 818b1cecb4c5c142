using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>How well responses are predicted, vertex by vertex.</summary>
public static class VertexCorrelation
{
    /// <summary>Pearson's correlation over pictures.</summary>
    /// <param name="prediction"><c>[N, V]</c>, at least two pictures.</param>
    /// <param name="measured"><c>[N, V]</c>.</param>
    /// <returns>float64 <c>[V]</c>; 0 where either does not vary.</returns>
    /// <exception cref="ArgumentException">The shapes differ or there are fewer than two pictures.</exception>
    public static Tensor Pearson(Tensor prediction, Tensor measured)
    {
        ArgumentNullException.ThrowIfNull(prediction);
        ArgumentNullException.ThrowIfNull(measured);
        if (prediction.dim() != 2 || prediction.shape[0] < 2 || !prediction.shape.SequenceEqual(measured.shape))
        {
            throw new ArgumentException($"Correlation needs predicted and measured responses [pictures, vertices] of at least two pictures, not [{string.Join(", ", prediction.shape)}] and [{string.Join(", ", measured.shape)}].", nameof(measured));
        }

        using var scope = NewDisposeScope();
        using Scalar smallest = double.Epsilon;
        Tensor Centred(Tensor values) => values.to(float64) is var numbers ? numbers - numbers.mean([0L], keepdim: true) : values;
        var (first, second) = (Centred(prediction), Centred(measured));
        var norms = (first.square().sum([0L]) * second.square().sum([0L])).sqrt();
        return ((first * second).sum([0L]) / norms.clamp_min(smallest)).MoveToOuterDisposeScope();
    }

    /// <summary>Fraction of the explainable variance that is explained: the squared correlation over the noise ceiling.</summary>
    /// <param name="correlation">Correlations, <c>[V]</c>; negative ones explain nothing.</param>
    /// <param name="noiseCeiling">The share of the variance that is not noise, <c>[V]</c>, above 0.</param>
    /// <returns><c>[V]</c>.</returns>
    public static Tensor ExplainedFraction(Tensor correlation, Tensor noiseCeiling)
    {
        ArgumentNullException.ThrowIfNull(correlation);
        ArgumentNullException.ThrowIfNull(noiseCeiling);
        using var scope = NewDisposeScope();
        using Scalar zero = 0;
        return (correlation.clamp_min(zero).square() / noiseCeiling).MoveToOuterDisposeScope();
    }
}
