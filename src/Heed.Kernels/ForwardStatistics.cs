using System.Numerics;
using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>
/// Statistics of rows in the fused pass. Beside the sum of a row's weights w stand three more that are scaled with it: w times (score - largest), w times the distance, and w on
/// the key set. The key of the largest weight is looked up only when a larger score comes, and the largest weights are kept in a short sorted list whose last score
/// most vectors of scores stay below.
/// </summary>
internal static unsafe class ForwardStatistics<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    /// <summary>Vectors of sums of a row: weights, weights times relative scores, times distances, on the key set.</summary>
    public const int Sums = 4;

    /// <summary>As <see cref="OnlineSoftmax{TVector, TOps}.Weigh"/>, with <see cref="Sums"/> vectors of sums a row, for the pieces of a tile.</summary>
    /// <param name="pieces">The pieces, side by side in <paramref name="scores"/>.</param>
    /// <param name="sets">For each piece one float per column: 1 for keys of the set, 0 for others.</param>
    /// <param name="count">Number of pieces.</param>
    /// <param name="position">Aligned position of the first row's query.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="scores">Scores; receives the weights.</param>
    /// <param name="largest">Largest score of each row so far.</param>
    /// <param name="largestKeys">Its key; -1 at first.</param>
    /// <param name="sums">The sums; zero at first.</param>
    /// <param name="output">Weighted sums of values, scaled with the sums.</param>
    /// <param name="outputStride">Floats from one row of the output to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Weigh(
        ScorePiece* pieces, float** sets, int count, long position, int rows, float* scores, float* largest, int* largestKeys, float* sums, float* output, int outputStride)
    {
        for (var row = 0; row < rows; row++)
        {
            var most = TOps.Create(float.NegativeInfinity);
            var columns = 0;
            for (var i = 0; i < count; i++)
            {
                for (var end = columns + pieces[i].Columns; columns < end; columns += TOps.Lanes)
                {
                    most = TOps.Max(most, TOps.Load(scores + columns));
                }
            }

            if (TOps.GreaterThanAny(most, TOps.Create(largest[row])))
            {
                var score = TOps.MaxAcross(most);
                largestKeys[row] = KeyOf(score, pieces, count, scores);
                Raise(score, largest + row, sums, output, outputStride);
            }

            var reference = TOps.Create(float.IsNegativeInfinity(largest[row]) ? 0 : largest[row]);
            var lowest = TOps.Create(float.MinValue);
            var step = TOps.Create(TOps.Lanes);
            var sum = TOps.Load(sums);
            var entropy = TOps.Load(sums + TOps.Lanes);
            var distance = TOps.Load(sums + (2 * TOps.Lanes));
            var mass = TOps.Load(sums + (3 * TOps.Lanes));
            columns = 0;
            for (var i = 0; i < count; i++)
            {
                var set = sets[i] - columns;
                var away = TOps.Add(TOps.Create(pieces[i].First - (position + row)), TOps.Indices);
                for (var end = columns + pieces[i].Columns; columns < end; columns += TOps.Lanes)
                {
                    var relative = TOps.Subtract(TOps.Load(scores + columns), reference);
                    var weight = TOps.Exp2(TOps.Multiply(relative, TOps.Create(VectorMath.Log2E)));
                    TOps.Store(weight, scores + columns);
                    sum = TOps.Add(sum, weight);

                    // An absent pair has weight zero and a score of minus infinity, the product of which would be NaN.
                    entropy = TOps.MultiplyAdd(weight, TOps.Max(lowest, relative), entropy);
                    distance = TOps.MultiplyAdd(weight, TOps.Abs(away), distance);
                    mass = TOps.MultiplyAdd(weight, TOps.Load(set + columns), mass);
                    away = TOps.Add(away, step);
                }
            }

            TOps.Store(sum, sums);
            TOps.Store(entropy, sums + TOps.Lanes);
            TOps.Store(distance, sums + (2 * TOps.Lanes));
            TOps.Store(mass, sums + (3 * TOps.Lanes));
            scores += MicroKernel.ScoreStride;
            sums += Sums * TOps.Lanes;
            output += outputStride;
        }
    }

    /// <summary>Makes a larger score, of a key or of a sink, the reference of a row.</summary>
    public static void Raise(float score, float* largest, float* sums, float* output, int outputStride)
    {
        if (!float.IsNegativeInfinity(*largest))
        {
            var shift = TOps.Create(*largest - score);
            TOps.Store(TOps.MultiplyAdd(TOps.Load(sums), shift, TOps.Load(sums + TOps.Lanes)), sums + TOps.Lanes);
        }

        OnlineSoftmax<TVector, TOps>.Raise(score, largest, sums, Sums * TOps.Lanes, output, outputStride);
    }

    /// <summary>Puts the scores of a tile that belong among the largest of their row into the row's list, in descending order and equal ones in the order of their keys.</summary>
    /// <param name="pieces">The pieces, side by side in <paramref name="scores"/>.</param>
    /// <param name="count">Number of pieces.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="scores">The scores.</param>
    /// <param name="top">Length of the lists.</param>
    /// <param name="topScores">The lists' scores; minus infinity at first.</param>
    /// <param name="topKeys">Their keys.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void KeepLargest(ScorePiece* pieces, int count, int rows, float* scores, int top, float* topScores, int* topKeys)
    {
        for (var row = 0; row < rows; row++)
        {
            var last = TOps.Create(topScores[top - 1]);
            var column = 0;
            for (var i = 0; i < count; i++)
            {
                var firstKey = (int)pieces[i].First - column;
                for (var end = column + pieces[i].Columns; column < end; column += TOps.Lanes)
                {
                    var above = TOps.GreaterThanBits(TOps.Load(scores + column), last);
                    if (above != 0)
                    {
                        Insert(scores + column, above, firstKey + column, top, topScores, topKeys);
                        last = TOps.Create(topScores[top - 1]);
                    }
                }
            }

            scores += MicroKernel.ScoreStride;
            topScores += top;
            topKeys += top;
        }
    }

    /// <summary>Writes the statistics of a row.</summary>
    /// <param name="statistics">Where they go.</param>
    /// <param name="index">The row's index.</param>
    /// <param name="firstKey">The sequence's first key row: keys are told as rows of the tensor.</param>
    /// <param name="largest">The reference of the sums: the largest score of a key or the sink.</param>
    /// <param name="largestOfKeys">The largest score of a key.</param>
    /// <param name="largestKey">Its key; -1: the row has no pair.</param>
    /// <param name="sink">The sink; minus infinity: none.</param>
    /// <param name="total">Sum of the weights, with the sink's.</param>
    /// <param name="sums">The sums.</param>
    /// <param name="topScores">The row's largest scores.</param>
    /// <param name="topKeys">Their keys.</param>
    public static void Write(
        in RowStatistics statistics, long index, long firstKey, float largest, float largestOfKeys, int largestKey, float sink, float total, float* sums,
        float* topScores, int* topKeys)
    {
        var empty = float.IsPositiveInfinity(total);
        var inverse = 1 / total;
        if (statistics.Entropy != null)
        {
            var sinkTerm = MathF.Exp(sink - largest) * Math.Max(sink - largest, float.MinValue);
            var relative = TOps.Sum(TOps.Load(sums + TOps.Lanes)) + sinkTerm;
            statistics.Entropy[index] = empty ? 0 : Positive(MathF.Log(total) - (relative * inverse));
        }

        if (statistics.Maximum != null)
        {
            statistics.Maximum[index] = empty ? 0 : MathF.Exp(largestOfKeys - largest) * inverse;
        }

        if (statistics.MaximumKey != null)
        {
            statistics.MaximumKey[index] = largestKey < 0 ? -1 : largestKey + (int)firstKey;
        }

        if (statistics.MeanDistance != null)
        {
            statistics.MeanDistance[index] = TOps.Sum(TOps.Load(sums + (2 * TOps.Lanes))) * inverse;
        }

        if (statistics.SetMass != null)
        {
            statistics.SetMass[index] = TOps.Sum(TOps.Load(sums + (3 * TOps.Lanes))) * inverse;
        }

        for (var i = 0; i < statistics.TopCount; i++)
        {
            var listed = !float.IsNegativeInfinity(topScores[i]);
            statistics.TopWeights[(index * statistics.TopCount) + i] = listed ? MathF.Exp(topScores[i] - largest) * inverse : 0;
            statistics.TopKeys[(index * statistics.TopCount) + i] = listed ? topKeys[i] + (int)firstKey : -1;
        }
    }

    /// <summary>Writes the statistics of a row that has no pair.</summary>
    public static void WriteEmpty(in RowStatistics statistics, long index)
    {
        var none = stackalloc float[Math.Max(Sums * TOps.Lanes, statistics.TopCount)];
        new Span<float>(none, Sums * TOps.Lanes).Clear();
        var lists = stackalloc float[statistics.TopCount];
        new Span<float>(lists, statistics.TopCount).Fill(float.NegativeInfinity);
        Write(statistics, index, 0, 0, float.NegativeInfinity, -1, float.NegativeInfinity, float.PositiveInfinity, none, lists, null);
    }

    // The entropy of a row with one key is a difference of equal numbers, which rounding must not make negative.
    private static float Positive(float entropy) => entropy < 0 ? 0 : entropy;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int KeyOf(float score, ScorePiece* pieces, int count, float* scores)
    {
        for (var i = 0; i < count; i++)
        {
            var found = new ReadOnlySpan<float>(scores, pieces[i].Columns).IndexOf(score);
            if (found >= 0)
            {
                return (int)pieces[i].First + found;
            }

            scores += pieces[i].Columns;
        }

        return -1;
    }

    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    private static void Insert(float* scores, uint lanes, int key, int top, float* topScores, int* topKeys)
    {
        for (; lanes != 0; lanes &= lanes - 1)
        {
            var lane = BitOperations.TrailingZeroCount(lanes);
            var score = scores[lane];
            if (score <= topScores[top - 1])
            {
                continue;
            }

            var place = top - 1;
            for (; place > 0 && score > topScores[place - 1]; place--)
            {
                topScores[place] = topScores[place - 1];
                topKeys[place] = topKeys[place - 1];
            }

            topScores[place] = score;
            topKeys[place] = key + lane;
        }
    }
}
