using Heed.Masks;
using Xunit;

namespace Heed.Tests.Masks;

public sealed class LargestScoresTests
{
    [Fact]
    public void The_largest_are_kept_and_of_equal_scores_the_earlier()
    {
        for (var seed = 0; seed < 300; seed++)
        {
            var random = new Random(seed);
            // Few different values: many ties, both zeros, infinities.
            double[] values = [double.NegativeInfinity, -2.5, -0.0, 0.0, 1e-300, 3, 3.0000000000000004, double.PositiveInfinity];
            var scores = Enumerable.Range(0, random.Next(1, 80)).Select(_ => seed % 2 == 0 ? values[random.Next(values.Length)] : random.NextDouble() - 0.5).ToArray();
            var count = random.Next(0, scores.Length + 3);
            var kept = new int[scores.Length];
            var written = LargestScores.Keep(scores, new long[scores.Length], count, kept);

            Assert.Equal(scores.Select((score, index) => (score, index)).OrderByDescending(pair => pair.score).Take(count).Select(pair => pair.index).Order(), kept.Take(written));
        }
    }
}
