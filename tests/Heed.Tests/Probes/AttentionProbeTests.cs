using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class AttentionProbeTests
{
    private static readonly AttentionSite Site = new(0, AttentionKind.Self, "layer.0");

    [Fact]
    public void Statistics_are_those_of_the_map()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(2, 4, 9, 8), randn(2, 2, 12, 8), randn(2, 2, 12, 8));
        var sinks = randn(4);
        foreach (var options in new[] { AttentionOptions.Default, AttentionOptions.CausalSelf, AttentionOptions.CausalSelf with { Sinks = sinks, WindowBefore = 3 } })
        {
            using var map = Map(q, k, v, options);
            var hooks = new AttentionHooks();
            using var probe = AttentionStatisticsProbe.OfEverything(topCount: 5);
            using (hooks.Install(probe))
            {
                Attention.Compute(q, k, v, options, Site, hooks);
            }

            var found = probe[Site];
            var (rows, keys) = (map.shape[2], map.shape[3]);
            var weights = map.to(float64).cpu().contiguous().data<double>().ToArray();
            var sink = options.Sinks is null ? 0 : 1.0;
            for (var row = 0; row < weights.Length / keys; row++)
            {
                var w = weights.AsSpan(row * (int)keys, (int)keys).ToArray();
                var mass = w.Sum();
                var entropy = -w.Append(sink * (1 - mass)).Where(x => x > 0).Sum(x => x * Math.Log(x));
                var position = (row % rows) + keys - rows;
                var order = Enumerable.Range(0, (int)keys).OrderByDescending(j => w[j]).ToArray();
                Assert.Equal(entropy, At(found.Entropy!, row), 1e-5);
                Assert.Equal(w[order[0]], At(found.Maximum!, row), 1e-5);
                Assert.Equal(order[0], At(found.MaximumKey!, row));
                Assert.Equal(w.Select((x, j) => x * Math.Abs(position - j)).Sum(), At(found.MeanDistance!, row), 1e-5);
                Assert.Equal(w[0], At(found.SetMass!, row), 1e-5);
                for (var top = 0; top < 5; top++)
                {
                    Assert.Equal(w[order[top]], At(found.TopWeights!, (row * 5) + top), 1e-5);
                    Assert.Equal(w[order[top]] == 0 ? -1 : order[top], At(found.TopKeys!, (row * 5) + top));
                }
            }

            Assertions.Close(map.sum(-2), found.MassPerKey!, 1e-5);
            var shares = map / map.sum(-2, keepdim: true).clamp(min: 1e-12);
            Assertions.Close(xlogy(shares, shares).sum(-2).neg(), found.KeyEntropy!, 1e-4);
        }
    }

    [Fact]
    public void Probes_share_a_pass_and_get_what_they_asked_for()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 6, 4), randn(1, 2, 6, 4), randn(1, 2, 6, 4));
        var hooks = new AttentionHooks();
        var second = tensor(new[] { false, true });
        using var a = AttentionStatisticsProbe.OfEverything(topCount: 4);
        using var b = new AttentionStatisticsProbe(new() { TopCount = 2 });
        using var c = new AttentionStatisticsProbe(new() { KeySet = second });
        using var d = new AttentionStatisticsProbe(new() { Entropy = true }, site => site.Layer == 1);
        foreach (var probe in new[] { a, b, c, d })
        {
            hooks.Install(probe);
        }

        using var map = Map(q, k, v, AttentionOptions.Default);
        Attention.Compute(q, k, v, null, Site, hooks);
        Assert.Equal([1, 2, 6, 4], a[Site].TopWeights!.shape);
        Assert.Equal([1, 2, 6, 2], b[Site].TopWeights!.shape);
        Assert.Null(b[Site].Entropy);
        Assertions.Close(map.select(-1, 0), a[Site].SetMass!, 1e-5);
        Assertions.Close(map.select(-1, 1), c[Site].SetMass!, 1e-5);
        Assert.Empty(d.Sites);
        Assert.Throws<KeyNotFoundException>(() => d[Site]);
    }

    [Fact]
    public void Probes_watch_a_training_step_without_a_trace_in_its_gradients()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 6, 4).requires_grad_(), randn(1, 2, 6, 4), randn(1, 2, 6, 4));
        Attention.Compute(q, k, v, AttentionOptions.CausalSelf).sum().backward();
        var expected = q.grad!.clone();
        q.grad = null;
        var hooks = new AttentionHooks();
        using var statistics = AttentionStatisticsProbe.OfEverything();
        using var maps = new AttentionMapProbe();
        hooks.Install(statistics);
        hooks.Install(maps);
        Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site, hooks).sum().backward();
        Assertions.Close(expected, q.grad!, 1e-6);
        Assert.False(statistics[Site].Entropy!.requires_grad);
        Assert.False(maps[Site].requires_grad);
        Assertions.Close(PlainAttention.LogSumExp(q, k, AttentionOptions.CausalSelf), statistics[Site].LogSumExp!, 1e-5);
        Assertions.Close(maps[Site].sum(-2), statistics[Site].MassPerKey!, 1e-5);
    }

    [Fact]
    public void Maps_of_chosen_heads_and_rows_within_the_budget()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(2, 4, 6, 8), randn(2, 2, 9, 8), randn(2, 2, 9, 8));
        using var map = Map(q, k, v, AttentionOptions.CausalSelf);
        var hooks = new AttentionHooks();
        using var probe = new AttentionMapProbe(new AttentionMapRequest([3, 1], [-1, 2]), budget: 2 * (2 * 2 * 2 * 9 * sizeof(float)));
        hooks.Install(probe);
        for (var layer = 0; layer < 3; layer++)
        {
            Attention.Compute(q, k, v, AttentionOptions.CausalSelf, Site with { Layer = layer, Name = $"layer.{layer}" }, hooks);
        }

        var expected = map.index_select(1, tensor(new long[] { 3, 1 })).index_select(2, tensor(new long[] { 5, 2 }));
        Assertions.Close(expected, probe[Site], 1e-6);
        Assert.Equal(2, probe.Sites.Count);
        Assert.Equal(2, Assert.Single(probe.LeftOut).Layer);
        Assert.Contains("budget", Assert.Throws<KeyNotFoundException>(() => probe[probe.LeftOut[0]]).Message);
        Assert.Equal(probe.Budget, probe.Bytes);
        probe.Clear();
        Assert.Equal(0, probe.Bytes);
    }

    [Fact]
    public void Map_probe_refuses_heads_and_rows_that_do_not_exist()
    {
        using var scope = NewDisposeScope();
        var q = randn(1, 2, 3, 4);
        foreach (var request in new AttentionMapRequest[] { new([2]), new(null, [3]), new(null, [-4]) })
        {
            var hooks = new AttentionHooks();
            using var probe = new AttentionMapProbe(request);
            hooks.Install(probe);
            Assert.Throws<ArgumentException>(() => Attention.Compute(q, q, q, null, Site, hooks));
        }
    }

    private static double At(Tensor statistic, long index) => statistic.view(-1)[index].to(float64).item<double>();

    private static Tensor Map(Tensor q, Tensor k, Tensor v, AttentionOptions options) =>
        new AttentionCall(Site, q, k, v, options).Weights(null).DetachFromDisposeScope();
}
