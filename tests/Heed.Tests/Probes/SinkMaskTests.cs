using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class SinkMaskTests : IDisposable
{
    private static readonly AttentionSite s_site = new(0, AttentionKind.Self, "layer.0");
    private readonly TorchSharp.DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Theory]
    [InlineData(6, 6, true, true, null)]
    [InlineData(6, 6, true, false, null)]
    [InlineData(6, 6, true, true, 3L)]
    [InlineData(6, 6, true, false, 3L)]
    [InlineData(4, 7, true, true, null)]
    [InlineData(4, 7, true, false, 2L)]
    [InlineData(5, 7, false, true, null)]
    [InlineData(6, 6, false, false, null)]
    public void A_score_is_the_mean_over_the_rows_that_see_the_key(int queries, int keys, bool causal, bool includeSelf, long? window)
    {
        var shift = keys - queries;
        bool Sees(long row, long key) => (!causal || key <= row + shift) && (window is null || key > row + shift - window) && (includeSelf || key != row + shift);
        bool Exists(long row, long key) => Sees(row, key) || (!includeSelf && key == row + shift);
        var map = rand([2, 3, queries, keys], dtype: float64);
        for (var row = 0; row < queries; row++)
        {
            for (var key = 0; key < keys; key++)
            {
                if (!Exists(row, key))
                {
                    map[.., .., row, key] = 0;
                }
            }
        }

        var score = SinkScore.Compute(map, causal, includeSelf, window);
        Assert.Equal([2L, 3, keys], score.shape);
        for (var key = 0; key < keys; key++)
        {
            var rows = Enumerable.Range(0, queries).Where(row => Sees(row, key)).ToArray();
            var expected = rows.Length == 0 ? 0 : rows.Average(row => map[1, 2, row, key].item<double>());
            Assert.Equal(expected, score[1, 2, key].item<double>(), 1e-14);
        }
    }

    [Theory]
    [InlineData(true, null)]
    [InlineData(true, 4L)]
    [InlineData(false, null)]
    public void Streamed_statistics_give_the_score_of_the_map(bool causal, long? window)
    {
        var (query, key, value) = (randn(2, 4, 11, 8), randn(2, 2, 11, 8), randn(2, 2, 11, 8));
        var hooks = new AttentionHooks();
        using var statistics = new AttentionStatisticsProbe(new() { MassPerKey = true });
        using var maps = new AttentionMapProbe();
        using var first = hooks.Install(statistics);
        using var second = hooks.Install(maps);
        Attention.Compute(query, key, value, (causal ? AttentionOptions.CausalSelf : AttentionOptions.Default) with { WindowBefore = window - 1 }, s_site, hooks);

        var fromMap = SinkScore.Compute(maps[s_site], causal, window: window);
        var mask = SinkMask.FromStatistics(statistics[s_site], 0.12, causal, window);
        Assertions.Close(fromMap, mask.Score, 1e-6);
        Assert.True(mask.IsSink.eq(mask.Score.gt(0.12)).all().item<bool>());
        if (window is null)
        {
            Assert.True(SinkMask.FromAttention(maps[s_site], 0.12, causal).IsSink.eq(fromMap.gt(0.12)).all().item<bool>());
        }
    }

    [Fact]
    public void The_threshold_is_strict_and_the_first_sink_of_each_head_is_spared()
    {
        var map = zeros([1, 2, 4, 4], dtype: float64);
        // Head 0: columns 1 and 2 (and the last row's own). Head 1: every row gives one quarter to what it sees of the first key only.
        map[0, 0] = tensor(new double[,] { { 0, 0, 0, 0 }, { 0, 1, 0, 0 }, { 0, 0.5, 0.5, 0 }, { 0, 0, 0.5, 0.5 } });
        map[0, 1] = tensor(new double[,] { { 0.25, 0, 0, 0 }, { 0.25, 0, 0, 0 }, { 0.25, 0, 0, 0 }, { 0.25, 0, 0, 0 } });
        var sinks = SinkMask.FromAttention(map, 0.25);

        Assert.Equal([false, true, true, true, false, false, false, false], sinks.IsSink.data<bool>().ToArray());
        Assert.Equal([false, false, true, true, false, false, false, false], sinks.WithoutFirst().IsSink.data<bool>().ToArray());
        Assert.Equal(0.25, sinks.Score[0, 1, 0].item<double>());
    }

    [Fact]
    public void The_sink_value_is_the_largest_share_of_the_root_mean_square()
    {
        var states = randn([2, 5, 16], dtype: float64);
        states[1, 3, 7] = -40;
        var sinks = SinkMask.FromMassiveDimensions(states, [7, 2], 3);
        for (var item = 0; item < 2; item++)
        {
            for (var token = 0; token < 5; token++)
            {
                var x = states[item, token].data<double>().ToArray();
                var rms = Math.Sqrt(x.Average(v => v * v) + 1e-6);
                var expected = Math.Max(Math.Abs(x[7] / rms), Math.Abs(x[2] / rms));
                Assert.Equal(expected, sinks.Score[item, token].item<double>(), 1e-12);
                Assert.Equal(expected > 3, sinks.IsSink[item, token].item<bool>());
            }
        }

        Assert.True(sinks.IsSink[1, 3].item<bool>());
        Assert.Equal(float32, SinkMask.FromMassiveDimensions(states.to(bfloat16), [7]).Score.dtype);
        Assert.Equal(1.25, SinkDimensions.Threshold(16), 1e-12);
        Assert.Equal(20, SinkDimensions.Threshold(4096), 1e-12);
        Assert.Equal(20, SinkDimensions.Threshold(5120), 1e-12);
    }

    [Fact]
    public void Sink_dimensions_are_found_at_the_first_token_of_the_middle_layers()
    {
        var states = randn([8, 2, 6, 32], dtype: float64);
        states[2.., .., 0, 5] += 300;
        states[2.., .., 0, 20] -= 200;
        // Elsewhere: an outer layer, another token.
        states[0, .., 0, 9] += 5000;
        states[7, .., 0, 9] += 5000;
        states[4, .., 3, 11] += 5000;
        Assert.Equal([5L, 20], SinkDimensions.FromBos(states));
        Assert.Equal([5L, 20], SinkDimensions.FromBos(states[.., 0]));
        Assert.Equal([9L], SinkDimensions.FromBos(states, 1, layers: ..1));
        Assert.Equal([11L], SinkDimensions.FromBos(states, 1, position: 3, layers: 4..5));
    }

    [Fact]
    public void Cosine_and_norm_find_what_was_planted()
    {
        var states = randn([2, 9, 64], dtype: float64);
        states[.., 0] *= 30;
        states[0, 4] = states[0, 0] * -0.7;
        states[1, 6] = (states[1, 0] * 0.5) + randn([64], dtype: float64);
        var cosine = SinkMask.FromCosine(states);
        Assert.Equal([(0, 0), (0, 4), (1, 0), (1, 6)], Places(cosine.IsSink));
        Assert.Equal(1, cosine.Score[0, 4].item<double>(), 1e-12);
        Assert.Equal([(0, 0), (0, 4), (1, 0), (1, 6)], Places(SinkMask.FromNorm(states).IsSink));
        Assert.Empty(Places(SinkMask.FromNorm(zeros(1, 3, 4)).IsSink));
        Assert.Equal(0, SinkMask.FromCosine(zeros(1, 3, 4)).Score.abs().max().item<float>());
    }

    [Fact]
    public void What_cannot_be_is_told()
    {
        var states = randn(2, 5, 8);
        Assert.Contains("0 to 7", Assert.Throws<ArgumentException>(() => SinkMask.FromMassiveDimensions(states, [8])).Message, StringComparison.Ordinal);
        Assert.Contains("none", Assert.Throws<ArgumentException>(() => SinkMask.FromMassiveDimensions(states, [])).Message, StringComparison.Ordinal);
        Assert.Contains("tokens 0 to 4", Assert.Throws<ArgumentException>(() => SinkMask.FromCosine(states, first: 5)).Message, StringComparison.Ordinal);
        Assert.Contains("[..., tokens, width]", Assert.Throws<ArgumentException>(() => SinkMask.FromNorm(zeros(4))).Message, StringComparison.Ordinal);
        Assert.Contains("[..., queries, keys]", Assert.Throws<ArgumentException>(() => SinkScore.Compute(zeros(4))).Message, StringComparison.Ordinal);
        Assert.Contains("5 queries, 4 keys", Assert.Throws<ArgumentException>(() => SinkScore.Compute(zeros(5, 4))).Message, StringComparison.Ordinal);
        Assert.Contains("no window", Assert.Throws<ArgumentException>(() => SinkScore.Compute(zeros(4, 4), causal: false, window: 2)).Message, StringComparison.Ordinal);
        Assert.Contains("square", Assert.Throws<ArgumentException>(() => SinkScore.Compute(zeros(4, 5), causal: false, includeSelf: false)).Message, StringComparison.Ordinal);
        Assert.Contains("MassPerKey", Assert.Throws<ArgumentException>(() => SinkMask.FromStatistics(new())).Message, StringComparison.Ordinal);
        Assert.Contains("[layers, tokens, width]", Assert.Throws<ArgumentException>(() => SinkDimensions.FromBos(zeros(4, 4))).Message, StringComparison.Ordinal);
        Assert.Contains("8 dimensions", Assert.Throws<ArgumentException>(() => SinkDimensions.FromBos(states, 9)).Message, StringComparison.Ordinal);
        Assert.Contains("at least one", Assert.Throws<ArgumentException>(() => SinkDimensions.FromBos(states, layers: 1..1)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => SinkDimensions.Threshold(0));
    }

    private static (int Item, int Token)[] Places(Tensor mask) =>
        [.. from item in Enumerable.Range(0, (int)mask.shape[0]) from token in Enumerable.Range(0, (int)mask.shape[1]) where mask[item, token].item<bool>() select (item, token)];
}
