using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>The tensors of one aggregation with dynamic kernels, all float32 and contiguous. Taps T = Small^2 + Large^2; channels 2 Groups Channels.</summary>
public readonly unsafe record struct DynamicKernelArguments
{
    /// <summary>Number B of maps.</summary>
    public required int Batch { get; init; }

    /// <summary>Number G of groups, each with kernels of its own.</summary>
    public required int Groups { get; init; }

    /// <summary>Channels c of a group, in each half.</summary>
    public required int Channels { get; init; }

    /// <summary>Rows H of a map, at least the large side.</summary>
    public required int Height { get; init; }

    /// <summary>Columns W of a map, at least the large side.</summary>
    public required int Width { get; init; }

    /// <summary>Side s of the kernels of the first half of the channels; odd.</summary>
    public required int Small { get; init; }

    /// <summary>Side k of the kernels of the second half; odd, at least s.</summary>
    public required int Large { get; init; }

    /// <summary>Logits <c>[B, G, H, W, T]</c>: the small kernel's taps, then the large one's, row by row.</summary>
    public required nint Logits { get; init; }

    /// <summary>Bias of relative positions of the small kernel, <c>[G, 2 s - 1, 2 s - 1]</c>.</summary>
    public required nint SmallBias { get; init; }

    /// <summary>Bias of relative positions of the large kernel, <c>[G, 2 k - 1, 2 k - 1]</c>.</summary>
    public required nint LargeBias { get; init; }

    /// <summary>Values <c>[B, 2 G c, H, W]</c>.</summary>
    public required nint Value { get; init; }

    /// <summary>Number of threads; 0: one per processor. The results do not depend on it.</summary>
    public int Threads { get; init; }

    /// <summary>Refuses sizes that make no sense and pointers that point nowhere.</summary>
    /// <exception cref="ArgumentException">A size or pointer is wrong.</exception>
    internal void Check()
    {
        if (Batch < 1 || Groups < 1 || Channels < 1 || Small < 1 || Small % 2 == 0 || Large % 2 == 0 || Small > Large || Math.Min(Height, Width) < Large)
        {
            throw new ArgumentException(
                $"Dynamic kernels need positive sizes, odd sides small <= large, and a map of at least the large side; batch {Batch}, groups {Groups}, channels {Channels}, sides {Small} and {Large}, and a map of {Height} x {Width} were given.");
        }

        if (Logits == 0 || SmallBias == 0 || LargeBias == 0 || Value == 0)
        {
            throw new ArgumentException("Dynamic kernels need logits, both biases and values; one of the pointers is null.");
        }
    }
}

/// <summary>
/// Neighbourhood aggregation with a softmaxed kernel per position and group (ContMix, arXiv 2502.20087), forward and backward. Bias, softmax and weighted sum are one pass over the logits; windows are read where they lie and
/// never written out. At borders windows shift inwards. Every (map, group, half) is one item of work that owns what it writes: the bits do not depend on the number of threads.
/// </summary>
public static unsafe class DynamicKernels
{
    /// <summary>Computes the output.</summary>
    /// <param name="arguments">The inputs.</param>
    /// <param name="output"><c>[B, 2 G c, H, W]</c>.</param>
    /// <exception cref="ArgumentException">A size or pointer is wrong.</exception>
    public static void Forward(in DynamicKernelArguments arguments, float* output)
    {
        arguments.Check();
        ArgumentNullException.ThrowIfNull(output);
        Run(arguments, new Targets { Output = output });
    }

    /// <summary>Computes the gradients.</summary>
    /// <param name="arguments">The inputs of the forward pass.</param>
    /// <param name="outputGradient">The gradient that arrives, <c>[B, 2 G c, H, W]</c>.</param>
    /// <param name="logits">Gradient of the logits, shaped as they are.</param>
    /// <param name="smallBias">Gradient of the small kernel's bias.</param>
    /// <param name="largeBias">Gradient of the large kernel's bias.</param>
    /// <param name="value">Gradient of the values.</param>
    /// <exception cref="ArgumentException">A size or pointer is wrong.</exception>
    public static void Backward(in DynamicKernelArguments arguments, float* outputGradient, float* logits, float* smallBias, float* largeBias, float* value)
    {
        arguments.Check();
        ArgumentNullException.ThrowIfNull(outputGradient);
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(smallBias);
        ArgumentNullException.ThrowIfNull(largeBias);
        ArgumentNullException.ThrowIfNull(value);
        Run(arguments, new Targets { OutputGradient = outputGradient, Logits = logits, SmallBias = smallBias, LargeBias = largeBias, Value = value });
    }

    /// <summary>Runs with vectors of a given width over the taps, and the narrowest that hold the channels of a group.</summary>
    internal static void Run<TVector, TOps>(in DynamicKernelArguments arguments, in Targets targets)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        if (arguments.Channels <= Vector128Operations.Lanes)
        {
            new DynamicKernelLoop<TVector, TOps, Vector128<float>, Vector128Operations>(arguments, targets).Run();
        }
        else if (arguments.Channels <= Vector256Operations.Lanes && TOps.Lanes > Vector256Operations.Lanes)
        {
            new DynamicKernelLoop<TVector, TOps, Vector256<float>, Vector256Operations>(arguments, targets).Run();
        }
        else
        {
            new DynamicKernelLoop<TVector, TOps, TVector, TOps>(arguments, targets).Run();
        }
    }

    private static void Run(in DynamicKernelArguments arguments, in Targets targets)
    {
        if (Vector512.IsHardwareAccelerated)
        {
            Run<Vector512<float>, Vector512Operations>(arguments, targets);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Run<Vector256<float>, Vector256Operations>(arguments, targets);
        }
        else
        {
            Run<Vector128<float>, Vector128Operations>(arguments, targets);
        }
    }

    /// <summary>Where results go: the output, or the gradients.</summary>
    internal readonly struct Targets
    {
        /// <summary>The output; null: gradients are asked for.</summary>
        public float* Output { get; init; }

        /// <summary>The gradient that arrives.</summary>
        public float* OutputGradient { get; init; }

        public float* Logits { get; init; }

        public float* SmallBias { get; init; }

        public float* LargeBias { get; init; }

        public float* Value { get; init; }
    }
}

/// <summary>The loop over (half, map, group), the large kernels first. Taps are <typeparamref name="TVector"/> wide in the softmax, channels <typeparamref name="TChannels"/> wide in the sums.</summary>
internal sealed unsafe class DynamicKernelLoop<TVector, TOps, TChannels, TChannelOps> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
    where TChannels : struct
    where TChannelOps : struct, IVectorOperations<TChannels>
{
    private readonly DynamicKernelArguments _arguments;
    private readonly DynamicKernels.Targets _targets;
    private readonly long _positions;
    private readonly long _taps;
    private readonly long _row;
    private readonly int _pairs;
    private readonly long _partial;
    private float* _biasParts;

    public DynamicKernelLoop(in DynamicKernelArguments arguments, in DynamicKernels.Targets targets)
    {
        (_arguments, _targets) = (arguments, targets);
        _positions = (long)arguments.Height * arguments.Width;
        _taps = ((long)arguments.Small * arguments.Small) + ((long)arguments.Large * arguments.Large);
        _row = (arguments.Channels + TChannelOps.Lanes - 1) / TChannelOps.Lanes * TChannelOps.Lanes;
        _pairs = checked(arguments.Batch * arguments.Groups);
        _partial = BiasSize(arguments.Large) + TOps.Lanes;
    }

    public void Run()
    {
        if (_targets.Output == null)
        {
            _biasParts = Workspace.OfCall.Take(_partial * _pairs * 2);
        }

        Run(2 * _pairs, _arguments.Threads);
        if (_targets.Output == null)
        {
            SumBias(_arguments.Large, 0, _targets.LargeBias);
            SumBias(_arguments.Small, _pairs, _targets.SmallBias);
        }
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var isLarge = item < _pairs;
        var pair = item % _pairs;
        var work = new Item
        {
            Side = isLarge ? _arguments.Large : _arguments.Small,
            Batch = pair / _arguments.Groups,
            Group = pair % _arguments.Groups,
        };
        var side = work.Side;
        var taps = side * side;
        // The first channel of the group, in a tensor of channels.
        var channel = ((((long)work.Batch * 2) + (isLarge ? 1 : 0)) * _arguments.Groups) + work.Group;
        var plane = channel * _arguments.Channels * _positions;
        var logits = (((long)pair * _positions) * _taps) + (isLarge ? (long)_arguments.Small * _arguments.Small : 0);
        // Windows are read four columns at a time, up to three beyond the map.
        var map = Workspace.Lines((_positions + 3) * _row);
        var padded = Workspace.Lines(taps + (2 * TOps.Lanes));
        var biasSize = BiasSize(side);
        var backward = _targets.Output == null;
        var memory = Workspace.OfItem.Take(((backward ? 3 : 2) * map) + (4 * padded) + Workspace.Lines(biasSize + TOps.Lanes));
        work.Value = memory;
        work.Other = memory + map;
        work.ValueGradient = memory + (2 * map);
        work.Weights = memory + ((backward ? 3 : 2) * map);
        work.WeightGradients = work.Weights + padded;
        work.Tail = work.WeightGradients + padded;
        work.Bias = work.Tail + (2 * padded);
        new ReadOnlySpan<float>((float*)(isLarge ? _arguments.LargeBias : _arguments.SmallBias) + (work.Group * biasSize), (int)biasSize).CopyTo(new Span<float>(work.Bias, (int)biasSize));
        work.Logits = (float*)_arguments.Logits + logits;
        work.LogitsEnd = (float*)_arguments.Logits + (_pairs * _positions * _taps);
        ToRows((float*)_arguments.Value + plane, work.Value);
        if (!backward)
        {
            Forward(work);
            FromRows(work.Other, _targets.Output + plane);
            return;
        }

        ToRows(_targets.OutputGradient + plane, work.Other);
        Clear(work.ValueGradient, (_positions + 3) * _row);
        work.LogitGradients = _targets.Logits + logits;
        work.BiasGradient = _biasParts + (item * _partial);
        Clear(work.BiasGradient, biasSize + TOps.Lanes);
        Backward(work);
        FromRows(work.ValueGradient, _targets.Value + plane);
    }

    private static long BiasSize(long side) => ((2 * side) - 1) * ((2 * side) - 1);

    private static void Clear(float* start, long count) => NativeMemory.Clear(start, checked((nuint)(count * sizeof(float))));

    private static int Start(int position, int side, int length) => Math.Clamp(position - (side / 2), 0, length - side);

    private void Forward(in Item item)
    {
        for (var row = 0; row < _arguments.Height; row++)
        {
            var top = Start(row, item.Side, _arguments.Height);
            for (var column = 0; column < _arguments.Width; column++)
            {
                var left = Start(column, item.Side, _arguments.Width);
                var position = ((long)row * _arguments.Width) + column;
                var scale = 1 / Exponentials(item, position, top - row, left - column);
                var window = item.Value + ((((long)top * _arguments.Width) + left) * _row);
                var target = item.Other + (position * _row);
                for (var lane = 0L; lane < _row; lane += TChannelOps.Lanes)
                {
                    Average(item, window + lane, target + lane, scale);
                }
            }
        }
    }

    private void Backward(in Item item)
    {
        for (var row = 0; row < _arguments.Height; row++)
        {
            var top = Start(row, item.Side, _arguments.Height);
            for (var column = 0; column < _arguments.Width; column++)
            {
                var left = Start(column, item.Side, _arguments.Width);
                var position = ((long)row * _arguments.Width) + column;
                var sum = Exponentials(item, position, top - row, left - column);
                Normalize(item, 1 / sum);
                var window = (((long)top * _arguments.Width) + left) * _row;
                for (var lane = 0L; lane < _row; lane += TChannelOps.Lanes)
                {
                    Products(item, window + lane, item.Other + (position * _row) + lane, lane > 0);
                }

                LogitGradients(item, position);
                AddBiasGradient(item, top - row, left - column);
            }
        }
    }

    /// <summary>exp(logit + bias - largest) of every tap into the weights; zeros behind them. Returns their sum.</summary>
    private float Exponentials(in Item item, long position, int rowOffset, int columnOffset)
    {
        var (side, lanes) = (item.Side, TOps.Lanes);
        var taps = side * side;
        var source = item.Logits + (position * _taps);
        if (item.LogitsEnd - source < taps + lanes)
        {
            // Vectors reach beyond the taps: at the end of the tensor they read a copy.
            new ReadOnlySpan<float>(source, taps).CopyTo(new Span<float>(item.Tail, taps));
            source = item.Tail;
        }

        var biasRow = (2 * side) - 1;
        var bias = item.Bias + ((rowOffset + side - 1) * biasRow) + columnOffset + side - 1;
        var weights = item.Weights;
        // What a vector writes behind its row, the next row writes over.
        for (var row = 0; row < side; row++)
        {
            for (var column = 0; column < side; column += lanes)
            {
                var tap = (row * side) + column;
                TOps.Store(TOps.Add(TOps.Load(source + tap), TOps.Load(bias + (row * biasRow) + column)), weights + tap);
            }
        }

        TOps.Store(TOps.Create(float.NegativeInfinity), weights + taps);
        var largest = TOps.Load(weights);
        for (var tap = lanes; tap < taps; tap += lanes)
        {
            largest = TOps.Max(largest, TOps.Load(weights + tap));
        }

        var shift = TOps.Create(TOps.MaxAcross(largest));
        var sum = TOps.Zero;
        for (var tap = 0; tap < taps; tap += lanes)
        {
            var power = VectorMath.Exp<TVector, TOps>(TOps.Subtract(TOps.Load(weights + tap), shift));
            sum = TOps.Add(sum, power);
            TOps.Store(power, weights + tap);
        }

        return TOps.Sum(sum);
    }

    private static void Normalize(in Item item, float factor)
    {
        var scale = TOps.Create(factor);
        for (var tap = 0; tap < item.Side * item.Side; tap += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(item.Weights + tap), scale), item.Weights + tap);
        }
    }

    /// <summary>The weighted sum of a window: four sums at once, as one would wait for itself at every step.</summary>
    private void Average(in Item item, float* window, float* target, float scale)
    {
        var (side, stride) = (item.Side, _row);
        var (first, second, third, fourth) = (TChannelOps.Zero, TChannelOps.Zero, TChannelOps.Zero, TChannelOps.Zero);
        var weights = item.Weights;
        for (var row = 0; row < side; row++)
        {
            var value = window;
            var column = 0;
            for (; column + 3 < side; column += 4)
            {
                first = TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column]), TChannelOps.Load(value), first);
                second = TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column + 1]), TChannelOps.Load(value + stride), second);
                third = TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column + 2]), TChannelOps.Load(value + (2 * stride)), third);
                fourth = TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column + 3]), TChannelOps.Load(value + (3 * stride)), fourth);
                value += 4 * stride;
            }

            for (; column < side; column++)
            {
                second = TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column]), TChannelOps.Load(value), second);
                value += stride;
            }

            weights += side;
            window += _arguments.Width * stride;
        }

        TChannelOps.Store(TChannelOps.Multiply(TChannelOps.Add(TChannelOps.Add(first, second), TChannelOps.Add(third, fourth)), TChannelOps.Create(scale)), target);
    }

    /// <summary>Products of the arriving gradient with every value of the window, and its share of every value's gradient.</summary>
    private void Products(in Item item, long window, float* arriving, bool adds)
    {
        var (side, stride) = (item.Side, _row);
        var gradient = TChannelOps.Load(arriving);
        var weights = item.Weights;
        var products = item.WeightGradients;
        for (var row = 0; row < side; row++)
        {
            var value = item.Value + window;
            var valueGradient = item.ValueGradient + window;
            for (var column = 0; column < side; column += 4)
            {
                var sums = TChannelOps.SumEach(
                    TChannelOps.Multiply(gradient, TChannelOps.Load(value)),
                    TChannelOps.Multiply(gradient, TChannelOps.Load(value + stride)),
                    TChannelOps.Multiply(gradient, TChannelOps.Load(value + (2 * stride))),
                    TChannelOps.Multiply(gradient, TChannelOps.Load(value + (3 * stride))));
                value += 4 * stride;
                if (!adds)
                {
                    // The last four of a row reach into the next, which writes over them.
                    sums.Store(products + column);
                }
                else
                {
                    for (var i = 0; i < Math.Min(4, side - column); i++)
                    {
                        products[column + i] += sums.GetElement(i);
                    }
                }
            }

            for (var column = 0; column < side; column++)
            {
                TChannelOps.Store(TChannelOps.MultiplyAdd(TChannelOps.Create(weights[column]), gradient, TChannelOps.Load(valueGradient)), valueGradient);
                valueGradient += stride;
            }

            weights += side;
            products += side;
            window += _arguments.Width * stride;
        }
    }

    /// <summary>Gradient of the logits: weight times (product - mean product).</summary>
    private void LogitGradients(in Item item, long position)
    {
        var taps = item.Side * item.Side;
        var products = item.WeightGradients;
        TOps.Store(TOps.Zero, products + taps);
        var mean = TOps.Zero;
        for (var tap = 0; tap < taps; tap += TOps.Lanes)
        {
            mean = TOps.MultiplyAdd(TOps.Load(item.Weights + tap), TOps.Load(products + tap), mean);
        }

        var shift = TOps.Create(TOps.Sum(mean));
        for (var tap = 0; tap < taps; tap += TOps.Lanes)
        {
            TOps.Store(TOps.Multiply(TOps.Load(item.Weights + tap), TOps.Subtract(TOps.Load(products + tap), shift)), products + tap);
        }

        // The row is another item's beyond its end.
        new ReadOnlySpan<float>(products, taps).CopyTo(new Span<float>(item.LogitGradients + (position * _taps), taps));
    }

    private static void AddBiasGradient(in Item item, int rowOffset, int columnOffset)
    {
        var (side, lanes) = (item.Side, TOps.Lanes);
        var biasRow = (2 * side) - 1;
        var target = item.BiasGradient + ((rowOffset + side - 1) * biasRow) + columnOffset + side - 1;
        var source = item.WeightGradients;
        var whole = side / lanes * lanes;
        var rest = TOps.MaskFromBits((1u << (side - whole)) - 1);
        for (var row = 0; row < side; row++)
        {
            for (var column = 0; column < whole; column += lanes)
            {
                TOps.Store(TOps.Add(TOps.Load(target + column), TOps.Load(source + column)), target + column);
            }

            TOps.Store(TOps.Add(TOps.Load(target + whole), TOps.And(rest, TOps.Load(source + whole))), target + whole);
            target += biasRow;
            source += side;
        }
    }

    /// <summary>Channels of a group side by side for every position, zeros behind them.</summary>
    private void ToRows(float* planes, float* rows)
    {
        var channels = _arguments.Channels;
        for (var channel = 0; channel < _row; channel++)
        {
            var target = rows + channel;
            if (channel >= channels)
            {
                for (var position = 0L; position < _positions; position++)
                {
                    target[position * _row] = 0;
                }

                continue;
            }

            var source = planes + (channel * _positions);
            for (var position = 0L; position < _positions; position++)
            {
                target[position * _row] = source[position];
            }
        }
    }

    private void FromRows(float* rows, float* planes)
    {
        for (var channel = 0; channel < _arguments.Channels; channel++)
        {
            var source = rows + channel;
            var target = planes + (channel * _positions);
            for (var position = 0L; position < _positions; position++)
            {
                target[position] = source[position * _row];
            }
        }
    }

    // Maps one after the other, whoever computed them.
    private void SumBias(int side, int firstItem, float* target)
    {
        var size = (int)BiasSize(side);
        for (var group = 0; group < _arguments.Groups; group++)
        {
            var sum = new Span<float>(target + ((long)group * size), size);
            sum.Clear();
            for (var batch = 0; batch < _arguments.Batch; batch++)
            {
                var part = _biasParts + ((firstItem + ((long)batch * _arguments.Groups) + group) * _partial);
                for (var i = 0; i < size; i++)
                {
                    sum[i] += part[i];
                }
            }
        }
    }

    /// <summary>One (map, group, half) in work.</summary>
    private struct Item
    {
        public int Side;
        public int Batch;
        public int Group;

        /// <summary>Taps of position 0.</summary>
        public float* Logits;

        /// <summary>The bias table, with room behind it.</summary>
        public float* Bias;

        /// <summary>Values, a row of channels per position.</summary>
        public float* Value;

        /// <summary>Output or arriving gradient, likewise.</summary>
        public float* Other;

        /// <summary>Gradient of the values, likewise.</summary>
        public float* ValueGradient;

        /// <summary>Softmaxed taps of the current position.</summary>
        public float* Weights;

        /// <summary>Their gradients, then those of the logits.</summary>
        public float* WeightGradients;

        public float* LogitGradients;

        public float* BiasGradient;

        public float* Tail;

        /// <summary>End of the tensor of logits.</summary>
        public float* LogitsEnd;
    }
}
