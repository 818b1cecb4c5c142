namespace Heed.Lab.Inspection;

/// <summary>
/// The attention map of one head on one causal sequence, in cells of one or more tokens: a cell holds the mass that its rows, on average, give to its columns, so
/// that every row of cells still sums to one (less what a sink logit took). Stored as the square root in steps of 1/255, which keeps small weights apart.
/// </summary>
/// <param name="Tokens">Length of the sequence.</param>
/// <param name="TokensPerCell">Tokens along the side of a cell; 1: the map is exact up to the steps.</param>
/// <param name="Cells">Rows of the lower triangle one after another: row r has r + 1 cells.</param>
public sealed record PooledMap(int Tokens, int TokensPerCell, byte[] Cells)
{
    /// <summary>Cells along the side of the map.</summary>
    public int Side => SideOf(Tokens, TokensPerCell);

    /// <summary>The mass in a cell, as stored.</summary>
    public double this[int row, int column]
    {
        get
        {
            var root = Cells[(row * (row + 1) / 2) + column] / 255.0;
            return root * root;
        }
    }

    /// <summary>Cells along the side of a map.</summary>
    public static int SideOf(int tokens, int tokensPerCell) => (tokens + tokensPerCell - 1) / tokensPerCell;

    /// <summary>Bytes of a map before compression.</summary>
    public static long BytesOf(int tokens, int tokensPerCell)
    {
        long side = SideOf(tokens, tokensPerCell);
        return side * (side + 1) / 2;
    }
}
