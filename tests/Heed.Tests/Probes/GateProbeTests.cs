using Heed.Heads;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public class GateProbeTests
{
    [Fact]
    public void TheProbeSeesTheGateAndChangesNothing()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var site = new AttentionSite(0, AttentionKind.Self, "attention");
        using var module = new GatedAttention(new GatedAttentionOptions { Width = 8, Heads = 2, Gate = new GateOptions { Granularity = GateGranularity.Headwise } }, site);
        module.Hooks = new AttentionHooks();
        var input = randn(2, 5, 8);
        var (expected, scores) = module.ForwardWithGate(input);
        var probe = new GateProbe();

        Tensor observed;
        using (module.Hooks.Install(probe))
        {
            observed = module.forward(input);
        }

        Assert.True((observed - expected).abs().max().item<float>() < 1e-6);
        Assert.Equal([site], probe.Sites);
        Assert.Equal(scores!.mean().item<float>(), probe[site].MeanScore, 1e-6);
        Assert.True(probe[site].MeanAfter < probe[site].MeanBefore);
        Assert.Equal(1, probe.Histogram(site).Sum(), 1e-12);
    }

    [Fact]
    public void StatisticsAreThoseOfTheirDefinition()
    {
        using var scope = NewDisposeScope();
        var (scores, output) = (tensor(new[] { 0.25, 0.75, 1.0, 0.0 }), tensor(new[] { 4.0, -2, 0.001, 3 }));

        var statistics = GateStatistics.Of(scores, output);

        Assert.Equal((0.5, 0.5), (statistics.MeanScore, statistics.ShareBelowHalf));
        Assert.Equal(9.001 / 4, statistics.MeanBefore, 1e-12);
        Assert.Equal((1 + 1.5 + 0.001) / 4, statistics.MeanAfter, 1e-12);
        Assert.Equal(0.5, GateStatistics.SparsityAfter(scores, output, 1e-2));
        Assert.Equal(0.25, GateStatistics.SparsityAfter(scores, output, 1e-3));
        Assert.Equal([0.25, 0.25, 0, 0.5], GateStatistics.Histogram(scores, 4));
    }

    [Fact]
    public void SinkSharesCountWhatTheyShould()
    {
        using var scope = NewDisposeScope();
        var weights = tensor(new[] { 1.0, 0, 0.5, 0.5 }).view(1, 1, 1, 2, 2);

        Assert.Equal(0.75, AttentionSinks.FirstTokenShare(weights)[0].item<double>());
        Assert.Equal(0.5, AttentionSinks.FirstTokenShare(weights, skipQueries: 1)[0].item<double>());
        Assert.Throws<ArgumentException>(() => AttentionSinks.FirstTokenShare(weights, skipQueries: 2));
        Assert.Throws<ArgumentException>(() => AttentionSinks.FirstTokenShare(ones(2, 2)));
        Assert.Equal([3.0, 7.0], MassiveActivations.Maximum(tensor(new[] { 1.0, -3, 2, -7 }).view(2, 1, 1, 2)).data<double>().ToArray());
        Assert.Throws<ArgumentException>(() => MassiveActivations.Maximum(zeros(1, 0, 2)));

        using var probe = new AttentionStatisticsProbe(new AttentionStatisticsRequest { KeySet = ones(1, dtype: @bool) });
        using var map = new AttentionMapProbe();
        using var module = new GatedAttention(new GatedAttentionOptions { Width = 8, Heads = 2 }) { Hooks = new AttentionHooks() };
        using (module.Hooks.Install(probe))
        using (module.Hooks.Install(map))
        {
            using var quiet = no_grad();
            module.forward(randn(2, 6, 8));
        }

        Assert.Equal(
            AttentionSinks.FirstTokenShare(map[map.Sites[0]], 1).item<float>(), AttentionSinks.FirstTokenShare(probe[probe.Sites[0]], 1), 1e-6);
    }
}
