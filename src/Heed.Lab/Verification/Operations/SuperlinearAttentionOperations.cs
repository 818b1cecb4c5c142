using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Superlinear attention with two steps (arXiv 2601.18401): search, spans, mixture and all gradients.</summary>
internal sealed class SuperlinearAttentionCase : GoldenOperation
{
    public override string Name => "superlinear-attention/SuperlinearAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var options = new SuperlinearOptions
        {
            SearchPower = golden.Number("search_power", 0.5),
            SwIndex = golden.Integer("sw_index", 0),
            NumSpans = golden.Integer("num_spans", 3),
            BackwardFactor = golden.Number("backward_factor", 2),
            ForwardFactor = golden.Number("forward_factor", 0),
            SpanPower = golden.Number("span_power", 0.5),
        };
        using var positions = run.Input("positions").to(int64).contiguous().data<long>();
        var mask = golden.Has("in.attention_mask") ? run.Input("attention_mask").to(@bool) : null;
        var (output, gate, spans) = SuperlinearAttention.Compute(
            run.Input("query_search"), run.Input("query"), run.Input("key"), run.Input("value"), positions.ToArray(), options, mask);
        run.Output("anchor", spans.Anchor());
        run.Output("span_start", spans.Start());
        run.Output("span_end", spans.End());
        run.Output("gate", gate);
        run.Output("output", output);
    }
}
