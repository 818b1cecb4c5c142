using Heed.Explanations;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Explanations;

public sealed class SpesExplainerTests
{
    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    private static readonly SpesOptions Small = new() { Segments = [4, 12], ReferenceFrames = null, Masks = 200, Batch = 37, Compactness = 10 };

    [Fact]
    public void The_divergence_of_equal_distributions_is_zero_and_zero_probabilities_are_bounded()
    {
        using var scope = NewDisposeScope();
        var original = randn(3, 7, dtype: float64).softmax(-1);
        Assertions.Close(zeros(2, 3, dtype: float64), OcclusionScores.KullbackLeibler(original, original.unsqueeze(0).expand(2, -1, -1)), 1e-15);
        Assert.True(OcclusionScores.KullbackLeibler(original, randn(4, 3, 7, dtype: float64).softmax(-1)).ge(0).all().item<bool>());

        // 0 ln 0 is 0; a token that became impossible costs a lot, not infinitely much.
        var certain = tensor(new double[,] { { 1, 0 } });
        var (same, lost) = (OcclusionScores.KullbackLeibler(certain, certain.unsqueeze(0)).item<double>(), OcclusionScores.KullbackLeibler(certain, (1 - certain).unsqueeze(0)).item<double>());
        Assert.Equal(0, same);
        Assert.InRange(lost, 700, 710);
    }

    [Fact]
    public void The_other_score_is_what_the_chosen_tokens_lost()
    {
        using var scope = NewDisposeScope();
        var (original, perturbed) = (tensor(new double[,] { { 0.7, 0.3 }, { 0.4, 0.6 } }), tensor(new double[] { 0.5, 0.5, 0.9, 0.1 }).reshape(1, 2, 2));
        Assertions.Close(tensor(new double[,] { { 0.2, 0.5 } }), OcclusionScores.PredictedDifference(original, perturbed, tensor(new long[] { 0, 1 })), 1e-12);
    }

    [Fact]
    public void A_map_is_the_mean_score_while_a_cell_was_hidden_in_any_batches()
    {
        using var scope = NewDisposeScope();
        var (scores, masks) = (rand(9, 2, dtype: float64), rand(9, 3, 4).ge(0.5));
        masks.select(1, 0).select(1, 0).fill_(true);
        using var whole = new OcclusionMap(2, 3, 4);
        whole.Add(scores, masks);
        using var parts = new OcclusionMap(2, 3, 4);
        parts.Add(scores.narrow(0, 0, 4), masks.narrow(0, 0, 4).to(float32));
        parts.Add(scores.narrow(0, 4, 5), masks.narrow(0, 4, 5).to(float32));
        Assertions.Close(whole.Values(), parts.Values(), 1e-14);
        var hidden = masks[.., 1, 2].logical_not();
        Assert.Equal(scores[.., 1].masked_select(hidden).mean().item<double>(), whole.Values()[1, 1, 2].item<double>(), 1e-12);

        // Never hidden: not important as far as anybody knows.
        Assert.Equal(0, whole.Values()[0, 0, 0].item<double>());
        Assert.Equal(9, whole.Count);
        Assert.Contains("Scores must be [masks, 2] and masks [masks, 3, 4]", Assert.Throws<ArgumentException>(() => whole.Add(scores, masks.transpose(1, 2))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void What_a_model_reads_is_what_its_explanation_shows()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(3);
        var features = (randn([16, 8], generator: generator) * 0.01) + 1;
        // Two tokens: the first reads the upper left corner, the second nothing at all.
        var weights = zeros(16, 8);
        weights.narrow(0, 0, 4).narrow(1, 0, 4).fill_(0.2);
        Tensor Model(Tensor cells, Tensor? kept)
        {
            var logit = (cells * weights).sum([1, 2]).unsqueeze(1);
            var logits = cat([logit, zeros_like(logit)], 1).stack(zeros(cells.shape[0], 2));
            return logits.softmax(-1);
        }

        using var explanation = new SpesExplainer(Small).Explain(Model, features, tensor(new long[] { 0, 1 }), cancellation: Stop);
        Assert.Equal([200L, 2], explanation.Scores!.shape);
        var (inside, outside) = (explanation.Audio[0].narrow(0, 0, 4).narrow(1, 0, 4).mean().item<float>(), explanation.Audio[0].narrow(0, 8, 8).mean().item<float>());
        Assert.True(inside > 1.2 * outside, $"{inside} inside, {outside} outside");
        Assert.Equal(0, explanation.Audio[1].abs().max().item<float>());
        Assert.Equal(0, explanation.Tokens.abs().max().item<float>());

        using var again = new SpesExplainer(Small).Explain(Model, features, tensor(new long[] { 0, 1 }), cancellation: Stop);
        Assert.True(again.Audio.eq(explanation.Audio).all().item<bool>());
        using var other = new SpesExplainer(Small with { Seed = 2 }).Explain(Model, features, tensor(new long[] { 0, 1 }), cancellation: Stop);
        Assert.False(other.Audio.eq(explanation.Audio).all().item<bool>());
    }

    [Fact]
    public void Hidden_tokens_show_below_the_diagonal_only()
    {
        using var scope = NewDisposeScope();
        // Every token's distribution depends on the input token at position 1.
        Tensor Model(Tensor cells, Tensor? kept)
        {
            var logit = (kept is null ? ones(cells.shape[0]) : kept.select(1, 1).to(float32)).view(-1, 1, 1).expand(-1, 3, 1);
            return cat([logit * 2, zeros_like(logit)], -1).softmax(-1);
        }

        using var explanation = new SpesExplainer(Small with { TokenMaskProbability = 0.4 }).Explain(Model, randn(6, 5), tensor(new long[] { 0, 0, 1 }), cancellation: Stop);
        var map = explanation.Tokens;
        Assert.Equal(0, map.triu(1).abs().max().item<float>());
        Assert.True(map[1, 1].item<float>() > 1.5 * map[1, 0].item<float>() && map[2, 1].item<float>() > 1.5 * map[2, 2].item<float>(), map.ToString(TorchSharp.TensorStringStyle.Numpy));
        using var normal = explanation.Normalize();
        Assert.Equal(0, normal.Tokens.triu(1).abs().max().item<float>());
        Assert.Equal(1, cat([normal.Audio.flatten(1), normal.Tokens], 1).amax([1L])[2].item<float>(), 1e-6);
        var (audio, tokens) = normal.Sentence();
        Assert.Equal([6L, 5], audio.shape);
        Assert.Equal([3L], tokens.shape);
        Assert.Equal([3L, 2], explanation.PoolTo(2).shape);
    }

    [Fact]
    public void Granularities_follow_the_length_up_to_the_threshold()
    {
        using var scope = NewDisposeScope();
        var explainer = new SpesExplainer(new() { Segments = [20], ReferenceFrames = 40, FrameThreshold = 60, Masks = 1, Compactness = 100 });
        long Count(long frames) => explainer.Segment(randn(frames, 10))[0].max().item<long>();
        Assert.InRange(Count(40), 12, 28);
        Assert.InRange(Count(20), 5, 15);
        Assert.InRange(Count(120), 20, 42);
    }

    [Fact]
    public void A_thousand_masks_leave_nothing_behind()
    {
        using var scope = NewDisposeScope();
        var (features, text) = (randn(12, 6), tensor(new long[] { 0 }));
        Tensor Model(Tensor cells, Tensor? kept) => cells.flatten(1).narrow(1, 0, 4).softmax(-1).unsqueeze(1);
        var before = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        using (new SpesExplainer(Small with { Masks = 1000, Batch = 10 }).Explain(Model, features, text, cancellation: Stop))
        using (new EncoderOutputExplainer(new() { Masks = 1000, Batch = 10 }).Explain(states => states.flatten(1).narrow(1, 0, 4).softmax(-1).unsqueeze(1), features, text, cancellation: Stop))
        {
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void The_encoder_output_is_explained_frame_by_frame()
    {
        using var scope = NewDisposeScope();
        Tensor Decoder(Tensor states)
        {
            var logit = states.select(1, 3).sum([1L]).view(-1, 1, 1);
            return cat([logit, zeros_like(logit)], -1).softmax(-1);
        }

        var map = new EncoderOutputExplainer(new() { Masks = 400, Batch = 33 }).Explain(Decoder, ones(6, 2), tensor(new long[] { 0 }), cancellation: Stop);
        Assert.Equal([1L, 6], map.shape);
        Assert.Equal(3, map[0].argmax().item<long>());
        Assert.Contains("must be [frames, width]", Assert.Throws<ArgumentException>(() => new EncoderOutputExplainer().Explain(Decoder, ones(6), tensor(new long[] { 0 }), cancellation: Stop)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => (object)new EncoderOutputExplainer(new() { MaskProbability = 0 }));
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        string Said(Func<object> mistake) => Assert.Throws<ArgumentException>(mistake).Message;
        Tensor Model(Tensor cells, Tensor? kept) => ones(cells.shape[0], 2, 3);
        var (features, text) = (randn(6, 5), tensor(new long[] { 0, 1 }));
        Assert.Contains("too few for 2 granularities", Said(() => new SpesExplainer(Small with { Masks = 1 })), StringComparison.Ordinal);
        Assert.Contains("probability above 0", Said(() => new SpesExplainer(Small with { MaskProbability = 0 })), StringComparison.Ordinal);
        var explainer = new SpesExplainer(Small);
        Assert.Contains("distributions [1, 3, vocabulary]", Said(() => explainer.Explain(Model, features, tensor(new long[] { 0, 1, 2 }), cancellation: Stop)), StringComparison.Ordinal);
        Assert.Contains("must be [masks, 6, 5]", Said(() => explainer.Explain(Model, features, text, new(ones(4, 5, 5)), cancellation: Stop)), StringComparison.Ordinal);
        Assert.Contains("must be [4, 2]", Said(() => explainer.Explain(Model, features, text, new(ones(4, 6, 5), ones(4, 3)), cancellation: Stop)), StringComparison.Ordinal);
        Assert.Contains("[masks, tokens, vocabulary]", Said(() => OcclusionScores.KullbackLeibler(ones(2, 3), ones(4, 2, 5))), StringComparison.Ordinal);
    }
}

internal static class Stacking
{
    public static Tensor stack(this Tensor first, Tensor second) => torch.stack([first, second], 1);
}
