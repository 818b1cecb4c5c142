using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public unsafe class SampledMaximaTests
{
    [Fact]
    public void Maxima_are_those_of_the_definition_at_every_width_of_vectors() =>
        Gen.Select(Gen.Int[1, 3], Gen.Int[1, 2], Gen.Int[1, 110], Gen.Int[1, 70], Gen.Int[1, 5], Gen.Int[1, 9], Gen.Int).Sample((keyHeads, group, queries, blocks, samples, width, seed) =>
        {
            var random = new Random(seed);
            float[] Make(int count) => [.. Enumerable.Range(0, count).Select(_ => (float)((2 * random.NextDouble()) - 1))];
            var heads = keyHeads * group;
            var (q, k) = (Make(2 * heads * queries * width), Make(2 * keyHeads * samples * blocks * width));
            var expected = new double[2 * heads * queries * blocks];
            for (var at = 0; at < expected.Length; at++)
            {
                var (row, block) = (at / blocks, at % blocks);
                var keyHead = row / queries / group;
                expected[at] = Enumerable.Range(0, samples).Max(sample => Enumerable.Range(0, width).Sum(d =>
                    0.5 * q[(row * width) + d] * k[(((keyHead * samples * blocks) + (sample * blocks) + block) * width) + d]));
            }

            foreach (var compute in new Action<TensorView, TensorView, nint>[]
            {
                (query, key, output) => SampledMaxima.Compute(query, key, blocks, 0.5f, (float*)output, 2),
                (query, key, output) => SampledMaxima.Compute<Vector128<float>, Vector128Operations>(query, key, blocks, 0.5f, (float*)output, 1),
                (query, key, output) => SampledMaxima.Compute<Vector256<float>, Vector256Operations>(query, key, blocks, 0.5f, (float*)output, 1),
                (query, key, output) => SampledMaxima.Compute<Vector512<float>, Vector512Operations>(query, key, blocks, 0.5f, (float*)output, 1),
            })
            {
                var output = new float[expected.Length];
                fixed (float* first = q, second = k, third = output)
                {
                    compute(new(first, 2, heads, queries, width), new(second, 2, keyHeads, samples * blocks, width), (nint)third);
                }

                for (var at = 0; at < expected.Length; at++)
                {
                    // Products of numbers below 1: one rounding each.
                    Assert.Equal(expected[at], output[at], width * 1e-6);
                }
            }
        }, iter: 30);

    [Fact]
    public void Keys_that_are_not_whole_samples_are_refused()
    {
        var values = new float[12];
        fixed (float* data = values)
        {
            var (query, key) = (new TensorView(data, 1, 1, 2, 2), new TensorView(data, 1, 1, 5, 2));
            var output = (nint)data;
            Assert.Contains("of each of 3 block(s)", Assert.Throws<ArgumentException>(() => SampledMaxima.Compute(query, key, 3, 1, (float*)output)).Message, StringComparison.Ordinal);
        }
    }
}
