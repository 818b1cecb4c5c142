using Heed.Edits;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

public sealed class HeadScalingTests
{
    private static readonly AttentionSite Site = new(2, AttentionKind.Self, "layer.2");

    [Fact]
    public void Scales_the_named_heads_of_the_named_layer_only()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(2, 3, 5, 4), randn(2, 3, 5, 4), randn(2, 3, 5, 4));
        var plain = Attention.Compute(q, k, v);
        var expected = plain * tensor(new float[] { 0, 1, -1.5f }).view(1, 3, 1, 1);
        var hooks = new AttentionHooks();
        using (hooks.Install(new HeadScaling([new(2, 0, 0), new(2, 2, 3), new(2, 2, -0.5), new(1, 1, 0), new(2, 1, 0, AttentionKind.Cross)])))
        {
            Assertions.Close(expected, Attention.Compute(q, k, v, null, Site, hooks), 1e-6);
            Assertions.Close(plain, Attention.Compute(q, k, v, null, Site with { Layer = 0 }, hooks), 1e-6);
        }

        using (hooks.Install(HeadScaling.Zero((2, 1))))
        {
            Assertions.Close(plain * tensor(new float[] { 1, 0, 1 }).view(1, 3, 1, 1), Attention.Compute(q, k, v, null, Site, hooks), 1e-6);
        }
    }

    [Fact]
    public void Refuses_heads_that_do_not_exist()
    {
        using var scope = NewDisposeScope();
        Assert.Throws<ArgumentException>(() => new HeadScaling([new(0, 0, double.NaN)]));
        Assert.Throws<ArgumentException>(() => new HeadScaling([new(0, -1, 1)]));
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(HeadScaling.Zero((2, 7)));
        var q = randn(1, 3, 5, 4);
        Assert.Contains("heads 0 to 2", Assert.Throws<ArgumentException>(() => Attention.Compute(q, q, q, null, Site, hooks)).Message);
    }
}
