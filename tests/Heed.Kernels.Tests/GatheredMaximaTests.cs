using System.Runtime.Intrinsics;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The largest products of gathered keys, against plain loops.</summary>
public unsafe class GatheredMaximaTests
{
    [Theory]
    [InlineData(128)]
    [InlineData(256)]
    [InlineData(512)]
    public void The_largest_products_are_those_of_plain_loops(int bits)
    {
        for (var seed = 0; seed < 60; seed++)
        {
            var random = new Random(seed);
            var (rows, width, keys) = (random.Next(1, 10), random.Next(1, 80), random.Next(1, 60));
            var (keysPerBlock, type) = (random.Next(1, 6), (ElementType)random.Next(3));
            var (step, stride) = (random.Next(1, keysPerBlock + 1), width + random.Next(3));
            var packed = new float[GatheredMaxima.PackedRows(rows) * GatheredMaxima.PackedStride(width)];
            var queries = new float[rows][];
            for (var row = 0; row < rows; row++)
            {
                queries[row] = [.. Enumerable.Range(0, width).Select(_ => random.NextSingle() - 0.5f)];
                GatheredMaxima.Pack(queries[row], packed, row, rows);
            }

            // Eighths are exact in every element type.
            var values = Enumerable.Range(0, keys * stride).Select(_ => random.Next(-16, 17) / 8f).ToArray();
            var blocks = Enumerable.Range(0, 30).Select(_ => random.Next((keys + keysPerBlock - 1) / keysPerBlock)).ToArray();
            var maxima = new float[blocks.Length];
            var stored = Stored(values, type);
            fixed (byte* memory = stored)
            {
                var view = new TensorView((nint)memory, 1, 1, keys, width, 0, 0, stride, type);
                switch (bits)
                {
                    case 128:
                        GatheredMaxima.Compute<Vector128<float>, Vector128Operations>(packed, rows, view, blocks, keysPerBlock, step, maxima);
                        break;
                    case 256:
                        GatheredMaxima.Compute<Vector256<float>, Vector256Operations>(packed, rows, view, blocks, keysPerBlock, step, maxima);
                        break;
                    default:
                        GatheredMaxima.Compute<Vector512<float>, Vector512Operations>(packed, rows, view, blocks, keysPerBlock, step, maxima);
                        break;
                }
            }

            for (var i = 0; i < blocks.Length; i++)
            {
                var (best, magnitude) = (double.NegativeInfinity, 0.0);
                for (var key = (blocks[i] * keysPerBlock) + step - 1; key < Math.Min((blocks[i] + 1) * keysPerBlock, keys); key += step)
                {
                    foreach (var query in queries)
                    {
                        var (sum, absolute) = (0.0, 0.0);
                        for (var d = 0; d < width; d++)
                        {
                            var product = (double)query[d] * values[(key * stride) + d];
                            (sum, absolute) = (sum + product, absolute + Math.Abs(product));
                        }

                        (best, magnitude) = (Math.Max(best, sum), Math.Max(magnitude, absolute));
                    }
                }

                // The error of a float32 sum is at most its length times half a unit in the last place of the sum of magnitudes.
                Assert.True(best == maxima[i] || Math.Abs(best - maxima[i]) <= (width + 1) * Math.Pow(2, -24) * magnitude, $"seed {seed}, block {i}: {maxima[i]} is not {best}");
            }
        }
    }

    [Fact]
    public void What_does_not_fit_is_refused()
    {
        var keys = new float[8];
        fixed (float* memory = keys)
        {
            var view = new TensorView(memory, 1, 1, 4, 2);
            var packed = new float[GatheredMaxima.PackedStride(2)];
            Assert.Contains("1 query", Assert.Throws<ArgumentException>(() => GatheredMaxima.Compute(packed, 0, view, [0], 1, 1, new float[1])).Message, StringComparison.Ordinal);
            Assert.Contains("step", Assert.Throws<ArgumentException>(() => GatheredMaxima.Compute(packed, 1, view, [0], 2, 3, new float[1])).Message, StringComparison.Ordinal);
            Assert.Contains("room", Assert.Throws<ArgumentException>(() => GatheredMaxima.Compute(packed, 5, view, [0], 1, 1, new float[1])).Message, StringComparison.Ordinal);
            Assert.Contains("room", Assert.Throws<ArgumentException>(() => GatheredMaxima.Compute(packed, 1, view, [0, 1], 1, 1, new float[1])).Message, StringComparison.Ordinal);
            Assert.Contains("from 0", Assert.Throws<ArgumentException>(() => GatheredMaxima.Compute(packed, 1, view, [-1], 1, 1, new float[1])).Message, StringComparison.Ordinal);
        }
    }

    private static byte[] Stored(float[] values, ElementType type)
    {
        switch (type)
        {
            case ElementType.Float16:
                return [.. values.SelectMany(value => BitConverter.GetBytes((Half)value))];
            case ElementType.BFloat16:
                return [.. values.SelectMany(value => BitConverter.GetBytes((ushort)(BitConverter.SingleToUInt32Bits(value) >> 16)))];
            default:
                return [.. values.SelectMany(BitConverter.GetBytes)];
        }
    }
}
