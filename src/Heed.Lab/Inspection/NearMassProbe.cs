using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>
/// Measures how much of every row's mass stays near: exp of the log-sum-exp over the nearest keys less that over all keys, which costs a narrow window instead of a map.
/// </summary>
/// <param name="hooks">The hooks that this one is installed among: where another one rewrites scores or weights, its map is what counts.</param>
internal sealed class NearMassProbe(AttentionHooks hooks) : AttentionHook
{
    private const int Before = HeadStatistics.NearTokens - 1;

    /// <summary>Mass of each row on its nearest keys, <c>[H, N]</c>, by layer.</summary>
    public Dictionary<int, float[]> Mass { get; } = [];

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Statistics;

    public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => new();

    public override void OnStatistics(AttentionCall call, AttentionStatistics statistics)
    {
        using var still = no_grad();
        using var scope = NewDisposeScope();
        var edited = (hooks.StagesAt(call.Site) & (AttentionStages.Scores | AttentionStages.Weights)) != AttentionStages.None;
        var near = edited ? call.Weights(null).triu(-Before).sum(-1) : (Windowed(call) - statistics.LogSumExp!).exp();
        Mass[call.Site.Layer] = near[0].to(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();
    }

    private static Tensor Windowed(AttentionCall call)
    {
        var window = new AttentionHooks();
        using var probe = new AttentionStatisticsProbe(new());
        using var installed = window.Install(probe);
        var options = call.Options with { WindowBefore = Math.Min(call.Options.WindowBefore ?? Before, Before), Sinks = null, Gate = null };
        Attention.Compute(call.Query, call.Key, call.Value.narrow(-1, 0, 1), options, call.Site, window).Dispose();
        return probe[call.Site].LogSumExp!.alias();
    }
}
