using Heed.Explanations;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Explanations;

public sealed class AttentionSaliencyTests
{
    [Fact]
    public void Attention_that_is_the_saliency_correlates_by_one_and_its_negative_by_minus_one()
    {
        using var scope = NewDisposeScope();
        var saliency = rand(5, 9, dtype: float64);
        var attention = stack([saliency, -saliency]).unsqueeze(0);
        var result = AttentionSaliency.Correlate(attention, null, saliency);
        Assert.Null(result.Input);
        Assert.Null(result.Agreement);
        Assert.Equal([1, -1], result.EncoderOutput!.ByHead[0].Select(value => Math.Round(value, 12)));
        Assert.True(double.IsNaN(result.EncoderOutput.Overall));
        // A scale of its own for every frame does not matter after standardisation.
        var scaled = (saliency * rand(1, 9, dtype: float64).add(0.1)).reshape(1, 1, 5, 9);
        Assert.Equal(1, AttentionSaliency.Correlate(scaled, null, saliency, new() { StandardizeOverTokens = true }).EncoderOutput!.Overall, 1e-9);
        Assert.NotEqual(1, AttentionSaliency.Correlate(scaled, null, saliency).EncoderOutput!.Overall, 1e-3);
    }

    [Fact]
    public void Skipped_tokens_do_not_count()
    {
        using var scope = NewDisposeScope();
        var (saliency, attention) = (rand(5, 9, dtype: float64), rand(2, 3, 5, 9, dtype: float64));
        var expected = AttentionSaliency.Correlate(attention.narrow(2, 2, 3), null, saliency.narrow(0, 2, 3)).EncoderOutput!;
        var skipped = AttentionSaliency.Correlate(attention, null, saliency, new() { SkipTokens = 2 }).EncoderOutput!;
        Assert.Equal(expected.Overall, skipped.Overall, 1e-12);
        Assert.Equal(expected.ByLayer[1], skipped.ByLayer[1], 1e-12);
    }

    [Fact]
    public void Pooling_takes_every_frame_the_last_ones_included()
    {
        using var scope = NewDisposeScope();
        var saliency = arange(14, dtype: float64).view(1, 7, 2);
        // Bins 0-1-2, 2-3-4, 4-5-6 of seven frames.
        Assertions.Close(tensor(new double[,] { { 5, 9, 13 } }), AttentionSaliency.Pool(saliency, 3), 0);
        Assertions.Close(tensor(new double[,] { { 2.5, 6.5, 10.5 } }), AttentionSaliency.Pool(saliency, 3, SaliencyPooling.Mean), 1e-12);
        Assertions.Close(saliency.amax([2L]), AttentionSaliency.Pool(saliency, 7), 0);
    }

    [Fact]
    public void Each_token_gets_mean_zero_and_deviation_one_whatever_its_size()
    {
        using var scope = NewDisposeScope();
        var map = rand(3, 4, 5, dtype: float64) * tensor(new double[] { 1, 100, 0 }).view(3, 1, 1);
        var standard = AttentionSaliency.StandardizeEachToken(map).flatten(1);
        Assertions.Close(zeros(3, dtype: float64), standard.mean([1L]), 1e-12);
        Assertions.Close(tensor(new double[] { 1, 1, 0 }), standard.std([1L]), 1e-12);
        Assert.Throws<ArgumentException>(() => AttentionSaliency.StandardizeEachToken(rand(3)));
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        string Said(Action mistake) => Assert.Throws<ArgumentException>(mistake).Message;
        var attention = rand(2, 3, 5, 9);
        Assert.Contains("[5 tokens, frames, features]", Said(() => AttentionSaliency.Correlate(attention, rand(4, 20, 6), null)), StringComparison.Ordinal);
        Assert.Contains("[5 tokens, 9 frames]", Said(() => AttentionSaliency.Correlate(attention, null, rand(5, 8))), StringComparison.Ordinal);
        Assert.Contains("nothing to compare", Said(() => AttentionSaliency.Correlate(attention, null, null)), StringComparison.Ordinal);
        Assert.Contains("Of 5 tokens 5 cannot be skipped", Said(() => AttentionSaliency.Correlate(attention, null, rand(5, 9), new() { SkipTokens = 5 })), StringComparison.Ordinal);
        Assert.Contains("[layers, heads, tokens, frames]", Said(() => AttentionSaliency.Correlate(rand(5, 9), null, rand(5, 9))), StringComparison.Ordinal);
    }
}
