using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The core of EfficientVMamba's mixer (arXiv 2403.09977, section 3.2): four scans of a quarter of the tokens each (<see cref="ScanOrder.Atrous"/>), scattered back and normalised over the channels. Every scan is four
/// times as short as one of <see cref="SS2D"/>, and no token is scanned twice. Zeros that pad odd sides are part of the sequences.</summary>
public sealed class AtrousSelectiveScan : RoutedScan
{
    private readonly LayerNorm out_norm;

    /// <summary>Makes a module.</summary>
    /// <param name="channels">Number E of channels, at least 1.</param>
    /// <param name="states">Number N of states per channel, at least 1.</param>
    /// <param name="stepRank">Rank R of the step's projection; 0: a sixteenth of the channels, rounded up.</param>
    /// <param name="step">Distance of neighbours in a sequence: 2.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1.</exception>
    /// <exception cref="ArgumentException">The step is not 2.</exception>
    public AtrousSelectiveScan(int channels, int states = 16, int stepRank = 0, int step = 2)
        : base(
            nameof(AtrousSelectiveScan), step == 2 ? ScanPattern.Atrous : throw new ArgumentException($"Four atrous sequences cover every token at a step of 2 only, not {step}: use a step of 2.", nameof(step)), channels,
            stepRank > 0 ? stepRank : MambaBranch.DefaultStepRank(channels), states)
    {
        out_norm = nn.LayerNorm(channels);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Scans maps of any size.</summary>
    /// <param name="input"><c>[B, E, H, W]</c>.</param>
    /// <returns><c>[B, H, W, E]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[1] != Channels)
        {
            throw new ArgumentException($"The atrous scan takes [batch, {Channels}, height, width], not {AttentionShape.Text(input)}.", nameof(input));
        }

        using var scope = NewDisposeScope();
        return out_norm.forward(Scan(input)).MoveToOuterDisposeScope();
    }
}
