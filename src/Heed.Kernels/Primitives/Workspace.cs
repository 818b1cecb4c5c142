using System.Runtime.InteropServices;

namespace Heed.Kernels;

/// <summary>Scratch memory that a thread keeps between calls: aligned to cache lines, grown on demand, freed with its thread.</summary>
internal sealed unsafe class Workspace
{
    // Above this a block goes back to the system at the next smaller request: one huge call must not hold its memory for good.
    private const long KeptBytes = 256L << 20;

    [ThreadStatic]
    private static Workspace? t_ofItem;

    [ThreadStatic]
    private static Workspace? t_ofCall;

    private void* _block;
    private long _bytes;

    private Workspace()
    {
    }

    ~Workspace() => NativeMemory.AlignedFree(_block);

    /// <summary>What this thread uses for the item of a parallel loop that it computes.</summary>
    public static Workspace OfItem => t_ofItem ??= new();

    /// <summary>What this thread shares with its helpers for the whole of a call.</summary>
    public static Workspace OfCall => t_ofCall ??= new();

    /// <summary>Rounds a number of floats up to whole cache lines.</summary>
    public static long Lines(long floats) => (floats + 15) & ~15L;

    /// <summary>Memory for so many floats, not cleared; what was given before is gone.</summary>
    public float* Take(long floats)
    {
        var bytes = Math.Max(checked(floats * sizeof(float)), 64);
        if (bytes > _bytes || (_bytes > KeptBytes && bytes <= KeptBytes))
        {
            NativeMemory.AlignedFree(_block);
            _block = null;
            _bytes = 0;
            _block = NativeMemory.AlignedAlloc(checked((nuint)bytes), 64);
            _bytes = bytes;
        }

        return (float*)_block;
    }
}
