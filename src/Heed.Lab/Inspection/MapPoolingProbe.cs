using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Keeps the maps of all heads pooled into cells (see <see cref="PooledMap"/>). A few rows of the weights exist at a time, never the map.</summary>
internal sealed class MapPoolingProbe(int tokensPerCell, Action<int> layerDone) : AttentionHook
{
    private const long ChunkBytes = 32L << 20;

    /// <summary>The maps of each layer's heads, by layer.</summary>
    public Dictionary<int, PooledMap[]> Maps { get; } = [];

    public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Map;

    public override void OnMap(AttentionCall call)
    {
        using var still = no_grad();
        var (heads, tokens) = ((int)call.Query.size(1), (int)call.Query.size(2));
        var side = PooledMap.SideOf(tokens, tokensPerCell);
        var cells = Enumerable.Range(0, heads).Select(_ => new byte[PooledMap.BytesOf(tokens, tokensPerCell)]).ToArray();
        var groups = (int)Math.Max(1, ChunkBytes / sizeof(float) / heads / tokens / tokensPerCell);
        for (var group = 0; group < side; group += groups)
        {
            using var scope = NewDisposeScope();
            var first = (long)group * tokensPerCell;
            var rows = (int)Math.Min((long)groups * tokensPerCell, tokens - first);
            var count = PooledMap.SideOf(rows, tokensPerCell);
            var weights = call.Weights(null, [.. Enumerable.Range(0, rows).Select(row => first + row)])[0].to(ScalarType.Float32).nan_to_num(0, 0, 0);
            var padded = nn.functional.pad(weights, [0, ((long)side * tokensPerCell) - tokens, 0, ((long)count * tokensPerCell) - rows]);
            var sums = padded.view(heads, count, tokensPerCell, side, tokensPerCell).sum(4).sum(2);
            // The last group may have fewer rows; a cell is the mean over the rows that exist.
            var rowsOf = (arange(count, dtype: ScalarType.Float32) * -tokensPerCell + rows).clamp(1, tokensPerCell).view(1, -1, 1);
            var steps = (sums / rowsOf.to(sums.device)).clamp(0, 1).sqrt().mul(255).round().to(ScalarType.Byte).cpu().contiguous();
            var bytes = steps.data<byte>().ToArray();
            for (var head = 0; head < heads; head++)
            {
                for (var row = 0; row < count; row++)
                {
                    var at = group + row;
                    bytes.AsSpan(((head * count) + row) * side, at + 1).CopyTo(cells[head].AsSpan(at * (at + 1) / 2));
                }
            }
        }

        Maps[call.Site.Layer] = [.. cells.Select(head => new PooledMap(tokens, tokensPerCell, head))];
        layerDone(call.Site.Layer);
    }
}
