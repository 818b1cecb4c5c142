using Heed.Edits;
using Heed.Kernels;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Probes;

public sealed class ExtremeTokenTests : IDisposable
{
    private static readonly AttentionSite s_site = new(1, AttentionKind.Self, "layer.1");
    private readonly TorchSharp.DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Fact]
    public void Dormant_heads_are_told_from_maps_and_from_statistics()
    {
        manual_seed(3);
        var (query, key, value) = (randn(2, 4, 16, 8), randn(2, 4, 16, 8), randn(2, 4, 16, 8));
        // Head 1 of item 0 parks on the first token, with a logit gap of about 12.
        query[0, 1] = ones(16, 8);
        key[0, 1] = zeros(16, 8);
        key[0, 1, 0] = 12 / Math.Sqrt(8);
        var (map, statistics) = Observe(query, key, value, AttentionOptions.CausalSelf);
        var found = DormantHeads.Detect(map.to(float64));
        var streamed = DormantHeads.Detect(statistics);
        Assertions.Close(found.RowEntropy, streamed.RowEntropy, 1e-5);
        Assertions.Close(found.ColumnEntropy, streamed.ColumnEntropy, 1e-4);
        var dormant = zeros(2, 4, dtype: ScalarType.Bool);
        dormant[0, 1] = true;
        Assert.True(found.IsDormant.eq(dormant).all().item<bool>());
        Assert.True(streamed.IsDormant.eq(dormant).all().item<bool>());

        // One row by hand: its entropy over ln of the keys it sees.
        var rows = Enumerable.Range(0, 16).Select(row => map[0, 0, row].data<float>().ToArray()).ToArray();
        var expected = Enumerable.Range(1, 15).Sum(row => -rows[row].Where(w => w > 0).Sum(w => w * Math.Log(w)) / Math.Log(row + 1)) / 16;
        Assert.Equal(expected, found.RowEntropy[0, 0].item<double>(), 1e-5);
        var columns = Enumerable.Range(0, 15).Select(column =>
        {
            var mass = rows.Sum(row => row[column]);
            return -rows.Select(row => row[column] / mass).Where(share => share > 0).Sum(share => share * Math.Log(share)) / Math.Log(16 - column);
        });
        Assert.Equal(columns.Max(), found.ColumnEntropy[0, 0].item<double>(), 1e-5);
    }

    [Fact]
    public void Columns_that_few_rows_see_or_that_receive_little_can_be_left_out()
    {
        // Every token looks at itself; the first column takes two hundredths of every row.
        var map = (0.98 * eye(20, dtype: float64)).unsqueeze(0).unsqueeze(0);
        map[0, 0, .., 0] += 0.02;
        Assert.True(DormantHeads.Detect(map, 0.5, 0.4).IsDormant.item<bool>());
        var rest = DormantHeads.Detect(map, 0.5, 0.4, leastScore: 0.1);
        Assert.False(rest.IsDormant.item<bool>());
        // All but the first: entropy 0, for one row gives everything.
        Assert.Equal(0, rest.ColumnEntropy.item<double>(), 1e-12);
        map = full([1, 1, 20, 20], 0.05, dtype: float64).tril();
        Assert.Equal(1, DormantHeads.Detect(map).ColumnEntropy.item<double>(), 1e-12);
        map[.., .., .., ..10] = 0;
        Assert.Equal(0, DormantHeads.Detect(map, leastRows: 11).ColumnEntropy.item<double>(), 1e-12);
        Assert.Equal(1, DormantHeads.Detect(map, leastRows: 10).ColumnEntropy.item<double>(), 1e-12);
    }

    [Fact]
    public void Without_causality_every_row_could_have_every_key()
    {
        var equal = DormantHeads.Detect(full([1, 1, 5, 5], 0.2, dtype: float64), causal: false);
        Assert.Equal(1, equal.RowEntropy.item<double>(), 1e-12);
        Assert.Equal(1, equal.ColumnEntropy.item<double>(), 1e-12);
        var (map, statistics) = Observe(randn(1, 2, 9, 4), randn(1, 1, 9, 4), randn(1, 1, 9, 4), AttentionOptions.Default);
        Assertions.Close(DormantHeads.Detect(map, causal: false).ColumnEntropy, DormantHeads.Detect(statistics, causal: false).ColumnEntropy, 1e-4);
    }

    [Fact]
    public void The_logit_gap_is_the_same_from_scores_and_from_queries_and_keys()
    {
        var (query, key) = (randn([2, 4, 7, 6], dtype: float64), randn([2, 2, 7, 6], dtype: float64));
        var scores = matmul(query, key.repeat_interleave(2, dim: 1).transpose(-1, -2)) * 0.3;
        var gap = ExtremeTokens.SinkLogitGap(scores);
        Assertions.Close(gap, ExtremeTokens.SinkLogitGap(query, key, 0.3), 1e-12);
        Assertions.Close(gap, ExtremeTokens.SinkLogitGap(scores.masked_fill(ones(7, 7, dtype: ScalarType.Bool).triu(1), double.NegativeInfinity)), 1e-12);
        var row = scores[1, 3, 5].data<double>().ToArray();
        Assert.Equal(row[0] - row[1..5].Average(), gap[1, 3, 5].item<double>(), 1e-12);
        Assert.Equal(0, gap[.., .., ..2].abs().max().item<double>());
        Assert.Contains("square", Assert.Throws<ArgumentException>(() => ExtremeTokens.SinkLogitGap(zeros(1, 1, 3, 4))).Message, StringComparison.Ordinal);
        Assert.Contains("as many tokens", Assert.Throws<ArgumentException>(() => ExtremeTokens.SinkLogitGap(query, key[.., .., ..5])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Value_norms_pass_the_output_projection_where_it_is_given()
    {
        var (value, weight) = (randn([2, 3, 5, 4], dtype: float64), randn([10, 12], dtype: float64));
        var norms = ExtremeTokens.ValueNorm(value, weight);
        Assert.Equal(matmul(weight[.., 4..8], value[1, 1, 2]).square().sum().sqrt().item<double>(), norms[1, 1, 2].item<double>(), 1e-12);
        Assert.Equal(value[0, 2, 3].square().sum().sqrt().item<double>(), ExtremeTokens.ValueNorm(value)[0, 2, 3].item<double>(), 1e-12);
        var drain = ExtremeTokens.ValueDrain(norms, 1);
        var (sink, others) = (norms[.., 0, 1].mean().item<double>(), (norms[.., 0].sum(-1) - norms[.., 0, 1]).mean().item<double>() / 4);
        Assert.Equal(sink / others, drain[0].item<double>(), 1e-12);
        Assert.Contains("token 5 of 5", Assert.Throws<ArgumentException>(() => ExtremeTokens.ValueDrain(norms, 5)).Message, StringComparison.Ordinal);
        Assert.Contains("heads * width", Assert.Throws<ArgumentException>(() => ExtremeTokens.ValueNorm(value, weight[.., ..11])).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(Normalizer.Softmax)]
    [InlineData(Normalizer.ReluOverPosition)]
    public void The_probe_measures_what_the_map_shows(Normalizer normalizer)
    {
        var (query, key, value) = (randn(2, 4, 9, 8), randn(2, 2, 9, 8), randn(2, 2, 9, 8));
        var options = AttentionOptions.CausalSelf with { Normalizer = normalizer };
        var hooks = new AttentionHooks();
        using var probe = new ExtremeTokenProbe();
        using var maps = new AttentionMapProbe();
        using (probe.Install(hooks))
        using (hooks.Install(maps))
        {
            Attention.Compute(query, key, value, options, s_site, hooks);
            Attention.Compute(query, key, value, options, s_site, hooks);
        }

        Assert.Empty(hooks.Installed);
        Assert.Empty(hooks.Watchers);
        var dormant = tensor(new[] { false, true, true, false, true, false, true, true, false });
        var measures = Assert.Single(probe.Measure(dormant));
        var column = maps[s_site].select(-1, 0);
        Assert.Equal(column[.., 2].index_select(1, tensor(new long[] { 1, 2, 4, 6, 7 })).mean().item<float>(), measures.SinkAttention[2], 1e-6);
        Assert.Equal(column[.., 3].index_select(1, tensor(new long[] { 0, 3, 5, 8 })).mean().item<float>(), measures.SinkAttentionAtWork![3], 1e-6);
        Assert.Equal(measures.SinkAttention[0] - measures.SinkAttentionAtWork![0], measures.ActiveDormantScore![0], 1e-12);
        Assert.Equal(ExtremeTokens.ValueDrain(ExtremeTokens.ValueNorm(value))[1].item<float>(), measures.ValueDrain[1], 1e-5);
        Assert.Null(measures.ResidualPeak);
        Assert.Equal(4, measures.SinkLogitGap!.Count);
        Assert.Null(Assert.Single(probe.Measure()).ActiveDormantScore);
        Assert.Contains("[2, 9] or [9]", Assert.Throws<ArgumentException>(() => probe.Measure(dormant[..4])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Statistics_of_probes_that_watch_the_first_key_come_from_one_pass()
    {
        using var everything = AttentionStatisticsProbe.OfEverything();
        var both = AttentionStatisticsRequest.TryMerge(everything.StatisticsAt(s_site)!, new() { KeySet = AttentionStatisticsRequest.FirstKey });
        Assert.NotNull(both);
        Assert.True(both.KeyEntropy);
    }

    [Fact]
    public void What_cannot_be_is_told()
    {
        Assert.Contains("square maps", Assert.Throws<ArgumentException>(() => DormantHeads.Detect(zeros(1, 2, 3, 4))).Message, StringComparison.Ordinal);
        Assert.Contains("KeyEntropy", Assert.Throws<ArgumentException>(() => DormantHeads.Detect(new AttentionStatistics())).Message, StringComparison.Ordinal);
        var (_, statistics) = Observe(randn(1, 1, 3, 4), randn(1, 1, 5, 4), randn(1, 1, 5, 4), AttentionOptions.CausalSelf);
        Assert.Contains("not 3 and 5", Assert.Throws<ArgumentException>(() => DormantHeads.Detect(statistics)).Message, StringComparison.Ordinal);
        Assert.Contains("square", Assert.Throws<ArgumentException>(() => new DormantHeadEdit(DormantHeadAction.Zero).Apply(zeros(1, 2, 3, 4))).Message, StringComparison.Ordinal);
    }

    private static (Tensor Map, AttentionStatistics Statistics) Observe(Tensor query, Tensor key, Tensor value, AttentionOptions options)
    {
        var hooks = new AttentionHooks();
        // Not disposed: their tensors go with the test's scope.
        var (maps, statistics) = (new AttentionMapProbe(), AttentionStatisticsProbe.OfEverything());
        using var first = hooks.Install(maps);
        using var second = hooks.Install(statistics);
        Attention.Compute(query, key, value, options, s_site, hooks);
        return (maps[s_site], statistics[s_site]);
    }
}
