using Heed.Lab.Benchmarks;
using Xunit;

namespace Heed.Lab.Tests.Benchmarks;

public sealed class NeighborhoodSimulationTests
{
    [Fact]
    public void The_papers_figures_come_out() => Assert.All(
        NeighborhoodSimulation.Paper(), row => Assert.Equal(row.Published!.Value, row.EndToEnd ?? row.SpeedupBound, row.EndToEnd is null ? 0.05 : 0.01));

    [Fact]
    public void A_problem_of_ones_own_is_read_as_it_is_written()
    {
        var row = NeighborhoodSimulation.One("30x48x80:w=18x24x24,stride=16x8x8,q=4x8x8,k=2x8x8,share=0.5");
        Assert.Equal(("4x8x8", "2x8x8", true, 0.5), (row.QueryTile, row.KeyTile, row.NeedsNoMask, row.AttentionShare!.Value));
        Assert.Equal(1 / (0.5 + (0.5 / row.SpeedupBound)), row.EndToEnd!.Value, 12);
        // Without tiles, those that would be computed in.
        Assert.True(NeighborhoodSimulation.One("4096:w=512,stride=256,causal=1").SpeedupBound > 1);
    }

    [Theory]
    [InlineData("30x48", "a window w")]
    [InlineData("30x48:w=8,q=4x4", "both tiles q and k")]
    [InlineData("30x48:w=50", "does not fit 30")]
    [InlineData("30x48:w=8,z=1", "no option 'z'")]
    [InlineData("axb:w=8", "not 'axb'")]
    public void A_problem_that_cannot_be_read_is_told_in_a_sentence(string problem, string sentence) =>
        Assert.Contains(sentence, Assert.Throws<ArgumentException>(() => NeighborhoodSimulation.One(problem)).Message, StringComparison.Ordinal);
}
