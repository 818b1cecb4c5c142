using Heed.Interop;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>
/// Convolution whose kernels differ from position to position (the operator of ContMix, arXiv 2502.20087, steps 5 to 10): half of the channels are averaged with s x s weights, the other half with k x k ones, each a softmax
/// over its taps. Windows are shifted inwards at borders, so that every window is full.
/// </summary>
public static class DynamicConvolution
{
    /// <summary>Aggregates values, with gradients for every tensor. On the CPU in float32 nothing is unfolded: the logits pass through memory once.</summary>
    /// <param name="logits"><c>[B, G, H, W, s s + k k]</c>: for every group and position the taps of the small kernel, then those of the large one, both row by row.</param>
    /// <param name="smallBias">Added per relative position, <c>[G, 2 s - 1, 2 s - 1]</c>.</param>
    /// <param name="largeBias">Added per relative position, <c>[G, 2 k - 1, 2 k - 1]</c>.</param>
    /// <param name="value"><c>[B, 2 G c, H, W]</c>: the small kernel's G groups of c channels, then the large one's.</param>
    /// <returns><c>[B, 2 G c, H, W]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, a side is even, or a map is smaller than the large kernel.</exception>
    public static Tensor Apply(Tensor logits, Tensor smallBias, Tensor largeBias, Tensor value)
    {
        var shape = DynamicConvolutionShape.Of(logits, smallBias, largeBias, value);
        using var scope = NewDisposeScope();
        return (FusedPath.Takes(value)
            ? TensorMemory.As(value.dtype, DynamicConvolutionFunction.Compute(
                shape, TensorMemory.As(float32, logits).contiguous(), TensorMemory.As(float32, smallBias).contiguous(), TensorMemory.As(float32, largeBias).contiguous(), TensorMemory.As(float32, value).contiguous()))
            : PlainDynamicConvolution.Apply(shape, logits, smallBias, largeBias, value)).MoveToOuterDisposeScope();
    }

    /// <summary>The kernels themselves, for those who look: softmax of logits and biases.</summary>
    /// <param name="logits">As <see cref="Apply"/> takes them.</param>
    /// <param name="smallBias">As <see cref="Apply"/> takes it.</param>
    /// <param name="largeBias">As <see cref="Apply"/> takes it.</param>
    /// <returns>Weights of the taps <c>[B, G, H, W, s s]</c> and <c>[B, G, H, W, k k]</c>; each sums to one.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit, a side is even, or a map is smaller than the large kernel.</exception>
    public static (Tensor Small, Tensor Large) Kernels(Tensor logits, Tensor smallBias, Tensor largeBias)
    {
        var shape = DynamicConvolutionShape.Of(logits, smallBias, largeBias, null);
        using var scope = NewDisposeScope();
        var (small, large) = PlainDynamicConvolution.Kernels(shape, logits, smallBias, largeBias);
        return (small.MoveToOuterDisposeScope(), large.MoveToOuterDisposeScope());
    }

    /// <summary>Where the mass of kernels goes: the sum of the weights with which all positions read each position.</summary>
    /// <param name="kernels"><c>[B, G, H, W, k k]</c>, of either side.</param>
    /// <returns><c>[B, G, H, W]</c>; mean one.</returns>
    public static Tensor ReceivedMass(Tensor kernels)
    {
        ArgumentNullException.ThrowIfNull(kernels);
        using var scope = NewDisposeScope();
        var places = new WindowPlaces(kernels.shape[2], kernels.shape[3], SideOf(kernels), kernels.device).Positions.flatten();
        var mass = zeros(kernels.shape[0] * kernels.shape[1], kernels.shape[2] * kernels.shape[3], dtype: kernels.dtype, device: kernels.device);
        return mass.index_add_(1, places, kernels.reshape(mass.shape[0], -1), 1).view(kernels.shape[..4]).MoveToOuterDisposeScope();
    }

    /// <summary>The kernel of one position, laid on the map.</summary>
    /// <param name="kernels"><c>[B, G, H, W, k k]</c>, of either side.</param>
    /// <param name="row">The position's row.</param>
    /// <param name="column">The position's column.</param>
    /// <returns><c>[B, G, H, W]</c>, zero outside the window; sums to one.</returns>
    public static Tensor KernelAt(Tensor kernels, long row, long column)
    {
        ArgumentNullException.ThrowIfNull(kernels);
        using var scope = NewDisposeScope();
        var places = new WindowPlaces(kernels.shape[2], kernels.shape[3], SideOf(kernels), kernels.device).Positions[(row * kernels.shape[3]) + column];
        var map = zeros(kernels.shape[0] * kernels.shape[1], kernels.shape[2] * kernels.shape[3], dtype: kernels.dtype, device: kernels.device);
        return map.index_add_(1, places, kernels[TensorIndex.Colon, TensorIndex.Colon, row, column].reshape(map.shape[0], -1), 1).view(kernels.shape[..4]).MoveToOuterDisposeScope();
    }

    private static long SideOf(Tensor kernels) => (long)Math.Round(Math.Sqrt(kernels.shape[4]));
}

/// <summary>The sizes of one aggregation.</summary>
/// <param name="Batch">B.</param>
/// <param name="Groups">G.</param>
/// <param name="Channels">c: channels of a group.</param>
/// <param name="Height">H.</param>
/// <param name="Width">W.</param>
/// <param name="Small">s.</param>
/// <param name="Large">k.</param>
internal readonly record struct DynamicConvolutionShape(long Batch, long Groups, long Channels, long Height, long Width, long Small, long Large)
{
    public static DynamicConvolutionShape Of(Tensor logits, Tensor smallBias, Tensor largeBias, Tensor? value)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(smallBias);
        ArgumentNullException.ThrowIfNull(largeBias);
        if (logits.dim() != 5 || !IsTable(smallBias) || !IsTable(largeBias))
        {
            throw new ArgumentException(
                $"Logits must be [batch, groups, height, width, taps] and biases [groups, 2 side - 1, 2 side - 1], not {Text(logits)}, {Text(smallBias)} and {Text(largeBias)}.", nameof(logits));
        }

        var (groups, small, large) = (logits.shape[1], (smallBias.shape[1] + 1) / 2, (largeBias.shape[1] + 1) / 2);
        if (small % 2 == 0 || large % 2 == 0 || small > large)
        {
            throw new ArgumentException($"Kernel sides must be odd and the small one at most the large one, not {small} and {large}.", nameof(smallBias));
        }

        if (logits.shape[4] != (small * small) + (large * large) || smallBias.shape[0] != groups || largeBias.shape[0] != groups)
        {
            throw new ArgumentException(
                $"Kernels of sides {small} and {large} in {groups} groups need logits of {(small * small) + (large * large)} taps and a bias per group, not {Text(logits)}, {Text(smallBias)} and {Text(largeBias)}.", nameof(logits));
        }

        var (height, width) = (logits.shape[2], logits.shape[3]);
        if (Math.Min(height, width) < large)
        {
            throw new ArgumentException($"A map of {height} x {width} positions has no window of side {large}: resize it to at least that side.", nameof(logits));
        }

        if (value is null)
        {
            return new(logits.shape[0], groups, 0, height, width, small, large);
        }

        if (value.dim() != 4 || value.shape[0] != logits.shape[0] || value.shape[1] % (2 * groups) != 0 || value.shape[2] != height || value.shape[3] != width)
        {
            throw new ArgumentException(
                $"Values must be [{logits.shape[0]}, a multiple of {2 * groups} channels, {height}, {width}], not {Text(value)}.", nameof(value));
        }

        return new(logits.shape[0], groups, value.shape[1] / (2 * groups), height, width, small, large);
    }

    private static bool IsTable(Tensor bias) => bias.dim() == 3 && bias.shape[1] == bias.shape[2] && bias.shape[1] % 2 == 1;

    private static string Text(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";
}

/// <summary>Which position every tap of every window reads, and which relative position that is.</summary>
internal readonly struct WindowPlaces
{
    public WindowPlaces(long height, long width, long side, Device device)
    {
        var (row, rows) = Axis(height);
        var (column, columns) = Axis(width);
        Positions = ((row.view(height, 1, side, 1) * width) + column.view(1, width, 1, side)).view(height * width, side * side);
        Offsets = ((rows.view(height, 1, side, 1) * ((2 * side) - 1)) + columns.view(1, width, 1, side)).view(height * width, side * side);

        (Tensor Places, Tensor Offsets) Axis(long length)
        {
            var own = arange(length, dtype: int64, device: device).unsqueeze(1);
            var places = (own - (side / 2)).clamp(0, length - side) + arange(side, dtype: int64, device: device);
            return (places, places - own + (side - 1));
        }
    }

    /// <summary><c>[H W, k k]</c>: positions, row by row.</summary>
    public Tensor Positions { get; }

    /// <summary><c>[H W, k k]</c>: places in a table <c>[2 k - 1, 2 k - 1]</c>.</summary>
    public Tensor Offsets { get; }
}

/// <summary>The same in libtorch operations with every window written out: any type and device, differentiable, obviously right; the oracle of the kernel.</summary>
internal static class PlainDynamicConvolution
{
    public static Tensor Apply(DynamicConvolutionShape shape, Tensor logits, Tensor smallBias, Tensor largeBias, Tensor value)
    {
        using var scope = NewDisposeScope();
        var (small, large) = Kernels(shape, logits, smallBias, largeBias);
        var halves = value.chunk(2, 1);
        return cat([Aggregate(shape, small, shape.Small, halves[0]), Aggregate(shape, large, shape.Large, halves[1])], 1).MoveToOuterDisposeScope();
    }

    public static (Tensor Small, Tensor Large) Kernels(DynamicConvolutionShape shape, Tensor logits, Tensor smallBias, Tensor largeBias)
    {
        using var scope = NewDisposeScope();
        var taps = shape.Small * shape.Small;
        var small = Softmax(shape, logits.narrow(4, 0, taps), smallBias, shape.Small);
        var large = Softmax(shape, logits.narrow(4, taps, shape.Large * shape.Large), largeBias, shape.Large);
        return (small.MoveToOuterDisposeScope(), large.MoveToOuterDisposeScope());
    }

    private static Tensor Softmax(DynamicConvolutionShape shape, Tensor logits, Tensor bias, long side)
    {
        var places = new WindowPlaces(shape.Height, shape.Width, side, logits.device).Offsets.flatten();
        return (logits + bias.flatten(1).index_select(1, places).view(shape.Groups, shape.Height, shape.Width, side * side)).softmax(-1);
    }

    private static Tensor Aggregate(DynamicConvolutionShape shape, Tensor kernels, long side, Tensor value)
    {
        var positions = shape.Height * shape.Width;
        var places = new WindowPlaces(shape.Height, shape.Width, side, value.device).Positions.flatten();
        var windows = value.reshape(shape.Batch, shape.Groups, shape.Channels, positions).index_select(3, places).view(shape.Batch, shape.Groups, shape.Channels, positions, side * side);
        return (windows * kernels.reshape(shape.Batch, shape.Groups, 1, positions, side * side)).sum(-1).reshape(shape.Batch, -1, shape.Height, shape.Width);
    }
}
