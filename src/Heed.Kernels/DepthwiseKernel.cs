using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>Depth-wise convolution on the CPU: every channel has a filter of its own, stride 1, the maps keep their size.</summary>
public static unsafe class DepthwiseKernel
{
    /// <summary>Convolves.</summary>
    /// <param name="arguments">Input, filters and bias.</param>
    /// <param name="output">Receives the result: the input's shape, rows contiguous and without gaps between them, or channels-last.</param>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public static void Forward(in DepthwiseArguments arguments, in MapView output)
    {
        arguments.Check();
        arguments.CheckSame(output, nameof(output));
        if (Vector512.IsHardwareAccelerated)
        {
            Forward<Vector512<float>, Vector512Operations>(arguments, output);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Forward<Vector256<float>, Vector256Operations>(arguments, output);
        }
        else
        {
            Forward<Vector128<float>, Vector128Operations>(arguments, output);
        }
    }

    /// <summary>Computes gradients.</summary>
    /// <param name="arguments">What the forward pass was given.</param>
    /// <param name="outputGradient">The output's gradient, in any memory order.</param>
    /// <param name="inputGradient">Receives the input's, as <c>output</c> of the forward pass may lie; null: not wanted.</param>
    /// <param name="weightGradient">Address that receives the filters', contiguous as they are; 0: not wanted.</param>
    /// <param name="biasGradient">Address that receives the bias's; 0: not wanted.</param>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public static void Backward(in DepthwiseArguments arguments, in MapView outputGradient, MapView? inputGradient, nint weightGradient, nint biasGradient)
    {
        arguments.Check();
        arguments.CheckSame(outputGradient, "gradient of the output");
        if (inputGradient is { } wanted)
        {
            arguments.CheckSame(wanted, "gradient of the input");
        }

        if (Vector512.IsHardwareAccelerated)
        {
            Backward<Vector512<float>, Vector512Operations>(arguments, outputGradient, inputGradient, weightGradient, biasGradient);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Backward<Vector256<float>, Vector256Operations>(arguments, outputGradient, inputGradient, weightGradient, biasGradient);
        }
        else
        {
            Backward<Vector128<float>, Vector128Operations>(arguments, outputGradient, inputGradient, weightGradient, biasGradient);
        }
    }

    internal static void Forward<TVector, TOps>(in DepthwiseArguments arguments, in MapView output)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> => new DepthwiseForward<TVector, TOps>(arguments, output).Run();

    internal static void Backward<TVector, TOps>(in DepthwiseArguments arguments, in MapView outputGradient, MapView? inputGradient, nint weightGradient, nint biasGradient)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector> =>
        new DepthwiseBackward<TVector, TOps>(arguments, outputGradient, inputGradient, weightGradient, biasGradient).Run();
}

/// <summary>What both passes share: filters packed for a block of channels, and a convolution of one block of one map.</summary>
internal abstract unsafe class DepthwiseLoop<TVector, TOps> : ParallelLoop
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    // Positions of the output between two visits to memory: what the first cache keeps beside the rows that are read.
    private const int StripPositions = 128;

    private readonly DepthwiseArguments _arguments;

    protected DepthwiseLoop(in DepthwiseArguments arguments) => _arguments = arguments;

    protected ref readonly DepthwiseArguments Arguments => ref _arguments;

    protected static int Lanes => TOps.Lanes;

    protected static int Margin => DepthwiseCorrelation<TVector, TOps>.Margin;

    protected int Blocks => (int)((_arguments.Input.Channels + Lanes - 1) / Lanes);

    protected int Height => (int)_arguments.Input.Height;

    protected int Width => (int)_arguments.Input.Width;

    protected int Taps => _arguments.KernelHeight * _arguments.KernelWidth;

    protected bool IsEmpty => _arguments.Input.Batch * _arguments.Input.Channels * Height * Width == 0;

    /// <summary>Floats of one packed block of one map.</summary>
    protected long PackedFloats => MapPacking<TVector, TOps>.PackedVectors(Height, Width, Margin) * Lanes;

    /// <summary>Rows of the output that are computed before they go to memory.</summary>
    protected int StripRows => Math.Min(Height, Math.Max(2, ((StripPositions / Math.Max(1, Width)) + 1) & ~1));

    /// <summary>Floats that a strip takes: the last one may be nearly twice as long.</summary>
    protected long StripFloats => 2L * StripRows * Width * Lanes;

    /// <summary>Filters as the correlation reads them: <c>[block, row, column, lane]</c>.</summary>
    protected void PackFilters(float* to, float* square, bool turned)
    {
        var filters = Filters(_arguments.Weight);
        for (var block = 0; block < Blocks; block++, to += (nint)Taps * Lanes)
        {
            MapPacking<TVector, TOps>.Pack(filters, 0, (long)block * Lanes, to, 0, square);
            for (var tap = 0; turned && tap < Taps / 2; tap++)
            {
                var early = to + ((nint)tap * Lanes);
                var late = to + ((nint)(Taps - 1 - tap) * Lanes);
                var kept = TOps.Load(early);
                TOps.Store(TOps.Load(late), early);
                TOps.Store(kept, late);
            }
        }
    }

    /// <summary>Filters, or their gradients, as maps.</summary>
    protected MapView Filters(nint address) => new(
        address, 1, _arguments.Input.Channels, _arguments.KernelHeight, _arguments.KernelWidth, 0, Taps, _arguments.KernelWidth, 1);

    /// <summary>Convolves one block of one map and writes it out.</summary>
    protected void Convolve(float* packed, float* filters, int top, int left, float* start, float* strip, in MapView output, long batch, int block)
    {
        for (var y = 0; y < Height;)
        {
            // A last strip shorter than a square of lanes could not be written square by square: the one before takes it.
            var end = Height - y < 2 * StripRows ? Height : y + StripRows;
            DepthwiseCorrelation<TVector, TOps>.Correlate<Zero>(
                packed + ((nint)Margin * Lanes), Height, Width, filters, _arguments.KernelHeight, _arguments.KernelWidth, _arguments.KernelWidth, top, left, start, strip, y, end, Width);
            MapPacking<TVector, TOps>.Unpack(strip, output, batch, (long)block * Lanes, y * Width, (end - y) * Width);
            y = end;
        }
    }
}

/// <summary>The convolution, one block of channels of one map at a time.</summary>
internal sealed unsafe class DepthwiseForward<TVector, TOps> : DepthwiseLoop<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    private readonly MapView _output;
    private float* _filters;
    private float* _bias;

    public DepthwiseForward(in DepthwiseArguments arguments, in MapView output)
        : base(arguments) => _output = output;

    public void Run()
    {
        if (IsEmpty)
        {
            return;
        }

        var channels = Blocks * Lanes;
        _bias = Workspace.OfCall.Take((long)channels + ((long)Blocks * Taps * Lanes) + ((long)Lanes * Lanes));
        _filters = _bias + channels;
        for (var channel = 0; channel < channels; channel++)
        {
            _bias[channel] = Arguments.Bias != 0 && channel < Arguments.Input.Channels ? ((float*)Arguments.Bias)[channel] : 0;
        }

        PackFilters(_filters, _filters + ((nint)Blocks * Taps * Lanes), turned: false);
        Run(checked((int)(Arguments.Input.Batch * Blocks)), Arguments.Threads);
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var (batch, block) = (item / Blocks, item % Blocks);
        var packed = Workspace.OfItem.Take(PackedFloats + StripFloats + ((long)Lanes * Lanes));
        var strip = packed + PackedFloats;
        MapPacking<TVector, TOps>.Pack(Arguments.Input, batch, (long)block * Lanes, packed, Margin, strip + StripFloats);
        Convolve(packed, _filters + ((nint)block * Taps * Lanes), Arguments.Top, Arguments.Left, _bias + ((nint)block * Lanes), strip, _output, batch, block);
    }
}

/// <summary>The gradients: a block of channels over a share of the batch at a time. The shares depend on the problem alone and are added in their order, so that the bits do not depend on the number of threads.</summary>
internal sealed unsafe class DepthwiseBackward<TVector, TOps> : DepthwiseLoop<TVector, TOps>
    where TVector : struct
    where TOps : struct, IVectorOperations<TVector>
{
    // Enough for the threads of a large machine.
    private const int LeastItems = 32;

    private readonly MapView _outputGradient;
    private readonly MapView? _inputGradient;
    private readonly nint _weightGradient;
    private readonly nint _biasGradient;
    private readonly int _shares;
    private float* _filters;
    private float* _sums;

    public DepthwiseBackward(in DepthwiseArguments arguments, in MapView outputGradient, MapView? inputGradient, nint weightGradient, nint biasGradient)
        : base(arguments)
    {
        (_outputGradient, _inputGradient, _weightGradient, _biasGradient) = (outputGradient, inputGradient, weightGradient, biasGradient);
        _shares = (int)Math.Clamp((LeastItems + Blocks - 1) / Math.Max(1, Blocks), 1, Math.Max(1, arguments.Input.Batch));
    }

    private long SumFloats => (long)(Taps + 1) * Lanes;

    public void Run()
    {
        if (IsEmpty)
        {
            Clear(_weightGradient, Arguments.Input.Channels * Taps);
            Clear(_biasGradient, Arguments.Input.Channels);
            return;
        }

        _filters = Workspace.OfCall.Take(((long)Blocks * Taps * Lanes) + (_shares * Blocks * SumFloats) + ((long)Lanes * Lanes));
        _sums = _filters + ((long)Blocks * Taps * Lanes);
        if (_inputGradient is not null)
        {
            PackFilters(_filters, _sums, turned: true);
        }

        Run(_shares * Blocks, Arguments.Threads);
        for (var block = 0; block < Blocks; block++)
        {
            Add(block);
        }
    }

    /// <inheritdoc/>
    protected override void Run(int item)
    {
        var (block, share) = (item / _shares, item % _shares);
        var sums = _sums + (item * SumFloats);
        new Span<float>(sums, (int)SumFloats).Clear();
        var gradient = Workspace.OfItem.Take((2 * PackedFloats) + StripFloats + ((long)Lanes * Lanes));
        var packed = gradient + PackedFloats;
        var strip = packed + PackedFloats;
        var square = strip + StripFloats;
        var batches = Arguments.Input.Batch;
        for (var batch = batches * share / _shares; batch < batches * (share + 1) / _shares; batch++)
        {
            MapPacking<TVector, TOps>.Pack(_outputGradient, batch, (long)block * Lanes, gradient, Margin, square);
            if (_inputGradient is { } inputGradient)
            {
                Convolve(
                    gradient, _filters + ((nint)block * Taps * Lanes), Arguments.KernelHeight - 1 - Arguments.Top, Arguments.KernelWidth - 1 - Arguments.Left, null, strip, inputGradient, batch, block);
            }

            if (_weightGradient != 0)
            {
                MapPacking<TVector, TOps>.Pack(Arguments.Input, batch, (long)block * Lanes, packed, Margin, square);
                DepthwiseCorrelation<TVector, TOps>.Correlate<One>(
                    packed + ((nint)Margin * Lanes), Height, Width, gradient + ((nint)Margin * Lanes), Height, Width, Width + Margin, Arguments.Top, Arguments.Left, null,
                    sums, 0, Arguments.KernelHeight, Arguments.KernelWidth);
            }

            if (_biasGradient != 0)
            {
                // The margins are zero: they do no harm.
                var total = TOps.Load(sums + ((nint)Taps * Lanes));
                for (nint i = 0; i < (nint)PackedFloats; i += Lanes)
                {
                    total = TOps.Add(total, TOps.Load(gradient + i));
                }

                TOps.Store(total, sums + ((nint)Taps * Lanes));
            }
        }
    }

    private static void Clear(nint address, long count)
    {
        for (long i = 0; address != 0 && i < count; i++)
        {
            ((float*)address)[i] = 0;
        }
    }

    private void Add(int block)
    {
        var total = _sums + (block * _shares * SumFloats);
        for (var share = 1; share < _shares; share++)
        {
            for (nint i = 0; i < (nint)SumFloats; i += Lanes)
            {
                TOps.Store(TOps.Add(TOps.Load(total + i), TOps.Load(total + (share * SumFloats) + i)), total + i);
            }
        }

        if (_weightGradient != 0)
        {
            MapPacking<TVector, TOps>.Unpack(total, Filters(_weightGradient), 0, (long)block * Lanes, 0, Taps);
        }

        for (var lane = 0; _biasGradient != 0 && lane < Math.Min(Lanes, Arguments.Input.Channels - ((long)block * Lanes)); lane++)
        {
            ((float*)_biasGradient)[((long)block * Lanes) + lane] = total[((nint)Taps * Lanes) + lane];
        }
    }
}
