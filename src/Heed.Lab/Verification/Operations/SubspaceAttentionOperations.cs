using Heed.Mixers;

namespace Heed.Lab.Verification.Operations;

/// <summary>Subspace attention (arXiv 2006.15102): output, maps and, in training, the running statistics after the call.</summary>
internal sealed class SubspaceAttentionOperation : GoldenOperation
{
    public override string Name => "ulsam/ULSAM";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new SubspaceAttention(golden.Integer("channels"), golden.Integer("num_splits"));
        run.Load(module);
        module.train(golden.Flag("training", false));
        var (output, attention) = module.ForwardWithMaps(run.Input("x"));
        run.Output("y", output);
        run.Output("attention", attention);
        foreach (var (name, buffer) in module.named_buffers().Where(entry => golden.Has($"out.updated.{entry.name}")))
        {
            run.Output($"updated.{name}", buffer);
        }
    }
}
