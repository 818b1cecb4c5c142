using System.Runtime.Intrinsics;

namespace Heed.Kernels;

/// <summary>The selective scan (arXiv 2312.00752) on the CPU: the plain recurrence, sixteen (or eight, or four) channels at a time in the lanes of a vector, in time and memory linear in the length.
/// States between steps never leave the first-level cache; the backward pass computes them again, chunk by chunk, from those that the forward pass kept.</summary>
public static unsafe class FusedScan
{
    /// <summary>Time steps between two kept states.</summary>
    internal const int Chunk = 32;

    /// <summary>Floats that <see cref="ScanArguments.Checkpoints"/> needs.</summary>
    /// <param name="arguments">The scan; its sizes and groups are read.</param>
    /// <exception cref="ArgumentException">Sizes do not fit.</exception>
    public static long CheckpointFloats(in ScanArguments arguments)
    {
        Check(arguments);
        var lanes = Vector512.IsHardwareAccelerated ? 16 : Vector256.IsHardwareAccelerated ? 8 : 4;
        return FloatsKept(arguments, lanes);
    }

    /// <summary>Scans.</summary>
    /// <param name="arguments">The scan.</param>
    /// <param name="output">Receives y.</param>
    /// <param name="lastState">Receives the states after the last step, <c>[batch, D, N]</c> contiguous; null: not wanted.</param>
    /// <exception cref="ArgumentException">Sizes do not fit, or something is not given.</exception>
    public static void Forward(in ScanArguments arguments, SequenceView output, float* lastState = null)
    {
        Check(arguments);
        if (!output.IsGiven)
        {
            throw new ArgumentException("A scan needs a place for its output.", nameof(output));
        }

        if (Vector512.IsHardwareAccelerated)
        {
            ScanForward.Run<Vector512<float>, Vector512Operations>(arguments, output, lastState);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            ScanForward.Run<Vector256<float>, Vector256Operations>(arguments, output, lastState);
        }
        else
        {
            ScanForward.Run<Vector128<float>, Vector128Operations>(arguments, output, lastState);
        }
    }

    /// <summary>Computes the gradients of everything that a scan read.</summary>
    /// <param name="arguments">The scan, with the checkpoints that its forward pass wrote.</param>
    /// <param name="gradients">The gradient of its output, and where the others go.</param>
    /// <exception cref="ArgumentException">Sizes do not fit, or something is not given.</exception>
    public static void Backward(in ScanArguments arguments, in ScanGradients gradients)
    {
        Check(arguments);
        if (arguments.Checkpoints == null)
        {
            throw new ArgumentException("The gradients of a scan start from the states that its forward pass kept: give both passes the same Checkpoints.", nameof(arguments));
        }

        if (!gradients.Output.IsGiven || !gradients.Input.IsGiven || !gradients.Delta.IsGiven || gradients.A == null || gradients.B == null || gradients.C == null
            || gradients.Gate.IsGiven != arguments.Gate.IsGiven)
        {
            throw new ArgumentException("The gradients of a scan need the gradient of its output and places for those of the inputs, the steps, A, B, C, and of the gate where there is one.", nameof(gradients));
        }

        if (Vector512.IsHardwareAccelerated)
        {
            ScanBackward.Run<Vector512<float>, Vector512Operations>(arguments, gradients);
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            ScanBackward.Run<Vector256<float>, Vector256Operations>(arguments, gradients);
        }
        else
        {
            ScanBackward.Run<Vector128<float>, Vector128Operations>(arguments, gradients);
        }
    }

    internal static long FloatsKept(in ScanArguments arguments, int lanes)
    {
        var shape = new ScanShape(arguments, lanes);
        return shape.Vectors * shape.Chunks * shape.StateFloats;
    }

    private static void Check(in ScanArguments arguments)
    {
        var a = arguments;
        if (a.Batch < 0 || a.Channels < 1 || a.Length < 1 || a.States < 1)
        {
            throw new ArgumentException($"A scan needs channels, time steps and states, not {a.Channels}, {a.Length} and {a.States}, in batches of 0 or more, not {a.Batch}.", nameof(arguments));
        }

        if (a.B.Groups < 0 || a.C.Groups < 0 || (!a.B.IsConstant && a.Channels % a.B.Groups != 0) || (!a.C.IsConstant && a.Channels % a.C.Groups != 0))
        {
            throw new ArgumentException($"The groups of B and C ({a.B.Groups} and {a.C.Groups}) must divide {a.Channels} channels.", nameof(arguments));
        }

        if (!a.Input.IsGiven || !a.Delta.IsGiven || a.A == null || a.B.Data == 0 || a.C.Data == 0)
        {
            throw new ArgumentException("A scan needs inputs, steps, A, B and C.", nameof(arguments));
        }
    }
}

/// <summary>How a scan is cut: runs of channels that share their maps, vectors of channels within them, and units of a few vectors that one thread computes. It depends on the shape and the vectors alone, so that the
/// order of every sum does, too.</summary>
internal readonly struct ScanShape
{
    // Enough units to keep threads busy and balanced; more would only make more partial sums of the maps' gradients.
    private const int WantedUnits = 12;
    private const int MostVectorsOfUnit = 8;

    public ScanShape(in ScanArguments arguments, int lanes)
    {
        var (first, second) = (Math.Max(1L, arguments.B.Groups), Math.Max(1L, arguments.C.Groups));
        var (x, y) = (first, second);
        while (y != 0)
        {
            (x, y) = (y, x % y);
        }

        Lanes = lanes;
        Runs = first / x * second;
        RunChannels = arguments.Channels / Runs;
        RunVectors = (RunChannels + lanes - 1) / lanes;
        Vectors = arguments.Batch * Runs * RunVectors;
        UnitVectors = (int)Math.Min(RunVectors, Math.Clamp(Vectors / WantedUnits, 1, MostVectorsOfUnit));
        RunUnits = (RunVectors + UnitVectors - 1) / UnitVectors;
        Chunks = (arguments.Length + FusedScan.Chunk - 1) / FusedScan.Chunk;
        StateFloats = (long)arguments.States * lanes;
    }

    public int Lanes { get; }

    /// <summary>Runs of channels that share both their maps.</summary>
    public long Runs { get; }

    public long RunChannels { get; }

    public long RunVectors { get; }

    /// <summary>Vectors of the whole scan, over the batch.</summary>
    public long Vectors { get; }

    /// <summary>Vectors of a unit, at most.</summary>
    public int UnitVectors { get; }

    public long RunUnits { get; }

    public long Chunks { get; }

    /// <summary>Floats of the states of a vector of channels.</summary>
    public long StateFloats { get; }

    /// <summary>First channel of a vector of a run.</summary>
    public long FirstChannel(long run, long vector) => (run * RunChannels) + (vector * Lanes);

    /// <summary>Channels that a vector of a run holds.</summary>
    public int Held(long vector) => (int)Math.Min(Lanes, RunChannels - (vector * Lanes));
}
