using Heed.Kernels;

namespace Heed.Masks;

/// <summary>The inward sliding window of FreeSwim (arXiv 2511.14712): a query of a video sees, in all frames, the rows and columns around its own; at borders the window moves inwards so that every query keeps the receptive
/// field that the model was trained with. It is neighborhood attention of stride 1 with the window <c>(frames, 2 halfHeight + 1, 2 halfWidth + 1)</c>, cut to the grid.</summary>
public static class InwardWindow
{
    /// <summary>The rows or columns that a query sees, both included.</summary>
    /// <param name="position">The query's row or column.</param>
    /// <param name="length">Rows or columns of the grid, from 1.</param>
    /// <param name="half">Half of the window, from 0: it holds <c>2 half + 1</c> rows or columns, or all where there are fewer.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public static (long First, long Last) Bounds(long position, long length, long half)
    {
        var axis = Axis(length, half);
        if (position < 0 || position >= length)
        {
            throw new ArgumentException($"The axis has positions 0 to {length - 1}, not {position}.", nameof(position));
        }

        var (_, start, end) = axis.Bounds(position);
        return (start, end - 1);
    }

    /// <summary>The inward window of a video as a neighborhood.</summary>
    /// <param name="frames">Frames, from 1: all are seen.</param>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="halfHeight">Rows seen on either side, from 0.</param>
    /// <param name="halfWidth">Columns seen on either side, from 0.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public static Neighborhood Of(long frames, long height, long width, long halfHeight, long halfWidth) =>
        new(new NeighborhoodAxis(frames, frames), Axis(height, halfHeight), Axis(width, halfWidth));

    /// <summary>The window without moving inwards, for comparison: at borders it is cut, so that queries there see fewer keys. Tokens are in raster order (frame, row, column).</summary>
    /// <param name="frames">Frames, from 1.</param>
    /// <param name="height">Rows, from 1.</param>
    /// <param name="width">Columns, from 1.</param>
    /// <param name="halfHeight">Rows seen on either side, from 0.</param>
    /// <param name="halfWidth">Columns seen on either side, from 0.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public static BlockMask Cut(long frames, long height, long width, long halfHeight, long halfWidth)
    {
        // Checks the numbers.
        var tokens = Of(frames, height, width, halfHeight, halfWidth).Tokens;
        var selection = new KeySelection(tokens, tokens);
        for (long query = 0; query < tokens; query++)
        {
            var (row, column) = (query / width % height, query % width);
            var (left, right) = (Math.Max(column - halfWidth, 0), Math.Min(column + halfWidth, width - 1));
            for (long frame = 0; frame < frames; frame++)
            {
                for (var other = Math.Max(row - halfHeight, 0); other <= Math.Min(row + halfHeight, height - 1); other++)
                {
                    var origin = ((frame * height) + other) * width;
                    selection.AddInterval(0, 0, query, origin + left, origin + right);
                }
            }
        }

        return selection.ToBlockMask();
    }

    private static NeighborhoodAxis Axis(long length, long half) => length >= 1 && half >= 0
        ? new(length, half > length / 2 ? length : Math.Min((2 * half) + 1, length))
        : throw new ArgumentException($"A window has a length of at least 1 and a half of at least 0; {length} and {half} were given.", nameof(half));
}
