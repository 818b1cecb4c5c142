using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

/// <summary>Comparisons of tensors with a stated tolerance.</summary>
internal static class Assertions
{
    /// <summary>Fails unless |actual - expected| &lt;= tolerance * (1 + |expected|) everywhere (equal infinities and NaN in the same places
    /// allowed).</summary>
    public static void Close(Tensor expected, Tensor actual, double tolerance, string what = "the result")
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        Assert.True(expected.shape.SequenceEqual(actual.shape), $"{what}: shape [{string.Join(", ", actual.shape)}] is not [{string.Join(", ", expected.shape)}]");
        if (expected.numel() == 0)
        {
            return;
        }

        var (e, a) = (expected.to(float64).cpu(), actual.to(float64).cpu());
        Assert.True(e.isnan().eq(a.isnan()).all().item<bool>(), $"{what}: NaN in different places");
        var same = e.eq(a).logical_or(e.isnan());
        var excess = where(same, zeros_like(e), (a - e).abs() / (1 + e.abs()));
        var worst = excess.max().item<double>();
        Assert.True(worst <= tolerance, $"{what}: off by {worst:E2} (relative to 1 + magnitude), more than {tolerance:E2}");
    }
}
