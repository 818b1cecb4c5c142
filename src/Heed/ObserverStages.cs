namespace Heed;

/// <summary>The observers' stages, map and statistics: each hook gets what it asked for, each distinct request is computed once.</summary>
internal static class ObserverStages
{
    /// <summary>Collects the requests of a site's hooks, merges what can be merged, computes, and calls the hooks in order.</summary>
    /// <param name="call">The call.</param>
    /// <param name="hooks">The hooks.</param>
    /// <param name="compute">Computes the statistics of the call.</param>
    public static void Run(AttentionCall call, AttentionHooks? hooks, Func<AttentionStatisticsRequest, AttentionStatistics> compute)
    {
        foreach (var hook in hooks?.Installed ?? [])
        {
            if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Map))
            {
                hook.OnMap(call);
            }
        }

        foreach (var (request, receivers) in Requests(call.Site, hooks))
        {
            Deliver(call, compute(request), receivers);
        }
    }

    /// <summary>The merged requests of a site's hooks, each with the hooks that it serves and what they asked for.</summary>
    public static List<(AttentionStatisticsRequest Request, List<(AttentionHook Hook, AttentionStatisticsRequest Wanted)> Receivers)> Requests(
        AttentionSite site, AttentionHooks? hooks)
    {
        List<(AttentionStatisticsRequest Request, List<(AttentionHook, AttentionStatisticsRequest)> Receivers)> passes = [];
        foreach (var hook in hooks?.Installed ?? [])
        {
            if (!hook.StagesAt(site).HasFlag(AttentionStages.Statistics))
            {
                continue;
            }

            var wanted = hook.StatisticsAt(site)
                ?? throw new InvalidOperationException($"The hook {hook.GetType().Name} declares the statistics stage at {site} but asks for none: return a request from StatisticsAt.");
            var merged = false;
            for (var i = 0; i < passes.Count && !merged; i++)
            {
                if (AttentionStatisticsRequest.TryMerge(passes[i].Request, wanted) is { } both)
                {
                    passes[i].Receivers.Add((hook, wanted));
                    passes[i] = (both, passes[i].Receivers);
                    merged = true;
                }
            }

            if (!merged)
            {
                passes.Add((wanted, [(hook, wanted)]));
            }
        }

        return passes;
    }

    /// <summary>Calls the hooks that a computed request serves.</summary>
    public static void Deliver(AttentionCall call, AttentionStatistics statistics, List<(AttentionHook Hook, AttentionStatisticsRequest Wanted)> receivers)
    {
        foreach (var (hook, wanted) in receivers)
        {
            // Another hook may have asked for more of the largest weights; nobody should get another width than the one asked for.
            var count = wanted.TopCount;
            hook.OnStatistics(call, statistics.TopWeights is { } weights && count > 0 && count < weights.shape[^1]
                ? statistics with { TopWeights = weights.narrow(-1, 0, count), TopKeys = statistics.TopKeys!.narrow(-1, 0, count) }
                : statistics);
        }
    }
}
