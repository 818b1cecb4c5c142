using Heed.Lab.Benchmarks;
using Heed.Mixers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Benchmarks;

public sealed class UnfoldedWindowsTests
{
    [Fact]
    public void The_benchmarks_peer_computes_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (logits, small, large, value) = (randn([2, 2, 8, 9, 9 + 25]), randn(2, 5, 5), randn(2, 9, 9), randn(2, 12, 8, 9));

        var error = (DynamicConvolution.Apply(logits, small, large, value) - UnfoldedWindows.Apply(logits, small, large, value, 3, 5)).abs().max().item<float>();

        // Both average numbers of size 1 to 4 in float32.
        Assert.True(error < 1e-5, $"{error}");
    }
}
