using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Reproductions;

/// <summary>A task that needs rows and columns: markers of some colours lie on a grid, and every cell is labelled with the colour of the last marker at or left of it in its row, and of the last one at or above it in its column.</summary>
/// <param name="Side">Cells along a side.</param>
internal sealed record MarkerTask(int Side)
{
    /// <summary>Colours, without "none yet".</summary>
    public const int Colours = 4;

    /// <summary>What a cell tells: its marker (one of the colours, or none), and whether it lies at the left or upper border.</summary>
    public const int Features = Colours + 3;

    private const double Density = 0.06;

    /// <summary>Grids and labels of a step; the same seed gives the same ones.</summary>
    /// <param name="batch">Number of grids.</param>
    /// <param name="seed">Decides them.</param>
    /// <returns>Cells float32 <c>[B, H, W, features]</c>; labels of rows and of columns int64 <c>[B, H, W]</c>, 0: no marker yet; and where the label is neither 0 nor the cell's own marker.</returns>
    public (Tensor Cells, Tensor Row, Tensor Column, Tensor FarRow, Tensor FarColumn) Make(int batch, int seed)
    {
        var random = new Random(seed);
        var cells = new float[batch * Side * Side * Features];
        var (row, column) = (new long[batch * Side * Side], new long[batch * Side * Side]);
        var (farRow, farColumn) = (new bool[row.Length], new bool[row.Length]);
        for (var item = 0; item < batch; item++)
        {
            for (var y = 0; y < Side; y++)
            {
                for (var x = 0; x < Side; x++)
                {
                    var at = (((item * Side) + y) * Side) + x;
                    var marker = random.NextDouble() < Density ? 1 + random.Next(Colours) : 0;
                    cells[(at * Features) + marker] = 1;
                    cells[(at * Features) + Colours + 1] = x == 0 ? 1 : 0;
                    cells[(at * Features) + Colours + 2] = y == 0 ? 1 : 0;
                    row[at] = marker > 0 ? marker : x == 0 ? 0 : row[at - 1];
                    column[at] = marker > 0 ? marker : y == 0 ? 0 : column[at - Side];
                    (farRow[at], farColumn[at]) = (marker == 0 && row[at] > 0, marker == 0 && column[at] > 0);
                }
            }
        }

        long[] shape = [batch, Side, Side];
        return (tensor(cells, [batch, Side, Side, Features]), tensor(row, shape), tensor(column, shape), tensor(farRow, shape), tensor(farColumn, shape));
    }
}

/// <summary>Two <see cref="SS2D"/>s without convolution, so that nothing but the routes carries anything from cell to cell, and a projection to the labels of row and column.</summary>
internal sealed class MarkerModel : nn.Module<Tensor, Tensor>
{
    private readonly Linear embed;
    private readonly ModuleList<LayerNorm> norms;
    private readonly ModuleList<SS2D> mixers;
    private readonly ModuleList<LayerNorm> mlp_norms;
    private readonly ModuleList<GeluFeedForward> mlps;
    private readonly Linear head;

    public MarkerModel(ScanPattern pattern, int width = 32, int depth = 2)
        : base(nameof(MarkerModel))
    {
        embed = nn.Linear(MarkerTask.Features, width);
        norms = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ => nn.LayerNorm(width))]);
        mixers = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ => new SS2D(new() { Width = width, States = 4, Expand = 1, Gate = false, Convolution = 0, Pattern = pattern }))]);
        mlp_norms = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ => nn.LayerNorm(width))]);
        mlps = nn.ModuleList([.. Enumerable.Range(0, depth).Select(_ => new GeluFeedForward(width, 2 * width))]);
        head = nn.Linear(width, 2 * (MarkerTask.Colours + 1));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The logits.</summary>
    /// <param name="cells"><c>[B, H, W, features]</c>.</param>
    /// <returns><c>[B, H, W, 2, labels]</c>: of the row, of the column.</returns>
    public override Tensor forward(Tensor cells)
    {
        using var scope = NewDisposeScope();
        var map = embed.forward(cells);
        for (var layer = 0; layer < mixers.Count; layer++)
        {
            map = map + mixers[layer].forward(norms[layer].forward(map));
            map = map + mlps[layer].forward(mlp_norms[layer].forward(map));
        }

        return head.forward(map).unflatten(3, [2, MarkerTask.Colours + 1]).MoveToOuterDisposeScope();
    }
}
