namespace Heed.Heads;

/// <summary>How a model trained at one length turns its rotary embedding at longer ones.</summary>
public abstract record RotaryScaling
{
    /// <summary>Factor of cosine and sine.</summary>
    public virtual double AttentionFactor => 1;

    /// <summary>The frequencies to use in place of the plain ones.</summary>
    /// <param name="inverseFrequencies">Radians per token of every pair.</param>
    /// <param name="theta">The base they were made from.</param>
    public abstract double[] Apply(double[] inverseFrequencies, double theta);
}

/// <summary>Position interpolation (arXiv 2306.15595): every angle divided by one factor.</summary>
/// <param name="Factor">How many times longer the context becomes.</param>
public sealed record LinearRotaryScaling(double Factor) : RotaryScaling
{
    /// <inheritdoc/>
    public override double[] Apply(double[] inverseFrequencies, double theta) => [.. inverseFrequencies.Select(frequency => frequency / Factor)];
}

/// <summary>The scaling of Llama 3.1: wavelengths longer than the original context over <paramref name="LowFrequencyFactor"/> are stretched, those shorter than it over
/// <paramref name="HighFrequencyFactor"/> kept, those between blended.</summary>
/// <param name="Factor">How many times longer the context becomes.</param>
/// <param name="LowFrequencyFactor">Turns within the original context below which a pair is stretched fully.</param>
/// <param name="HighFrequencyFactor">Turns within the original context above which a pair is left alone.</param>
/// <param name="OriginalLength">Context length in tokens that the model was first trained at.</param>
public sealed record Llama3RotaryScaling(double Factor, double LowFrequencyFactor, double HighFrequencyFactor, double OriginalLength) : RotaryScaling
{
    /// <inheritdoc/>
    public override double[] Apply(double[] inverseFrequencies, double theta) => [.. inverseFrequencies.Select(Scale)];

    private double Scale(double frequency)
    {
        var turns = OriginalLength * frequency / (2 * Math.PI);
        var kept = Math.Clamp((turns - LowFrequencyFactor) / (HighFrequencyFactor - LowFrequencyFactor), 0, 1);
        return (frequency * kept) + (frequency / Factor * (1 - kept));
    }
}

/// <summary>YaRN (arXiv 2309.00071, section 3.2 and equation 22): pairs that turn more than <paramref name="BetaFast"/> times within the original context are kept, those that turn less than
/// <paramref name="BetaSlow"/> times stretched, with a ramp over the index between; scores are sharpened by the square of <see cref="RotaryScaling.AttentionFactor"/>.</summary>
/// <param name="Factor">How many times longer the context becomes.</param>
/// <param name="OriginalLength">Context length in tokens that the model was first trained at.</param>
/// <param name="BetaFast">Turns at which the ramp ends; 32 in the paper.</param>
/// <param name="BetaSlow">Turns at which the ramp starts; 1 in the paper.</param>
/// <param name="Temperature">Factor of cosine and sine; null: <c>0.1 ln(factor) + 1</c>.</param>
/// <param name="Truncate">Whether the ends of the ramp are rounded outwards to whole indices.</param>
public sealed record YarnRotaryScaling(
    double Factor, double OriginalLength, double BetaFast = 32, double BetaSlow = 1, double? Temperature = null, bool Truncate = true) : RotaryScaling
{
    /// <inheritdoc/>
    public override double AttentionFactor => Temperature ?? (Factor > 1 ? (0.1 * Math.Log(Factor)) + 1 : 1);

    /// <inheritdoc/>
    public override double[] Apply(double[] inverseFrequencies, double theta)
    {
        ArgumentNullException.ThrowIfNull(inverseFrequencies);
        var width = inverseFrequencies.Length * 2;
        double Index(double turns) => width * Math.Log(OriginalLength / (turns * 2 * Math.PI)) / (2 * Math.Log(theta));
        var (low, high) = (Index(BetaFast), Index(BetaSlow));
        if (Truncate)
        {
            (low, high) = (Math.Floor(low), Math.Ceiling(high));
        }

        (low, high) = (Math.Max(low, 0), Math.Min(high, width - 1));
        if (low == high)
        {
            // A ramp of no width would divide by zero.
            high += 0.001;
        }

        return [.. inverseFrequencies.Select((frequency, index) =>
        {
            var stretched = Math.Clamp((index - low) / (high - low), 0, 1);
            return (frequency / Factor * stretched) + (frequency * (1 - stretched));
        })];
    }
}
