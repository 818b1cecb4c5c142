using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>Softmax of rows whose scores come tile by tile: weights relative to a reference near the largest score so far, and what was summed before scaled down when
/// the reference rises. Any reference gives the same quotients; it only has to keep the exponentials in range.</summary>
internal static unsafe class OnlineSoftmax<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    // A score this far above the reference does not move it yet: its exponential is still small, and rescaling a row on every new maximum costs more than all of its tile.
    private const float Slack = 8;

    /// <summary>Turns scores into exp(score - reference), in place, and adds them to the sums.</summary>
    /// <param name="scores">Scores, rows <see cref="MicroKernel.ScoreStride"/> floats apart; receives the weights.</param>
    /// <param name="columns">Number of columns, a multiple of the lanes.</param>
    /// <param name="rows">Number of rows.</param>
    /// <param name="references">Reference of each row; minus infinity at first.</param>
    /// <param name="sums">Sums of the weights of each row, one vector a row; zero at first.</param>
    /// <param name="sumStride">Floats from one row's sums to the next. Whatever else lies in a row is scaled with them.</param>
    /// <param name="output">Weighted sums of values of each row, scaled with the sums.</param>
    /// <param name="outputStride">Floats from one row of the output to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Weigh(float* scores, int columns, int rows, float* references, float* sums, int sumStride, float* output, int outputStride)
    {
        for (var row = 0; row < rows; row++)
        {
            var most = TOps.Load(scores);
            for (var column = TOps.Lanes; column < columns; column += TOps.Lanes)
            {
                most = TOps.Max(most, TOps.Load(scores + column));
            }

            if (TOps.GreaterThanAny(most, TOps.Create(references[row] + Slack)))
            {
                Raise(TOps.MaxAcross(most), references + row, sums, sumStride, output, outputStride);
            }

            // A row that has seen no pair subtracts zero: minus infinity less minus infinity would be NaN.
            var reference = TOps.Create(float.IsNegativeInfinity(references[row]) ? 0 : references[row]);
            var toExponent = TOps.Create(VectorMath.Log2E);
            var sum = TOps.Load(sums);
            for (var column = 0; column < columns; column += TOps.Lanes)
            {
                var weight = TOps.Exp2(TOps.Multiply(TOps.Subtract(TOps.Load(scores + column), reference), toExponent));
                TOps.Store(weight, scores + column);
                sum = TOps.Add(sum, weight);
            }

            TOps.Store(sum, sums);
            scores += MicroKernel.ScoreStride;
            sums += sumStride;
            output += outputStride;
        }
    }

    /// <summary>Makes a larger score the reference of a row.</summary>
    [MethodImpl(MethodImplOptions.NoInlining | MethodImplOptions.AggressiveOptimization)]
    public static void Raise(float score, float* reference, float* sums, int sumStride, float* output, int outputStride)
    {
        var before = *reference;
        *reference = score;
        if (float.IsNegativeInfinity(before))
        {
            return;
        }

        var factor = VectorMath.Exp<TVector, TOps>(TOps.Create(before - score));
        for (var column = 0; column < sumStride; column += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(sums + column), factor), sums + column);
        }

        for (var column = 0; column < outputStride; column += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(output + column), factor), output + column);
        }
    }
}
