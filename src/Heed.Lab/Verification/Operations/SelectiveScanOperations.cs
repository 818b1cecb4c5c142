using Heed.Mixers;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The selective scan (arXiv 2404.15956, 2312.00752).</summary>
internal sealed class SelectiveScanOperation : GoldenOperation
{
    public override string Name => "visual-mamba/SelectiveScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (y, state) = SelectiveScan.Apply(
            run.Input("u"), run.Input("delta"), run.Input("A"), run.Input("B"), run.Input("C"), SelectiveScanCases.Given(run, "has_d", "D"), SelectiveScanCases.Given(run, "has_z", "z"),
            SelectiveScanCases.Given(run, "has_delta_bias", "delta_bias"), golden.Flag("delta_softplus", false));
        run.Output("y", y);
        run.Output("last_state", state);
    }
}

/// <summary>The chunked scan of Mamba-2.</summary>
internal sealed class SsdChunkScanOperation : GoldenOperation
{
    public override string Name => "visual-mamba/SsdChunkScan";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (y, state) = SsdChunkScan.Apply(
            run.Input("x"), run.Input("dt"), run.Input("A"), run.Input("B"), run.Input("C"), golden.Integer("chunk_size", 64), SelectiveScanCases.Given(run, "has_d", "D"),
            SelectiveScanCases.Given(run, "has_z", "z"), golden.Has("in.dt_bias") ? run.Input("dt_bias") : null, golden.Flag("dt_softplus", false));
        run.Output("y", y);
        run.Output("final_state", state);
    }
}

/// <summary>The causal mixer.</summary>
internal sealed class MambaMixerOperation : GoldenOperation
{
    public override string Name => "visual-mamba/MambaMixer";

    public override void Run(GoldenRun run)
    {
        var mixer = new MambaMixer(SelectiveScanCases.Mixer(run.Case));
        run.Load(mixer);
        mixer.train(run.Case.Flag("training", false));
        run.Output("y", mixer.forward(run.Input("x")));
    }
}

/// <summary>The bidirectional mixer.</summary>
internal sealed class VimMixerOperation : GoldenOperation
{
    public override string Name => "visual-mamba/VimMixer";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var mixer = new VimMixer(
            SelectiveScanCases.Mixer(golden), SelectiveScanCases.Backward(golden), golden.Flag("if_divide_out", false), SelectiveScanCases.LayerScale(golden));
        run.Load(mixer);
        mixer.train(golden.Flag("training", false));
        run.Output("y", mixer.forward(run.Input("x")));
    }
}

/// <summary>Vision Mamba.</summary>
internal sealed class VimOperation : GoldenOperation
{
    public override string Name => "visual-mamba/Vim";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var model = new Vim(new()
        {
            ImageSize = golden.Integer("img_size", 224), PatchSize = golden.Integer("patch_size", 16), Stride = golden.Integer("stride", 16), Depth = golden.Integer("depth", 24),
            Width = golden.Integer("embed_dim", 192), States = golden.Integer("d_state", 16), Channels = golden.Integer("channels", 3), Classes = golden.Integer("num_classes", 1000),
            RmsNorm = golden.Flag("rms_norm", true), NormEpsilon = golden.Number("norm_epsilon", 1e-5),
            Pool = golden.Choice("final_pool_type", "none", ("none", TokenPool.Last), ("mean", TokenPool.Mean), ("max", TokenPool.Max), ("all", TokenPool.All)),
            Positions = golden.Flag("if_abs_pos_embed", true),
            ClassToken = !golden.Flag("if_cls_token", true) ? ClassTokenPlace.None
                : golden.Flag("use_double_cls_token", false) ? ClassTokenPlace.BothEnds
                : golden.Flag("use_middle_cls_token", true) ? ClassTokenPlace.Middle : ClassTokenPlace.First,
            Backward = SelectiveScanCases.Backward(golden), DivideOutput = golden.Flag("if_divide_out", true), LayerScale = SelectiveScanCases.LayerScale(golden),
        });
        run.Load(model);
        model.train(golden.Flag("training", false));
        var images = run.Input("x");
        run.Output("features", model.Pooled(images));
        run.Output("logits", model.forward(images));
    }
}

/// <summary>What the cases have in common.</summary>
internal static class SelectiveScanCases
{
    /// <summary>An input that a flag announces; without the flag, one that is there.</summary>
    public static Tensor? Given(GoldenRun run, string flag, string name) => run.Case.Flag(flag, run.Case.Has($"in.{name}")) ? run.Input(name) : null;

    public static MambaOptions Mixer(GoldenCase golden) => new()
    {
        Width = golden.Integer("d_model"), States = golden.Integer("d_state", 16), Kernel = golden.Integer("d_conv", 4), Expand = golden.Number("expand", 2),
        Bias = golden.Flag("bias", false), ConvolutionBias = golden.Flag("conv_bias", true),
    };

    public static BackwardScan Backward(GoldenCase golden) =>
        golden.Choice("bimamba_type", "v2", ("none", BackwardScan.None), ("v1", BackwardScan.SharedMaps), ("v2", BackwardScan.OwnBranch));

    public static double? LayerScale(GoldenCase golden) => golden.HasOption("init_layer_scale") ? golden.Number("init_layer_scale") : null;
}
