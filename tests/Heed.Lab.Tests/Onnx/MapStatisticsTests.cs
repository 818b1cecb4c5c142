using Heed.Lab.Inspection;
using Heed.Lab.Onnx;
using Xunit;

namespace Heed.Lab.Tests.Onnx;

public sealed class MapStatisticsTests
{
    [Fact]
    public void AHeadThatLooksAtItself()
    {
        var statistics = MapStatistics.Of([.. Enumerable.Range(0, 36).Select(i => i % 7 == 0 ? 1f : 0)], 6, 6, isCausal: false);
        Assert.Equal((0, 0, 1, 0), (statistics.Entropy, statistics.MeanDistance, statistics.SelfShare, statistics.PreviousShare));
        Assert.Equal(HeadLook.Self, HeadLooks.Of(statistics));
    }

    [Fact]
    public void EqualWeightsHaveTheLargestEntropy()
    {
        var statistics = MapStatistics.Of([.. Enumerable.Repeat(0.05f, 200)], 10, 20, isCausal: false);
        Assert.Equal(1, statistics.EntropyShare, 1e-6);
        Assert.Equal(0.05, statistics.FirstMass, 1e-6);
        Assert.Equal(statistics.UniformNearMass, statistics.NearMass, 1e-5);
    }

    [Fact]
    public void ACausalMapIsSummarisedAsTheStreamedOne()
    {
        const int tokens = 9;
        var map = new float[tokens * tokens];
        var (entropy, place, distance, first, near) = (new float[tokens], new int[tokens], new float[tokens], new float[tokens], new float[tokens]);
        var random = new Random(2);
        for (var row = 0; row < tokens; row++)
        {
            var weights = Enumerable.Range(0, row + 1).Select(_ => random.NextDouble()).ToArray();
            var total = weights.Sum();
            for (var key = 0; key <= row; key++)
            {
                var weight = (float)(weights[key] / total);
                map[(row * tokens) + key] = weight;
                entropy[row] -= weight * MathF.Log(weight);
                distance[row] += weight * (row - key);
                near[row] += weight;
            }

            place[row] = Array.IndexOf(weights, weights.Max());
            first[row] = map[row * tokens];
        }

        var expected = HeadStatistics.Of(entropy, place, distance, first, near);
        var found = MapStatistics.Of(map, tokens, tokens, isCausal: true);
        Assert.Equal(expected.Entropy, found.Entropy, 1e-5);
        Assert.Equal(expected.EntropyShare, found.EntropyShare, 1e-5);
        Assert.Equal(expected.FirstMass, found.FirstMass, 1e-5);
        Assert.Equal(expected.MeanDistance, found.MeanDistance, 1e-5);
        Assert.Equal(expected.NearMass, found.NearMass, 1e-5);
        Assert.Equal(expected.UniformNearMass, found.UniformNearMass, 1e-5);
        Assert.Equal((expected.PreviousShare, expected.SelfShare), (found.PreviousShare, found.SelfShare));
    }

    [Fact]
    public void CellsKeepTheMassOfTheirRows()
    {
        var map = Enumerable.Range(0, 70).Select(i => (i % 10) / 45f).ToArray();
        var cells = CellMap.Of(map, 7, 10, 4);
        Assert.Equal((4, 4), (cells.Rows, cells.Columns));
        for (var row = 0; row < cells.Rows; row++)
        {
            Assert.Equal(1, cells.Cells[(row * 4)..((row + 1) * 4)].Sum(), 1e-5);
        }

        Assert.Throws<ArgumentException>(() => MapStatistics.Of(map, 8, 10, false));
    }
}
