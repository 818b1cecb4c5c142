using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Verification.Operations;

/// <summary>The mixer of arXiv 2203.11926, with its modulator and gates.</summary>
internal sealed class FocalModulationOperation : GoldenOperation
{
    public override string Name => "focal-modulation/FocalModulation";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new FocalModulation(golden.Integer("dim"), FocalCases.Options(golden) with { Factor = golden.Integer("focal_factor", 2), Bias = golden.Flag("bias", true) });
        run.Load(module);
        module.train(golden.Flag("training", false));
        var (output, context) = module.WithContext(run.Input("x"));
        run.Output("y", output);
        run.Output("modulator", context.Modulator);
        run.Output("gates", context.Gates);
    }
}

/// <summary>The block, in both norm orders.</summary>
internal sealed class FocalNetBlockOperation : GoldenOperation
{
    public override string Name => "focal-modulation/FocalNetBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new FocalNetBlock(
            golden.Integer("dim"), FocalCases.Options(golden), golden.Number("mlp_ratio", 4), golden.Flag("use_postln", false), FocalCases.LayerScale(golden));
        run.Load(module);
        module.train(golden.Flag("training", false));
        run.Output("y", module.forward(run.Input("x"), golden.Integer("height"), golden.Integer("width")));
    }
}

/// <summary>A whole network: logits, the tokens that the head averages, and the last block's modulator.</summary>
internal sealed class FocalNetOperation : GoldenOperation
{
    public override string Name => "focal-modulation/FocalNet";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var depths = golden.Integers("depths").Select(depth => (int)depth).ToArray();
        var model = new FocalNet(new()
        {
            PatchSize = golden.Integer("patch_size", 4), Channels = golden.Integer("in_chans", 3), Classes = golden.Integer("num_classes"), Width = golden.Integer("embed_dim"), Depths = depths,
            FeedForwardRatio = golden.Number("mlp_ratio", 4), Levels = [.. golden.Integers("focal_levels", 2).Select(level => (int)level)],
            Windows = [.. golden.Integers("focal_windows", 3).Select(window => (int)window)], ConvolutionalEmbedding = golden.Flag("use_conv_embed", false), PatchNorm = golden.Flag("patch_norm", true),
            LayerScale = FocalCases.LayerScale(golden), PostNorm = golden.Flag("use_postln", false), PostNormInModulation = golden.Flag("use_postln_in_modulation", false),
            NormalizeModulator = golden.Flag("normalize_modulator", false),
        });
        run.Load(model);
        model.train(golden.Flag("training", false));
        var images = run.Input("x");
        run.Output("logits", model.forward(images));
        run.Output("tokens", model.Features(images).flatten(2).transpose(1, 2));
        run.Output("modulator", model.LastModulator(images));
    }
}

internal static class FocalCases
{
    public static FocalModulationOptions Options(GoldenCase golden) => new()
    {
        Levels = golden.Integer("focal_level", 2), Window = golden.Integer("focal_window", 3), PostNorm = golden.Flag("use_postln_in_modulation", false),
        Normalize = golden.Flag("normalize_modulator", false),
    };

    public static double? LayerScale(GoldenCase golden) => golden.Flag("use_layerscale", false) ? golden.Number("layerscale_value", 1e-4) : null;
}
