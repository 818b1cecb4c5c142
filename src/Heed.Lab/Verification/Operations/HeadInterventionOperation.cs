using Heed.Edits;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Dormant heads, and heads zeroed or moved to the sink, named or found (arXiv 2410.13835).</summary>
internal sealed class HeadIntervention : GoldenOperation
{
    public override string Name => "active-dormant-heads/HeadIntervention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var attention = run.Input("attention");
        var causal = golden.Flag("causal", true);
        var (row, column) = (golden.Number("row_entropy_threshold", DormantHeads.RowThreshold), golden.Number("column_entropy_threshold", DormantHeads.ColumnThreshold));
        var found = DormantHeads.Detect(attention, row, column, causal);
        run.Output("row_entropy", found.RowEntropy);
        run.Output("column_entropy", found.ColumnEntropy);
        run.Output("dormant", found.IsDormant);
        var heads = golden.Integers("heads");
        var named = tensor(Enumerable.Range(0, (int)attention.shape[1]).Select(head => heads.Contains(head)).ToArray());
        run.Output("zeroed_heads", HeadScaling.Zero(attention, named));
        run.Output("moved_heads", MoveToSink.Apply(attention, named));
        run.Output("zeroed_dormant", new DormantHeadEdit(DormantHeadAction.Zero, row, column).Apply(attention, causal));
        run.Output("moved_dormant", new DormantHeadEdit(DormantHeadAction.MoveToSink, row, column).Apply(attention, causal));
    }
}
