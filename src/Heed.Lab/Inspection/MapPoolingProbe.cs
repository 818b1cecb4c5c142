using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>
/// Keeps the maps of all heads pooled into cells (see <see cref="PooledMap"/>). The mass that a row gives to a cell of columns is attention whose values say which
/// cell a key lies in, so it comes out of the fused kernels and the map itself never exists.
/// </summary>
/// <param name="hooks">The hooks that this one is installed among: where another one rewrites scores or weights, its map is what counts.</param>
/// <param name="tokensPerCell">Tokens along the side of a cell.</param>
/// <param name="layerDone">Told when a layer's maps are done.</param>
internal sealed class MapPoolingProbe(AttentionHooks hooks, int tokensPerCell, Action<int> layerDone) : AttentionHook
{
    private const long ChunkBytes = 128L << 20;

    /// <summary>The maps of each layer's heads, by layer.</summary>
    public Dictionary<int, PooledMap[]> Maps { get; } = [];

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Map;

    public override void OnMap(AttentionCall call)
    {
        using var still = no_grad();
        var (heads, tokens) = ((int)call.Query.size(1), (int)call.Query.size(2));
        var side = PooledMap.SideOf(tokens, tokensPerCell);
        var cells = Enumerable.Range(0, heads).Select(_ => new byte[PooledMap.BytesOf(tokens, tokensPerCell)]).ToArray();
        var most = (int)Math.Clamp(ChunkBytes / sizeof(float) / heads / tokens, 1, side);
        for (var first = 0; first < side; first += most)
        {
            using var scope = NewDisposeScope();
            var count = Math.Min(most, side - first);
            var bytes = Steps(RowMeans(CellMass(call, first, count), side)).data<byte>().ToArray();
            for (var head = 0; head < heads; head++)
            {
                for (var row = first; row < side; row++)
                {
                    var width = Math.Min(count, row + 1 - first);
                    bytes.AsSpan(((head * side) + row) * count, width).CopyTo(cells[head].AsSpan((row * (row + 1) / 2) + first));
                }
            }
        }

        Maps[call.Site.Layer] = [.. cells.Select(head => new PooledMap(tokens, tokensPerCell, head))];
        layerDone(call.Site.Layer);
    }

    /// <summary>Mass of every row on some cells of columns, <c>[H, N, count]</c>.</summary>
    private Tensor CellMass(AttentionCall call, int first, int count)
    {
        var key = call.Key;
        // A scalar that nobody holds may be freed while libtorch reads it, when another thread collects garbage.
        using Scalar cell = tokensPerCell;
        var cellOfKey = arange(key.size(2), dtype: ScalarType.Int64, device: key.device).div(cell, RoundingMode.floor).unsqueeze(1);
        var inCell = cellOfKey.eq(arange(first, first + count, dtype: ScalarType.Int64, device: key.device)).to(key.dtype);
        var edited = (hooks.StagesAt(call.Site) & (AttentionStages.Scores | AttentionStages.Weights)) != AttentionStages.None;
        var mass = edited
            ? call.Weights(null).matmul(inCell)
            : Attention.Compute(call.Query, key, inCell.expand(key.size(0), key.size(1), -1, -1), call.Options with { Gate = null });
        return mass[0];
    }

    /// <summary>Means over the rows of a cell; the last one may have fewer rows.</summary>
    private Tensor RowMeans(Tensor mass, int side)
    {
        if (tokensPerCell == 1)
        {
            return mass;
        }

        var (heads, tokens, count) = (mass.size(0), mass.size(1), mass.size(2));
        var sums = nn.functional.pad(mass, [0, 0, 0, ((long)side * tokensPerCell) - tokens]).view(heads, side, tokensPerCell, count).sum(2);
        var rows = tensor(Enumerable.Range(0, side).Select(row => (float)Math.Clamp(tokens - ((long)row * tokensPerCell), 1, tokensPerCell)).ToArray(), device: mass.device);
        return sums / rows.to(mass.dtype).view(1, -1, 1);
    }

    private static Tensor Steps(Tensor mass)
    {
        using Scalar zero = 0, one = 1, steps = 255;
        return mass.to(ScalarType.Float32).nan_to_num(0, 0, 0).clamp(zero, one).sqrt().mul(steps).round().to(ScalarType.Byte).cpu().contiguous();
    }
}
