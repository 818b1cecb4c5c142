using TorchSharp;

namespace Heed.Probes;

/// <summary>Statistics of all heads at chosen or all sites, computed without the map: entropy, largest weight and its key, mean distance,
/// mass on a key set, largest weights of every row, mass received per key and its entropy.</summary>
/// <example>
/// <code>
/// using var probe = AttentionStatisticsProbe.OfEverything(topCount: 8);
/// using (model.Hooks.Install(probe)) { model.forward(ids); }
/// foreach (var site in probe.Sites) { Console.WriteLine($"{site}: {probe[site].Entropy!.mean().item&lt;float&gt;():F2} nats"); }
/// </code>
/// </example>
public sealed class AttentionStatisticsProbe : AttentionHook, IDisposable
{
    private readonly AttentionStatisticsRequest _request;
    private readonly Func<AttentionSite, bool>? _at;
    private readonly Dictionary<AttentionSite, AttentionStatistics> _results = [];
    private readonly List<AttentionSite> _sites = [];

    /// <summary>Initializes a probe.</summary>
    /// <param name="request">What is wanted.</param>
    /// <param name="at">Chooses the sites; null: all.</param>
    public AttentionStatisticsProbe(AttentionStatisticsRequest request, Func<AttentionSite, bool>? at = null)
    {
        ArgumentNullException.ThrowIfNull(request);
        if (request.TopCount is < 0 or > 64)
        {
            throw new ArgumentException($"The largest 0 to 64 weights of a row can be asked for, not {request.TopCount}.", nameof(request));
        }

        _request = request;
        _at = at;
    }

    /// <summary>The sites seen, in the order of their first call.</summary>
    public IReadOnlyList<AttentionSite> Sites => _sites;

    /// <summary>The statistics of a site's latest call. The tensors are the probe's: valid until the site's next call, <see cref="Clear"/>
    /// or <see cref="Dispose"/>.</summary>
    /// <exception cref="KeyNotFoundException">The site was not called while the probe was installed.</exception>
    public AttentionStatistics this[AttentionSite site] => _results.TryGetValue(site, out var found)
        ? found
        : throw new KeyNotFoundException(
            $"No attention call was observed at the site '{site}': run the model while the probe is installed.");

    /// <summary>A probe of everything, with the first key as the key set (the usual attention sink).</summary>
    /// <param name="topCount">How many of the largest weights of every row; 0 to 64.</param>
    /// <param name="at">Chooses the sites; null: all.</param>
    public static AttentionStatisticsProbe OfEverything(int topCount = 0, Func<AttentionSite, bool>? at = null) => new(
        new()
        {
            Entropy = true, Maximum = true, MeanDistance = true, KeySet = AttentionStatisticsRequest.FirstKey, TopCount = topCount, MassPerKey = true, KeyEntropy = true,
        },
        at);

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => _at is null || _at(site) ? AttentionStages.Statistics : AttentionStages.None;

    /// <inheritdoc/>
    public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => _request;

    /// <inheritdoc/>
    public override void OnStatistics(AttentionCall call, AttentionStatistics statistics)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(statistics);
        if (_results.Remove(call.Site, out var old))
        {
            Free(old);
        }
        else
        {
            _sites.Add(call.Site);
        }

        _results[call.Site] = new()
        {
            LogSumExp = Keep(statistics.LogSumExp),
            Entropy = _request.Entropy ? Keep(statistics.Entropy) : null,
            Maximum = _request.Maximum ? Keep(statistics.Maximum) : null,
            MaximumKey = _request.Maximum ? Keep(statistics.MaximumKey) : null,
            MeanDistance = _request.MeanDistance ? Keep(statistics.MeanDistance) : null,
            SetMass = _request.KeySet is null ? null : Keep(statistics.SetMass),
            TopWeights = _request.TopCount == 0 ? null : Keep(statistics.TopWeights),
            TopKeys = _request.TopCount == 0 ? null : Keep(statistics.TopKeys),
            MassPerKey = _request.MassPerKey ? Keep(statistics.MassPerKey) : null,
            KeyEntropy = _request.KeyEntropy ? Keep(statistics.KeyEntropy) : null,
        };
    }

    /// <summary>Forgets what was observed.</summary>
    public void Clear()
    {
        foreach (var statistics in _results.Values)
        {
            Free(statistics);
        }

        _results.Clear();
        _sites.Clear();
    }

    /// <inheritdoc/>
    public void Dispose() => Clear();

    private static torch.Tensor? Keep(torch.Tensor? statistic) => statistic?.detach().DetachFromDisposeScope();

    private static void Free(AttentionStatistics statistics)
    {
        statistics.LogSumExp?.Dispose();
        statistics.Entropy?.Dispose();
        statistics.Maximum?.Dispose();
        statistics.MaximumKey?.Dispose();
        statistics.MeanDistance?.Dispose();
        statistics.SetMass?.Dispose();
        statistics.TopWeights?.Dispose();
        statistics.TopKeys?.Dispose();
        statistics.MassPerKey?.Dispose();
        statistics.KeyEntropy?.Dispose();
    }
}
