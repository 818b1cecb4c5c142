using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Register tiles and packing against plain loops, at every width.</summary>
public unsafe class MicroKernelTests
{
    [Fact]
    public void Tiles_multiply_packed_operands() => VectorWidths.ForEach(new Products());

    [Fact]
    public void Value_panels_hold_the_values_and_tell_whether_they_are_finite() => VectorWidths.ForEach(new Values());

    [Fact]
    public void Panels_share_the_vectors_evenly()
    {
        for (var vectors = 1; vectors < 40; vectors++)
        {
            var panels = (vectors + 3) / 4;
            var shares = Enumerable.Range(0, panels).Select(panel => Packing.PanelVectors(vectors, panels, panel)).ToArray();
            Assert.Equal(vectors, shares.Sum());
            Assert.InRange(shares.Max() - shares.Min(), 0, 1);
            Assert.InRange(shares.Max(), 1, 4);
        }
    }

    private static float[] Random(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => (random.NextSingle() * 2) - 1)];

    private sealed class Products : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            var random = new Random(1);
            var width = Packing.PanelWidth<TVector, TOps>();
            foreach (var depth in new[] { 0, 1, 3, 4, 17, 64 })
            {
                for (var rows = 0; rows <= MicroKernel.Rows; rows++)
                {
                    for (var keys = 0; keys <= width; keys += 1 + (width / 5))
                    {
                        var (query, key) = (Random(random, 6 * (depth + 2)), Random(random, width * (depth + 1)));
                        var (strip, panel, result) = (new float[(6 * depth) + 1], new float[(width * depth) + 1], new float[6 * MicroKernel.ScoreStride]);
                        fixed (float* q = query, k = key, s = strip, p = panel, c = result)
                        {
                            Packing.Strip(q, depth + 2, rows, depth, 0.5f, s);
                            Packing.KeyPanel<Float32Element>((byte*)k, (depth + 1) * 4, keys, depth, p, width);
                            for (var vectors = 1; vectors <= TOps.TileVectors; vectors++)
                            {
                                MicroKernel.Multiply<TVector, TOps, StripLayout, Zero>(s, p, width, c, MicroKernel.ScoreStride, depth, vectors);
                                MicroKernel.Multiply<TVector, TOps, StripLayout, One>(s, p, width, c, MicroKernel.ScoreStride, depth, vectors);
                                if (rows == 1)
                                {
                                    MicroKernel.MultiplyRow<TVector, TOps, StripLayout, Zero>(s, p, width, c, depth, vectors);
                                    MicroKernel.MultiplyRow<TVector, TOps, StripLayout, One>(s, p, width, c, depth, vectors);
                                }

                                for (var row = 0; row < 6; row++)
                                {
                                    for (var column = 0; column < vectors * TOps.Lanes; column++)
                                    {
                                        double expected = 0;
                                        for (var d = 0; d < depth && row < rows && column < keys; d++)
                                        {
                                            expected += (double)q[(row * (depth + 2)) + d] * k[(column * (depth + 1)) + d];
                                        }

                                        Assert.Equal(expected, c[(row * MicroKernel.ScoreStride) + column], 1e-5);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    private sealed class Values : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            var random = new Random(2);
            for (var columns = 1; columns <= Packing.PanelWidth<TVector, TOps>(); columns++)
            {
                const int rows = 5;
                var width = Packing.Vectors<TVector, TOps>(columns) * TOps.Lanes;
                var source = Enumerable.Range(0, rows * columns).Select(_ => (Half)random.NextSingle()).ToArray();
                var wide = source.Select(x => (float)x).ToArray();
                var (fromHalf, fromFloat) = (new float[rows * width], new float[rows * width]);
                fixed (Half* h = source)
                fixed (float* f = wide, a = fromHalf, b = fromFloat)
                {
                    Assert.True(Packing.ValuePanel<TVector, TOps, Float16Element>((byte*)h, columns * 2, rows, columns, a, width));
                    Assert.True(Packing.ValuePanel<TVector, TOps, Float32Element>((byte*)f, columns * 4, rows, columns, b, width));
                    Assert.Equal(fromFloat, fromHalf);
                    Assert.Equal(Enumerable.Range(0, rows * width).Select(i => i % width < columns ? wide[(i / width * columns) + (i % width)] : 0), fromFloat);
                    f[random.Next(wide.Length)] = random.Next(2) == 0 ? float.NaN : float.NegativeInfinity;
                    Assert.False(Packing.ValuePanel<TVector, TOps, Float32Element>((byte*)f, columns * 4, rows, columns, b, width));
                }
            }
        }
    }
}
