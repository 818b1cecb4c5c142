using Heed.Edits;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Calibrated maps with their sink scores and masks (arXiv 2406.15765).</summary>
internal sealed class CalibrateOperation : GoldenOperation
{
    public override string Name => "attention-calibration/Calibrate";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var attention = run.Input("attention");
        int[]? heads = golden.HasOption("heads") ? [.. golden.Integers("heads").Select(head => checked((int)head))] : null;
        var (threshold, beta) = (golden.Number("sink_threshold", SinkMask.AttentionThreshold), golden.Number("beta", AttentionCalibration.DefaultBeta));
        var (keepFirst, causal) = (golden.Flag("keep_first_sink", true), golden.Flag("causal", true));
        var score = SinkScore.Compute(attention, causal);
        run.Output("sink_score", score.squeeze(0));
        run.Output("sink_mask", AttentionCalibration.Columns(score, heads, threshold, keepFirst).squeeze(0));
        var edited = AttentionCalibration.Apply(attention, heads, threshold, beta, keepFirst, causal);
        run.Output("attention", edited);
        run.Output("output", matmul(edited, run.Input("value")));
    }
}
