using Heed.Biases;
using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The library's mask functions (arXiv 2508.02124).</summary>
internal sealed class DynamicMasks : GoldenOperation
{
    public override string Name => "dynamic-mask-attention/DynamicMask";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var bias = run.Input("bias");
        var allowed = golden.Has("in.allowed") ? run.Input("allowed").to(@bool) : null;
        var ranked = golden.Choice("type", "topk", ("topk", true), ("relu", false));
        Tensor Mask(int blockSize) => ranked ? DynamicMask.TopK(bias, allowed, golden.Integer("window_size"), blockSize) : DynamicMask.Relu(bias, allowed, blockSize);
        run.Output("mask_before_smoothing", Mask(0));
        run.Output("mask", Mask(golden.Integer("block_size", 0)));
    }
}

/// <summary>Attention over the most important keys: importance, choice, output, gradients.</summary>
internal sealed class DynamicMaskedAttention : GoldenOperation
{
    public override string Name => "dynamic-mask-attention/DynamicMaskAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (heads, keyHeads) = (golden.Integer("num_heads"), golden.Integer("num_kv_heads"));
        var module = new DynamicMaskAttention(
            heads, keyHeads, golden.Integer("head_dim"), golden.Integer("window_size"), DynamicMaskCases.Form(golden), golden.Has("param.dt_proj.bias"));
        run.Load(module);
        var (query, key, value) = (run.Input("query"), run.Input("key"), run.Input("value"));
        // Where a case gives no pairs, it means the causal ones.
        var allowed = golden.Has("in.allowed") ? run.Input("allowed") : null;
        allowed = allowed?.dim() == 4 && allowed.shape[1] == keyHeads && keyHeads != 1 ? allowed.repeat_interleave(heads / keyHeads, 1) : allowed;
        double? scale = golden.HasOption("scale") ? golden.Number("scale") : null;
        var importance = module.Importance(value);
        run.Output("bias", importance);
        var options = (allowed is null ? AttentionOptions.CausalSelf : new AttentionOptions { Mask = allowed }) with { Scale = scale };
        var blockSize = golden.Integer("block_size", 0);
        if (blockSize > 1 || golden.Text("type", "topk") != "topk")
        {
            // The library's masks: their smoothing may switch on what is not allowed, so the pairs that exist are applied again.
            var perHead = importance.repeat_interleave(heads / keyHeads, 1);
            var possible = new DynamicMaskSelector(int.MaxValue, _ => importance).Select(query, key, value, options).Pairs();
            var mask = golden.Choice("type", "topk", ("topk", true), ("relu", false))
                ? DynamicMask.TopK(perHead.unsqueeze(2), possible, module.WindowSize, blockSize) : DynamicMask.Relu(perHead.unsqueeze(2), possible, blockSize);
            mask = mask.logical_and(possible);
            run.Output("output", Attention.Compute(query, key, value, new AttentionOptions { Scale = scale, Mask = mask, Biases = [new KeyBias(perHead)] }).transpose(1, 2));
            run.Output("kept", OfKeyHeads(mask, keyHeads));
            return;
        }

        run.Output("output", module.forward(query, key, value, allowed, causal: allowed is null, scale));
        run.Output("kept", OfKeyHeads(new DynamicMaskSelector(module.WindowSize, module.Importance).Select(query, key, value, options).Pairs(), keyHeads));
    }

    // Query heads of a group share their pairs.
    private static Tensor OfKeyHeads(Tensor pairs, int keyHeads) =>
        pairs.view(pairs.shape[0], keyHeads, pairs.shape[1] / keyHeads, pairs.shape[2], pairs.shape[3]).select(2, 0);
}

/// <summary>The authors' attention layer.</summary>
internal sealed class DogeLayer : GoldenOperation
{
    public override string Name => "dynamic-mask-attention/DogeAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new DogeAttention(new DogeAttentionOptions
        {
            Width = golden.Integer("hidden_size"),
            Heads = golden.Integer("num_heads"),
            KeyValueHeads = golden.Integer("num_kv_heads"),
            HeadWidth = golden.Integer("head_dim"),
            WindowSize = golden.Integer("window_size"),
            Form = DynamicMaskCases.Form(golden),
            NormEpsilon = golden.Number("rms_norm_eps", 1e-6),
            QueryKeyValueBias = golden.Has("param.q_proj.bias"),
            OutputBias = golden.Has("param.o_proj.bias"),
        });
        run.Load(module);
        run.Output("output", module.forward(run.Input("hidden_states"), DynamicMaskCases.Rotary(run)));
    }
}

internal static class DynamicMaskCases
{
    public static ImportanceForm Form(GoldenCase golden) =>
        golden.Choice("bias_form", "linear", ("linear", ImportanceForm.Linear), ("exp", ImportanceForm.Exponential));

    /// <summary>The case's own tables, or those of its theta where it has none.</summary>
    public static RotaryTables Rotary(GoldenRun run)
    {
        if (!run.Case.Has("in.cos"))
        {
            using var end = run.Input("hidden_states");
            return new RotaryEmbedding(run.Case.Integer("head_dim"), run.Case.Number("rope_theta", 10000)).Tables(arange(end.shape[1]), run.Type);
        }

        var (cosine, sine) = (run.Input("cos").unsqueeze(-2), run.Input("sin").unsqueeze(-2));
        var half = sine.shape[^1] / 2;
        return new(cosine, cat([sine.narrow(-1, 0, half).neg(), sine.narrow(-1, half, half)], -1));
    }
}
