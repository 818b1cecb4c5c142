using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Probes;

/// <summary>Extreme-token measures of one attention site.</summary>
public sealed record ExtremeTokenMeasures
{
    /// <summary>The site.</summary>
    public required AttentionSite Site { get; init; }

    /// <summary>Mean mass on the sink over the queries at which the head has no task (all, where none was named), by query head.</summary>
    public required IReadOnlyList<double> SinkAttention { get; init; }

    /// <summary>Mean mass on the sink over the other queries, by query head; null where none was named.</summary>
    public IReadOnlyList<double>? SinkAttentionAtWork { get; init; }

    /// <summary>How far each head is active-dormant, -1 to 1: <see cref="SinkAttention"/> less <see cref="SinkAttentionAtWork"/>; null where no queries were named.</summary>
    public IReadOnlyList<double>? ActiveDormantScore => SinkAttentionAtWork is { } work ? [.. SinkAttention.Zip(work, (rest, busy) => rest - busy)] : null;

    /// <summary>Mean sink logit gap over the queries of <see cref="SinkAttention"/> from the third on, by query head; null where scores are more than scaled products, or queries are not the keys' tokens.</summary>
    public IReadOnlyList<double>? SinkLogitGap { get; init; }

    /// <summary>Mean norm of the sink's value, by key/value head.</summary>
    public required IReadOnlyList<double> SinkValueNorm { get; init; }

    /// <summary>Mean norm of the other tokens' values, by key/value head.</summary>
    public required IReadOnlyList<double> OthersValueNorm { get; init; }

    /// <summary>The value-state drain by key/value head: the sink's norm over the others', below 1 where the sink's value is small.</summary>
    public IReadOnlyList<double> ValueDrain => [.. SinkValueNorm.Zip(OthersValueNorm, (sink, others) => sink / others)];

    /// <summary>The residual peak behind the block, means over the batch (the largest: over all); null where the model shows no residual streams.</summary>
    public ResidualPeak? ResidualPeak { get; init; }
}

/// <summary>Measures attention sinks, value-state drains and residual peaks of the token at position 0 (arXiv 2410.13835) on any model. Softmax calls stay fused; for other normalisers the sink's column is computed in parts.</summary>
/// <example>
/// <code>
/// using var probe = new ExtremeTokenProbe();
/// using (probe.Install(model.Hooks)) { model.forward(ids); }
/// foreach (var site in probe.Measure(dormantQueries)) { Console.WriteLine($"{site.Site}: {site.SinkAttention.Max():F2}"); }
/// </code>
/// </example>
public sealed class ExtremeTokenProbe : IDisposable
{
    private readonly Calls _calls = new();
    private readonly Streams _streams = new();

    /// <summary>The sites seen, in the order of their first call.</summary>
    public IReadOnlyList<AttentionSite> Sites => _calls.Sites;

    /// <summary>Installs the probe until the returned scope is disposed.</summary>
    /// <param name="hooks">The model's hooks.</param>
    public IDisposable Install(AttentionHooks hooks)
    {
        ArgumentNullException.ThrowIfNull(hooks);
        return new InstalledTogether(hooks.Install(_calls), hooks.Install(_streams));
    }

    /// <summary>What the latest pass showed.</summary>
    /// <param name="dormantQueries">The queries at which heads are expected to have no task, boolean <c>[B, Nq]</c> or <c>[Nq]</c>; null: all.</param>
    /// <returns>The measures of every site, in the order of their first call.</returns>
    /// <exception cref="ArgumentException">The queries do not fit, or the sequence has one token.</exception>
    public IReadOnlyList<ExtremeTokenMeasures> Measure(Tensor? dormantQueries = null)
    {
        using var still = no_grad();
        if (Sites.FirstOrDefault(site => _calls[site].ValueNorm.shape[2] < 2) is { Name: not null } single)
        {
            throw new ArgumentException($"A sink is compared with other tokens, and the call at the site '{single}' had one key.");
        }

        return [.. Sites.Select(site =>
        {
            using var scope = NewDisposeScope();
            var (mass, gap, norms) = _calls[site];
            var weights = ExtremeTokens.Weights(mass, dormantQueries);
            using Scalar one = 1;
            return new ExtremeTokenMeasures
            {
                Site = site,
                SinkAttention = Values(ExtremeTokens.MeanOver(mass, weights)),
                SinkAttentionAtWork = dormantQueries is null ? null : Values(ExtremeTokens.MeanOver(mass, weights.neg().add(one))),
                SinkLogitGap = gap is null || gap.shape[2] < 3 ? null : Values(ExtremeTokens.MeanOver(gap.narrow(2, 2, gap.shape[2] - 2), weights.narrow(2, 2, gap.shape[2] - 2))),
                SinkValueNorm = Values(norms.select(2, 0).mean([0L])),
                OthersValueNorm = Values(norms.narrow(2, 1, norms.shape[2] - 1).mean([0L, 2L])),
                ResidualPeak = _streams.Norms.TryGetValue(site.Layer, out var residual) ? PeakOf(residual) : null,
            };
        })];
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _calls.Dispose();
        _streams.Dispose();
    }

    private static ResidualPeak PeakOf(Tensor norms)
    {
        var others = norms.narrow(1, 1, norms.shape[1] - 1);
        return new(norms.select(1, 0).mean().to(float64).item<double>(), others.mean().to(float64).item<double>(), others.max().to(float64).item<double>());
    }

    private static double[] Values(Tensor tensor) => tensor.to(float64).cpu().contiguous().data<double>().ToArray();

    private sealed class Calls : AttentionHook, IDisposable
    {
        // Of a map that is computed to read one column.
        private const long PartBytes = 16L << 20;

        private readonly Dictionary<AttentionSite, (Tensor Mass, Tensor? Gap, Tensor ValueNorm)> _found = [];
        private readonly HashSet<AttentionSite> _otherNormalizers = [];
        private readonly List<AttentionSite> _sites = [];

        public IReadOnlyList<AttentionSite> Sites => _sites;

        public (Tensor Mass, Tensor? Gap, Tensor ValueNorm) this[AttentionSite site] => _found[site];

        // Statistics are defined for softmax only; which normaliser a call has is seen at its inputs, before the later stages are asked for.
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Inputs | (_otherNormalizers.Contains(site) ? AttentionStages.Map : AttentionStages.Statistics);

        public override AttentionStatisticsRequest StatisticsAt(AttentionSite site) => new() { KeySet = AttentionStatisticsRequest.FirstKey };

        public override void OnInputs(AttentionCall call)
        {
            if (call.Options.Normalizer == Normalizer.Softmax)
            {
                _otherNormalizers.Remove(call.Site);
            }
            else
            {
                _otherNormalizers.Add(call.Site);
            }
        }

        public override void OnStatistics(AttentionCall call, AttentionStatistics statistics) => Keep(call, statistics.SetMass!.detach().alias());

        public override void OnMap(AttentionCall call)
        {
            using var scope = NewDisposeScope();
            using var still = no_grad();
            var (rows, perRow) = (call.Query.size(2), call.Query.size(0) * call.Query.size(1) * call.Key.size(2) * call.Query.ElementSize);
            var part = Math.Max(1, PartBytes / Math.Max(1, perRow));
            var columns = new List<Tensor>();
            for (long first = 0; first < rows; first += part)
            {
                columns.Add(call.Weights(null, [.. Enumerable.Range(0, (int)Math.Min(part, rows - first)).Select(row => first + row)]).select(-1, 0).clone());
            }

            Keep(call, cat(columns, 2));
        }

        public void Dispose()
        {
            foreach (var (_, found) in _found)
            {
                Free(found);
            }

            _found.Clear();
            _sites.Clear();
        }

        private void Keep(AttentionCall call, Tensor mass)
        {
            using var still = no_grad();
            if (_found.Remove(call.Site, out var old))
            {
                Free(old);
            }
            else
            {
                _sites.Add(call.Site);
            }

            var products = call.Options is { Biases.Count: 0, Softcap: null } && call.Query.size(2) == call.Key.size(2);
            var gap = products ? ExtremeTokens.SinkLogitGap(call.Query, call.Key, call.Options.Scale) : null;
            _found[call.Site] = (mass.DetachFromDisposeScope(), gap?.DetachFromDisposeScope(), ExtremeTokens.ValueNorm(call.Value).DetachFromDisposeScope());
        }

        private static void Free((Tensor Mass, Tensor? Gap, Tensor ValueNorm) found)
        {
            found.Mass.Dispose();
            found.Gap?.Dispose();
            found.ValueNorm.Dispose();
        }
    }

    private sealed class Streams : StreamHook, IDisposable
    {
        public Dictionary<int, Tensor> Norms { get; } = [];

        public override bool ActsAt(StreamSite site) => site.Point == StreamPoint.BlockOutput;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            using var still = no_grad();
            if (Norms.Remove(site.Layer, out var old))
            {
                old.Dispose();
            }

            Norms[site.Layer] = SinkMask.Norm(states).DetachFromDisposeScope();
            return states;
        }

        public void Dispose()
        {
            foreach (var norms in Norms.Values)
            {
                norms.Dispose();
            }

            Norms.Clear();
        }
    }
}
