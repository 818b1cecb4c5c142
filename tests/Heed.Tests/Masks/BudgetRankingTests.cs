using CsCheck;
using Heed.Masks;
using Xunit;

namespace Heed.Tests.Masks;

public sealed class BudgetRankingTests
{
    // Few scores, and more than are looked through one by one; few distinct values, so that many are equal.
    private static readonly Gen<double[]> s_scores = Gen.Int[0, 30].Select(value => value / 30.0).Array[Gen.Frequency((1, Gen.Int[0, 20]), (1, Gen.Int[120, 400]))];

    [Fact]
    public void The_order_is_descending_and_stable_and_leaves_out_what_is_no_number()
    {
        Assert.Equal([1, 4, 0, 3], BudgetRanking.Descending<double>([1, 2, double.NaN, 1, 2]));
        Assert.Empty(BudgetRanking.Descending<float>([float.NaN]));
    }

    [Fact]
    public void A_count_chooses_the_first_of_the_order() => Gen.Select(s_scores, Gen.Int[-2, 420]).Sample((scores, count) =>
    {
        var chosen = new bool[scores.Length];
        BudgetRanking.ChooseLargest<double>(scores, count, chosen);
        Assert.Equal(BudgetRanking.Descending<double>(scores).Take(count).Order(), Places(chosen));
    });

    [Fact]
    public void A_budget_chooses_the_first_of_the_order_up_to_the_score_that_reaches_it() =>
        Gen.Select(s_scores, Gen.Double[0, 1.2], Gen.Bool, Gen.Int[0, 3]).Sample((scores, share, withCrossing, least) =>
        {
            var budget = share * scores.Sum();
            var expected = new List<int>();
            var sum = 0.0;
            foreach (var place in BudgetRanking.Descending<double>(scores))
            {
                if (expected.Count >= least && (withCrossing ? sum >= budget : sum + scores[place] >= budget))
                {
                    break;
                }

                expected.Add(place);
                sum += scores[place];
            }

            var chosen = new bool[scores.Length];
            BudgetRanking.ChooseUpTo<double>(scores, budget, chosen, least, withCrossing);

            // Sums of bins and sums one by one round differently: where a sum comes that close to the budget, one score more or less is right, too.
            var places = Places(chosen).ToList();
            Assert.True(places.SequenceEqual(expected.Order()) || Math.Abs(places.Sum(place => scores[place]) - sum) <= scores.Max() && Math.Abs(sum - budget) < 1 + (1e-9 * budget));
            Assert.InRange(places.Count, Math.Min(least, scores.Length), scores.Length);
        });

    [Theory]
    [InlineData(0, 0)]
    [InlineData(1e9, 300)]
    public void A_budget_of_nothing_chooses_nothing_and_one_beyond_the_sum_everything(double budget, int count)
    {
        var scores = Enumerable.Range(0, 300).Select(place => (float)(place % 7)).ToArray();
        var chosen = new bool[300];
        BudgetRanking.ChooseUpTo<float>(scores, budget, chosen);
        Assert.Equal(count, chosen.Count(flag => flag));
    }

    [Fact]
    public void Scores_count_by_what_they_exceed_the_origin()
    {
        var chosen = new bool[3];
        BudgetRanking.ChooseUpTo<double>([11, 13, 12], 3, chosen, origin: 10);
        Assert.Equal([false, true, false], chosen);
    }

    [Fact]
    public void Equal_scores_of_many_are_chosen_from_the_first_on()
    {
        var chosen = new bool[500];
        BudgetRanking.ChooseLargest<float>(new float[500], 3, chosen);
        Assert.Equal([0, 1, 2], Places(chosen));
    }

    [Fact]
    public void Every_score_has_a_flag() =>
        Assert.Contains("2 scores and 3 flags", Assert.Throws<ArgumentException>(() => BudgetRanking.ChooseLargest<double>(new double[2], 1, new bool[3])).Message, StringComparison.Ordinal);

    private static IEnumerable<int> Places(bool[] chosen) => Enumerable.Range(0, chosen.Length).Where(place => chosen[place]);
}
