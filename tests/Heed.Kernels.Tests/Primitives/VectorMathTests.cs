using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>Elementary functions against float64, at every width.</summary>
public unsafe class VectorMathTests
{
    [Fact]
    public void Exp2_is_within_two_units_in_the_last_place()
    {
        VectorWidths.ForEach(new Accuracy((x) => Math.Pow(2, x), Function.Exp2, -125.5f, 127.9f, 2.5 * Math.Pow(2, -24) * 2));
    }

    [Fact]
    public void Sigmoid_is_accurate() =>
        VectorWidths.ForEach(new Accuracy(x => 1 / (1 + Math.Exp(-x)), Function.Sigmoid, -20, 80, 2e-6));

    [Fact]
    public void Tanh_is_accurate() =>
        VectorWidths.ForEach(new Accuracy(Math.Tanh, Function.Tanh, -12, 12, 3e-7));

    [Fact]
    public void Softplus_and_its_derivative_are_accurate()
    {
        VectorWidths.ForEach(new Accuracy(x => x > 0 ? x + Log1P(Math.Exp(-x)) : Log1P(Math.Exp(x)), Function.Softplus, -20, 60, 2e-6));
        VectorWidths.ForEach(new Accuracy(x => 1 / (1 + Math.Exp(-x)), Function.SoftplusDerivative, -20, 60, 2e-6));

        // log(1 + y) loses y's last digits where y is small; its series does not.
        static double Log1P(double y) => y > 1e-5 ? Math.Log(1 + y) : y - (y * y / 2);
    }

    [Fact]
    public void Exp2_treats_the_edges_as_the_formula_does() => VectorWidths.ForEach(new Edges());

    internal enum Function
    {
        Exp2,
        Sigmoid,
        Tanh,
        Softplus,
        SoftplusDerivative,
    }

    private static float[] Evaluate<TVector, TOps>(Function function, float[] x)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var padded = new float[(x.Length + 15) / 16 * 16];
        x.CopyTo(padded, 0);
        fixed (float* p = padded)
        {
            for (var i = 0; i < padded.Length; i += TOps.Lanes)
            {
                var v = TOps.Load(p + i);
                TOps.Store(
                    function switch
                    {
                        Function.Exp2 => TOps.Exp2(v),
                        Function.Sigmoid => VectorMath.Sigmoid<TVector, TOps>(v),
                        Function.Softplus => VectorMath.Softplus<TVector, TOps>(v, out _),
                        Function.SoftplusDerivative => Derivative(v),
                        _ => VectorMath.Tanh<TVector, TOps>(v),
                    },
                    p + i);
            }
        }

        return padded[..x.Length];

        static TVector Derivative(TVector v)
        {
            VectorMath.Softplus<TVector, TOps>(v, out var derivative);
            return derivative;
        }
    }

    private sealed class Accuracy(Func<double, double> exact, Function function, float low, float high, double tolerance) : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            var x = Enumerable.Range(0, 100_001).Select(i => low + ((high - low) * i / 100_000)).ToArray();
            var y = Evaluate<TVector, TOps>(function, x);
            for (var i = 0; i < x.Length; i++)
            {
                var expected = exact(x[i]);
                Assert.True(Math.Abs(y[i] - expected) <= tolerance * Math.Abs(expected), $"{typeof(TVector)} {function}({x[i]:R}) = {y[i]:R}, expected {expected:R}");
            }
        }
    }

    private sealed class Edges : IWidthAction
    {
        public void Run<TVector, TOps>()
            where TVector : struct
            where TOps : struct, IVectorOperations<TVector>
        {
            float[] x = [float.NegativeInfinity, float.PositiveInfinity, float.NaN, 0, -0f, 1, -1, 10, -1e-9f, float.MinValue, float.MaxValue, -200, 128, 127, -126, -1e-30f];
            float[] expected = [0, float.PositiveInfinity, float.NaN, 1, 1, 2, 0.5f, 1024, 1, 0, float.PositiveInfinity, 0, float.PositiveInfinity, MathF.Pow(2, 127), MathF.Pow(2, -126), 1];
            Assert.Equal(expected, Evaluate<TVector, TOps>(Function.Exp2, x).Select((y, i) => float.IsFinite(y) && Math.Abs(y - expected[i]) <= 2e-7f * y ? expected[i] : y));
        }
    }
}
