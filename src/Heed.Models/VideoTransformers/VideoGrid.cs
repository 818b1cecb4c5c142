using static TorchSharp.torch;

namespace Heed.Models.VideoTransformers;

/// <summary>The grid of a video's tokens, in raster order: frame, row, column.</summary>
/// <param name="Frames">Frames of tokens.</param>
/// <param name="Height">Rows of tokens.</param>
/// <param name="Width">Columns of tokens.</param>
public readonly record struct VideoGrid(long Frames, long Height, long Width)
{
    /// <summary>Number of tokens.</summary>
    public long Tokens => Frames * Height * Width;

    /// <inheritdoc/>
    public override string ToString() => $"{Frames} x {Height} x {Width}";
}

/// <summary>Rotary positions of neighbouring pairs of elements (arXiv 2104.09864): element 2i and 2i + 1 turn together.</summary>
/// <param name="Cosine"><c>[1, N, 1, D]</c>, each frequency twice.</param>
/// <param name="Sine"><c>[1, N, 1, D]</c>, each frequency twice.</param>
public sealed record PairRotaryTables(Tensor Cosine, Tensor Sine)
{
    /// <summary>Tables of a grid: a head is split into parts for time, rows and columns of <c>D - 2 (2 (D / 6))</c>, <c>2 (D / 6)</c> and <c>2 (D / 6)</c> elements, each turned by its own coordinate.</summary>
    /// <param name="grid">The grid.</param>
    /// <param name="headWidth">Width of a head, even, from 6.</param>
    /// <param name="type">The type of queries and keys.</param>
    /// <param name="theta">Base of the wavelengths.</param>
    public static PairRotaryTables Of(VideoGrid grid, long headWidth, ScalarType type, double theta = 10000)
    {
        var side = 2 * (headWidth / 6);
        var parts = new[] { (grid.Frames, headWidth - (2 * side), 0), (grid.Height, side, 1), (grid.Width, side, 2) };
        using var scope = NewDisposeScope();
        var angles = cat([.. parts.Select(part =>
        {
            var (length, width, axis) = part;
            var frequencies = tensor(Enumerable.Range(0, (int)(width / 2)).Select(i => Math.Pow(theta, -2.0 * i / width)).ToArray(), dtype: float64);
            var turned = outer(arange(length, dtype: float64), frequencies).repeat_interleave(2, 1);
            long[] shape = [1, 1, 1, width];
            shape[axis] = length;
            return turned.view(shape).expand(grid.Frames, grid.Height, grid.Width, width);
        })], -1).reshape(1, grid.Tokens, 1, headWidth);
        return new(angles.cos().to(type).MoveToOuterDisposeScope(), angles.sin().to(type).MoveToOuterDisposeScope());
    }

    /// <summary>Turns queries or keys.</summary>
    /// <param name="heads"><c>[B, N, H, D]</c>.</param>
    public Tensor Apply(Tensor heads)
    {
        ArgumentNullException.ThrowIfNull(heads);
        using var scope = NewDisposeScope();
        var pairs = heads.reshape([.. heads.shape[..^1], heads.shape[^1] / 2, 2]).unbind(-1);
        var across = stack([-pairs[1], pairs[0]], -1).reshape(heads.shape);
        return (heads * Cosine).add_(across * Sine).MoveToOuterDisposeScope();
    }
}
