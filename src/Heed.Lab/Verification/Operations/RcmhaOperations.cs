using Heed.Heads;
using Heed.Models.Texts;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Relative convolutional attention and its baselines (arXiv 2308.03429). The cases have tokens before the batch.</summary>
internal sealed class RelativeConvolutionalAttentionOperation : GoldenOperation
{
    public override string Name => "rcmha/RelativeConvolutionalAttention";

    public override void Run(GoldenRun run)
    {
        var module = new RelativeConvolutionalAttention(RcmhaCases.Attention(run.Case));
        run.Load(module);
        using var probe = new AttentionMapProbe();
        module.Hooks = new AttentionHooks();
        using (module.Hooks.Install(probe))
        {
            run.Output("output", module.ForwardWithMemory(RcmhaCases.Tokens(run, "x")!, RcmhaCases.Tokens(run, "memory")).transpose(0, 1));
        }

        run.Output("attn_weights", probe[probe.Sites[0]].permute(2, 3, 0, 1));
    }
}

/// <summary>The authors' layer.</summary>
internal sealed class TransformerXLLayerOperation : GoldenOperation
{
    public override string Name => "rcmha/TransformerXLLayer";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new TransformerXLLayer(RcmhaCases.Attention(golden), golden.Integer("d_ff"), golden.Number("norm_eps", 1e-5), RcmhaCases.IsSquared(golden));
        run.Load(layer);
        run.Output("output", layer.forward(RcmhaCases.Tokens(run, "x")!, RcmhaCases.Tokens(run, "memory")).transpose(0, 1));
    }
}

/// <summary>The authors' model over several segments.</summary>
internal sealed class AutoregressiveModelOperation : GoldenOperation
{
    public override string Name => "rcmha/AutoregressiveModel";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var model = new TransformerXL(new()
        {
            Vocabulary = golden.Integer("vocab_size"), Layers = golden.Integer("num_layers"), FeedForwardWidth = golden.Integer("d_ff"), NormEpsilon = golden.Number("norm_eps", 1e-5),
            HasSquaredRelu = RcmhaCases.IsSquared(golden), Attention = RcmhaCases.Attention(golden),
        });
        run.Load(model);
        var length = golden.Integer("memory_length", 0);
        using var memory = length > 0 ? new SegmentMemory(length) : null;
        var logits = run.Input("input_ids").unbind(0).Select(segment => model.forward(segment.t().contiguous(), memory).transpose(0, 1)).ToArray();
        run.Output("logits", stack(logits));
        if (memory is not null)
        {
            run.Output("memory", stack([.. memory.Layers]).transpose(1, 2));
        }
    }
}

/// <summary>What the cases of this paper share.</summary>
internal static class RcmhaCases
{
    public static RelativeConvolutionalAttentionOptions Attention(GoldenCase golden)
    {
        var (width, heads) = (golden.Integer("dim"), golden.Integer("num_heads"));
        if (golden.Integer("head_dim", width / heads) != width / heads)
        {
            throw new InvalidDataException($"A width of {width} and {heads} heads make heads of {width / heads}, not of {golden.Integer("head_dim")}.");
        }

        return new()
        {
            Width = width, Heads = heads, IsRelative = golden.Choice("position", "relative", ("relative", true), ("none", false)), Reach = Math.Max(1, golden.Integer("max_relative_positions", 4096)),
            IsConvolutional = golden.Flag("depthwise_conv", true) && golden.Integer("kernel_size", 3) > 0, Kernel = Math.Max(1, golden.Integer("kernel_size", 3)), Causal = golden.Flag("causal", true),
        };
    }

    public static bool IsSquared(GoldenCase golden) => golden.Choice("activation", "relu", ("relu", false), ("squared_relu", true));

    public static Tensor? Tokens(GoldenRun run, string name) => run.Case.Has($"in.{name}") ? run.Input(name).transpose(0, 1) : null;
}
