using TorchSharp;

namespace Heed.Probes;

/// <summary>Which part of a site's attention map is wanted.</summary>
/// <param name="Heads">Query heads; null: all.</param>
/// <param name="Rows">Query rows, negative ones counted from the end (-1: the last); null: all.</param>
public sealed record AttentionMapRequest(IReadOnlyList<int>? Heads = null, IReadOnlyList<long>? Rows = null);

/// <summary>Attention maps of chosen sites, heads and rows, within a budget of bytes. The calls stay fused: only what was chosen is
/// computed again.</summary>
public sealed class AttentionMapProbe : AttentionHook, IDisposable
{
    private readonly Func<AttentionSite, AttentionMapRequest?> _wanted;
    private readonly Dictionary<AttentionSite, torch.Tensor> _maps = [];
    private readonly List<AttentionSite> _sites = [];
    private readonly List<AttentionSite> _leftOut = [];

    /// <summary>Initializes a probe of the same heads and rows at every chosen site.</summary>
    /// <param name="request">Heads and rows; null: all.</param>
    /// <param name="at">Chooses the sites; null: all.</param>
    /// <param name="budget">The most bytes that the kept maps take together. A map that does not fit is not computed but listed in
    /// <see cref="LeftOut"/>.</param>
    public AttentionMapProbe(AttentionMapRequest? request = null, Func<AttentionSite, bool>? at = null, long budget = 256L << 20)
        : this(site => at is null || at(site) ? request ?? new() : null, budget)
    {
    }

    /// <summary>Initializes a probe with a request per site.</summary>
    /// <param name="wanted">Heads and rows of a site; null where nothing is wanted.</param>
    /// <param name="budget">The most bytes that the kept maps take together.</param>
    public AttentionMapProbe(Func<AttentionSite, AttentionMapRequest?> wanted, long budget = 256L << 20)
    {
        ArgumentNullException.ThrowIfNull(wanted);
        if (budget < 0)
        {
            throw new ArgumentException($"The budget of a map probe is a number of bytes from 0 on, not {budget}.", nameof(budget));
        }

        _wanted = wanted;
        Budget = budget;
    }

    /// <summary>The most bytes that the maps take together.</summary>
    public long Budget { get; }

    /// <summary>Bytes that the kept maps take.</summary>
    public long Bytes { get; private set; }

    /// <summary>The sites whose map is kept, in the order of their first call.</summary>
    public IReadOnlyList<AttentionSite> Sites => _sites;

    /// <summary>The sites whose map did not fit the budget.</summary>
    public IReadOnlyList<AttentionSite> LeftOut => _leftOut;

    /// <summary>The map of a site's latest call, <c>[B, heads, rows, Nk]</c>, in the call's dtype. It is the probe's: valid until the
    /// site's next call, <see cref="Clear"/> or <see cref="Dispose"/>.</summary>
    /// <exception cref="KeyNotFoundException">The site was not called while the probe was installed, or its map did not fit the
    /// budget.</exception>
    public torch.Tensor this[AttentionSite site] => _maps.TryGetValue(site, out var map)
        ? map
        : throw new KeyNotFoundException(_leftOut.Contains(site)
            ? $"The map of the site '{site}' did not fit the budget of {Budget} bytes: choose fewer heads or rows, or give a larger budget."
            : $"No attention call was observed at the site '{site}': run the model while the probe is installed.");

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site) => _wanted(site) is null ? AttentionStages.None : AttentionStages.Map;

    /// <inheritdoc/>
    public override void OnMap(AttentionCall call)
    {
        ArgumentNullException.ThrowIfNull(call);
        var request = _wanted(call.Site) ?? new();
        var (batch, heads, queries, keys) = (call.Query.size(0), call.Query.size(1), call.Query.size(2), call.Key.size(2));
        var rows = Rows(request.Rows, queries, call.Site);
        foreach (var head in request.Heads ?? [])
        {
            if (head < 0 || head >= heads)
            {
                throw new ArgumentException($"The site '{call.Site}' has heads 0 to {heads - 1}; the map probe asks for head {head}.");
            }
        }

        if (_maps.Remove(call.Site, out var old))
        {
            Bytes -= old.numel() * old.ElementSize;
            old.Dispose();
            _sites.Remove(call.Site);
        }

        _leftOut.Remove(call.Site);
        var bytes = checked(batch * (request.Heads?.Count ?? heads) * (rows?.Length ?? queries) * keys * call.Query.ElementSize);
        if (Bytes + bytes > Budget)
        {
            _leftOut.Add(call.Site);
            return;
        }

        using var still = torch.no_grad();
        _maps[call.Site] = call.Weights(request.Heads, rows).detach().DetachFromDisposeScope();
        _sites.Add(call.Site);
        Bytes += bytes;
    }

    /// <summary>Forgets the maps.</summary>
    public void Clear()
    {
        foreach (var map in _maps.Values)
        {
            map.Dispose();
        }

        _maps.Clear();
        _sites.Clear();
        _leftOut.Clear();
        Bytes = 0;
    }

    /// <inheritdoc/>
    public void Dispose() => Clear();

    private static long[]? Rows(IReadOnlyList<long>? rows, long queries, AttentionSite site)
    {
        if (rows is null)
        {
            return null;
        }

        var counted = new long[rows.Count];
        for (var i = 0; i < counted.Length; i++)
        {
            counted[i] = rows[i] < 0 ? rows[i] + queries : rows[i];
            if (counted[i] < 0 || counted[i] >= queries)
            {
                throw new ArgumentException(
                    $"The call at the site '{site}' has {queries} query rows; the map probe asks for row {rows[i]}.");
            }
        }

        return counted;
    }
}
