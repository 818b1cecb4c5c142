using System.Runtime.CompilerServices;

namespace Heed.Kernels;

/// <summary>Brings what a scan reads into the order in which it reads it, and back: panels <c>[time][lane]</c> of a vector of channels.</summary>
internal static unsafe class ScanPanels
{
    /// <summary>panel[t * lanes + i] = the sequence of channel first + i at time + t; lanes that hold no channel are zero.</summary>
    /// <param name="from">The sequences.</param>
    /// <param name="batch">The batch item.</param>
    /// <param name="first">The first channel.</param>
    /// <param name="time">The first time step.</param>
    /// <param name="channels">Channels that exist, 1 to the lanes.</param>
    /// <param name="steps">Time steps.</param>
    /// <param name="panel">Receives steps * lanes floats.</param>
    /// <param name="next">Time steps from here to what will be read next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Gather<TVector, TOps>(in SequenceView from, long batch, long first, long time, int channels, int steps, float* panel, int next)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var source = from.At(batch, first, time);
        var (channelStride, timeStride) = ((nint)from.ChannelStride, (nint)from.TimeStride);
        if (channelStride == 1 && channels == TOps.Lanes)
        {
            for (var t = 0; t < steps; t++)
            {
                TOps.Store(TOps.Load(source), panel);
                TOps.Prefetch(source + (next * timeStride));
                source += timeStride;
                panel += TOps.Lanes;
            }
        }
        else if (timeStride == 1)
        {
            Request<TVector, TOps>(source + next, channelStride, channels);
            var done = 0;
            for (; Packing.HasTile && channels == Packing.TileSide && TOps.Lanes == Packing.TileSide && done + Packing.TileSide <= steps; done += Packing.TileSide)
            {
                Packing.Tile(source + done, channelStride, panel + (done * Packing.TileSide), Packing.TileSide);
            }

            Packing.KeyPanel<Float32Element>((byte*)(source + done), channelStride * sizeof(float), channels, steps - done, panel + (done * TOps.Lanes), TOps.Lanes);
        }
        else
        {
            for (var t = 0; t < steps; t++)
            {
                for (var i = 0; i < TOps.Lanes; i++)
                {
                    panel[i] = i < channels ? source[i * channelStride] : 0;
                }

                source += timeStride;
                panel += TOps.Lanes;
            }
        }
    }

    /// <summary>The way back of <see cref="Gather{TVector, TOps}"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Scatter<TVector, TOps>(float* panel, in SequenceView to, long batch, long first, long time, int channels, int steps, int next)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        var destination = to.At(batch, first, time);
        var (channelStride, timeStride) = ((nint)to.ChannelStride, (nint)to.TimeStride);
        if (channelStride == 1 && channels == TOps.Lanes)
        {
            for (var t = 0; t < steps; t++)
            {
                TOps.Store(TOps.Load(panel), destination);
                TOps.Prefetch(destination + (next * timeStride));
                destination += timeStride;
                panel += TOps.Lanes;
            }
        }
        else if (timeStride == 1)
        {
            Request<TVector, TOps>(destination + next, channelStride, channels);
            var done = 0;
            for (; Packing.HasTile && channels == Packing.TileSide && TOps.Lanes == Packing.TileSide && done + Packing.TileSide <= steps; done += Packing.TileSide)
            {
                Packing.Tile(panel + (done * Packing.TileSide), Packing.TileSide, destination + done, channelStride);
            }

            Packing.Columns<Float32Element>((byte*)(panel + (done * TOps.Lanes)), TOps.Lanes * sizeof(float), steps - done, channels, destination + done, channelStride);
        }
        else
        {
            for (var t = 0; t < steps; t++)
            {
                for (var i = 0; i < channels; i++)
                {
                    destination[i * channelStride] = panel[i];
                }

                destination += timeStride;
                panel += TOps.Lanes;
            }
        }
    }

    /// <summary>Asks for the next chunk of every channel: so many short stretches, each on a page of its own, are more than the hardware foresees.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Request<TVector, TOps>(float* next, nint channelStride, int channels)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
    {
        const int line = 16;
        for (var i = 0; i < channels; i++)
        {
            for (var t = 0; t < FusedScan.Chunk; t += line)
            {
                TOps.Prefetch(next + t);
            }

            next += channelStride;
        }
    }

    /// <summary>panel[n * lanes + i] = scale * values[(first + i) * channelStride + n * stateStride]: numbers per channel and state.</summary>
    public static void States(float* values, nint channelStride, nint stateStride, int channels, int states, float scale, float* panel, int lanes)
    {
        for (var n = 0; n < states; n++)
        {
            for (var i = 0; i < lanes; i++)
            {
                panel[(n * lanes) + i] = i < channels ? values[(i * channelStride) + (n * stateStride)] * scale : 0;
            }
        }
    }

    /// <summary>Numbers of a few channels as a vector; zeros where there are none.</summary>
    public static void Numbers(float* values, long first, int channels, float* panel, int lanes)
    {
        for (var i = 0; i < lanes; i++)
        {
            panel[i] = values != null && i < channels ? values[first + i] : 0;
        }
    }
}

/// <summary>The maps B or C of a scan as the loops read them: states side by side. Maps that lie otherwise are copied once a call.</summary>
internal readonly unsafe struct ScanMaps
{
    private readonly StateMapView _view;

    private ScanMaps(StateMapView view) => _view = view;

    /// <summary>Whether the maps are constant, one for each channel.</summary>
    public bool IsConstant => _view.IsConstant;

    /// <summary>Floats from one time step to the next.</summary>
    public nint TimeStride => (nint)_view.TimeStride;

    /// <summary>Floats that the copy needs.</summary>
    public static long CopyFloats(in StateMapView view, in ScanArguments arguments) =>
        view.IsConstant || view.StateStride == 1 || arguments.States == 1 ? 0 : Workspace.Lines(arguments.Batch * view.Groups * arguments.Length * arguments.States);

    /// <summary>The maps, copied to <paramref name="copy"/> where they must be.</summary>
    public static ScanMaps Prepare(in StateMapView view, in ScanArguments arguments, float* copy)
    {
        if (CopyFloats(view, arguments) == 0)
        {
            return new(view);
        }

        long states = arguments.States;
        new Copy(view, copy, arguments.Length, arguments.States).Run(checked((int)(arguments.Batch * view.Groups)), arguments.Threads);
        return new(new((nint)copy, view.Groups, view.Groups * arguments.Length * states, arguments.Length * states, 1, states));
    }

    /// <summary>The states' numbers of a run of channels at a time.</summary>
    public float* At(long batch, long run, long runs, long time) => _view.At(batch, run / (runs / _view.Groups), time);

    /// <summary>Constant maps of a vector of channels, as a panel.</summary>
    public void Constant(long first, int channels, int states, float* panel, int lanes) =>
        ScanPanels.States(_view.At(0, first, 0), (nint)_view.GroupStride, (nint)_view.StateStride, channels, states, 1, panel, lanes);

    private sealed class Copy(StateMapView view, float* to, long length, int states) : ParallelLoop
    {
        protected override void Run(int item)
        {
            var (batch, group) = Math.DivRem(item, view.Groups);
            var source = view.At(batch, group, 0);
            var destination = to + (item * length * states);
            if (view.TimeStride == 1)
            {
                Packing.Columns<Float32Element>((byte*)source, (nint)view.StateStride * sizeof(float), states, (nint)length, destination, states);
                return;
            }

            for (long t = 0; t < length; t++)
            {
                for (var n = 0; n < states; n++)
                {
                    destination[(t * states) + n] = source[(t * view.TimeStride) + (n * view.StateStride)];
                }
            }
        }
    }
}

/// <summary>How a loop over states reads a map: the same number for every channel, or a vector of them.</summary>
internal static unsafe class ScanMap
{
    /// <summary>The n-th state's numbers.</summary>
    /// <typeparam name="TVector">The vector.</typeparam>
    /// <typeparam name="TOps">Its operations.</typeparam>
    /// <typeparam name="TConstant">One: the map is constant, a panel; zero: it is shared by the channels.</typeparam>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TVector, TOps, TConstant>(float* map, nint n)
        where TVector : struct
        where TOps : struct, IVectorOperations<TVector>
        where TConstant : struct, IConstant => TConstant.Value == 1 ? TOps.Load(map + (n * TOps.Lanes)) : TOps.Create(map[n]);
}
