using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Selection of blocks and attention over them, sequences packed (arXiv 2506.23858).</summary>
internal sealed class MixtureOfBlocksOperation : GoldenOperation
{
    public override string Name => "vmoba/Attention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (query, key, value) = (Packed(run, "query"), Packed(run, "key"), Packed(run, "value"));
        long[]? offsets = golden.Has("in.cu_seqlens") ? [.. run.Input("cu_seqlens").to(int64).data<long>()] : null;
        using var selection = MixtureOfBlocks.Select(query, key, VMoBACases.Options(golden, golden.Integer("block_size")), offsets);
        run.Output("similarity", selection.Similarity[0].transpose(0, 1));
        run.Output("selected", selection.ToTensor()[0].transpose(0, 1).to(uint8));
        run.Output("output", MixtureOfBlockAttention.Apply(query, key, value, selection, VMoBACases.Scale(golden))[0].transpose(0, 1));
    }

    /// <summary>Tokens outside, heads inside: what packed sequences look like.</summary>
    private static Tensor Packed(GoldenRun run, string name) => run.Input(name).transpose(0, 1).unsqueeze(0);
}

/// <summary>Tokens of a video in the order of their blocks, and back.</summary>
internal sealed class BlockPartitionOperation : GoldenOperation
{
    public override string Name => "vmoba/BlockPartition";

    public override void Run(GoldenRun run)
    {
        var partition = new VideoBlockPartition(VMoBACases.Resolution(run.Case), run.Case.Numbers("block"));
        var partitioned = partition.Apply(run.Input("x"), 1);
        run.Output("block_size", tensor(partition.BlockSize));
        run.Output("partitioned", partitioned);
        run.Output("restored", partition.Restore(partitioned, 1));
    }
}

/// <summary>A layer without its projections: partition by the layer's index, selection, attention, and the order back.</summary>
internal sealed class VMoBALayerOperation : GoldenOperation
{
    public override string Name => "vmoba/LayerAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (spatial, both) = (golden.Numbers("block_2d"), golden.Numbers("block_3d"));
        var partition = VMoBALayer.PartitionOf(golden.Integer("layer_index"), new()
        {
            Width = 1, Heads = 1, Resolution = VMoBACases.Resolution(golden), TemporalBlock = golden.Numbers("block_1d")[0],
            SpatialBlock = ((long)spatial[0], (long)spatial[1]), SpatioTemporalBlock = ((long)both[0], (long)both[1], (long)both[2]),
        });
        var (query, key, value) = (run.Input("query").transpose(1, 2), run.Input("key").transpose(1, 2), run.Input("value").transpose(1, 2));
        run.Output("output", VMoBALayer.Attend(query, key, value, partition, VMoBACases.Options(golden, partition.BlockSize), VMoBACases.Scale(golden)).transpose(1, 2));
    }
}

/// <summary>The authors' count of operations.</summary>
internal sealed class TheoreticalFlopsOperation : GoldenOperation
{
    public override string Name => "vmoba/TheoreticalFlops";

    public override void Run(GoldenRun run)
    {
        var rows = run.Case.Read("in.rows").to(float64);
        var flops = new double[rows.size(0)];
        for (var row = 0; row < flops.Length; row++)
        {
            var cells = rows[row].data<double>().ToArray();
            flops[row] = MixtureOfBlocksCost.Operations(new(cells[0], cells[1], cells[2], cells[3], cells[4]), cells[5], cells[6]);
        }

        run.Output("flops", tensor(flops));
    }
}

/// <summary>What the cases of VMoBA have in common.</summary>
internal static class VMoBACases
{
    public static MixtureOfBlocksOptions Options(GoldenCase golden, long blockSize) => new()
    {
        BlockSize = blockSize,
        Mode = golden.Choice("select_mode", "threshold", ("threshold", BlockSelectionMode.Threshold), ("topk", BlockSelectionMode.TopK)),
        Scope = golden.Choice("selection_scope", "head_global", ("head_global", BlockSelectionScope.HeadGlobal), ("query_head", BlockSelectionScope.QueryHead),
            ("block", BlockSelectionScope.Block), ("overall", BlockSelectionScope.Overall)),
        Threshold = golden.Number("threshold", 0.25),
        TopK = golden.Integer("top_k", 3),
    };

    public static double? Scale(GoldenCase golden) => golden.HasOption("scale") ? golden.Number("scale") : null;

    public static long[] Resolution(GoldenCase golden) => [.. golden.Numbers("resolution").Select(length => (long)length)];
}
