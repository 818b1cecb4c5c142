using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels.AotTester;

/// <summary>The kernels against plain loops in float64: causal attention of two heads, the last query aligned with the last key.</summary>
internal static unsafe class Checks
{
    private const int Heads = 2;
    private const int Width = 20;

    /// <summary>Largest error of the output.</summary>
    public static double Forward(int queries, int keys)
    {
        var (q, k, v) = (Numbers(queries, 1), Numbers(keys, 2), Numbers(keys, 3));
        var output = new float[q.Length];
        AttentionSpans.Forward(q, k, v, new(1, Heads, queries, keys, Width), output, new() { Causal = Causality.AlignedToEnd });
        return Difference(Plain(q, k, v, queries, keys, (score, _, _) => score, (query, key) => key <= query + keys - queries).Output, output);
    }

    /// <summary>Largest error of the three gradients.</summary>
    public static double Backward()
    {
        const int Queries = 30, Keys = 34;
        var (q, k, v, g) = (Numbers(Queries, 1), Numbers(Keys, 2), Numbers(Keys, 3), Numbers(Queries, 4));
        var shape = new AttentionShape(1, Heads, Queries, Keys, Width);
        var options = new AttentionSpanOptions { Causal = Causality.AlignedToEnd };
        var (output, logSumExp) = (new float[q.Length], new float[Heads * Queries]);
        AttentionSpans.Forward(q, k, v, shape, output, options, logSumExp);
        var (gq, gk, gv) = (new float[q.Length], new float[k.Length], new float[v.Length]);
        AttentionSpans.Backward(q, k, v, output, logSumExp, g, shape, gq, gk, gv, options);

        var (plain, weights) = Plain(q, k, v, Queries, Keys, (score, _, _) => score, (query, key) => key <= query + Keys - Queries);
        var (eq, ek, ev) = (new double[q.Length], new double[k.Length], new double[v.Length]);
        for (var h = 0; h < Heads; h++)
        {
            for (var i = 0; i < Queries; i++)
            {
                for (var j = 0; j < Keys; j++)
                {
                    var weight = weights[(((h * Queries) + i) * Keys) + j];
                    double through = 0;
                    for (var d = 0; d < Width; d++)
                    {
                        through += g[At(h, i, d, Queries)] * (v[At(h, j, d, Keys)] - plain[At(h, i, d, Queries)]);
                    }

                    for (var d = 0; d < Width; d++)
                    {
                        ev[At(h, j, d, Keys)] += weight * g[At(h, i, d, Queries)];
                        eq[At(h, i, d, Queries)] += weight * through * k[At(h, j, d, Keys)] / Math.Sqrt(Width);
                        ek[At(h, j, d, Keys)] += weight * through * q[At(h, i, d, Queries)] / Math.Sqrt(Width);
                    }
                }
            }
        }

        return Math.Max(Difference(eq, gq), Math.Max(Difference(ek, gk), Difference(ev, gv)));
    }

    /// <summary>Largest error of the output with a modifier and a predicate of this program's own.</summary>
    public static double Modified()
    {
        const int Queries = 25, Keys = 25;
        var (q, k, v) = (Numbers(Queries, 1), Numbers(Keys, 2), Numbers(Keys, 3));
        var output = new float[q.Length];
        fixed (float* query = q, key = k, value = v, result = output)
        {
            var arguments = new AttentionArguments(
                new(query, 1, Heads, Queries, Width), new(key, 1, Heads, Keys, Width), new(value, 1, Heads, Keys, Width), new(result, 1, Heads, Queries, Width));
            FusedAttention.Forward(arguments, default(HalveOddKeys), default(EvenDistances));
        }

        return Difference(Plain(q, k, v, Queries, Keys, (score, _, key) => key % 2 == 0 ? score : score / 2, (query, key) => (query + key) % 2 == 0).Output, output);
    }

    private static int At(int head, int row, int column, int rows) => (((head * rows) + row) * Width) + column;

    private static float[] Numbers(int rows, int seed)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, Heads * rows * Width).Select(_ => (random.NextSingle() * 2) - 1)];
    }

    private static (double[] Output, double[] Weights) Plain(
        float[] q, float[] k, float[] v, int queries, int keys, Func<double, int, int, double> modify, Func<int, int, bool> allows)
    {
        var (output, weights) = (new double[q.Length], new double[Heads * queries * keys]);
        for (var h = 0; h < Heads; h++)
        {
            for (var i = 0; i < queries; i++)
            {
                var row = weights.AsSpan(((h * queries) + i) * keys, keys);
                double sum = 0;
                for (var j = 0; j < keys; j++)
                {
                    double score = 0;
                    for (var d = 0; d < Width; d++)
                    {
                        score += q[At(h, i, d, queries)] * k[At(h, j, d, keys)] / Math.Sqrt(Width);
                    }

                    row[j] = allows(i, j) ? Math.Exp(modify(score, i, j)) : 0;
                    sum += row[j];
                }

                for (var j = 0; j < keys; j++)
                {
                    row[j] /= sum;
                    for (var d = 0; d < Width; d++)
                    {
                        output[At(h, i, d, queries)] += row[j] * v[At(h, j, d, keys)];
                    }
                }
            }
        }

        return (output, weights);
    }

    private static double Difference(double[] expected, float[] actual)
    {
        double largest = 0;
        for (var i = 0; i < expected.Length; i++)
        {
            // NaN must not hide behind a comparison.
            var error = Math.Abs(expected[i] - actual[i]);
            largest = double.IsNaN(error) ? double.PositiveInfinity : Math.Max(largest, error);
        }

        return largest;
    }

    private readonly struct HalveOddKeys : IScoreModifier
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<float> Apply(Vector512<float> scores, in ScoreRow row, Vector512<int> keys) => scores * Factor(keys);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<float> Gradient(Vector512<float> scores, Vector512<float> gradient, in ScoreRow row, Vector512<int> keys) => gradient * Factor(keys);

        private static Vector512<float> Factor(Vector512<int> keys) =>
            Vector512<float>.One - (Vector512.ConvertToSingle(keys & Vector512<int>.One) * Vector512.Create(0.5f));
    }

    private readonly struct EvenDistances : IMaskPredicate
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Vector512<int> Allows(in ScoreRow row, Vector512<int> keys) =>
            Vector512.Equals((keys + Vector512.Create(row.Query)) & Vector512<int>.One, Vector512<int>.Zero);
    }
}
