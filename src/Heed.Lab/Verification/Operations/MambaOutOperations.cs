using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Verification.Operations;

/// <summary>The block of arXiv 2405.07992.</summary>
internal sealed class GatedCnnBlockOperation : GoldenOperation
{
    public override string Name => "mambaout/GatedCNNBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new GatedCnnBlock(golden.Integer("dim"), golden.Number("expansion_ratio", 8 / 3.0), golden.Integer("kernel_size", 7), golden.Number("conv_ratio", 1));
        run.Load(module);
        module.train(golden.Flag("training", false));
        run.Output("y", module.forward(run.Input("x")));
    }
}

/// <summary>A whole network: logits and what the head reads.</summary>
internal sealed class MambaOutOperation : GoldenOperation
{
    public override string Name => "mambaout/MambaOut";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var model = new MambaOut(new()
        {
            Channels = golden.Integer("in_chans", 3), Classes = golden.Integer("num_classes"), Depths = [.. golden.Integers("depths").Select(depth => (int)depth)],
            Widths = [.. golden.Integers("dims").Select(width => (int)width)], ConvRatio = golden.Number("conv_ratio", 1), KernelSize = golden.Integer("kernel_size", 7),
        });
        run.Load(model);
        model.train(golden.Flag("training", false));
        var images = run.Input("x");
        run.Output("logits", model.forward(images));
        run.Output("features", model.PooledFeatures(images));
    }
}
