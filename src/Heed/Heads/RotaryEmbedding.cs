using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Rotary position embedding (arXiv 2104.09864, equation 34) in the half-split layout: element i of a head turns with element i + D/2 by the angle
/// <c>position * InverseFrequencies[i]</c>.</summary>
public sealed class RotaryEmbedding
{
    /// <summary>The embedding of heads of <paramref name="width"/> elements.</summary>
    /// <param name="width">Head dimension, even.</param>
    /// <param name="theta">Base of the geometric row of wavelengths, above 0.</param>
    /// <param name="scaling">How a model stretches its context; null: not.</param>
    /// <exception cref="ArgumentException">The width is odd or below 2, or theta is not a positive number.</exception>
    public RotaryEmbedding(int width, double theta = 10000, RotaryScaling? scaling = null)
    {
        if (width < 2 || width % 2 != 0)
        {
            throw new ArgumentException($"A rotary embedding turns pairs of elements, so the head dimension must be even and at least 2, not {width}.", nameof(width));
        }

        if (!(theta > 0) || double.IsInfinity(theta))
        {
            throw new ArgumentException($"The base of a rotary embedding must be a positive number, not {theta}.", nameof(theta));
        }

        Width = width;
        var plain = Enumerable.Range(0, width / 2).Select(index => Math.Pow(theta, -2.0 * index / width)).ToArray();
        InverseFrequencies = scaling?.Apply(plain, theta) ?? plain;
        AttentionFactor = scaling?.AttentionFactor ?? 1;
    }

    /// <summary>Head dimension.</summary>
    public int Width { get; }

    /// <summary>Radians per token of every pair, <c>[D / 2]</c>.</summary>
    public IReadOnlyList<double> InverseFrequencies { get; }

    /// <summary>Factor of cosine and sine (YaRN's temperature; 1 otherwise).</summary>
    public double AttentionFactor { get; }

    /// <summary>Tables for the positions of a call. Angles are computed in float64: at position 100,000 a float32 angle is off by several thousandths.</summary>
    /// <param name="positions">int64 <c>[N]</c> or <c>[B, N]</c>.</param>
    /// <param name="type">The type of the queries and keys to turn.</param>
    public RotaryTables Tables(Tensor positions, ScalarType type)
    {
        ArgumentNullException.ThrowIfNull(positions);
        using var scope = NewDisposeScope();
        var frequencies = tensor(InverseFrequencies.ToArray(), dtype: float64, device: positions.device);
        var angles = positions.to(float64).unsqueeze(-1).unsqueeze(-1) * frequencies;
        // A scalar that nobody holds may be freed while libtorch reads it, when another thread collects garbage.
        using Scalar factor = AttentionFactor;
        var (cosine, sine) = (angles.cos() * factor, angles.sin() * factor);
        return new RotaryTables(
            cat([cosine, cosine], -1).to(type).MoveToOuterDisposeScope(), cat([-sine, sine], -1).to(type).MoveToOuterDisposeScope());
    }
}

/// <summary>Cosines and sines of a call's positions; shared by all layers.</summary>
/// <param name="Cosine"><c>[..., N, 1, D]</c>.</param>
/// <param name="SignedSine"><c>[..., N, 1, D]</c>, the first half negated.</param>
public sealed record RotaryTables(Tensor Cosine, Tensor SignedSine)
{
    /// <summary>Turns queries or keys.</summary>
    /// <param name="heads"><c>[B, N, H, D]</c>.</param>
    public Tensor Apply(Tensor heads)
    {
        ArgumentNullException.ThrowIfNull(heads);
        using var scope = NewDisposeScope();
        using Scalar one = 1;
        return (heads * Cosine).addcmul(heads.roll(heads.shape[^1] / 2, -1), SignedSine, one).MoveToOuterDisposeScope();
    }
}
