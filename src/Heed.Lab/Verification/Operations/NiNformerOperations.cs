using Heed.Mixers;
using Heed.Models.Images;

namespace Heed.Lab.Verification.Operations;

/// <summary>A block of NiNformer (arXiv 2403.02411) and its gate.</summary>
internal sealed class NiNBlockOperation : GoldenOperation
{
    public override string Name => "ninformer/NiNBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var block = new NiNBlock(golden.Integer("d_model"), golden.Integer("d_ffn"), golden.Integer("seq_len"), golden.Number("dropout", 0));
        run.Load(block);
        block.train(golden.Flag("training", false));
        var input = run.Input("x");
        run.Output("gate", block.Gate(input));
        run.Output("y", block.forward(input));
    }
}

/// <summary>The whole classifier of the authors' training script.</summary>
internal sealed class NiNformerClassifierOperation : GoldenOperation
{
    public override string Name => "ninformer/NiNformerClassifier";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var options = new NiNformerOptions
        {
            ImageSize = golden.Integer("image_size", 32), PatchSize = golden.Integer("patch_size", 4), Channels = golden.Integer("in_channels", 3), Classes = golden.Integer("num_classes", 10),
            Width = golden.Integer("d_model", 256), Hidden = golden.Integer("d_ffn", 512), Depth = golden.Integer("num_layers", 4), Dropout = golden.Number("dropout", 0),
        };
        if (golden.HasOption("seq_len") && golden.Integer("seq_len") != options.Grid * options.Grid)
        {
            throw new InvalidDataException($"The case has {golden.Integer("seq_len")} tokens where its pictures have {options.Grid * options.Grid} patches.");
        }

        var model = new NiNformerClassifier(options);
        run.Load(model);
        model.train(golden.Flag("training", false));
        run.Output("logits", model.forward(run.Input("x")));
    }
}
