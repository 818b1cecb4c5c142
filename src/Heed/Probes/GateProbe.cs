using TorchSharp;

namespace Heed.Probes;

/// <summary>Statistics of every gate that acts on attention outputs within the door (multiplicative G1 gates), site by site. The calls stay fused: the probe takes the
/// gate out of the call and applies it itself, so that it sees the output before and after.</summary>
/// <remarks>Hooks that act at the output before this one see the ungated output. It keeps numbers, no tensors.</remarks>
public sealed class GateProbe : AttentionHook
{
    private readonly Dictionary<AttentionSite, (GateStatistics Statistics, double Sparsity, double[] Histogram)> _results = [];
    private readonly double _threshold;
    private torch.Tensor? _gate;

    /// <summary>Makes a probe.</summary>
    /// <param name="threshold">Gated outputs of a smaller absolute value count as zero.</param>
    public GateProbe(double threshold = 1e-2) => _threshold = threshold;

    /// <summary>The sites that had a gate.</summary>
    public IReadOnlyCollection<AttentionSite> Sites => _results.Keys;

    /// <summary>Statistics of the latest call at a site.</summary>
    public GateStatistics this[AttentionSite site] => _results[site].Statistics;

    /// <summary>Share of the gated output below the threshold in the latest call at a site.</summary>
    public double Sparsity(AttentionSite site) => _results[site].Sparsity;

    /// <summary>Histogram of the scores in 20 bins from 0 to 1 in the latest call at a site.</summary>
    public IReadOnlyList<double> Histogram(AttentionSite site) => _results[site].Histogram;

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs | AttentionStages.Output;

    /// <inheritdoc/>
    public override void OnInputs(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        _gate = call.Options.Gate;
        call.Options = call.Options with { Gate = null };
    }

    /// <inheritdoc/>
    public override torch.Tensor OnOutput(AttentionCall call, torch.Tensor output)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(output);
        if (_gate is not { } gate)
        {
            return output;
        }

        _gate = null;
        _results[call.Site] = (GateStatistics.Of(gate, output), GateStatistics.SparsityAfter(gate, output, _threshold), GateStatistics.Histogram(gate));
        return output * gate;
    }
}
