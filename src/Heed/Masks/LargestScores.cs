using System.Numerics;

namespace Heed.Masks;

/// <summary>Which scores belong to the largest: ranking with a budget, in place, without sorting.</summary>
internal static class LargestScores
{
    /// <summary>Marks the <paramref name="count"/> largest of some scores. Of equal scores, earlier ones are taken first. NaN counts as larger or smaller than everything, by its sign.</summary>
    /// <param name="scores">The scores.</param>
    /// <param name="order">Room for as many integers.</param>
    /// <param name="count">How many to keep, from 0; all where it is not less than the number of scores.</param>
    /// <param name="kept">Receives the indices of the scores kept, ascending.</param>
    /// <returns>How many were kept.</returns>
    public static int Keep(ReadOnlySpan<double> scores, Span<long> order, int count, Span<int> kept)
    {
        order = order[..scores.Length];
        count = Math.Clamp(count, 0, scores.Length);
        if (count == 0)
        {
            return 0;
        }

        var (low, high) = (long.MaxValue, long.MinValue);
        for (var i = 0; i < scores.Length; i++)
        {
            // Integers in the order of the numbers; minus zero is zero.
            var bits = BitConverter.DoubleToInt64Bits(scores[i] + 0.0);
            var rank = bits ^ ((bits >> 63) & long.MaxValue);
            order[i] = rank;
            low = Math.Min(low, rank);
            high = Math.Max(high, rank);
        }

        // The threshold is found by halving its range: at least "count" ranks reach "low", fewer reach "high" + 1. It usually ends after a dozen passes, when exactly "count" reach the middle.
        var surplus = scores.Length - count;
        while (surplus > 0 && low < high)
        {
            var middle = low + (long)(((ulong)(high - low) + 1) / 2);
            var reached = CountFrom(order, middle);
            if (reached >= count)
            {
                low = middle;
                surplus = reached - count;
            }
            else
            {
                high = middle - 1;
            }
        }

        // Equal ranks beyond the budget fall away from the end.
        var equal = surplus > 0 ? CountFrom(order, low) - (low == long.MaxValue ? 0 : CountFrom(order, low + 1)) - surplus : int.MaxValue;
        var written = 0;
        for (var i = 0; i < order.Length && written < count; i++)
        {
            kept[written] = i;
            var isEqual = order[i] == low;
            written += order[i] > low || (isEqual && equal > 0) ? 1 : 0;
            equal -= isEqual ? 1 : 0;
        }

        return written;
    }

    private static int CountFrom(ReadOnlySpan<long> order, long threshold)
    {
        var (count, i) = (Vector<long>.Zero, 0);
        var wanted = new Vector<long>(threshold);
        for (; i <= order.Length - Vector<long>.Count; i += Vector<long>.Count)
        {
            count -= Vector.GreaterThanOrEqual(new Vector<long>(order[i..]), wanted);
        }

        var sum = (int)Vector.Sum(count);
        for (; i < order.Length; i++)
        {
            sum += order[i] >= threshold ? 1 : 0;
        }

        return sum;
    }
}
