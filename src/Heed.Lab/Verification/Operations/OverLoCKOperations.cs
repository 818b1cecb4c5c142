using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Verification.Operations;

/// <summary>The block around context mixing (arXiv 2502.20087) with its kernels.</summary>
internal sealed class ContMixBlockOperation : GoldenOperation
{
    public override string Name => "overlock/ContMixBlock";

    public override void Run(GoldenRun run)
    {
        var block = new ContMixBlock(OverLoCKCases.Block(run.Case, ratio: 4, scaleIdentity: false));
        run.Load(block);
        block.train(run.Case.Flag("training", false));
        var (output, small, large) = block.ForwardWithKernels(run.Input("x"));
        run.Output("y", output);
        run.Output("small_kernel", small);
        run.Output("large_kernel", large);
    }
}

/// <summary>The convolution that trains with dilated branches, and what it is merged to.</summary>
internal sealed class DilatedReparamOperation : GoldenOperation
{
    public override string Name => "overlock/DilatedReparam";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new DilatedReparamConv(golden.Integer("channels"), golden.Integer("kernel_size"), golden.Flag("deploy", false));
        run.Load(module);
        module.train(golden.Flag("training", false));
        run.Output("y", module.forward(run.Input("x")));
        var (weight, bias) = module.Merge();
        run.Output("merged_weight", weight);
        run.Output("merged_bias", bias);
    }
}

/// <summary>A block of Focus-Net.</summary>
internal sealed class FocusBlockOperation : GoldenOperation
{
    public override string Name => "overlock/FocusBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var block = new FocusBlock(OverLoCKCases.Block(golden, ratio: 4, scaleIdentity: false), golden.Integer("ctx_dim"), golden.Flag("is_first", false), golden.Flag("is_last", false));
        run.Load(block);
        block.train(golden.Flag("training", false));
        var (x, context) = block.Forward(run.Input("x"), run.Input("h_x"), run.Input("h_r"));
        run.Output("x", x);
        if (context is not null)
        {
            run.Output("h", context);
        }
    }
}

/// <summary>The whole model with both heads.</summary>
internal sealed class OverLoCKOperation : GoldenOperation
{
    public override string Name => "overlock/OverLoCK";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var images = run.Input("x");
        int[] Whole(string key) => [.. golden.Integers(key).Select(value => (int)value)];
        var shape = new OverLoCKOptions
        {
            Channels = (int)images.shape[1], Classes = golden.Integer("num_classes", 1000), Depth = Whole("depth"), SubDepth = Whole("sub_depth"), EmbedDim = Whole("embed_dim"), SubHeads = Whole("sub_num_heads"),
        };
        var model = new OverLoCK(shape with
        {
            KernelSize = golden.HasOption("kernel_size") ? Whole("kernel_size") : shape.KernelSize,
            SmallKernelSize = golden.Integer("smk_size", shape.SmallKernelSize),
            FeedForwardRatio = golden.HasOption("mlp_ratio") ? golden.Numbers("mlp_ratio") : shape.FeedForwardRatio,
            SubFeedForwardRatio = golden.HasOption("sub_mlp_ratio") ? golden.Numbers("sub_mlp_ratio") : shape.SubFeedForwardRatio,
            LayerScale = golden.HasOption("ls_init_value") ? golden.NumbersOrNull("ls_init_value") : shape.LayerScale,
            ScaleIdentity = golden.Flag("res_scale", shape.ScaleIdentity),
            Projection = golden.Integer("projection", shape.Projection),
            Deploy = golden.Flag("deploy", false),
        });
        run.Load(model);
        model.train(golden.Flag("training", false));
        var outputs = model.ForwardWithEverything(images);
        run.Output("logits", outputs.Logits);
        run.Output("aux_logits", outputs.AuxiliaryLogits);
        run.Output("features", outputs.Features);
        run.Output("context", outputs.Context);
    }
}

/// <summary>What the cases of the paper share.</summary>
internal static class OverLoCKCases
{
    public static ContMixBlockOptions Block(GoldenCase golden, double ratio, bool scaleIdentity) => new()
    {
        Dim = golden.Integer("dim"),
        KernelSize = golden.Integer("kernel_size", 7),
        SmallKernelSize = golden.Integer("smk_size", 5),
        Heads = golden.Integer("num_heads", 2),
        FeedForwardRatio = golden.Number("mlp_ratio", ratio),
        ScaleIdentity = golden.Flag("res_scale", scaleIdentity),
        LayerScale = golden.HasOption("ls_init_value") ? golden.Number("ls_init_value") : null,
        Deploy = golden.Flag("deploy", false),
    };
}
