namespace Heed;

/// <summary>The observers' stages, map and statistics: each hook gets what it asked for, each distinct request is computed once.</summary>
internal static class ObserverStages
{
    /// <summary>The merged requests of a site's hooks, each with the hooks that it serves and what they asked for.</summary>
    public static List<StatisticsPass> Requests(AttentionSite site, AttentionHooks hooks)
    {
        List<StatisticsPass> passes = [];
        foreach (var hook in hooks.Installed)
        {
            if (!hook.StagesAt(site).HasFlag(AttentionStages.Statistics))
            {
                continue;
            }

            var wanted = hook.StatisticsAt(site)
                ?? throw new InvalidOperationException(
                    $"The hook {hook.GetType().Name} declares the statistics stage at {site} but asks for none: return a request from "
                    + "StatisticsAt.");
            var merged = false;
            for (var i = 0; i < passes.Count && !merged; i++)
            {
                if (AttentionStatisticsRequest.TryMerge(passes[i].Request, wanted) is { } both)
                {
                    passes[i].Receivers.Add((hook, wanted));
                    passes[i] = passes[i] with { Request = both };
                    merged = true;
                }
            }

            if (!merged)
            {
                passes.Add(new(wanted, [(hook, wanted)]));
            }
        }

        return passes;
    }

    /// <summary>Calls the hooks of the stage map.</summary>
    public static void ShowMap(AttentionCall call, AttentionHooks hooks)
    {
        foreach (var hook in hooks.Installed)
        {
            if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Map))
            {
                hook.OnMap(call);
            }
        }
    }

    /// <summary>Calls the hooks that a computed request serves.</summary>
    public static void Deliver(AttentionCall call, AttentionStatistics statistics, StatisticsPass pass)
    {
        foreach (var (hook, wanted) in pass.Receivers)
        {
            // Another hook may have asked for more of the largest weights; nobody should get another width than the one asked for.
            var count = wanted.TopCount;
            hook.OnStatistics(call, statistics.TopWeights is { } weights && count > 0 && count < weights.shape[^1]
                ? statistics with { TopWeights = weights.narrow(-1, 0, count), TopKeys = statistics.TopKeys!.narrow(-1, 0, count) }
                : statistics);
        }
    }

    /// <summary>A request and whom it serves.</summary>
    public readonly record struct StatisticsPass(
        AttentionStatisticsRequest Request, List<(AttentionHook Hook, AttentionStatisticsRequest Wanted)> Receivers);
}
