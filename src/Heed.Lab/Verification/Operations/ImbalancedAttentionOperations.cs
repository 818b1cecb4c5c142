using Heed.Edits;
using Heed.Heads;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The image tokens that an encoder finds informative (arXiv 2501.12206).</summary>
internal sealed class SelectVisualTokensOperation : GoldenOperation
{
    public override string Name => "imbalanced-attention/SelectVisualTokens";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (first, late) = (run.Input("first_attention"), run.Input("penultimate_attention"));
        var patches = golden.Integer("num_vision_tokens", checked((int)first.shape[^1] - 1));
        if (!golden.Flag("has_cls", true) || first.shape[^1] != patches + 1)
        {
            throw new InvalidDataException("Informed tokens are chosen by the class token's row: the case has none.");
        }

        var tokens = InformedTokens.Select(
            first, late, golden.Number("local_ratio", InformedTokens.DefaultLocalRatio), golden.Number("spatial_ratio", 0), golden.Number("iqr_factor", InformedTokens.DefaultOutlierFactor));
        run.Output("local_mask", Mask(tokens.Local, patches));
        run.Output("summary_mask", Mask(tokens.Summary, patches));
    }

    private static Tensor Mask(IReadOnlyList<long> members, int count) => tensor(Enumerable.Range(0, count).Select(index => members.Contains(index)).ToArray());
}

/// <summary>Attention with boosted image tokens for the last query (arXiv 2501.12206).</summary>
internal sealed class InformedTokenAttentionOperation : GoldenOperation
{
    public override string Name => "imbalanced-attention/InformedTokenAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var input = run.Input("hidden_states");
        var (width, heads) = (checked((int)input.shape[^1]), golden.Integer("num_heads"));
        var module = new GatedAttention(
            new GatedAttentionOptions { Width = width, Heads = heads, Attention = golden.Flag("causal", true) ? AttentionOptions.CausalSelf : AttentionOptions.Default },
            new AttentionSite(0, AttentionKind.Self, "self_attn"))
        {
            Hooks = new AttentionHooks(),
        };
        run.Load(module);
        var rotary = golden.Flag("rope", false)
            ? new RotaryEmbedding(width / heads, golden.Number("rope_theta", 10000)).Tables(arange(input.shape[1], dtype: int64), run.Type) : null;
        var (start, length) = (golden.Integer("image_start"), golden.Integer("image_length"));
        module.Hooks.Layout = new TokenLayout(Spans(start, length, input.shape[1]));
        using var probe = new AttentionMapProbe();
        using var observed = module.Hooks.Install(probe);
        module.forward(input, rotary);
        run.Output("baseline_last_row", probe[probe.Sites[0]].select(2, input.shape[1] - 1).clone());

        var tokens = new InformedTokens(Indices(run.Input("local_tokens")), Indices(run.Input("summary_tokens")));
        InformedTokenEdit Edit(bool materialize) =>
            new([tokens], golden.Number("alpha", InformedTokenEdit.DefaultAlpha), golden.Number("beta", InformedTokenEdit.DefaultBeta), layers: new Range(0, 1)) { Materialize = materialize };
        using (module.Hooks.Install(Edit(materialize: true)))
        {
            module.forward(input, rotary);
            run.Output("attention", probe[probe.Sites[0]]);
        }

        using (module.Hooks.Install(Edit(materialize: false)))
        {
            run.Output("output", module.forward(input, rotary));
        }
    }

    private static IEnumerable<TokenSpan> Spans(int start, int length, long tokens)
    {
        if (start > 0)
        {
            yield return new(TokenKind.Text, 0, start);
        }

        yield return new(TokenKind.Image, start, length);
        if (start + length < tokens)
        {
            yield return new(TokenKind.Text, start + length, tokens - start - length);
        }
    }

    private static long[] Indices(Tensor tokens) => tokens.to(int64).data<long>().ToArray();
}

/// <summary>Log-probabilities guided by the picture (arXiv 2501.12206, after PAI).</summary>
internal sealed class VisualGuidanceOperation : GoldenOperation
{
    public override string Name => "imbalanced-attention/VisualGuidance";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var combined = VisualGuidance.Combine(
            run.Input("logits"), run.Input("unconditional_logits"), golden.Number("gamma", VisualGuidance.DefaultGamma), golden.Number("cutoff", VisualGuidance.DefaultCutoff));
        var kept = combined.isfinite();
        run.Output("keep_mask", kept);
        // The cases store what is rejected as zero.
        run.Output("logits", combined.masked_fill(kept.logical_not(), 0));
    }
}
