using Heed.Explanations;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Occlusion explanations: the model of a case says what its file says, mask by mask.</summary>
internal sealed class SpesExplanationOperation : GoldenOperation
{
    public override string Name => "cross-attention-saliency/SpesExplanation";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (masks, original, perturbed) = (run.Input("masks"), run.Input("original_probs"), run.Input("perturbed_probs"));
        var tokens = new[] { "tokens", "target", "targets", "target_tokens", "predicted" }.FirstOrDefault(name => golden.Has($"in.{name}")) is { } name ? run.Input(name).to(int64).reshape(-1) : original.argmax(-1);
        var segmentations = golden.Integer("segmentations", 1);
        var explainer = new SpesExplainer(new()
        {
            Segments = [.. Enumerable.Repeat(1, segmentations)],
            Masks = checked(segmentations * golden.Integer("masks_per_segmentation", (int)masks.shape[0])),
            MaskProbability = golden.Number("mask_probability", 0.5),
            TokenMaskProbability = golden.Number("token_mask_probability", 0),
            Scorer = golden.Choice("scorer", "kl",
                ("kl", OcclusionScorer.KullbackLeibler), ("KL", OcclusionScorer.KullbackLeibler),
                ("predicted_token_diff", OcclusionScorer.PredictedDifference), ("predicted_difference", OcclusionScorer.PredictedDifference), ("difference", OcclusionScorer.PredictedDifference)),
        });
        long next = -1;
        Tensor Recorded(Tensor features, Tensor? tokenMasks)
        {
            // The first call is the unmasked one.
            var first = next;
            next = first < 0 ? 0 : first + features.shape[0];
            return first < 0 ? original.unsqueeze(0) : perturbed.narrow(0, first, features.shape[0]);
        }

        using var explanation = explainer.Explain(Recorded, zeros([masks.shape[1], masks.shape[2]], run.Type), tokens, new(masks, golden.Has("in.token_masks") ? run.Input("token_masks") : null));
        using var standard = explanation.Standardize();
        using var normal = explanation.Normalize();
        var sentence = normal.Sentence();
        run.Output("scores", explanation.Scores!);
        run.Output("heatmap", explanation.Audio);
        run.Output("token_heatmap", explanation.Tokens);
        run.Output("standardized", standard.Audio);
        run.Output("token_standardized", standard.Tokens);
        run.Output("normalized", normal.Audio);
        run.Output("token_normalized", normal.Tokens);
        run.Output("sentence_map", sentence.Audio);
        run.Output("sentence_token_map", sentence.Tokens);
    }
}

/// <summary>Inputs of deletion and insertion curves, and the area under given scores.</summary>
internal sealed class DeletionCurveOperation : GoldenOperation
{
    public override string Name => "cross-attention-saliency/DeletionCurve";

    public override void Run(GoldenRun run)
    {
        var mode = run.Case.Choice("metric", "deletion", ("deletion", DeletionMode.Deletion), ("insertion", DeletionMode.Insertion));
        run.Output("features", DeletionCurve.Create(run.Input("features"), run.Input("saliency"), run.Case.Integer("percent_step", 10), mode));
        run.Output("auc", DeletionCurve.Auc(run.Input("scores").to(float64).data<double>().ToArray()));
    }
}

/// <summary>Frames at which blocks of tokens end.</summary>
internal sealed class AlignBoundariesOperation : GoldenOperation
{
    public override string Name => "cross-attention-saliency/AlignBoundaries";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var attention = run.Input("attention");
        int[] boundaries = [.. run.Input("boundaries").data<long>().ToArray().Select(boundary => checked((int)boundary))];
        var (width, negative) = (run.Case.Integer("median_filter_width", BlockAligner.DefaultMedianWidth), run.Case.Number("negative_value", BlockAligner.DefaultNegative));
        var area = BlockAligner.NormalizeForSbaam(attention, negative);
        run.Output("sbaam_normalized", area);
        run.Output("sbaam_noforce_normalized", area);
        run.Output("dtw_normalized", BlockAligner.NormalizeForDtw(attention, width));
        run.Output("sbaam", tensor(BlockAligner.Sbaam(attention, boundaries, negative: negative).ToArray()));
        run.Output("sbaam_noforce", tensor(BlockAligner.Sbaam(attention, boundaries, forceEnd: false, negative).ToArray()));
        run.Output("dtw", tensor(BlockAligner.Dtw(attention, boundaries, width).ToArray()));
    }
}

/// <summary>Correlation of cross-attention with saliency.</summary>
internal sealed class AttentionSaliencyCorrelationOperation : GoldenOperation
{
    public override string Name => "cross-attention-saliency/AttentionSaliencyCorrelation";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var (attention, input, encoder) = (run.Input("attention"), run.Input("input_saliency"), run.Input("encoder_output_saliency"));
        var options = new AttentionSaliencyOptions
        {
            SkipTokens = run.Case.Integer("skip_tokens", 0),
            StandardizeOverTokens = run.Case.Flag("standardize_over_tokens", false),
            Pooling = run.Case.Choice("pooling", "max2d", ("max2d", SaliencyPooling.Maximum), ("max", SaliencyPooling.Maximum), ("avg2d", SaliencyPooling.Mean), ("average", SaliencyPooling.Mean), ("mean", SaliencyPooling.Mean)),
        };
        var result = AttentionSaliency.Correlate(attention, input, encoder, options);
        Correlation(run, "input", result.Input!);
        Correlation(run, "encoder_output", result.EncoderOutput!);
        run.Output("saliency_agreement", result.Agreement!.Value);
        run.Output("pooled_saliency", AttentionSaliency.Pool(input, attention.shape[3], options.Pooling));
        using var maps = CrossAttentionMaps.Of(attention);
        run.Output("layer_attention", stack([.. Enumerable.Range(0, (int)attention.shape[0]).Select(layer => maps.Mean([layer]))]));
        run.Output("mean_attention", maps.Mean());
    }

    private static void Correlation(GoldenRun run, string name, SaliencyCorrelation correlation)
    {
        run.Output($"{name}_by_head", tensor(correlation.ByHead.SelectMany(layer => layer).ToArray()).reshape(correlation.ByHead.Count, -1));
        run.Output($"{name}_by_layer", tensor(correlation.ByLayer.ToArray()));
        run.Output($"{name}_overall", correlation.Overall);
    }
}
