using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The four routes of VMamba and their merge.</summary>
internal sealed class CrossScan : GoldenOperation
{
    public override string Name => "visual-mamba/CrossScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var order = ScanOrder.Cross(
            golden.Integer("height"), golden.Integer("width"),
            golden.Choice("mode", "cross2d", ("cross2d", CrossRoutes.TwoDimensional), ("bidi", CrossRoutes.Bidirectional), ("unidi", CrossRoutes.Unidirectional)));
        run.Output("order", VisualMambaCases.Orders(order));
        run.Output("scan", order.Gather(run.Input("x").flatten(2)));
        run.Output("merge", order.ScatterAdd(run.Input("ys").flatten(3)));
    }
}

/// <summary>LocalMamba's scan of windows and its reversal.</summary>
internal sealed class LocalScan : GoldenOperation
{
    public override string Name => "visual-mamba/LocalScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var order = ScanOrder.Local(golden.Integer("height"), golden.Integer("width"), golden.Integer("window"), golden.Flag("flip", false), golden.Flag("column_first", false));
        run.Output("order", VisualMambaCases.Orders(order).select(0, 0));
        run.Output("scan", order.Gather(run.Input("x").flatten(2)).select(1, 0));
        run.Output("reverse", order.ScatterAdd(run.Input("sequence").unsqueeze(1)));
    }
}

/// <summary>PlainMamba's serpentines with their direction codes.</summary>
internal sealed class ContinuousScan : GoldenOperation
{
    public override string Name => "visual-mamba/ContinuousScan";

    public override void Run(GoldenRun run)
    {
        var order = ScanOrder.Continuous(run.Case.Integer("height"), run.Case.Integer("width"));
        run.Output("order", VisualMambaCases.Orders(order));
        run.Output("inverse", VisualMambaCases.Inverses(order));
        run.Output("direction", stack([.. Enumerable.Range(0, order.Count).Select(route => tensor(order.Directions(route).Select(direction => (int)direction).ToArray()))]));
    }
}

/// <summary>EfficientVMamba's four sequences of a quarter of the tokens, and their merge.</summary>
internal sealed class AtrousScan : GoldenOperation
{
    public override string Name => "visual-mamba/AtrousScan";

    public override void Run(GoldenRun run)
    {
        var order = ScanOrder.Atrous(run.Case.Integer("height"), run.Case.Integer("width"), run.Case.Integer("step", 2));
        run.Output("order", VisualMambaCases.Orders(order));
        run.Output("scan", order.Gather(run.Input("x").flatten(2)));
        run.Output("merge", order.ScatterAdd(run.Input("ys").flatten(3)));
    }
}

/// <summary>ZigMa's serpentines and Hilbert ranks.</summary>
internal sealed class ZigzagScan : GoldenOperation
{
    public override string Name => "visual-mamba/ZigzagScan";

    public override void Run(GoldenRun run)
    {
        var side = run.Case.Integer("side");
        var order = ScanOrder.Zigzag(side);
        run.Output("zigzag", VisualMambaCases.Orders(order));
        run.Output("zigzag_inverse", VisualMambaCases.Inverses(order));
        run.Output("hilbert_index", stack([.. ScanOrder.HilbertRanks(side).Select(ranks => tensor(ranks))]).to(int32));
    }
}

/// <summary>What the cases of the survey's systems share.</summary>
internal static class VisualMambaCases
{
    public static Tensor Orders(ScanOrder order) => stack([.. order.Routes.Select(route => tensor(route.Order.ToArray()))]).to(int32);

    public static Tensor Inverses(ScanOrder order) => stack([.. order.Routes.Select(route => tensor(route.Inverse.Order.ToArray()))]).to(int32);
}
