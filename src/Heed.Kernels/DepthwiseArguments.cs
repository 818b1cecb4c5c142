namespace Heed.Kernels;

/// <summary>A depth-wise convolution (correlation, as networks mean it) with stride 1 that keeps the size of the maps: <c>out[c, y, x] = bias[c] + sum of weight[c, i, j] in[c, y + i - top, x + j - left]</c>, zero outside.</summary>
public readonly record struct DepthwiseArguments
{
    /// <summary>The maps.</summary>
    public required MapView Input { get; init; }

    /// <summary>Address of the filters, contiguous <c>[channels, height, width]</c>.</summary>
    public required nint Weight { get; init; }

    /// <summary>Address of one number per channel; 0: none.</summary>
    public nint Bias { get; init; }

    /// <summary>Rows of a filter, at least 1.</summary>
    public required int KernelHeight { get; init; }

    /// <summary>Columns of a filter, at least 1.</summary>
    public required int KernelWidth { get; init; }

    /// <summary>Rows of zeros above, less than the filter's rows: half of them for a centred filter.</summary>
    public required int Top { get; init; }

    /// <summary>Columns of zeros to the left, less than the filter's columns: all but one of them for a causal filter.</summary>
    public required int Left { get; init; }

    /// <summary>Number of threads; 0: one per processor. The result has the same bits for any number.</summary>
    public int Threads { get; init; }

    internal void Check()
    {
        if (KernelHeight < 1 || KernelWidth < 1 || Top < 0 || Left < 0 || Top >= KernelHeight || Left >= KernelWidth)
        {
            throw new ArgumentException($"A filter of {KernelHeight} x {KernelWidth} cannot stand {Top} rows and {Left} columns over the edge: give sides of at least 1 and margins below them.");
        }

        if (Input.Height * Input.Width > int.MaxValue / 2 || Input.Channels > int.MaxValue || Input.Batch > int.MaxValue || (long)KernelHeight * KernelWidth > int.MaxValue / 2)
        {
            throw new ArgumentException($"Maps of {Input.Height} x {Input.Width} positions are more than the kernel counts: cut them up.");
        }
    }

    internal void CheckSame(in MapView other, string name)
    {
        if (!other.HasShapeOf(Input))
        {
            throw new ArgumentException(
                $"The {name} must be [{Input.Batch}, {Input.Channels}, {Input.Height}, {Input.Width}] as the input is, not [{other.Batch}, {other.Channels}, {other.Height}, {other.Width}].");
        }
    }
}
