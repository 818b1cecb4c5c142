using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using CsCheck;
using Xunit;

namespace Heed.Kernels.Tests;

public sealed unsafe class DynamicKernelsTests
{
    private static readonly Gen<Problem> AnyProblem =
        from batch in Gen.Int[1, 2]
        from groups in Gen.Int[1, 3]
        from channels in Gen.Int[1, 21]
        from small in Gen.Int[0, 2]
        from more in Gen.Int[0, 3]
        from height in Gen.Int[0, 4]
        from width in Gen.Int[0, 6]
        from seed in Gen.Int[0, 1000]
        let side = (2 * (small + more)) + 1
        select new Problem(batch, groups, channels, side + height, side + width, (2 * small) + 1, side, seed);

    public static TheoryData<int> Widths => new(128, 256, 512);

    [Theory]
    [MemberData(nameof(Widths))]
    public void Output_and_gradients_of_any_problem_agree_with_the_definition(int bits) => AnyProblem.Sample(
        problem =>
        {
            var (output, gradients) = problem.Compute(bits, 1);
            var (expected, expectedGradients) = problem.Reference();
            // Sums of up to 11 x 11 products of numbers of size 1 to 3, weights that sum to one; a bias gradient sums over positions and maps.
            Near(expected, output, 2e-5);
            foreach (var (wanted, found) in expectedGradients.Zip(gradients))
            {
                Near(wanted, found, 2e-4);
            }
        },
        iter: 60, threads: 1);

    [Fact]
    public void The_bits_are_the_same_for_any_number_of_threads()
    {
        var problem = new Problem(3, 2, 6, 9, 8, 3, 7, 5);
        var (output, gradients) = problem.Compute(0, 1);
        foreach (var threads in new[] { 2, 3, 7 })
        {
            var (again, gradientsAgain) = problem.Compute(0, threads);
            Assert.Equal(output, again);
            Assert.Equal(gradients, gradientsAgain);
        }
    }

    [Fact]
    public void Logits_of_any_size_neither_overflow_nor_vanish()
    {
        var problem = new Problem(1, 1, 3, 7, 7, 3, 5, 2);
        for (var i = 0; i < problem.Logits.Length; i++)
        {
            problem.Logits[i] *= 1024;
        }

        var (output, gradients) = problem.Compute(0, 1);

        // A logit of up to 2048 and its bias are added with an error of 2^-13, which moves a weight by as much, and values differ by up to 4.
        Near(problem.Reference().Output, output, 4 * 2 * 1.3e-4);
        Assert.All(gradients.SelectMany(gradient => gradient), value => Assert.True(float.IsFinite(value)));
    }

    [Theory]
    [InlineData(4, 5, 7)]
    [InlineData(3, 6, 7)]
    [InlineData(7, 5, 9)]
    [InlineData(3, 9, 8)]
    public void Sides_that_fit_neither_each_other_nor_the_map_are_refused(int small, int large, int side)
    {
        var arguments = new DynamicKernelArguments
        {
            Batch = 1, Groups = 1, Channels = 1, Height = side, Width = side, Small = small, Large = large, Logits = 1, SmallBias = 1, LargeBias = 1, Value = 1,
        };
        var output = 0f;

        var error = Assert.Throws<ArgumentException>(() => Forward(arguments, ref output));

        Assert.Contains($"sides {small} and {large}, and a map of {side} x {side} were given", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Missing_tensors_are_refused()
    {
        var arguments = new DynamicKernelArguments
        {
            Batch = 1, Groups = 1, Channels = 1, Height = 3, Width = 3, Small = 1, Large = 3, Logits = 0, SmallBias = 1, LargeBias = 1, Value = 1,
        };
        var output = 0f;

        Assert.Contains("one of the pointers is null", Assert.Throws<ArgumentException>(() => Forward(arguments, ref output)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentNullException>(() => DynamicKernels.Forward(arguments with { Logits = 1 }, null));
    }

    private static void Forward(DynamicKernelArguments arguments, ref float output)
    {
        fixed (float* pointer = &output)
        {
            DynamicKernels.Forward(arguments, pointer);
        }
    }

    private static void Near(double[] expected, float[] actual, double tolerance)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (var i = 0; i < expected.Length; i++)
        {
            Assert.True(Math.Abs(expected[i] - actual[i]) <= tolerance * (1 + Math.Abs(expected[i])), $"{i}: {actual[i]} is not {expected[i]}");
        }
    }

    /// <summary>Random inputs at the very end of what may be read.</summary>
    private sealed record Problem(int Batch, int Groups, int Channels, int Height, int Width, int Small, int Large, int Seed)
    {
        private readonly Random _random = new(Seed);

        private float[]? _logits, _smallBias, _largeBias, _value, _arriving;

        public float[] Logits => _logits ??= Make(Batch * Groups * Positions * Taps);

        private float[] SmallBias => _smallBias ??= Make(Groups * Table(Small));

        private float[] LargeBias => _largeBias ??= Make(Groups * Table(Large));

        private float[] Value => _value ??= Make(Batch * 2 * Groups * Channels * Positions);

        private float[] Arriving => _arriving ??= Make(Batch * 2 * Groups * Channels * Positions);

        private int Positions => Height * Width;

        private int Taps => (Small * Small) + (Large * Large);

        public (float[] Output, float[][] Gradients) Compute(int bits, int threads)
        {
            using var logits = new Guarded(Logits);
            using var smallBias = new Guarded(SmallBias);
            using var largeBias = new Guarded(LargeBias);
            using var value = new Guarded(Value);
            using var arriving = new Guarded(Arriving);
            using var output = new Guarded(new float[Value.Length]);
            Guarded[] gradients = [new(new float[Logits.Length]), new(new float[SmallBias.Length]), new(new float[LargeBias.Length]), new(new float[Value.Length])];
            var arguments = new DynamicKernelArguments
            {
                Batch = Batch, Groups = Groups, Channels = Channels, Height = Height, Width = Width, Small = Small, Large = Large, Threads = threads,
                Logits = (nint)logits.Data, SmallBias = (nint)smallBias.Data, LargeBias = (nint)largeBias.Data, Value = (nint)value.Data,
            };
            var forward = new DynamicKernels.Targets { Output = output.Data };
            var backward = new DynamicKernels.Targets
            {
                OutputGradient = arriving.Data, Logits = gradients[0].Data, SmallBias = gradients[1].Data, LargeBias = gradients[2].Data, Value = gradients[3].Data,
            };
            foreach (var targets in new[] { forward, backward })
            {
                switch (bits)
                {
                    case 128:
                        DynamicKernels.Run<Vector128<float>, Vector128Operations>(arguments, targets);
                        break;
                    case 256:
                        DynamicKernels.Run<Vector256<float>, Vector256Operations>(arguments, targets);
                        break;
                    case 512:
                        DynamicKernels.Run<Vector512<float>, Vector512Operations>(arguments, targets);
                        break;
                }
            }

            if (bits == 0)
            {
                DynamicKernels.Forward(arguments, output.Data);
                DynamicKernels.Backward(arguments, arriving.Data, gradients[0].Data, gradients[1].Data, gradients[2].Data, gradients[3].Data);
            }

            var result = (output.ToArray(), gradients.Select(gradient => gradient.ToArray()).ToArray());
            foreach (var gradient in gradients)
            {
                gradient.Dispose();
            }

            return result;
        }

        /// <summary>The definition, tap by tap, in float64.</summary>
        public (double[] Output, double[][] Gradients) Reference()
        {
            var output = new double[Value.Length];
            double[][] gradients = [new double[Logits.Length], new double[SmallBias.Length], new double[LargeBias.Length], new double[Value.Length]];
            for (var pair = 0; pair < Batch * Groups; pair++)
            {
                for (var half = 0; half < 2; half++)
                {
                    for (var position = 0; position < Positions; position++)
                    {
                        ReferencePosition(pair / Groups, pair % Groups, half, position / Width, position % Width, output, gradients);
                    }
                }
            }

            return (output, gradients);
        }

        private void ReferencePosition(int batch, int group, int half, int row, int column, double[] output, double[][] gradients)
        {
            var side = half == 0 ? Small : Large;
            var (bias, biasGradient) = half == 0 ? (SmallBias, gradients[1]) : (LargeBias, gradients[2]);
            var first = (((((batch * Groups) + group) * Positions) + (row * Width) + column) * Taps) + (half == 0 ? 0 : Small * Small);
            var plane = ((((batch * 2) + half) * Groups) + group) * Channels * Positions;
            var (top, left) = (Math.Clamp(row - (side / 2), 0, Height - side), Math.Clamp(column - (side / 2), 0, Width - side));
            var taps = Enumerable.Range(0, side * side).Select(tap =>
            {
                var (y, x) = (top + (tap / side), left + (tap % side));
                var table = (group * Table(side)) + ((y - row + side - 1) * ((2 * side) - 1)) + x - column + side - 1;
                return (Logit: Logits[first + tap] + (double)bias[table], Place: (y * Width) + x, Table: table);
            }).ToArray();
            var largest = taps.Max(tap => tap.Logit);
            var sum = taps.Sum(tap => Math.Exp(tap.Logit - largest));
            var weights = taps.Select(tap => Math.Exp(tap.Logit - largest) / sum).ToArray();
            var products = new double[taps.Length];
            for (var channel = 0; channel < Channels; channel++)
            {
                var own = plane + (channel * Positions);
                var arriving = Arriving[own + (row * Width) + column];
                for (var tap = 0; tap < taps.Length; tap++)
                {
                    output[own + (row * Width) + column] += weights[tap] * Value[own + taps[tap].Place];
                    products[tap] += arriving * (double)Value[own + taps[tap].Place];
                    gradients[3][own + taps[tap].Place] += weights[tap] * arriving;
                }
            }

            var mean = weights.Zip(products, (weight, product) => weight * product).Sum();
            for (var tap = 0; tap < taps.Length; tap++)
            {
                var gradient = weights[tap] * (products[tap] - mean);
                gradients[0][first + tap] = gradient;
                biasGradient[taps[tap].Table] += gradient;
            }
        }

        private static int Table(int side) => ((2 * side) - 1) * ((2 * side) - 1);

        private float[] Make(int count)
        {
            var values = new float[count];
            for (var i = 0; i < count; i++)
            {
                values[i] = (float)((2 * _random.NextDouble()) - 1) * 2;
            }

            return values;
        }
    }

    /// <summary>Memory of exactly the size that is needed, between numbers that must not change.</summary>
    private sealed class Guarded : IDisposable
    {
        private const int Guard = 64;
        private const float Mark = 12345;
        private readonly float* _memory;
        private readonly int _length;

        public Guarded(float[] values)
        {
            _length = values.Length;
            _memory = (float*)NativeMemory.Alloc((nuint)(values.Length + (2 * Guard)), sizeof(float));
            new Span<float>(_memory, values.Length + (2 * Guard)).Fill(Mark);
            values.CopyTo(new Span<float>(Data, values.Length));
        }

        public float* Data => _memory + Guard;

        public float[] ToArray()
        {
            Assert.True(new ReadOnlySpan<float>(_memory, Guard).IndexOfAnyExcept(Mark) < 0, "Written before the start.");
            Assert.True(new ReadOnlySpan<float>(Data + _length, Guard).IndexOfAnyExcept(Mark) < 0, "Written behind the end.");
            return new ReadOnlySpan<float>(Data, _length).ToArray();
        }

        public void Dispose() => NativeMemory.Free(_memory);
    }
}
