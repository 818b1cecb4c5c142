using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>A selective scan over a map with nothing around it: what Mamba's block has and <see cref="GatedCnnBlock"/> has not. Each route has projections, decay and skip of its own, and what the routes say is added up.</summary>
public sealed class StateSpaceScan : RoutedScan
{
    /// <summary>Makes a scan.</summary>
    /// <param name="channels">Channels E, at least 1.</param>
    /// <param name="pattern">The routes.</param>
    /// <param name="states">Number N of states per channel, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1.</exception>
    public StateSpaceScan(int channels, ScanPattern pattern, int states = 16)
        : base(nameof(StateSpaceScan), pattern, channels, MambaBranch.DefaultStepRank(channels), states)
    {
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>Scans maps of any size.</summary>
    /// <param name="input"><c>[B, H, W, E]</c>, channels last.</param>
    /// <returns><c>[B, H, W, E]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[3] != Channels)
        {
            throw new ArgumentException($"The scan takes [batch, height, width, {Channels}], not {AttentionShape.Text(input)}.", nameof(input));
        }

        using var scope = NewDisposeScope();
        return Scan(input.permute(0, 3, 1, 2)).MoveToOuterDisposeScope();
    }
}
