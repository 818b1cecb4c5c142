using Heed.Models.BrainEncoders;
using Heed.Models.Checkpoints;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.BrainEncoders;

public sealed class BrainEncoderTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    private static BrainEncoderOptions Options => new() { Queries = 4, LeftVertices = 5, RightVertices = 3, Channels = 8, Width = 8, Heads = 2, FeedForwardWidth = 12, Dropout = 0 };

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData(MapPosition.Sine, true, 0)]
    [InlineData(MapPosition.Sine, false, 2)]
    [InlineData(MapPosition.Learned, true, 1)]
    public void A_padded_map_is_read_as_if_it_ended_where_the_padding_begins(MapPosition position, bool preNorm, int encoderLayers)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Made(Options with { Position = position, PreNorm = preNorm, EncoderLayers = encoderLayers, DecoderLayers = 2 });
        var features = randn([2, 8, 5, 6], float64);
        var padding = ones([2, 5, 6], ScalarType.Bool);
        padding[.., ..4, ..3] = tensor(false);
        var whole = model.Forward(features, padding, withAttention: true);
        var cut = model.Forward(features[.., .., ..4, ..3].contiguous(), withAttention: true);
        // Sines are computed in float32, and so are equal.
        Close(cut.Left, whole.Left, 1e-9);
        Close(cut.Tokens!, whole.Tokens!, 1e-9);
        Assert.Equal(2, whole.Attention.Count);
        var kept = whole.Attention[1].view(2, 4, 5, 6)[.., .., ..4, ..3].reshape(2, 4, 12);
        Close(cut.Attention[1], kept, 1e-9);
        Close(ones([2, 4], float64), whole.Attention[1].sum(-1), 1e-12);
    }

    [Fact]
    public void Every_vertex_is_read_from_its_own_query_and_every_hemisphere_from_its_own()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var features = randn([2, 8, 3, 3], float64);
        using var vertices = Made(Options with { Readout = BrainReadout.Vertices, Queries = 8 });
        var predicted = vertices.Forward(features);
        var all = matmul(predicted.Tokens!.narrow(1, 5, 3), vertices.get_parameter("rh_embed.0.weight")!.t()) + vertices.get_parameter("rh_embed.0.bias")!;
        Close(all.diagonal(0, 1, 2), predicted.Right, 1e-12);
        Assert.Equal([2, 5], predicted.Left.shape);

        using var hemispheres = Made(Options with { Readout = BrainReadout.Hemispheres, Queries = 2 });
        predicted = hemispheres.Forward(features);
        Close(matmul(predicted.Tokens!.select(1, 1), hemispheres.get_parameter("rh_embed.0.weight")!.t()) + hemispheres.get_parameter("rh_embed.0.bias")!, predicted.Right, 1e-12);
        Assert.Equal(predicted.Left, predicted.Vertices().Left);
    }

    [Fact]
    public void Regions_are_summed_and_the_rest_is_a_region()
    {
        using var scope = NewDisposeScope();
        var mask = tensor(new long[,] { { 1, 1, 0, 0 }, { 0, 1, 1, 0 } });
        Assert.Equal(1, RoiReadout.Uncovered(mask));
        var full = RoiReadout.WithRemainder(mask);
        Assert.Equal(0, RoiReadout.Uncovered(full));
        Assert.Equal([0, 0, 0, 1], full[2].data<long>());
        var perRoi = tensor(new float[] { 1, 10, 100, 2, 20, 200, 3, 30, 300, 4, 40, 400 }, [1, 4, 3]);
        Assert.Equal([1, 22, 30, 400], RoiReadout.Combine(perRoi, full).data<float>());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Encoder_layers_behind_the_one_that_is_read_change_nothing(bool preNorm)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var features = randn([1, 8, 3, 4], float64);
        using var two = Made(Options with { PreNorm = preNorm, EncoderLayers = 2 });
        using var four = Made(Options with { PreNorm = preNorm, EncoderLayers = 4, EncoderOutputLayer = 1 });
        var known = four.state_dict();
        Assert.Contains("transformer.encoder.layers.3.linear1.weight", known.Keys);
        foreach (var (name, value) in two.state_dict())
        {
            known[name].copy_(value);
        }

        Close(two.Forward(features).Left, four.Forward(features).Left, 0);
        Assert.Equal(preNorm, two.state_dict().ContainsKey("transformer.encoder.norm.weight"));
    }

    [Fact]
    public void A_checkpoint_of_the_reference_loads_with_what_it_holds_unused()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var stored = Made(Options with { EncoderLayers = 2, EncoderOutputLayer = 0, ProjectsInput = true, Channels = 6 });
        using var model = Made(stored.Options);
        var tensors = stored.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value);
        foreach (var unused in new[]
        {
            "transformer.decoder.layers.0.self_attn.in_proj_weight", "transformer.decoder.layers.0.norm2.bias", "transformer.memory_proj.weight", "backbone.0.body.cls_token",
        })
        {
            tensors[unused] = zeros(2);
        }

        SafetensorsWriter.Write(_folder.At("brain.safetensors"), tensors);
        model.LoadCheckpoint(_folder.At("brain.safetensors"));
        var features = randn([2, 6, 3, 3], float64);
        Close(stored.Forward(features).Right, model.Forward(features).Right, 0);

        using var postNorm = Made(stored.Options with { PreNorm = false });
        Assert.Contains("transformer.encoder.norm", Assert.Throws<InvalidDataException>(() => postNorm.LoadCheckpoint(_folder.At("brain.safetensors"))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Hooks_see_the_reading_and_change_it()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = Made(Options with { EncoderLayers = 1, DecoderLayers = 2 });
        var features = randn([2, 8, 3, 3], float64);
        var before = model.Forward(features, withAttention: true);
        Assert.Equal(["transformer.decoder.layers.0.multihead_attn", "transformer.decoder.layers.1.multihead_attn"], model.ReadingSites.Select(site => site.Name));
        Assert.Equal([1, 2], model.ReadingSites.Select(site => site.Layer));

        var states = new StateReader();
        using (model.Hooks.Install(new ReadsNothing()))
        using (model.Hooks.Install(states))
        {
            var changed = model.Forward(features, withAttention: true);
            Close(full([2, 4, 9], 1 / 9.0, dtype: float64), changed.Attention[0], 1e-12);
            Assert.False(before.Left.allclose(changed.Left));
        }

        // Three blocks, each with a beginning, what attention reads and adds, the perceptron's four places, and an end.
        Assert.Equal(3 * 8, states.Seen.Count);
        Assert.Equal(StreamPoint.BlockOutput, states.Seen[^1].Point);
        Close(before.Left, model.Forward(features).Left, 0);
        Assert.Empty(model.Forward(features).Attention);
    }

    [Fact]
    public void Dropout_is_for_training_alone()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new BrainEncoder(Options with { Dropout = 0.3 });
        var features = randn(2, 8, 3, 3);
        model.train();
        Assert.False(model.Forward(features).Left.allclose(model.Forward(features).Left));
        model.eval();
        Assert.True(model.Forward(features).Left.equal(model.Forward(features).Left).all().item<bool>());
    }

    [Fact]
    public void Training_leaves_nothing_behind()
    {
        using var model = new BrainEncoder(Options with { Dropout = 0.1, EncoderLayers = 1 });
        using var optimizer = optim.AdamW(model.parameters(), 1e-3);
        void Step()
        {
            using var scope = NewDisposeScope();
            var prediction = model.Forward(randn(2, 8, 3, 3), withAttention: true);
            optimizer.zero_grad();
            BrainModel.Loss(prediction.Vertices(ones(2, 5), ones(2, 3)), zeros(2, 5), zeros(2, 3)).backward();
            optimizer.step();
        }

        for (var i = 0; i < 3; i++)
        {
            Step();
        }

        var live = DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        for (var i = 0; i < 50; i++)
        {
            Step();
        }

        Assert.Equal(live, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void What_does_not_fit_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
        void Made(string part, BrainEncoderOptions options) => Refused(part, () => _ = new BrainEncoder(options));
        Made("make the width 6, or project the input", Options with { Channels = 6 });
        Made("multiple of 4, not 6", Options with { Width = 6, Channels = 6 });
        Made("an even number, not 3", Options with { Queries = 3 });
        Made("5 + 3 vertices need 8 queries, not 4", Options with { Readout = BrainReadout.Vertices });
        Made("give 2, not 4", Options with { Readout = BrainReadout.Hemispheres });
        Made("heads must divide the width", Options with { Heads = 3 });
        Made("layers 0 to 1; the output of layer 2", Options with { EncoderLayers = 2, EncoderOutputLayer = 2 });
        Made("must be positive", Options with { LeftVertices = 0 });
        Made("dropout from 0 to below 1", Options with { Dropout = 1 });
        using var learned = new BrainEncoder(Options with { Position = MapPosition.Learned });
        Refused("know 50 rows and columns; the map has 51 x 2", () => learned.Forward(zeros(1, 8, 51, 2)));
        Refused("[batch, 8, height, width], not [1, 7, 3, 3]", () => learned.Forward(zeros(1, 7, 3, 3)));
        Refused("boolean [1, 3, 3]", () => learned.Forward(zeros(1, 8, 3, 3), zeros(1, 3, 3)));
        var prediction = learned.Forward(zeros(1, 8, 3, 3));
        Refused("give the masks", () => prediction.Vertices());
        Refused("a row per region of the hemisphere", () => prediction.Vertices(ones(3, 5), ones(2, 3)));
        Refused("shapes of the predicted ones", () => BrainModel.Loss(prediction.Vertices(ones(2, 5), ones(2, 3)), zeros(1, 4), zeros(1, 3)));
        Refused("[regions, vertices]", () => RoiReadout.Uncovered(ones(3)));
    }

    private static BrainEncoder Made(BrainEncoderOptions options)
    {
        var model = new BrainEncoder(options);
        model.to(float64);
        model.eval();
        return model;
    }

    private static void Close(Tensor expected, Tensor actual, double tolerance)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.InRange((expected - actual).abs().max().item<double>(), 0, tolerance);
    }

    private sealed class ReadsNothing : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => site.Kind == AttentionKind.Cross ? AttentionStages.Inputs : AttentionStages.None;

        public override void OnInputs(AttentionCall call) => call.Query = zeros_like(call.Query);
    }

    private sealed class StateReader : StreamHook
    {
        public List<StreamSite> Seen { get; } = [];

        public override bool ActsAt(StreamSite site) => true;

        public override Tensor OnStates(StreamSite site, Tensor states)
        {
            Seen.Add(site);
            return states;
        }
    }
}
