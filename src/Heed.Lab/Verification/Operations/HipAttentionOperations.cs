using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>HiP's tree search and the attention over what it keeps (arXiv 2406.09827, release 1.1).</summary>
internal sealed class HipTreeAttention : GoldenOperation
{
    public override string Name => "hip-attention/HipAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        if (!golden.Flag("causal", true))
        {
            throw new InvalidDataException("Only causal attention searches a past; the case is not causal.");
        }

        var group = golden.Integer("block_size_k_group", 1);
        var selector = new HipSelector(new()
        {
            MaskK = golden.Integer("mask_k"),
            BlockSizeQ = golden.Integer("block_size_q"),
            BlockStrideQ = golden.Integer("block_stride_q", 2),
            BlockSizeK = golden.Integer("block_size_k"),
            BlockStrideK = golden.Integer("block_stride_k", 1),
            BlockSizeKGroup = group,
            SlidingWindow = golden.Integer("sliding_window_size", 0),
            SinkSize = golden.Integer("sink_size", 0),
            HeadGroup = golden.Integer("topk_head_group_size", 1),
            Representative = golden.Choice("sample_method", "first", ("first", HipRepresentative.First), ("center", HipRepresentative.Center), ("last", HipRepresentative.Last)),
            WindowAlignment = golden.Choice("window_alignment", "query_block", ("query_block", HipWindowAlignment.QueryBlock), ("query", HipWindowAlignment.Query), ("row", HipWindowAlignment.Query)),
        });
        // The cases fold batch and heads into one dimension.
        var (query, key, value) = (Heads(run.Input("query")), Heads(run.Input("key")), Heads(run.Input("value")));
        var options = AttentionOptions.CausalSelf with { Scale = golden.Number("scale", 1) };
        var selection = selector.Search(query, key);
        run.Output("indices", selection.Indices().squeeze(0));
        run.Output("ks", selection.Counts().squeeze(0));
        run.Output("mask", selector.Select(query, key, value, options).Pairs().squeeze(0));
        run.Output("output", Attention.Compute(query, key, value, options with { Selector = selector }).squeeze(0));
    }

    private static Tensor Heads(Tensor folded) => folded.dim() == 3 ? folded.unsqueeze(0) : folded;
}

/// <summary>One scan of chunks (release 1.2).</summary>
internal sealed class HipChunkScan : GoldenOperation
{
    public override string Name => "hip-attention/ChunkScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        // The cases have heads inside tokens, and blocks of queries before heads.
        var (query, key) = (run.Input("query").transpose(1, 2), run.Input("key").transpose(1, 2));
        var (left, right, score) = ChunkScan.Scan(
            query, key, run.Input("indices_left").transpose(1, 2), run.Input("indices_right").transpose(1, 2), golden.Integer("block_size_q"), golden.Integer("block_stride_q", 1));
        run.Output("indices_left", left.transpose(1, 2));
        run.Output("indices_right", right.transpose(1, 2));
        run.Output("representative_score", score.transpose(1, 2));
    }
}
