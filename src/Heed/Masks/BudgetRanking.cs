namespace Heed.Masks;

/// <summary>Ranking with a budget: the largest scores, as many as a count or a share of the sum allows. Equal scores rank in their order (a stable sort); a score of NaN takes no part.</summary>
public static class BudgetRanking
{
    // Up to here, looking for the next largest again and again is faster than any preparation.
    private const int FewScores = 128;
    private const int Bins = 4096;

    /// <summary>The places of the scores from the largest to the smallest; those of NaN are left out.</summary>
    /// <param name="scores">The scores.</param>
    public static int[] Descending(ReadOnlySpan<double> scores)
    {
        var ranked = new (double Score, int Place)[scores.Length];
        var count = 0;
        for (var place = 0; place < scores.Length; place++)
        {
            if (!double.IsNaN(scores[place]))
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
    /// <param name="scores">The scores.</param>
    /// <param name="count">How many are chosen; all where there are fewer, none for 0 or less.</param>
    /// <param name="chosen">Set to true at the places of the chosen scores, left alone elsewhere.</param>
    /// <exception cref="ArgumentException">There is not one flag per score.</exception>
    public static void ChooseLargest(ReadOnlySpan<double> scores, long count, Span<bool> chosen) =>
        Choose(scores, new Budget(double.PositiveInfinity, count, 0, false), chosen);

    /// <summary>Chooses the largest scores until their sum reaches a budget.</summary>
    /// <param name="scores">The scores, not negative.</param>
    /// <param name="budget">The sum to reach; all scores where it cannot be reached.</param>
    /// <param name="chosen">Set to true at the places of the chosen scores, left alone elsewhere.</param>
    /// <param name="least">The least number of scores chosen, whatever the budget.</param>
    /// <param name="withCrossing">Whether the score that reaches the budget is chosen, too; if not, the sum stays below it.</param>
    /// <exception cref="ArgumentException">There is not one flag per score.</exception>
    public static void ChooseUpTo(ReadOnlySpan<double> scores, double budget, Span<bool> chosen, int least = 0, bool withCrossing = true) =>
        Choose(scores, new Budget(budget, long.MaxValue, least, withCrossing), chosen);

    private static void Choose(ReadOnlySpan<double> scores, Budget budget, Span<bool> chosen)
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

        var (least, most) = (double.PositiveInfinity, double.NegativeInfinity);
        foreach (var score in scores)
        {
            // Comparisons with NaN are false: such scores never count.
            least = score < least ? score : least;
            most = score > most ? score : most;
        }

        if (!(most - least > 0) || !double.IsFinite(most - least))
        {
            ChooseSorted(scores, budget, chosen);
            return;
        }

        ChooseByBins(scores, least, most, budget, chosen);
    }

    private static void ChooseOneByOne(ReadOnlySpan<double> scores, Budget budget, Span<bool> chosen)
    {
        Span<bool> passed = stackalloc bool[FewScores];
        while (true)
        {
            var best = -1;
            for (var place = 0; place < scores.Length; place++)
            {
                if (!passed[place] && (best < 0 ? !double.IsNaN(scores[place]) : scores[place] > scores[best]))
                {
                    best = place;
                }
            }

            if (best < 0 || !budget.Takes(scores[best]))
            {
                return;
            }

            (passed[best], chosen[best]) = (true, true);
        }
    }

    private static void ChooseSorted(ReadOnlySpan<double> scores, Budget budget, Span<bool> chosen)
    {
        foreach (var place in Descending(scores))
        {
            if (!budget.Takes(scores[place]))
            {
                return;
            }

            chosen[place] = true;
        }
    }

    /// <summary>Counts scores in bins of equal width: whole bins are chosen from the top, and only the bin in which the budget ends is sorted.</summary>
    private static void ChooseByBins(ReadOnlySpan<double> scores, double least, double most, Budget budget, Span<bool> chosen)
    {
        var (counts, sums) = (new int[Bins], new double[Bins]);
        var scale = (Bins - 1) / (most - least);
        foreach (var score in scores)
        {
            if (!double.IsNaN(score))
            {
                var bin = (int)((score - least) * scale);
                counts[bin]++;
                sums[bin] += score;
            }
        }

        var last = Bins - 1;
        while (last >= 0 && budget.TakesAll(counts[last], sums[last]))
        {
            last--;
        }

        var crossing = new (double Score, int Place)[last >= 0 ? counts[last] : 0];
        var found = 0;
        for (var place = 0; place < scores.Length; place++)
        {
            if (!double.IsNaN(scores[place]))
            {
                var bin = (int)((scores[place] - least) * scale);
                chosen[place] |= bin > last;
                if (bin == last)
                {
                    crossing[found++] = (scores[place], place);
                }
            }
        }

        Sort(crossing);
        foreach (var (score, place) in crossing)
        {
            if (!budget.Takes(score))
            {
                return;
            }

            chosen[place] = true;
        }
    }

    private static void Sort(Span<(double Score, int Place)> ranked) => ranked.Sort(static (first, second) =>
        second.Score.CompareTo(first.Score) is var order && order != 0 ? order : first.Place.CompareTo(second.Place));

    /// <summary>What is left to choose: asked for one score after the other, from the largest on.</summary>
    private struct Budget(double sum, long count, int least, bool withCrossing)
    {
        private double _sum;
        private long _count;

        public bool Takes(double score)
        {
            var takes = _count < count && (_count < least || double.IsPositiveInfinity(sum) || (withCrossing ? _sum < sum : _sum + score < sum));
            if (takes)
            {
                _count++;
                _sum += score;
            }

            return takes;
        }

        /// <summary>Takes several scores at once if all of them are taken and the budget is not used up then.</summary>
        public bool TakesAll(int scores, double sumOfScores)
        {
            var takes = scores == 0 || (_count + scores <= count && (_count + scores <= least || _sum + sumOfScores < sum));
            if (takes)
            {
                _count += scores;
                _sum += sumOfScores;
            }

            return takes;
        }
    }
}
