using Heed.Edits;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

public sealed class HeadEditTests : IDisposable
{
    private static readonly AttentionSite s_site = new(2, AttentionKind.Self, "layer.2");
    private static readonly StreamSite s_stream = new(3, StreamPoint.FeedForwardOutput, "layer.3");
    private readonly TorchSharp.DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Fact]
    public void Moving_heads_to_the_sink_is_what_moving_their_maps_does()
    {
        var (query, key, value) = (randn([2, 4, 6, 8], dtype: float64), randn([2, 2, 6, 8], dtype: float64), randn([2, 2, 6, 8], dtype: float64));
        var gate = rand([2, 4, 6, 1], dtype: float64);
        var options = AttentionOptions.CausalSelf with { Gate = gate, QueryLengths = tensor(new long[] { 6, 4 }) };
        foreach (var sink in new long[] { 0, 2 })
        {
            var hooks = new AttentionHooks();
            using var maps = new AttentionMapProbe();
            using var installed = hooks.Install(maps);
            using var edit = hooks.Install(new MoveToSink([(2, 1), (2, 3), (1, 0)], sink));
            var moved = Attention.Compute(query, key, value, options, s_site, hooks);
            var map = MoveToSink.Apply(maps[s_site], tensor(new[] { false, true, false, true }), sink);
            Assert.Equal(1, map[1, 3, 0, (int)sink].item<double>());
            Assert.Equal(6, map[0, 1].sum().item<double>());
            var expected = matmul(map, value.repeat_interleave(2, dim: 1)) * gate;
            expected[1, .., 4..] = 0;
            Assertions.Close(expected, moved, 1e-12);

            // The form that changes the map, so that probes see it moved, says the same.
            edit.Dispose();
            using var seen = new AttentionMapProbe();
            using var materialized = hooks.Install(new MoveToSink([(2, 1), (2, 3), (1, 0)], sink) { Materialize = true });
            using var watched = hooks.Install(seen);
            Assertions.Close(expected, Attention.Compute(query, key, value, options, s_site, hooks), 1e-12);
            Assertions.Close(map[0], seen[s_site][0], 0);
        }
    }

    [Fact]
    public void A_move_that_is_materialised_shows_in_the_map_and_gives_the_same_output()
    {
        var (query, key, value) = (randn([2, 4, 6, 8], dtype: float64), randn([2, 2, 9, 8], dtype: float64), randn([2, 2, 9, 8], dtype: float64));
        var options = new AttentionOptions { Gate = rand([2, 4, 6, 1], dtype: float64), QueryLengths = tensor(new long[] { 6, 4 }) };
        var site = new AttentionSite(2, AttentionKind.Cross, "layer.2.cross");
        Tensor Moved(MoveToSink move, out AttentionMapProbe maps)
        {
            var hooks = new AttentionHooks();
            using var edit = hooks.Install(move);
            maps = new AttentionMapProbe();
            using var installed = hooks.Install(maps);
            return Attention.Compute(query, key, value, options, site, hooks);
        }

        var expected = Moved(new([(2, 1)], 4, AttentionKind.Cross), out var before);
        var moved = Moved(new([(2, 1)], 4, AttentionKind.Cross) { Materialize = true }, out var after);
        using (before)
        using (after)
        {
            Assertions.Close(expected, moved, 1e-12);
            Assert.Equal(6, after[site][0, 1, .., 4].sum().item<double>());
            Assert.Equal(4, after[site][1, 1].sum().item<double>());
            Assertions.Close(before[site][.., 2..], after[site][.., 2..], 1e-12);
            Assert.True(before[site][0, 1, .., 4].sum().item<double>() < 6);
        }

        Assertions.Close(Attention.Compute(query, key, value, options), Moved(new([(2, 1)], 4, AttentionKind.Self), out var other), 0);
        other.Dispose();
    }

    [Fact]
    public void A_cache_of_half_precision_is_read_in_the_output_type_and_gradients_reach_the_sink()
    {
        var (query, key, value) = (randn(1, 2, 1, 8), randn(1, 2, 5, 8).to(float16), randn(1, 2, 5, 8).to(float16));
        var hooks = new AttentionHooks();
        using var edit = hooks.Install(new MoveToSink([(2, 0)]));
        var moved = Attention.Compute(query, key, value, AttentionOptions.CausalSelf, s_site, hooks);
        Assertions.Close(value[.., 0, 0].to(float32), moved[.., 0, 0], 1e-7);
        var wanted = randn([1, 2, 4, 8], dtype: float64).requires_grad_();
        Attention.Compute(randn([1, 2, 4, 8], dtype: float64), randn([1, 2, 4, 8], dtype: float64), wanted, null, s_site, hooks)[.., 0].sum().backward();
        Assert.Equal(4, wanted.grad![0, 0, 0, 3].item<double>());
        Assert.Equal(0, wanted.grad![0, 0, 1..].abs().max().item<double>());
    }

    [Theory]
    [InlineData(DormantHeadAction.Zero)]
    [InlineData(DormantHeadAction.MoveToSink)]
    public void Only_heads_that_are_dormant_on_this_text_are_edited(DormantHeadAction action)
    {
        var (query, key, value) = (randn(2, 3, 12, 4), randn(2, 3, 12, 4), randn(2, 3, 12, 4));
        query[1, 2] = ones(12, 4);
        key[1, 2] = zeros(12, 4);
        key[1, 2, 0] = 20.0;
        var plain = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
        var hooks = new AttentionHooks();
        using var edit = hooks.Install(new DormantHeadEdit(action));
        var edited = Attention.Compute(query, key, value, AttentionOptions.CausalSelf, s_site, hooks);
        var expected = plain.clone();
        expected[1, 2] = action == DormantHeadAction.Zero ? zeros(12, 4) : value[1, 2, ..1].expand(12, 4);
        Assertions.Close(expected, edited, 1e-5);
        // A step with a cache cannot be judged.
        Assertions.Close(Attention.Compute(query[.., .., ^1..], key, value, AttentionOptions.CausalSelf), Attention.Compute(query[.., .., ^1..], key, value, AttentionOptions.CausalSelf, s_site, hooks), 1e-6);
    }

    [Fact]
    public void Steering_sets_the_norm_of_what_points_along_the_sink_and_nothing_else()
    {
        var direction = randn([16], dtype: float64);
        var states = randn([2, 7, 16], dtype: float64);
        states[0, 1] = direction * 3;
        states[0, 5] = direction * 4;
        states[1, 6] = (direction * 9) + (0.1 * randn([16], dtype: float64));
        states[1, 4] = direction * -9;
        using var steering = new SinkNormSteering(3, direction, 2.5);
        Assert.True(steering.ActsAt(s_stream));
        Assert.False(steering.ActsAt(s_stream with { Layer = 2 }));
        Assert.False(steering.ActsAt(s_stream with { Point = StreamPoint.BlockOutput }));
        var steered = steering.OnStates(s_stream, states);
        var expected = states.clone();
        expected[0, 5] = direction / direction.square().sum().sqrt() * 2.5;
        expected[1, 6] = states[1, 6] / states[1, 6].square().sum().sqrt() * 2.5;
        Assertions.Close(expected, steered, 1e-12);
        Assert.Equal([(0, 5), (1, 6)], Places(steering.Find(states).IsSteered));
        // Position 1 is exempt at the start of a text, not when the cache holds two tokens.
        Assert.Equal([(0, 1), (0, 5), (1, 6)], Places(steering.Find(states, 2).IsSteered));

        var leaf = states.detach().clone().requires_grad_();
        steering.Steer(leaf).sum().backward();
        Assert.True(leaf.grad!.isfinite().all().item<bool>());
        Assert.Equal(1, leaf.grad![0, 0, 0].item<double>());
    }

    [Fact]
    public void The_direction_is_learnt_from_the_first_token_of_each_text()
    {
        using var steering = new SinkNormSteering(3, targetNorm: 1);
        var states = randn([2, 6, 8], dtype: float64);
        Assert.Contains("position 0", Assert.Throws<InvalidOperationException>(() => steering.Find(states)).Message, StringComparison.Ordinal);
        states[0, 4] = states[0, 0] * 7;
        states[1, 5] = states[1, 0] * 5;
        var steered = steering.OnStates(s_stream, states);
        Assert.Equal(1, steered[0, 4].square().sum().sqrt().item<double>(), 1e-12);
        Assert.Equal(1, steered[1, 5].square().sum().sqrt().item<double>(), 1e-12);
        Assertions.Close(states[.., ..4], steered[.., ..4], 0);
    }

    [Fact]
    public void What_cannot_be_is_told()
    {
        string Error(Action act) => Assert.ThrowsAny<ArgumentException>(act).Message;
        var input = randn(1, 3, 5, 4);
        void With(AttentionHook hook, AttentionOptions? options = null)
        {
            var hooks = new AttentionHooks();
            using var installed = hooks.Install(hook);
            Attention.Compute(input, input, input, options, s_site, hooks);
        }

        Assert.Contains("heads 0 to 2", Error(() => With(new MoveToSink([(2, 3)]))), StringComparison.Ordinal);
        Assert.Contains("keys 0 to 4", Error(() => With(new MoveToSink([(2, 0)], 5))), StringComparison.Ordinal);
        Assert.Contains("sink each", Error(() => With(new MoveToSink([(2, 0)]), new() { QueryOffsets = tensor(new long[] { 0, 2, 5 }) })), StringComparison.Ordinal);
        Assert.Contains("counted from 0", Error(() => _ = new MoveToSink([(0, -1)])), StringComparison.Ordinal);
        Assert.Contains("a key 5", Error(() => MoveToSink.Apply(zeros(1, 2, 5, 5), ones(2, dtype: ScalarType.Bool), 5)), StringComparison.Ordinal);
        Assert.Contains("boolean [H]", Error(() => HeadScaling.Zero(zeros(1, 2, 5, 5), ones(3, dtype: ScalarType.Bool))), StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => new DormantHeadEdit(DormantHeadAction.Zero, sink: -1));
        Assert.Contains("a layer from 0", Error(() => _ = new SinkNormSteering(-1)), StringComparison.Ordinal);
        Assert.Contains("a finite norm", Error(() => _ = new SinkNormSteering(0, targetNorm: double.NaN)), StringComparison.Ordinal);
        Assert.Contains("[2, 4]", Error(() => _ = new SinkNormSteering(0, zeros(2, 4))), StringComparison.Ordinal);
        using var steering = new SinkNormSteering(0, ones(4));
        Assert.Contains("as wide as the direction", Error(() => steering.Steer(zeros(1, 2, 5))), StringComparison.Ordinal);
    }

    private static (int Item, int Token)[] Places(Tensor mask) =>
        [.. from item in Enumerable.Range(0, (int)mask.shape[0]) from token in Enumerable.Range(0, (int)mask.shape[1]) where mask[item, token].item<bool>() select (item, token)];
}
