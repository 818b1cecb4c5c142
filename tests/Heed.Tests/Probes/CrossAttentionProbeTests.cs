using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class CrossAttentionProbeTests
{
    [Fact]
    public void Maps_of_cross_attention_are_collected_in_the_order_of_layers_and_no_others()
    {
        using var scope = NewDisposeScope();
        var hooks = new AttentionHooks();
        var (query, key) = (randn(1, 2, 3, 4), randn(1, 2, 5, 4));
        void Run()
        {
            Attention.Compute(query * 2, key, key, null, new(1, AttentionKind.Cross, "b"), hooks);
            Attention.Compute(query, query, query, null, new(0, AttentionKind.Self, "s"), hooks);
            Attention.Compute(query, key, key, null, new(0, AttentionKind.Cross, "a"), hooks);
        }

        using var maps = CrossAttentionProbe.Collect(hooks, Run);
        Assert.Equal([2L, 2, 3, 5], maps.Weights.shape);
        Assert.Equal(["a", "b"], maps.Sites.Select(site => site.Name));
        Assertions.Close(ones(2, 2, 3), maps.Weights.sum(-1), 1e-5);
        Assertions.Close(maps.Weights[0, 1], maps.Mean([0], [1]), 1e-6);
        Assertions.Close(maps.Weights.mean([0L, 1L]), maps.Mean(), 1e-6);
        Assert.Empty(hooks.Installed);
        Assert.Contains("layers are 0 to 1", Assert.Throws<ArgumentException>(() => maps.Mean([2])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        var hooks = new AttentionHooks();
        void Run(int batch) => Attention.Compute(randn(batch, 2, 3, 4), randn(batch, 2, 5, 4), randn(batch, 2, 5, 4), null, new(0, AttentionKind.Cross, "a"), hooks);
        Assert.Contains("no cross-attention call", Assert.Throws<InvalidOperationException>(() => CrossAttentionProbe.Collect(hooks, () => { })).Message, StringComparison.Ordinal);
        Assert.Contains("one text at a time", Assert.Throws<InvalidOperationException>(() => CrossAttentionProbe.Collect(hooks, () => Run(2))).Message, StringComparison.Ordinal);
        Assert.Contains("did not fit 10 bytes", Assert.Throws<InvalidOperationException>(() => CrossAttentionProbe.Collect(hooks, () => Run(1), budget: 10)).Message, StringComparison.Ordinal);
        Assert.Empty(hooks.Installed);
    }
}
