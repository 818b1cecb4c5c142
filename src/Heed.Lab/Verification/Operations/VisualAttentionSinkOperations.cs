using Heed.Edits;
using Heed.Probes;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Sink tokens, image-centric pairs and redistributed maps (arXiv 2503.03321), in reading and in generation.</summary>
internal sealed class VisualAttentionRedistributionOperation : GoldenOperation
{
    public override string Name => "visual-attention-sink/VisualAttentionRedistribution";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var attention = run.Input("attention");
        var dimensions = run.Input("sink_dims").data<long>().ToArray();
        var sinks = SinkMask.FromMassiveDimensions(run.Input("hidden_states"), dimensions, golden.Number("tau", 20), golden.Number("rms_eps", 1e-6));
        run.Output("sink_value", sinks.Score.squeeze(0));
        run.Output("sink_mask", sinks.IsSink.squeeze(0));
        var (start, length) = (golden.Integer("image_start"), golden.Integer("image_length"));
        var (rho, least) = (golden.Number("rho", VisualAttentionRedistribution.DefaultRho), golden.Number("min_image_attention", VisualAttentionRedistribution.DefaultImageAttention));
        var scale = golden.Number("sink_scale", VisualAttentionRedistribution.DefaultSinkScale);
        using Scalar keys = attention.shape[^1], first = start, end = start + length;
        var index = arange(keys, dtype: int64);
        run.Output("image_centric", VisualAttentionRedistribution.ImageCentric(attention, sinks.IsSink, index.ge(first).logical_and(index.lt(end)), rho, least).squeeze(0));
        run.Output("attention", VisualAttentionRedistribution.Apply(
            attention, sinks.IsSink, start, length, rho, least, scale, golden.Flag("decode", false) ? 0 : start + length));
    }
}
