using System.Numerics;

namespace Heed.Masks;

/// <summary>Ranking with a budget: the largest scores, as many as a count or a share of the sum allows. Equal scores rank in their order (a stable sort); a score of NaN takes no part.</summary>
public static class BudgetRanking
{
    // Up to here, looking for the next largest again and again is faster than any preparation.
    private const int FewScores = 128;
    private const int Bins = 1024;

    /// <summary>The places of the scores from the largest to the smallest; those of NaN are left out.</summary>
    /// <typeparam name="T">float or double.</typeparam>
    /// <param name="scores">The scores.</param>
    public static int[] Descending<T>(ReadOnlySpan<T> scores)
        where T : struct, IFloatingPointIeee754<T>
    {
        var ranked = new (T Score, int Place)[scores.Length];
        var count = 0;
        for (var place = 0; place < scores.Length; place++)
        {
            if (!T.IsNaN(scores[place]))
            {
                ranked[count++] = (scores[place], place);
            }
        }

        Sort(ranked.AsSpan(0, count));
        var places = new int[count];
        for (var rank = 0; rank < count; rank++)
        {
            places[rank] = ranked[rank].Place;
        }

        return places;
    }

    /// <summary>Chooses the largest scores.</summary>
    /// <typeparam name="T">float or double.</typeparam>
    /// <param name="scores">The scores.</param>
    /// <param name="count">How many are chosen; all where there are fewer, none for 0 or less.</param>
    /// <param name="chosen">Set to true at the places of the chosen scores, left alone elsewhere.</param>
    /// <exception cref="ArgumentException">There is not one flag per score.</exception>
    public static void ChooseLargest<T>(ReadOnlySpan<T> scores, long count, Span<bool> chosen)
        where T : struct, IFloatingPointIeee754<T> => Choose(scores, new Budget(double.PositiveInfinity, count, 0, false, 0), chosen);

    /// <summary>Chooses the largest scores until their sum reaches a budget.</summary>
    /// <typeparam name="T">float or double.</typeparam>
    /// <param name="scores">The scores.</param>
    /// <param name="budget">The sum to reach; all scores where it cannot be reached.</param>
    /// <param name="chosen">Set to true at the places of the chosen scores, left alone elsewhere.</param>
    /// <param name="least">The least number of scores chosen, whatever the budget.</param>
    /// <param name="withCrossing">Whether the score that reaches the budget is chosen, too; if not, the sum stays below it.</param>
    /// <param name="origin">Every score counts by what it exceeds this; at most the least score, so that the sum grows.</param>
    /// <exception cref="ArgumentException">There is not one flag per score.</exception>
    public static void ChooseUpTo<T>(ReadOnlySpan<T> scores, double budget, Span<bool> chosen, int least = 0, bool withCrossing = true, double origin = 0)
        where T : struct, IFloatingPointIeee754<T> => Choose(scores, new Budget(budget, long.MaxValue, least, withCrossing, origin), chosen);

    private static void Choose<T>(ReadOnlySpan<T> scores, Budget budget, Span<bool> chosen)
        where T : struct, IFloatingPointIeee754<T>
    {
        if (chosen.Length != scores.Length)
        {
            throw new ArgumentException($"Every score has a flag; {scores.Length} scores and {chosen.Length} flags were given.", nameof(chosen));
        }

        if (scores.Length <= FewScores)
        {
            ChooseOneByOne(scores, budget, chosen);
            return;
        }

        var (least, most) = (T.PositiveInfinity, T.NegativeInfinity);
        foreach (var score in scores)
        {
            // Comparisons with NaN are false: such scores never count.
            least = score < least ? score : least;
            most = score > most ? score : most;
        }

        var scale = T.CreateTruncating(Bins - 1) / (most - least);
        if (!(most > least) || !T.IsFinite(most - least) || !T.IsFinite(scale))
        {
            ChooseSorted(scores, budget, chosen);
            return;
        }

        ChooseByBins(scores, least, scale, budget, chosen);
    }

    private static void ChooseOneByOne<T>(ReadOnlySpan<T> scores, Budget budget, Span<bool> chosen)
        where T : struct, IFloatingPointIeee754<T>
    {
        Span<bool> passed = stackalloc bool[FewScores];
        while (true)
        {
            var best = -1;
            for (var place = 0; place < scores.Length; place++)
            {
                if (!passed[place] && (best < 0 ? !T.IsNaN(scores[place]) : scores[place] > scores[best]))
                {
                    best = place;
                }
            }

            if (best < 0 || !budget.Takes(double.CreateTruncating(scores[best])))
            {
                return;
            }

            (passed[best], chosen[best]) = (true, true);
        }
    }

    private static void ChooseSorted<T>(ReadOnlySpan<T> scores, Budget budget, Span<bool> chosen)
        where T : struct, IFloatingPointIeee754<T>
    {
        foreach (var place in Descending(scores))
        {
            if (!budget.Takes(double.CreateTruncating(scores[place])))
            {
                return;
            }

            chosen[place] = true;
        }
    }

    /// <summary>Counts scores in bins of equal width: whole bins are chosen from the top, and only the bin in which the budget ends is sorted.</summary>
    private static void ChooseByBins<T>(ReadOnlySpan<T> scores, T least, T scale, Budget budget, Span<bool> chosen)
        where T : struct, IFloatingPointIeee754<T>
    {
        var (counts, sums) = (new int[Bins], new double[Bins]);
        foreach (var score in scores)
        {
            if (!T.IsNaN(score))
            {
                var bin = BinOf(score, least, scale);
                counts[bin]++;
                sums[bin] += double.CreateTruncating(score);
            }
        }

        var last = Bins - 1;
        while (last >= 0 && budget.TakesAll(counts[last], sums[last]))
        {
            last--;
        }

        var crossing = new (T Score, int Place)[last >= 0 ? counts[last] : 0];
        var found = 0;
        for (var place = 0; place < scores.Length; place++)
        {
            if (!T.IsNaN(scores[place]) && BinOf(scores[place], least, scale) is var bin && bin >= last)
            {
                if (bin > last)
                {
                    chosen[place] = true;
                }
                else
                {
                    crossing[found++] = (scores[place], place);
                }
            }
        }

        Sort(crossing);
        foreach (var (score, place) in crossing)
        {
            if (!budget.Takes(double.CreateTruncating(score)))
            {
                return;
            }

            chosen[place] = true;
        }
    }

    // Rounding may take the largest score past the last bin.
    private static int BinOf<T>(T score, T least, T scale)
        where T : struct, IFloatingPointIeee754<T> => Math.Min(Bins - 1, int.CreateTruncating((score - least) * scale));

    private static void Sort<T>(Span<(T Score, int Place)> ranked)
        where T : struct, IFloatingPointIeee754<T> => ranked.Sort(static (first, second) =>
            second.Score.CompareTo(first.Score) is var order && order != 0 ? order : first.Place.CompareTo(second.Place));

    /// <summary>What is left to choose: asked for one score after the other, from the largest on.</summary>
    private struct Budget(double sum, long count, int least, bool withCrossing, double origin)
    {
        private double _sum;
        private long _count;

        public bool Takes(double score)
        {
            var above = score - origin;
            var takes = _count < count && (_count < least || double.IsPositiveInfinity(sum) || (withCrossing ? _sum < sum : _sum + above < sum));
            if (takes)
            {
                _count++;
                _sum += above;
            }

            return takes;
        }

        /// <summary>Takes several scores at once if all of them are taken and the budget is not used up then.</summary>
        public bool TakesAll(int scores, double sumOfScores)
        {
            var above = sumOfScores - (scores * origin);
            var takes = scores == 0 || (_count + scores <= count && (_count + scores <= least || _sum + above < sum));
            if (takes)
            {
                _count += scores;
                _sum += above;
            }

            return takes;
        }
    }
}
