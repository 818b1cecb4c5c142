using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

/// <summary>The depth-wise kernel against the sum written out in float64, at every width of vectors and in both memory orders.</summary>
public sealed class DepthwiseKernelTests
{
    [Theory]
    [InlineData(128)]
    [InlineData(256)]
    [InlineData(512)]
    public void Every_pass_agrees_with_the_sum_written_out(int bits) =>
        (from batch in Gen.Int[1, 3]
         from channels in Gen.Int[1, 35]
         from height in Gen.Int[1, 17]
         from width in Gen.Int[1, 40]
         from kernelHeight in Gen.Int[1, 19]
         from kernelWidth in Gen.Int[1, 19]
         from top in Gen.Int[0, kernelHeight - 1]
         from left in Gen.Int[0, kernelWidth - 1]
         from order in Gen.Int[0, 5]
         from seed in Gen.Int
         select new Problem(batch, channels, height, width, kernelHeight, kernelWidth, top, left, order, seed)).Sample(problem => Agrees(problem, bits), iter: 60, threads: 1);

    [Theory]
    [InlineData(7, 7, 13)]
    [InlineData(14, 14, 7)]
    [InlineData(28, 28, 3)]
    [InlineData(1, 300, 4)]
    [InlineData(2, 3, 19)]
    [InlineData(56, 8, 5)]
    public void Usual_sizes_agree_in_both_orders(int height, int width, int side)
    {
        foreach (var order in new[] { 0, 1 })
        {
            Agrees(new(2, 20, height, width, Math.Min(side, height == 1 ? 1 : side), side, height == 1 ? 0 : side / 2, side / 2, order, 7), 512);
        }
    }

    [Fact]
    public unsafe void The_bits_do_not_depend_on_the_number_of_threads()
    {
        using var problem = new Maps(new(9, 40, 14, 14, 7, 7, 3, 3, 1, 5));
        var one = problem.Compute(512, threads: 1);
        foreach (var threads in new[] { 2, 3, 7 })
        {
            var many = problem.Compute(512, threads);
            Assert.Equal(one.Output, many.Output);
            Assert.Equal(one.InputGradient, many.InputGradient);
            Assert.Equal(one.WeightGradient, many.WeightGradient);
            Assert.Equal(one.BiasGradient, many.BiasGradient);
        }
    }

    [Fact]
    public unsafe void No_maps_give_gradients_of_zero()
    {
        float* weight = stackalloc float[18], gradient = stackalloc float[18], offsets = stackalloc float[2];
        for (var i = 0; i < 18; i++)
        {
            gradient[i] = 1;
        }

        var none = new MapView(0, 0, 2, 4, 4, 32, 16, 4, 1);
        var arguments = new DepthwiseArguments { Input = none, Weight = (nint)weight, KernelHeight = 3, KernelWidth = 3, Top = 1, Left = 1 };
        DepthwiseKernel.Forward(arguments, none);
        DepthwiseKernel.Backward(arguments, none, none, (nint)gradient, (nint)offsets);
        Assert.True(new Span<float>(gradient, 18).IndexOfAnyExcept(0f) < 0);
        Assert.Equal(0, offsets[1]);
    }

    [Fact]
    public unsafe void What_does_not_fit_is_refused()
    {
        var map = new MapView(0, 1, 2, 4, 4, 32, 16, 4, 1);
        var arguments = new DepthwiseArguments { Input = map, Weight = 0, KernelHeight = 3, KernelWidth = 3, Top = 1, Left = 1 };
        Assert.Contains("as the input is", Assert.Throws<ArgumentException>(() => DepthwiseKernel.Forward(arguments, map with { Width = 5 })).Message, StringComparison.Ordinal);
        Assert.Contains("gradient of the output", Assert.Throws<ArgumentException>(() => DepthwiseKernel.Backward(arguments, map with { Height = 5 }, null, 0, 0)).Message, StringComparison.Ordinal);
        Assert.Contains("gradient of the input", Assert.Throws<ArgumentException>(() => DepthwiseKernel.Backward(arguments, map, map with { Batch = 2 }, 0, 0)).Message, StringComparison.Ordinal);
        Assert.Contains("over the edge", Assert.Throws<ArgumentException>(() => DepthwiseKernel.Forward(arguments with { Left = 3 }, map)).Message, StringComparison.Ordinal);
        Assert.Contains("cut them up", Assert.Throws<ArgumentException>(() => DepthwiseKernel.Forward(arguments with { Input = map with { Height = 1L << 31 } }, map)).Message, StringComparison.Ordinal);
    }

    private static void Agrees(Problem problem, int bits)
    {
        using var maps = new Maps(problem);
        var (output, inputGradient, weightGradient, biasGradient) = maps.Compute(bits, threads: 2);
        var expected = maps.Reference();
        // n products of numbers below 1 in float32: n roundings, each of at most 2^-24 of a partial sum of size about sqrt(n) / 3, whose signs cancel: n 2^-24 with room for the tail.
        Close(expected.Output, output, problem.Taps);
        Close(expected.InputGradient, inputGradient, problem.Taps);
        Close(expected.WeightGradient, weightGradient, problem.Batch * problem.Height * problem.Width);
        Close(expected.BiasGradient, biasGradient, problem.Batch * problem.Height * problem.Width);

        void Close(double[] wanted, float[] actual, int terms)
        {
            var tolerance = 8 * Math.Max(4, terms) * Math.ScaleB(1, -24);
            for (var i = 0; i < wanted.Length; i++)
            {
                Assert.True(Math.Abs(wanted[i] - actual[i]) <= tolerance, $"{problem} at {i}: {actual[i]} is not {wanted[i]} within {tolerance:E1}");
            }
        }
    }

    /// <param name="Batch">Maps of a channel.</param>
    /// <param name="Channels">Channels.</param>
    /// <param name="Height">Rows.</param>
    /// <param name="Width">Columns.</param>
    /// <param name="KernelHeight">Rows of a filter.</param>
    /// <param name="KernelWidth">Columns of a filter.</param>
    /// <param name="Top">Rows over the edge.</param>
    /// <param name="Left">Columns over the edge.</param>
    /// <param name="Order">0: rows contiguous; 1: channels-last; 2: channels-last within wider positions; 3: rows with gaps; 4: columns before rows; 5: rows contiguous, gradient channels-last.</param>
    /// <param name="Seed">Of the numbers.</param>
    private sealed record Problem(int Batch, int Channels, int Height, int Width, int KernelHeight, int KernelWidth, int Top, int Left, int Order, int Seed)
    {
        public int Taps => KernelHeight * KernelWidth;
    }

    private sealed record Results<T>(T[] Output, T[] InputGradient, T[] WeightGradient, T[] BiasGradient);

    private sealed unsafe class Maps : IDisposable
    {
        private readonly Problem _problem;
        private readonly Random _random;
        private readonly List<nint> _blocks = [];
        private readonly MapView _input;
        private readonly MapView _gradient;
        private readonly float* _weight;
        private readonly float* _bias;

        public Maps(Problem problem)
        {
            _problem = problem;
            _random = new(problem.Seed);
            _input = Make(problem.Order);
            _gradient = Make(problem.Order == 5 ? 1 : 0);
            _weight = Random(problem.Channels * problem.Taps);
            _bias = Random(problem.Channels);
        }

        public Results<float> Compute(int bits, int threads)
        {
            var p = _problem;
            var order = p.Order is 1 or 2 ? 1 : 0;
            var (output, inputGradient) = (Make(order), Make(order));
            var weightGradient = Random(p.Channels * p.Taps);
            var biasGradient = Random(p.Channels);
            var arguments = new DepthwiseArguments
            {
                Input = _input, Weight = (nint)_weight, Bias = (nint)_bias, KernelHeight = p.KernelHeight, KernelWidth = p.KernelWidth, Top = p.Top, Left = p.Left, Threads = threads,
            };
            switch (bits)
            {
                case 128:
                    DepthwiseKernel.Forward<Vector128<float>, Vector128Operations>(arguments, output);
                    DepthwiseKernel.Backward<Vector128<float>, Vector128Operations>(arguments, _gradient, inputGradient, (nint)weightGradient, (nint)biasGradient);
                    break;
                case 256:
                    DepthwiseKernel.Forward<Vector256<float>, Vector256Operations>(arguments, output);
                    DepthwiseKernel.Backward<Vector256<float>, Vector256Operations>(arguments, _gradient, inputGradient, (nint)weightGradient, (nint)biasGradient);
                    break;
                default:
                    DepthwiseKernel.Forward<Vector512<float>, Vector512Operations>(arguments, output);
                    DepthwiseKernel.Backward<Vector512<float>, Vector512Operations>(arguments, _gradient, inputGradient, (nint)weightGradient, (nint)biasGradient);
                    break;
            }

            return new(Read(output), Read(inputGradient), new Span<float>(weightGradient, p.Channels * p.Taps).ToArray(), new Span<float>(biasGradient, p.Channels).ToArray());
        }

        public Results<double> Reference()
        {
            var p = _problem;
            var (input, gradient) = (Read(_input), Read(_gradient));
            var results = new Results<double>(new double[input.Length], new double[input.Length], new double[p.Channels * p.Taps], new double[p.Channels]);
            for (var map = 0; map < p.Batch * p.Channels; map++)
            {
                var channel = map % p.Channels;
                for (var y = 0; y < p.Height; y++)
                {
                    for (var x = 0; x < p.Width; x++)
                    {
                        var at = (((map * p.Height) + y) * p.Width) + x;
                        results.BiasGradient[channel] += gradient[at];
                        results.Output[at] += _bias[channel];
                        for (var tap = 0; tap < p.Taps; tap++)
                        {
                            var (row, column) = (y + (tap / p.KernelWidth) - p.Top, x + (tap % p.KernelWidth) - p.Left);
                            if (row >= 0 && row < p.Height && column >= 0 && column < p.Width)
                            {
                                var from = (((map * p.Height) + row) * p.Width) + column;
                                var filter = (channel * p.Taps) + tap;
                                results.Output[at] += (double)_weight[filter] * input[from];
                                results.InputGradient[from] += (double)_weight[filter] * gradient[at];
                                results.WeightGradient[filter] += (double)gradient[at] * input[from];
                            }
                        }
                    }
                }
            }

            return results;
        }

        public void Dispose() => _blocks.ForEach(block => NativeMemory.Free((void*)block));

        private MapView Make(int order)
        {
            var (b, c, h, w) = ((long)_problem.Batch, (long)_problem.Channels, (long)_problem.Height, (long)_problem.Width);
            var (batch, channel, row, column) = order switch
            {
                1 => (h * w * c, 1L, w * c, c),
                2 => (h * w * (c + 5), 1L, w * (c + 5), c + 5),
                3 => (c * h * (w + 3), h * (w + 3), w + 3, 1L),
                4 => (c * h * w, h * w, 1L, h),
                _ => (c * h * w, h * w, w, 1L),
            };
            return new((nint)Random((int)(b * batch)), b, c, h, w, batch, channel, row, column);
        }

        private float* Random(int count)
        {
            var numbers = (float*)NativeMemory.Alloc((nuint)count * sizeof(float));
            _blocks.Add((nint)numbers);
            for (var i = 0; i < count; i++)
            {
                numbers[i] = (_random.NextSingle() * 2) - 1;
            }

            return numbers;
        }

        private float[] Read(in MapView view)
        {
            var p = _problem;
            var values = new List<float>();
            for (var b = 0; b < p.Batch; b++)
            {
                for (var c = 0; c < p.Channels; c++)
                {
                    for (var y = 0; y < p.Height; y++)
                    {
                        for (var x = 0; x < p.Width; x++)
                        {
                            values.Add(view.Plane(b, c)[(y * view.RowStride) + (x * view.ColumnStride)]);
                        }
                    }
                }
            }

            return [.. values];
        }
    }
}
