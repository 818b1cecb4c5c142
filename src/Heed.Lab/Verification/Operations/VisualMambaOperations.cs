using Heed.Mixers;
using Heed.Models.Images;
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

/// <summary>VMamba's mixer.</summary>
internal sealed class SS2DOperation : GoldenOperation
{
    public override string Name => "visual-mamba/SS2D";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new SS2D(VisualMambaCases.Mixer(golden, golden.Integer("d_model"), "") with { ChannelFirst = golden.Flag("channel_first", false) });
        VisualMambaCases.Load(run, module);
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>VMamba's block.</summary>
internal sealed class VSSBlockOperation : GoldenOperation
{
    public override string Name => "visual-mamba/VSSBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var width = golden.Integer("hidden_dim");
        var module = new VSSBlock(new()
        {
            Width = width,
            // A ratio of 0 leaves the branch out.
            Mixer = golden.Number("ssm_ratio", 2) > 0 ? VisualMambaCases.Mixer(golden, width, "ssm_") : null,
            FeedForwardRatio = golden.Number("mlp_ratio", 4),
            GatedFeedForward = golden.Flag("gmlp", false),
            PostNorm = golden.Flag("post_norm", false),
            ChannelFirst = golden.Flag("channel_first", false),
        });
        VisualMambaCases.Load(run, module);
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>VMamba's whole model.</summary>
internal sealed class VMambaOperation : GoldenOperation
{
    public override string Name => "visual-mamba/VMamba";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        // Both layouts of the norm have the same parameters and compute the same.
        _ = golden.Choice("norm_layer", "ln", ("ln", false), ("ln2d", true), ("LN", false), ("LN2D", true));
        int[] depths = [.. golden.Integers("depths").Select(depth => (int)depth)];
        int[] widths = [.. golden.Integers("dims").Select(width => (int)width)];
        var module = new VMamba(new()
        {
            Depths = depths,
            // A single number is the first stage's; it doubles.
            Widths = widths.Length == 1 ? [.. depths.Select((_, stage) => widths[0] << stage)] : widths,
            Channels = golden.Integer("in_chans", 3),
            Classes = golden.Integer("num_classes", 1000),
            PatchSize = golden.Integer("patch_size", 4),
            Mixer = VisualMambaCases.Mixer(golden, 1, "ssm_"),
            FeedForwardRatio = golden.Number("mlp_ratio", 4),
            GatedFeedForward = golden.Flag("gmlp", false),
            TwoConvolutions = golden.Choice("patchembed_version", "v1", ("v1", false), ("v2", true)),
            Downsampling = golden.Choice(
                "downsample_version", "v2", ("v1", ScanDownsampling.PatchMerging), ("v2", ScanDownsampling.Convolution2), ("v3", ScanDownsampling.Convolution3)),
        });
        VisualMambaCases.Load(run, module);
        run.Output("logits", module.forward(run.Input("x")));
    }
}

/// <summary>The core of EfficientVMamba's mixer.</summary>
internal sealed class AtrousSelectiveScanOperation : GoldenOperation
{
    public override string Name => "visual-mamba/AtrousSelectiveScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new AtrousSelectiveScan(golden.Integer("channels"), golden.Integer("d_state", 16), VisualMambaCases.StepRank(golden, "dt_rank"), golden.Integer("step", 2));
        VisualMambaCases.Load(run, module);
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>PlainMamba's mixer with the quirks of its code.</summary>
internal sealed class PlainMambaMixerOperation : GoldenOperation
{
    public override string Name => "visual-mamba/PlainMambaMixer";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new PlainMambaMixer(new()
        {
            Width = golden.Integer("d_model"),
            GridHeight = golden.Integer("height"),
            GridWidth = golden.Integer("width"),
            States = golden.Integer("d_state", 16),
            Expand = golden.Number("expand", 2),
            StepRank = VisualMambaCases.StepRank(golden, "dt_rank"),
            Convolution = golden.Integer("conv_size", 7),
            ConvolutionBias = golden.Flag("conv_bias", true),
            Bias = golden.Flag("bias", false),
            LayerScale = golden.HasOption("init_layer_scale") ? golden.Number("init_layer_scale") : null,
        });
        VisualMambaCases.Load(run, module);
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>LocalMamba's mixer.</summary>
internal sealed class LocalVimMixerOperation : GoldenOperation
{
    public override string Name => "visual-mamba/LocalVimMixer";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (height, width) = (golden.Integer("height"), golden.Integer("width"));
        var module = new LocalVimMixer(
            new()
            {
                Width = golden.Integer("d_model"),
                States = golden.Integer("d_state", 16),
                Kernel = golden.Integer("d_conv", 4),
                Expand = golden.Number("expand", 2),
                StepRank = VisualMambaCases.StepRank(golden, "dt_rank"),
                Bias = golden.Flag("bias", false),
                ConvolutionBias = golden.Flag("conv_bias", true),
                Grid = new(height, width) { Others = golden.Flag("use_middle_cls_token", false) ? [height * width / 2] : [] },
            },
            golden.Texts("directions"));
        VisualMambaCases.Load(run, module);
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>What the cases of the survey's systems share.</summary>
internal static class VisualMambaCases
{
    /// <summary>The rank of the steps; 0: the default of the width.</summary>
    public static int StepRank(GoldenCase golden, string key) => golden.IsNumber(key) ? golden.Integer(key) : golden.Choice(key, "auto", ("auto", 0));

    public static SS2DOptions Mixer(GoldenCase golden, int width, string prefix) => new SS2DOptions
    {
        Width = width,
        States = golden.Integer(prefix + "d_state", 16),
        Expand = golden.Number("ssm_ratio", 2),
        StepRank = StepRank(golden, prefix + "dt_rank"),
        Convolution = golden.Integer(prefix.Length == 0 ? "d_conv" : "ssm_conv", 3),
        ConvolutionBias = golden.Flag(prefix + "conv_bias", true),
    }.WithForwardType(golden.Text("forward_type", "v2"));

    public static void Load(GoldenRun run, nn.Module module)
    {
        run.Load(module);
        module.train(run.Case.Flag("training", false));
    }

    public static Tensor Orders(ScanOrder order) => stack([.. order.Routes.Select(route => tensor(route.Order.ToArray()))]).to(int32);

    public static Tensor Inverses(ScanOrder order) => stack([.. order.Routes.Select(route => tensor(route.Inverse.Order.ToArray()))]).to(int32);
}
