using Heed.Edits;
using Heed.Heads;
using Heed.Layers;
using Heed.Models.Decoders;
using Heed.Models.Images;
using Heed.Models.Tests.Decoders;
using Heed.Models.Texts;
using Heed.Probes;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests;

/// <summary>Traces and sink probes on every family of models whose blocks show their hidden states.</summary>
public sealed class ProbesOnModelsTests : IDisposable
{
    private readonly DisposeScope _scope = NewDisposeScope();
    private readonly IDisposable _quiet = no_grad();

    public static TheoryData<string> Families => new("decoder", "causal transformer", "vision transformer");

    public void Dispose()
    {
        _quiet.Dispose();
        _scope.Dispose();
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void A_trace_keeps_what_passes_through(string family)
    {
        var (model, hooks, run) = Make(family);
        using var kept = model;
        using var trace = new ModelTrace(new() { Attention = TraceParts.All, Points = Enum.GetValues<StreamPoint>() });
        var plain = run();
        using (trace.Install(hooks))
        {
            Assert.Equal(0, (run() - plain).abs().max().item<float>());
        }

        Assert.Empty(hooks.Installed);
        Assert.Empty(hooks.Watchers);
        Assert.Empty(trace.LeftOut);
        Assert.Equal(trace.Items.Sum(item => item.Bytes), trace.Bytes);
        for (var layer = 0; layer < 2; layer++)
        {
            var (query, key, value) = (trace[layer, TraceParts.Query], trace[layer, TraceParts.Key], trace[layer, TraceParts.Value]);
            var heads = query.shape[1];
            Tensor Repeat(Tensor each) => each.repeat_interleave(heads / each.shape[1], dim: 1);
            var scores = matmul(query, Repeat(key).transpose(-1, -2)) / Math.Sqrt(query.shape[3]);
            if (family != "vision transformer")
            {
                scores = scores.masked_fill(ones(scores.shape[2], scores.shape[3], dtype: ScalarType.Bool).triu(1), double.NegativeInfinity);
            }

            Close(scores.exp(), trace[layer, TraceParts.Scores].exp());
            Close(scores.softmax(-1), trace[layer, TraceParts.Weights]);
            Close(matmul(scores.softmax(-1), Repeat(value)), trace[layer, TraceParts.Output]);
            Close(trace[layer, StreamPoint.BlockInput] + trace[layer, StreamPoint.AttentionOutput] + trace[layer, StreamPoint.FeedForwardOutput], trace[layer, StreamPoint.BlockOutput]);
        }

        Close(trace[0, StreamPoint.BlockOutput], trace[1, StreamPoint.BlockInput]);
        Assert.Equal(2, trace.Stream().Count);
        Assert.Equal([.. trace[1, StreamPoint.BlockOutput].shape[1..]], trace.Stream(item: 1)[1].shape);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Sinks_are_detected_from_the_probe_as_from_the_trace(string family)
    {
        var (model, hooks, run) = Make(family);
        using var kept = model;
        using var trace = new ModelTrace(new() { Points = [StreamPoint.BlockOutput, StreamPoint.BlockInput] });
        var residuals = new ResidualProbe();
        using var extreme = new ExtremeTokenProbe();
        // A vector that is written into the streams of tokens 0 and 3 behind the first block.
        using (hooks.Install(new Planted(randn(24))))
        using (trace.Install(hooks))
        using (hooks.Install(residuals))
        using (extreme.Install(hooks))
        {
            run();
        }

        var options = new SinkDetectorOptions { ClipToPrimary = false };
        for (var item = 0; item < 2; item++)
        {
            var (fromTrace, fromProbe) = (SinkDetector.Detect(trace.Stream(item: item), options: options), residuals.Detect(options, item));
            Assert.Equal(fromTrace.Lifetime, fromProbe.Lifetime);
            Assert.Equal([2, 0, 0, 2], fromProbe.Lifetime.Take(4));
            Assert.True(residuals.Peak(1, item: item).OverMean > 3);
            Assert.True(SinkMask.FromCosine(trace[1, StreamPoint.BlockOutput]).IsSink[item, 3].item<bool>());
        }

        var measures = extreme.Measure();
        Assert.Equal(2, measures.Count);
        Assert.All(measures, measure => Assert.True(measure.ResidualPeak!.Value.OverMean > 3));
        Assert.Contains("0 to 1, not 2", Assert.Throws<ArgumentException>(() => residuals.Detect(item: 2)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void What_does_not_fit_the_budget_is_left_out_whole_and_listed()
    {
        var (model, hooks, run) = Make("decoder");
        using var kept = model;
        // Three of four, and what is held back for what tensors cost beside their elements.
        const long streams = 2 * 11 * 24 * sizeof(float), budget = (3 * streams * 64 / 63) + 1;
        using var trace = new ModelTrace(new() { Points = [StreamPoint.BlockInput, StreamPoint.BlockOutput], Budget = budget });
        using (trace.Install(hooks))
        {
            run();
            run();
        }

        Assert.Equal(3, trace.Items.Count);
        Assert.Equal(3 * streams, trace.Bytes);
        var left = Assert.Single(trace.LeftOut);
        Assert.Equal((1, "model.layers.1", nameof(StreamPoint.BlockOutput), streams), (left.Layer, left.Site, left.What, left.Bytes));
        Assert.Contains($"takes {streams} bytes and did not fit the budget of {budget}", Assert.Throws<KeyNotFoundException>(() => trace[1, StreamPoint.BlockOutput]).Message, StringComparison.Ordinal);
        Assert.Throws<KeyNotFoundException>(() => trace.Stream());
        Assert.Contains("no Query of layer 0", Assert.Throws<KeyNotFoundException>(() => trace[0, TraceParts.Query]).Message, StringComparison.Ordinal);
        Assert.Contains("from 0 on", Assert.Throws<ArgumentException>(() => new ModelTrace(new() { Points = [StreamPoint.Gate], Budget = -1 })).Message, StringComparison.Ordinal);
        Assert.Contains("asked for nothing", Assert.Throws<ArgumentException>(() => new ModelTrace(new())).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Maps_are_computed_in_parts_of_any_size_and_only_where_asked_for()
    {
        var (model, hooks, run) = Make("decoder");
        using var kept = model;
        using var whole = new ModelTrace(new() { Attention = TraceParts.Weights });
        // Room for one row at a time.
        using var narrow = new ModelTrace(new() { Attention = TraceParts.Weights, Layers = [1], Heads = [3, 0], Rows = [-1, 2, 5, 7], Budget = 2 * 2 * 11 * 4 * (4 + 10 + 24) * 64 / 63 });
        using (whole.Install(hooks))
        using (narrow.Install(hooks))
        {
            run();
        }

        var item = Assert.Single(narrow.Items);
        Assert.Equal(1, item.Layer);
        var expected = whole[1, TraceParts.Weights].index_select(1, tensor(new long[] { 3, 0 })).index_select(2, tensor(new long[] { 10, 2, 5, 7 }));
        Close(expected, narrow[1, TraceParts.Weights]);
        using var absent = new ModelTrace(new() { Attention = TraceParts.Scores, Rows = [11] });
        using var installed = absent.Install(hooks);
        Assert.Contains("11 query rows", Assert.Throws<ArgumentException>(() => run()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Nothing_is_left_behind_by_many_passes()
    {
        var (model, hooks, run) = Make("decoder");
        using var kept = model;
        using var trace = new ModelTrace(new() { Attention = TraceParts.All, Points = Enum.GetValues<StreamPoint>() });
        using var extreme = new ExtremeTokenProbe();
        using var steering = new SinkNormSteering(1);
        using var first = trace.Install(hooks);
        using var second = extreme.Install(hooks);
        using var third = hooks.Install(steering);
        using var fourth = hooks.Install(new MoveToSink([(0, 1)]));
        using var fifth = hooks.Install(new ResidualProbe());
        void Pass()
        {
            using var scope = NewDisposeScope();
            run();
            extreme.Measure();
        }

        Pass();
        var live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        for (var step = 0; step < 20; step++)
        {
            Pass();
        }

        Assert.Equal(live, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void Steering_knows_its_position_in_a_text_that_goes_on_from_a_cache()
    {
        using var model = new Decoder(SmallModels.Llama, seed: 3);
        var ids = tensor(new long[] { 3, 1, 4, 1, 5, 9, 2, 6 }).unsqueeze(0);
        var vector = 50 * randn(24);
        using var steering = new SinkNormSteering(1, vector, 5);
        using var plant = model.Hooks.Install(new Planted(vector, StreamPoint.FeedForwardOutput, 1));
        using var installed = model.Hooks.Install(steering);
        var whole = model.forward(ids);
        using var cache = model.CreateCache();
        var parts = new List<Tensor>();
        for (var token = 0; token < 8; token++)
        {
            parts.Add(model.forward(ids[.., token..(token + 1)], cache));
        }

        Assert.True((cat(parts, 1) - whole).abs().max().item<float>() < 1e-4);
    }

    [Fact]
    public void Streams_are_edited_at_their_positions_in_a_text_that_goes_on_from_a_cache()
    {
        using var model = new Decoder(SmallModels.Llama, seed: 3);
        var ids = tensor(new long[] { 3, 1, 4, 1, 5, 9, 2, 6 }).unsqueeze(0);
        var plain = model.forward(ids);
        using var installed = model.Hooks.Install(new StreamEdit(new StreamChange(StreamPoint.BlockOutput, [0], -1, Positions: [0, 4, 6])));
        var whole = model.forward(ids);
        Assert.True((whole - plain).abs().max().item<float>() > 1e-2);
        using var cache = model.CreateCache();
        var parts = new List<Tensor>();
        foreach (var (from, to) in (ReadOnlySpan<(int, int)>)[(0, 3), (3, 5), (5, 6), (6, 7), (7, 8)])
        {
            parts.Add(model.forward(ids[.., from..to], cache));
        }

        Assert.True((cat(parts, 1) - whole).abs().max().item<float>() < 1e-4);
    }

    private static void Close(Tensor expected, Tensor actual)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.True((expected - actual).abs().max().item<float>() < 2e-5);
    }

    private static (nn.Module Model, AttentionHooks Hooks, Func<Tensor> Run) Make(string family)
    {
        manual_seed(4);
        static nn.Module<Tensor, Tensor> Mixer(AttentionSite site, AttentionHooks hooks, bool causal) =>
            new MultiHeadAttention(new() { Width = 24, Heads = 4, Attention = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default }, site) { Hooks = hooks };
        var ids = randint(0, 40, [2, 11], dtype: int64);
        switch (family)
        {
            case "decoder":
                var decoder = new Decoder(SmallModels.Llama, seed: 3);
                return (decoder, decoder.Hooks, () => decoder.forward(ids));
            case "causal transformer":
                var causal = new CausalTransformer(new() { Vocabulary = 40, Length = 11, Width = 24, Depth = 2, FeedForwardWidth = 32 }, place => Mixer(place.Site, place.Hooks, true));
                Parameters.InitializeByFan(causal);
                return (causal, causal.Hooks, () => causal.forward(ids));
            default:
                var vision = new VisionTransformer(new() { ImageSize = 16, PatchSize = 4, Channels = 1, Classes = 3, Width = 24, Depth = 2, ClassToken = true }, place => Mixer(place.Site, place.Hooks, false));
                Parameters.InitializeByFan(vision);
                vision.eval();
                var images = rand(2, 1, 16, 16);
                return (vision, vision.Hooks, () => vision.forward(images));
        }
    }

    /// <summary>Adds a vector to tokens 0 and 3 at one place.</summary>
    private sealed class Planted(Tensor vector, StreamPoint point = StreamPoint.BlockOutput, int layer = 0) : StreamHook
    {
        public override bool ActsAt(StreamSite site) => site.Point == point && site.Layer == layer;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            var chosen = Enumerable.Range(0, (int)states.shape[1]).Select(token => FirstPosition + token is 0 or 3 ? 20f : 0).ToArray();
            return states + (tensor(chosen).view(1, -1, 1) * vector.to(states.dtype));
        }
    }
}
