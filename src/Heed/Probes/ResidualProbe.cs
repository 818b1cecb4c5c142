using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>Norms of the residual stream after every block, and the cosines with the candidates for the primary sink: what <see cref="SinkDetector"/> needs, in O(L N) memory instead of the streams themselves. Calls stay as they are.</summary>
/// <example>
/// <code>
/// var probe = new ResidualProbe();
/// using (model.Hooks.Install(probe)) { model.forward(ids); }
/// var sinks = probe.Detect();
/// </code>
/// </example>
public sealed class ResidualProbe : StreamHook
{
    private readonly SortedDictionary<int, (double[] Norms, double[][] Cosines)[]> _layers = [];
    private readonly IReadOnlyList<int> _candidates;

    /// <summary>Initializes a probe.</summary>
    /// <param name="candidates">Positions of which one is the primary sink; null: <see cref="SinkDetector.Candidates"/>.</param>
    /// <exception cref="ArgumentException">There is none, or one is negative.</exception>
    public ResidualProbe(IReadOnlyList<int>? candidates = null)
    {
        _candidates = candidates ?? SinkDetector.Candidates;
        if (_candidates.Count == 0 || _candidates.Any(candidate => candidate < 0))
        {
            throw new ArgumentException("Candidates for the primary sink are at least one position from 0 on.", nameof(candidates));
        }
    }

    /// <summary>The layers seen, from the first.</summary>
    public IReadOnlyList<int> Layers => [.. _layers.Keys];

    /// <summary>Norms of all tokens after a block in the latest pass.</summary>
    /// <param name="layer">The block.</param>
    /// <param name="item">The batch item.</param>
    /// <exception cref="KeyNotFoundException">The block was not run while the probe was installed, or there is no such item.</exception>
    public IReadOnlyList<double> Norms(int layer, int item = 0) => _layers.TryGetValue(layer, out var found) && item >= 0 && item < found.Length
        ? found[item].Norms
        : throw new KeyNotFoundException($"No residual stream of block {layer} and batch item {item} was observed: run the model while the probe is installed.");

    /// <summary>The residual peak of a block: the sink's norm over the mean and over the largest of the others' (arXiv 2410.13835).</summary>
    /// <param name="layer">The block.</param>
    /// <param name="sink">The sink's position.</param>
    /// <param name="item">The batch item.</param>
    /// <exception cref="ArgumentException">There is no such token, or no other.</exception>
    public ResidualPeak Peak(int layer, int sink = 0, int item = 0) => ResidualPeak.Of(Norms(layer, item), sink);

    /// <summary>The sinks of a sequence.</summary>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="item">The batch item.</param>
    /// <exception cref="ArgumentException">There are fewer than two layers, or a candidate lies past the last token.</exception>
    public SinkMap Detect(SinkDetectorOptions? options = null, int item = 0)
    {
        if (_layers.Values.FirstOrDefault(layer => item < 0 || item >= layer.Length) is { } few)
        {
            throw new ArgumentException($"The batch has the items 0 to {few.Length - 1}, not {item}.", nameof(item));
        }

        return SinkDetector.Detect([.. _layers.Values.Select(layer => layer[item].Norms)], [.. _layers.Values.Select(layer => layer[item].Cosines)], _candidates, options ?? new());
    }

    /// <inheritdoc/>
    public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockOutput;

    /// <inheritdoc/>
    public override Tensor OnStates(StreamSite site, Tensor states)
    {
        ArgumentNullException.ThrowIfNull(states);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        _layers[site.Layer] = [.. Enumerable.Range(0, (int)states.shape[0]).Select(item => SinkDetector.Describe(states[item].detach(), _candidates))];
        return states;
    }
}

/// <summary>How far a sink's residual stream stands out.</summary>
/// <param name="Norm">The sink's norm.</param>
/// <param name="OthersMean">Mean norm of the other tokens.</param>
/// <param name="OthersMaximum">Their largest.</param>
public readonly record struct ResidualPeak(double Norm, double OthersMean, double OthersMaximum)
{
    /// <summary>The sink's norm over the mean of the others.</summary>
    public double OverMean => Norm / OthersMean;

    /// <summary>The sink's norm over the largest of the others.</summary>
    public double OverMaximum => Norm / OthersMaximum;

    /// <summary>From the norms of all tokens.</summary>
    /// <param name="norms">Norms, at least two.</param>
    /// <param name="sink">The sink's position.</param>
    /// <exception cref="ArgumentException">There is no such token, or no other.</exception>
    public static ResidualPeak Of(IReadOnlyList<double> norms, int sink = 0)
    {
        ArgumentNullException.ThrowIfNull(norms);
        if (norms.Count < 2 || sink < 0 || sink >= norms.Count)
        {
            throw new ArgumentException($"A sink is compared with others: token {sink} of {norms.Count} cannot be.", nameof(sink));
        }

        var others = norms.Where((_, token) => token != sink).ToArray();
        return new(norms[sink], others.Average(), others.Max());
    }
}
