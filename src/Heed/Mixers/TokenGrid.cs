using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Where the tokens of a sequence lie in the picture, for mixers that see only the sequence but show maps.</summary>
/// <param name="Height">Rows of the grid, at least 1.</param>
/// <param name="Width">Columns of the grid, at least 1.</param>
public sealed record TokenGrid(int Height, int Width)
{
    /// <summary>Positions in the sequence of tokens that belong to no place (class tokens), ascending.</summary>
    public IReadOnlyList<int> Others { get; init; } = [];

    /// <summary>Lays values of tokens over the picture.</summary>
    /// <param name="values"><c>[B, maps, N]</c>, the tokens row by row with the <see cref="Others"/> among them.</param>
    /// <returns><c>[B, maps, Height, Width]</c>.</returns>
    /// <exception cref="ArgumentException">There are not as many tokens as places.</exception>
    public Tensor Maps(Tensor values)
    {
        ArgumentNullException.ThrowIfNull(values);
        if (values.dim() != 3 || values.shape[2] != (Height * (long)Width) + Others.Count)
        {
            throw new ArgumentException(
                $"A grid of {Height} x {Width} places and {Others.Count} other token(s) lays out values [batch, maps, {(Height * (long)Width) + Others.Count}], not [{string.Join(", ", values.shape)}].", nameof(values));
        }

        using var scope = NewDisposeScope();
        if (Others.Count > 0)
        {
            using var places = tensor(Enumerable.Range(0, (int)values.shape[2]).Where(at => !Others.Contains(at)).Select(at => (long)at).ToArray());
            values = values.index_select(2, places.to(values.device));
        }

        return values.reshape(values.shape[0], values.shape[1], Height, Width).MoveToOuterDisposeScope();
    }
}
