using Heed.Edits;
using Heed.Models.Speech;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Speech;

public sealed class SpeechTransformerTests
{
    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    internal static SpeechConfiguration Tiny { get; } = new()
    {
        Width = 16, EncoderLayers = 2, DecoderLayers = 2, EncoderHeads = 2, DecoderHeads = 4, EncoderInner = 24, DecoderInner = 20, Bins = 6, Vocabulary = 11, SourceLength = 40, TargetLength = 12, FirstStride = 2,
        StartToken = 1, EndToken = 2, PadToken = 0,
    };

    [Fact]
    public void Decoding_bit_by_bit_gives_what_the_whole_text_gives()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Make();
        var (features, tokens) = (randn(2, 30, 6), randint(0, 11, [2, 7], dtype: int64));
        var whole = model.forward(features, tokens);
        Assert.Equal([2L, 7, 11], whole.shape);
        var encoded = model.Encode(features);
        Assert.Equal([2L, 8, 16], encoded.States.shape);
        using var state = model.Start(encoded);
        var parts = new[] { (0, 3), (3, 1), (4, 2), (6, 1) }.Select(part => model.Decode(encoded, tokens.narrow(1, part.Item1, part.Item2), state)).ToArray();
        Close(whole, cat(parts, 1), 1e-5);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Utterances_come_out_of_a_batch_as_they_do_alone(int stride)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Make(Tiny with { FirstStride = stride });
        var (features, tokens) = (randn(3, 31, 6), randint(0, 11, [3, 5], dtype: int64));
        long[] lengths = [31, 17, 22];
        var encoded = model.Encode(features, tensor(lengths));
        var together = model.Decode(encoded, tokens);
        for (var item = 0; item < 3; item++)
        {
            var alone = model.Encode(features.narrow(0, item, 1).narrow(1, 0, lengths[item]));
            var frames = alone.States.shape[1];
            Assert.Equal(frames, encoded.Lengths![item].item<long>());
            Close(alone.States[0], encoded.States[item].narrow(0, 0, frames), 1e-5);
            Close(model.Decode(alone, tokens.narrow(0, item, 1))[0], together[item], 1e-5);
        }
    }

    [Fact]
    public void No_token_sees_a_later_one_and_gradients_reach_every_parameter_that_is_trained()
    {
        using var scope = NewDisposeScope();
        using var model = Make();
        var (features, tokens) = (randn(1, 20, 6), randint(3, 11, [1, 6], dtype: int64));
        var logits = model.forward(features, tokens);
        using (no_grad())
        {
            var changed = tokens.clone();
            changed[0, 4] = (tokens[0, 4] + 1).remainder(11);
            var other = model.forward(features, changed);
            Close(logits.narrow(1, 0, 4), other.narrow(1, 0, 4), 1e-6);
            Assert.False(logits[0, 4].allclose(other[0, 4]));
        }

        logits.square().sum().backward();
        Assert.All(model.named_parameters().Where(entry => entry.parameter.requires_grad), entry => Assert.True(entry.parameter.grad is { } gradient && gradient.abs().max().item<float>() > 0, entry.name));
        Assert.Equal(["model.encoder.embed_positions.weight"], model.named_parameters().Where(entry => !entry.parameter.requires_grad).Select(entry => entry.name));
    }

    [Fact]
    public void Hidden_tokens_count_as_nothing_before_their_position_or_with_it()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Make();
        var (encoded, tokens) = (model.Encode(randn(1, 20, 6)), tensor(new long[,] { { 1, 5, 6 } }));
        var kept = tensor(new[,] { { true, false, true } });
        Tensor With(bool after) => model.Decode(encoded, tokens, null, new TokenOcclusion(kept, after));
        var other = model.Decode(encoded, tensor(new long[,] { { 1, 9, 6 } }), null, new TokenOcclusion(kept));
        Close(With(false), other, 1e-6);
        Assert.False(With(false).allclose(With(true)));
        Close(model.Decode(encoded, tokens), model.Decode(encoded, tokens, null, new TokenOcclusion(kept.logical_or(true))), 1e-6);
    }

    [Fact]
    public void Hooks_see_attention_and_hidden_states_and_edits_act()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Make();
        var text = tensor(new long[] { 4, 5, 2 });
        var encoded = model.Encode(randn(1, 30, 6));
        using var maps = model.CrossAttention(encoded, text);
        Assert.Equal([2L, 4, 3, 8], maps.Weights.shape);
        Assert.Equal("model.decoder.layers.1.encoder_attn", maps.Sites[1].Name);
        var plain = model.Distributions(encoded, text);
        using (model.Hooks.Install(new HeadScaling([.. Enumerable.Range(0, 4).Select(head => new HeadFactor(0, head, 0, AttentionKind.Cross))])))
        {
            Assert.False(plain.allclose(model.Distributions(encoded, text)));
        }

        var seen = new Seen();
        using (model.Hooks.Install(seen))
        {
            model.forward(randn(1, 12, 6), tensor(new long[,] { { 1, 2 } }));
        }

        Assert.Contains(new StreamSite(1, StreamPoint.FeedForwardOutput, "model.encoder.layers.1"), seen.Sites);
        Assert.Contains(new StreamSite(0, StreamPoint.BlockOutput, "model.decoder.layers.0"), seen.Sites);
        Assert.Null(model.Hooks.Layout);
    }

    [Fact]
    public void Streams_are_edited_at_their_positions_token_by_token_as_in_the_whole_text()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Make();
        var encoded = model.Encode(randn(1, 30, 6));
        var text = tensor(new long[,] { { 1, 4, 5, 2 } });
        using var installed = model.Hooks.Install(new StreamEdit(new StreamChange(StreamPoint.AttentionOutput, [0], -2, Positions: [0, 2])));
        var whole = model.Decode(encoded, text);
        using var state = model.Start(encoded);
        Close(whole, cat([.. Enumerable.Range(0, 4).Select(at => model.Decode(encoded, text.narrow(1, at, 1), state))], 1), 1e-5);
    }

    [Fact]
    public void A_text_is_written_greedily_and_no_worse_with_beams()
    {
        using var scope = NewDisposeScope();
        using var model = Make();
        var features = randn(3, 24, 6);
        var encoded = model.Encode(features);
        var greedy = model.Transcribe(encoded, new() { MaximumTokens = 6 }, cancellation: Stop);
        Assert.Equal(3, greedy.Count);
        for (var item = 0; item < 3; item++)
        {
            var alone = new EncodedSpeech(encoded.States.narrow(0, item, 1));
            var one = model.Transcribe(alone, new() { MaximumTokens = 6 }, cancellation: Stop)[0];
            Assert.Equal(one.Tokens, greedy[item].Tokens);
            long[] text = one.IsComplete ? [.. one.Tokens, 2] : [.. one.Tokens];
            using var still = no_grad();
            var expected = model.Distributions(alone, tensor(text))[0].log().gather(1, tensor(text).unsqueeze(1)).sum().item<float>();
            Assert.Equal(expected, one.LogProbability, 1e-3);
            var beam = model.Transcribe(alone, new() { MaximumTokens = 6, Beams = 4 }, cancellation: Stop)[0];
            Assert.True(beam.IsComplete || beam.Tokens.Count == 6);
            Assert.Equal(one.Tokens, model.Transcribe(alone, new() { MaximumTokens = 6, Suppressed = [.. Enumerable.Range(0, 11).Select(token => (long)token).Except(text)] }, cancellation: Stop)[0].Tokens);
        }
    }

    [Fact]
    public void Explanations_have_the_shapes_of_their_inputs()
    {
        using var scope = NewDisposeScope();
        using var model = Make();
        var (features, text) = (randn(20, 6), tensor(new long[] { 4, 5, 2 }));
        using var explanation = model.ExplainInput(features, text, new() { Segments = [3], ReferenceFrames = null, Masks = 20, TokenMaskProbability = 0.3 }, afterPositions: true, cancellation: Stop);
        Assert.Equal([3L, 20, 6], explanation.Audio.shape);
        Assert.Equal([3L, 3], explanation.Tokens.shape);
        Assert.True(explanation.Audio.ge(0).all().item<bool>() && explanation.Audio.max().item<float>() > 0);
        var encoded = model.Encode(features.unsqueeze(0));
        Assert.Equal([3L, 5], model.ExplainEncoderOutput(encoded, text, new() { Masks = 30 }, cancellation: Stop).shape);
        Assert.Throws<ArgumentException>(() => model.ExplainEncoderOutput(model.Encode(randn(2, 20, 6)), text, cancellation: Stop));
    }

    [Fact]
    public void Steps_leave_nothing_behind()
    {
        using var scope = NewDisposeScope();
        using var model = Make();
        var (features, tokens) = (randn(2, 20, 6), randint(0, 11, [2, 4], dtype: int64));
        long tensors = 0;
        for (var step = 0; step < 30; step++)
        {
            using (NewDisposeScope())
            {
                model.forward(features, tokens).sum().backward();
                model.zero_grad();
                model.Transcribe(model.Encode(features), new() { MaximumTokens = 4 }, cancellation: Stop);
            }

            tensors = step == 5 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : tensors;
        }

        Assert.Equal(tensors, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void Mistakes_are_one_sentence()
    {
        using var scope = NewDisposeScope();
        using var model = Make();
        string Said(Action mistake) => Assert.Throws<ArgumentException>(mistake).Message;
        Assert.Contains("1 to 160 frames, 6 bins", Said(() => model.Encode(randn(1, 20, 7))), StringComparison.Ordinal);
        Assert.Contains("1 to 160 frames", Said(() => model.Encode(randn(1, 161, 6))), StringComparison.Ordinal);
        Assert.Contains("Lengths must be int64 [1]", Said(() => model.Encode(randn(1, 20, 6), tensor(new long[] { 21 }))), StringComparison.Ordinal);
        var encoded = model.Encode(randn(1, 20, 6));
        Assert.Contains("at most 12 tokens, not 13", Said(() => model.Decode(encoded, zeros([1, 13], int64))), StringComparison.Ordinal);
        Assert.Contains("token 11 is not in the vocabulary of 11", Said(() => model.Decode(encoded, full([1, 2], 11, int64))), StringComparison.Ordinal);
        Assert.Contains("one utterance at a time", Said(() => model.Transcribe(model.Encode(randn(2, 20, 6)), new() { Beams = 2 }, cancellation: Stop)), StringComparison.Ordinal);
        Assert.Contains("3 heads", Said(() => Make(Tiny with { EncoderHeads = 3 })), StringComparison.Ordinal);
        Assert.Contains("end token 11", Said(() => Make(Tiny with { EndToken = 11 })), StringComparison.Ordinal);
    }

    internal static SpeechTransformer Make(SpeechConfiguration? configuration = null)
    {
        manual_seed(4);
        var model = new SpeechTransformer(configuration ?? Tiny);
        model.eval();
        return model;
    }

    private static void Close(Tensor expected, Tensor actual, double tolerance)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.InRange((expected - actual).abs().max().item<float>(), 0, tolerance);
    }

    private sealed class Seen : StreamHook
    {
        public List<StreamSite> Sites { get; } = [];

        public override bool ActsAt(StreamSite site) => true;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            Sites.Add(site);
            return states;
        }
    }
}
