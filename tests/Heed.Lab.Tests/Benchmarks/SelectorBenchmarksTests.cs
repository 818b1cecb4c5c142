using Heed.Lab.Benchmarks;
using Heed.Masks;
using Xunit;

namespace Heed.Lab.Tests.Benchmarks;

public sealed class SelectorBenchmarksTests
{
    private static readonly BenchmarkContext Context = new(1, Quick: true, new(100, 10), TestContext.Current.CancellationToken);

    [Fact]
    public void A_selector_is_timed_whole_and_apart_beside_dense_and_beside_a_mask()
    {
        var rows = SelectorBenchmarks.Rows(
            Context, new("sample", _ => new WindowSelector(16), [256, 512], Heads: 2, Width: 16) { SelectionShare = 0.5, WholeAim = new(1) }).ToList();

        Assert.Equal(["sample/whole", "sample/selection", "sample/attention", "sample/masked"], rows.Select(row => row.Name));
        Assert.All(rows, row => Assert.True(row.Milliseconds > 0 && row.PeerMilliseconds > 0 && row.Ratio > 0));
        Assert.Equal(("ratio >= 1", "at most 50 %"), (rows[0].Aim, rows[1].Aim?.Replace("50%", "50 %", StringComparison.Ordinal)));
        Assert.All(rows, row => Assert.Null(row.Met));
    }

    [Fact]
    public void Peers_that_would_take_too_long_or_too_much_are_left_out_and_named()
    {
        var rows = SelectorBenchmarks.Rows(
            Context, new("sample", _ => new WindowSelector(16), [512], Heads: 2, Width: 16) { LongestDense = 256, LongestMasked = 256 }).ToList();

        Assert.Equal(["sample/whole", "sample/selection", "sample/attention"], rows.Select(row => row.Name));
        Assert.Null(rows[0].Ratio);
        Assert.Contains("up to 256", rows[0].Peer, StringComparison.Ordinal);
    }

    [Fact]
    public void Growth_is_the_exponent_of_time_over_length()
    {
        var times = new long[] { 100, 1_000, 2_000, 4_000 }.Select(length => (length, length == 100 ? 1e9 : 3e-6 * Math.Pow(length, 1.5))).ToList();

        var row = SelectorBenchmarks.Growth(Context with { Quick = false }, "sample", times, from: 1_000, most: 1.6);

        Assert.Equal(1.5, row!.Exponent!.Value, 3);
        Assert.Equal(("sample/growth", "N1000 to N4000", "exponent <= 1.6", true), (row.Name, row.Shape, row.Aim, row.Met));
        Assert.False(SelectorBenchmarks.Growth(Context with { Quick = false }, "sample", times, 1_000, 1.4)!.Met);
        Assert.Null(SelectorBenchmarks.Growth(Context with { Quick = false }, "sample", times, 1_000, null)!.Met);
        Assert.Null(SelectorBenchmarks.Growth(Context, "sample", times, 4_000, 1.4));
    }

    [Fact]
    public void Memory_that_is_free_is_known() => Assert.InRange(MachineMemory.Available(), 1L << 20, 1L << 50);
}
