using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>Cuts the tokens of a video into blocks along time, space or both (VMoBA, arXiv 2506.23858, equations 1 to 4) and puts the tokens of a block side by side.</summary>
/// <remarks>Tokens come in raster order (frame, row, column), the column fastest. Blocks along time may have a short last one; blocks in space must divide the grid.</remarks>
public sealed class VideoBlockPartition
{
    private readonly TokenOrder? _order;

    /// <summary>Initializes a partition.</summary>
    /// <param name="resolution">Frames, rows and columns of the latent grid, from 1.</param>
    /// <param name="block">One number: frames of a block (it may be fractional). Two: rows and columns of a patch, taken through all frames. Three: frames, rows and columns.</param>
    /// <exception cref="ArgumentException">The resolution has not three axes, the block not one to three, or a block in space or space-time does not divide the grid.</exception>
    public VideoBlockPartition(IReadOnlyList<long> resolution, IReadOnlyList<double> block)
    {
        ArgumentNullException.ThrowIfNull(resolution);
        ArgumentNullException.ThrowIfNull(block);
        if (resolution.Count != 3 || resolution.Any(length => length < 1))
        {
            throw new ArgumentException($"A video has frames, rows and columns, at least one of each; [{string.Join(", ", resolution)}] was given.", nameof(resolution));
        }

        Tokens = checked(resolution[0] * resolution[1] * resolution[2]);
        switch (block.Count)
        {
            case 1:
                // Consecutive tokens as they are: only the size of a block is to be known.
                BlockSize = double.IsFinite(block[0]) ? (long)(block[0] * (resolution[1] * resolution[2])) : 0;
                if (BlockSize < 1)
                {
                    throw new ArgumentException($"A temporal block of {block[0]} frames holds no token of frames of {resolution[1]} x {resolution[2]}.", nameof(block));
                }

                break;
            case 2:
                (_order, BlockSize) = Cut(resolution, [resolution[0], Whole(block[0]), Whole(block[1])]);
                break;
            case 3:
                (_order, BlockSize) = Cut(resolution, [Whole(block[0]), Whole(block[1]), Whole(block[2])]);
                break;
            default:
                throw new ArgumentException($"A block has one number (frames), two (rows, columns) or three (frames, rows, columns); {block.Count} were given.", nameof(block));
        }
    }

    /// <summary>Number of tokens.</summary>
    public long Tokens { get; }

    /// <summary>Tokens of a block; the last may be shorter where blocks are cut along time.</summary>
    public long BlockSize { get; }

    /// <summary>Number of blocks.</summary>
    public long Blocks => (Tokens + BlockSize - 1) / BlockSize;

    /// <summary>Puts tokens into the order of the blocks. Differentiable.</summary>
    /// <param name="tokens">Any shape with the tokens along <paramref name="axis"/>.</param>
    /// <param name="axis">The axis of the tokens.</param>
    /// <exception cref="ArgumentException">The axis has another length.</exception>
    public Tensor Apply(Tensor tokens, int axis) => _order is null ? Unchanged(tokens, axis) : _order.Apply(tokens, axis);

    /// <summary>Puts tokens back into raster order. Differentiable.</summary>
    /// <param name="tokens">Any shape with the tokens along <paramref name="axis"/>.</param>
    /// <param name="axis">The axis of the tokens.</param>
    /// <exception cref="ArgumentException">The axis has another length.</exception>
    public Tensor Restore(Tensor tokens, int axis) => _order is null ? Unchanged(tokens, axis) : _order.Restore(tokens, axis);

    private static (TokenOrder Order, long Size) Cut(IReadOnlyList<long> resolution, long[] tile)
    {
        for (var axis = 0; axis < 3; axis++)
        {
            if (resolution[axis] % tile[axis] != 0)
            {
                throw new ArgumentException(
                    $"Blocks of {string.Join(" x ", tile)} do not divide the grid of {string.Join(" x ", resolution)}: give blocks that do, or cut along time alone.", nameof(tile));
            }
        }

        return (TokenOrder.Tiles([.. resolution], tile), tile[0] * tile[1] * tile[2]);
    }

    private static long Whole(double length) => length >= 1 && length == Math.Floor(length) && length < int.MaxValue
        ? (long)length
        : throw new ArgumentException($"A block in space has whole lengths of at least 1, not {length}.", nameof(length));

    private Tensor Unchanged(Tensor tokens, int axis)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        return tokens.size(axis) == Tokens
            ? tokens.alias()
            : throw new ArgumentException($"The partition is one of {Tokens} tokens; axis {axis} of {AttentionShape.Text(tokens)} was given.", nameof(tokens));
    }
}
