using Heed.Edits;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

/// <summary>The functions on maps: exact properties, edges, and every error sentence.</summary>
public sealed class MapEditTests
{
    [Fact]
    public void Redistribution_keeps_sums_and_moves_in_proportion()
    {
        using var scope = NewDisposeScope();
        var map = nn.functional.softmax(randn(2, 3, 5, 7, float64), -1);
        var from = tensor(new[] { false, true, false, false, true, false, false });
        var to = tensor(new[] { true, false, true, false, false, false, true });
        var edited = MapEdit.Redistribute(map, from, to, 0.3);
        Assertions.Close(ones(2, 3, 5, float64), edited.sum(-1), 1e-14);
        Assertions.Close(map.index_select(3, tensor(new long[] { 1, 4 })) * 0.3, edited.index_select(3, tensor(new long[] { 1, 4 })), 1e-14);
        Assertions.Close(map.index_select(3, tensor(new long[] { 3, 5 })), edited.index_select(3, tensor(new long[] { 3, 5 })), 0);
        var grown = edited.index_select(3, tensor(new long[] { 0, 2, 6 })) / map.index_select(3, tensor(new long[] { 0, 2, 6 }));
        Assertions.Close(grown.narrow(3, 0, 1).expand(grown.shape), grown, 1e-13);
        Assertions.Close(map, MapEdit.Redistribute(map, from, to, 1), 1e-15);
        var rows = tensor(new[] { true, false, false, true, false }).view(5, 1);
        Assertions.Close(where(rows, edited, map), MapEdit.Redistribute(map, from, to, 0.3, rows), 1e-15);
    }

    [Fact]
    public void A_row_without_receivers_stays()
    {
        using var scope = NewDisposeScope();
        var map = tensor(new[] { 0.0, 1, 0, 0.5, 0.25, 0.25 }).view(1, 1, 2, 3);
        var edited = MapEdit.Redistribute(map, tensor(new[] { false, true, false }), tensor(new[] { true, false, false }), 0);
        Assertions.Close(tensor(new[] { 0.0, 1, 0, 0.75, 0, 0.25 }).view(1, 1, 2, 3), edited, 1e-15);
    }

    [Fact]
    public void Boosts_raise_every_score_and_never_a_masked_one()
    {
        using var scope = NewDisposeScope();
        var scores = tensor(new[] { 2.0, -3, 0, double.NegativeInfinity, 1, -1, 4, 5 }).view(1, 1, 2, 4);
        var all = LogitBoost.Apply(scores, [0, 1, 3], 0.5, EditedRows.All);
        Assertions.Close(tensor(new[] { 3, -1.5, 0, double.NegativeInfinity, 1.5, -0.5, 4, 7.5 }).view(1, 1, 2, 4), all, 1e-15);
        Assertions.Close(cat([scores.narrow(2, 0, 1), all.narrow(2, 1, 1)], 2), LogitBoost.Apply(scores, [0, 1, 3], 0.5), 1e-15);
        Assert.Contains("5 was given", Assert.Throws<ArgumentException>(() => LogitBoost.Apply(scores, [5], 1)).Message);
        Assert.Contains("1 was given twice", Assert.Throws<ArgumentException>(() => LogitBoost.Apply(scores, [1, 1], 1)).Message);
        Assert.Contains("finite", Assert.Throws<ArgumentException>(() => LogitBoost.Apply(scores, [1], double.NaN)).Message);
    }

    [Fact]
    public void Calibration_spares_the_first_flagged_column_and_the_first_row()
    {
        using var scope = NewDisposeScope();
        var scores = randn(1, 2, 9, 9, float64).masked_fill(ones(9, 9, ScalarType.Bool).triu(1), double.NegativeInfinity);
        scores.index_add_(3, tensor(new long[] { 2, 5 }), ones(1, 2, 9, 2, float64), 3);
        var map = nn.functional.softmax(scores, -1);
        var columns = AttentionCalibration.Columns(SinkScore.Compute(map), [1], 0.3);
        Assert.False(columns[0, 0].any().item<bool>());
        Assert.False(columns[0, 1, 2].item<bool>());
        Assert.True(columns[0, 1, 5].item<bool>());
        var edited = AttentionCalibration.Apply(map, [1], 0.3);
        Assertions.Close(map.narrow(1, 0, 1), edited.narrow(1, 0, 1), 0);
        Assertions.Close(map.sum(-1), edited.sum(-1), 1e-14);
        Assertions.Close(map.narrow(2, 0, 1), edited.narrow(2, 0, 1), 1e-15);
        Assertions.Close(map[0, 1, 8, 5] * 0.4, edited[0, 1, 8, 5], 1e-15);
        var whole = AttentionCalibration.Apply(map, [1], 0.3, 0, keepFirst: false);
        Assertions.Close(map.sum(-1), whole.sum(-1), 1e-14);
        Assertions.Close(zeros([], float64), whole[0, 1, 8, 2], 0);
    }

    [Fact]
    public void Wrong_maps_and_numbers_are_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        var map = nn.functional.softmax(randn(1, 2, 4, 4), -1);
        var set = ones(4, ScalarType.Bool);
        Assert.Contains("from 0 to 1", Assert.Throws<ArgumentException>(() => MapEdit.Redistribute(map, set, set, 1.5)).Message);
        Assert.Contains("boolean", Assert.Throws<ArgumentException>(() => MapEdit.Redistribute(map, ones(4), set, 0.5)).Message);
        Assert.Contains("[5]", Assert.Throws<ArgumentException>(() => MapEdit.Redistribute(map, set, ones(5, ScalarType.Bool), 0.5)).Message);
        Assert.Contains(nameof(CalibrationEdit), Assert.Throws<ArgumentException>(() => AttentionCalibration.Apply(map.narrow(2, 0, 1))).Message);
        Assert.Contains("head 2", Assert.Throws<ArgumentException>(() => AttentionCalibration.Apply(map, [2])).Message);
        Assert.Contains("from 0 to 1", Assert.Throws<ArgumentException>(() => AttentionCalibration.Apply(map, beta: -0.1)).Message);
        Assert.Contains("sum to one", Assert.Throws<ArgumentException>(() => AttentionCalibration.Apply(map * 3)).Message);
        Assert.Contains("keys 0 to 3", Assert.Throws<ArgumentException>(() => VisualAttentionRedistribution.Apply(map, set, 2, 3)).Message);
        Assert.Contains("from 0 to 1", Assert.Throws<ArgumentException>(() => VisualAttentionRedistribution.Apply(map, set, 1, 2, sinkScale: 2)).Message);
        Assert.Contains("boolean [4]", Assert.Throws<ArgumentException>(() => VisualAttentionRedistribution.Apply(map, ones(3, ScalarType.Bool), 1, 2)).Message);
        Assert.Contains("counted from 0", Assert.Throws<ArgumentException>(() => VisualAttentionRedistribution.Apply(map, set, 1, 2, firstEditableQuery: -1)).Message);
        Assert.Contains("maps [B, H, Nq, Nk]", Assert.Throws<ArgumentException>(() => VisualAttentionRedistribution.Apply(map[0], set, 1, 2)).Message);
    }

    [Fact]
    public void Redistribution_without_visual_sinks_or_with_nothing_else_changes_nothing()
    {
        using var scope = NewDisposeScope();
        var map = nn.functional.softmax(randn(1, 3, 6, 6, float64), -1);
        Assertions.Close(map, VisualAttentionRedistribution.Apply(map, tensor(new[] { true, false, false, false, false, true }), 1, 3), 0);
        Assertions.Close(map, VisualAttentionRedistribution.Apply(map, tensor(new[] { true, true, true, true, false, false }), 1, 3, rho: 1, minimumImageAttention: 0), 0);
        var changed = VisualAttentionRedistribution.Apply(map, tensor(new[] { true, true, false, false, false, false }), 1, 3, rho: 1, minimumImageAttention: 0);
        Assertions.Close(map.narrow(2, 0, 4), changed.narrow(2, 0, 4), 0);
        Assert.True((map - changed).narrow(2, 4, 2).abs().min().item<double>() >= 0);
        Assert.False(map.narrow(2, 4, 2).eq(changed.narrow(2, 4, 2)).all().item<bool>());
        Assertions.Close(map.sum(-1), changed.sum(-1), 1e-14);
    }

    [Fact]
    public void Informed_tokens_are_chosen_by_the_class_token_and_never_twice()
    {
        using var scope = NewDisposeScope();
        var (first, late) = (full([2, 17, 17], 0.01), full([2, 17, 17], 0.01));
        foreach (var (patch, value) in new[] { (3, 0.5), (7, 0.4), (9, 0.3), (12, 0.2) })
        {
            first[.., 0, patch + 1] = value;
        }

        late[.., 0, 8] = 0.9;
        var tokens = InformedTokens.Select(first, late);
        Assert.Equal([3, 9, 12], tokens.Local);
        Assert.Equal([7], tokens.Summary);
        Assert.Empty(InformedTokens.Select(first, late, 0).Local);
        first[.., 4, 6] = 5;
        Assert.Equal([3, 5, 9, 12], InformedTokens.Select(first, late, spatialRatio: 0.07).Local);
        Assert.Contains("from 0 to 1", Assert.Throws<ArgumentException>(() => InformedTokens.Select(first, late, 1.2)).Message);
        Assert.Contains("class token", Assert.Throws<ArgumentException>(() => InformedTokens.Select(first.narrow(1, 0, 5), late)).Message);
        Assert.Contains("17 tokens", Assert.Throws<ArgumentException>(() => InformedTokens.Select(first, late.narrow(1, 0, 5).narrow(2, 0, 5))).Message);
    }

    [Fact]
    public void Guidance_of_strength_one_is_the_model_and_the_unlikely_are_out()
    {
        using var scope = NewDisposeScope();
        var (logits, other) = (randn(3, 20, float64), randn(3, 20, float64));
        var p = nn.functional.log_softmax(logits, -1);
        var one = VisualGuidance.Combine(logits, other, 1, 1e-9);
        Assertions.Close(p, one, 1e-12);
        var cut = VisualGuidance.Combine(logits, other, 1.5, 0.5);
        Assert.True(cut.isinf().eq(p.lt(p.amax([-1L], keepdim: true) + Math.Log(0.5))).all().item<bool>());
        Assert.Contains("one shape", Assert.Throws<ArgumentException>(() => VisualGuidance.Combine(logits, other.narrow(1, 0, 5))).Message);
        Assert.Contains("above 0", Assert.Throws<ArgumentException>(() => VisualGuidance.Combine(logits, other, cutoff: 0)).Message);
        Assert.Contains("finite", Assert.Throws<ArgumentException>(() => VisualGuidance.Combine(logits, other, double.NaN)).Message);
    }

    [Fact]
    public void Edits_of_a_model_say_what_they_lack()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var site = new AttentionSite(2, AttentionKind.Self, "layer.2");
        var (q, text) = (randn(1, 2, 6, 4), new TokenLayout(new TokenSpan(TokenKind.Text, 0, 6)));
        string Error(AttentionHook hook, long queries = 6, TokenLayout? layout = null)
        {
            var hooks = new AttentionHooks { Layout = layout };
            using var installed = hooks.Install(hook);
            return Assert.ThrowsAny<Exception>(() => Attention.Compute(q.narrow(2, 6 - queries, queries), q, q, AttentionOptions.CausalSelf, site, hooks)).Message;
        }

        Assert.Contains("not seen the first 5 keys", Error(new CalibrationEdit([(2, 0)]), 1));
        Assert.Contains("head 5", Error(new CalibrationEdit([(2, 5)])));
        Assert.Contains("AttentionHooks.Layout", Error(new RedistributionEdit([0])));
        Assert.Contains("AttentionHooks.Layout", Error(new InformedTokenEdit([new([0], [])])));
        var image = new TokenLayout(new TokenSpan(TokenKind.Image, 0, 4), new TokenSpan(TokenKind.Text, 4, 2));
        Assert.Contains(nameof(RedistributionEdit.InstallOn), Error(new RedistributionEdit([0]), layout: image));
        Assert.Contains("4 tokens", Error(new InformedTokenEdit([new([4], [])]), layout: image));
        Assert.Contains("key 9", Error(new ScoreEdit([new([9], 1)])));
        Assert.Contains("heads 0 to 1", Error(new ScoreEdit([new([1], 1)], heads: [2])));
        Assert.Contains("no key in common", Assert.Throws<ArgumentException>(() => new ScoreEdit([new([1, 2], 1), new([2], 1)])).Message);
        Assert.Contains("counted from the first layer", Assert.Throws<ArgumentException>(() => new ScoreEdit([new([1], 1)], ^2..)).Message);
        Assert.Contains("at least one head", Assert.Throws<ArgumentException>(() => new CalibrationEdit([])).Message);
        Assert.Contains("sink dimension", Assert.Throws<ArgumentException>(() => new RedistributionEdit([])).Message);

        // A text without a picture is left alone by both.
        var hooks = new AttentionHooks { Layout = text };
        using var redistribution = new RedistributionEdit([0]).InstallOn(hooks);
        using var informed = hooks.Install(new InformedTokenEdit([new([0], [])]));
        Assertions.Close(Attention.Compute(q, q, q, AttentionOptions.CausalSelf), Attention.Compute(q, q, q, AttentionOptions.CausalSelf, site, hooks), 0);
    }

    [Fact]
    public void A_cache_that_was_cut_is_told_from_one_that_goes_on()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var site = new AttentionSite(2, AttentionKind.Self, "layer.2");
        var q = randn(1, 2, 9, 4);
        var edit = new CalibrationEdit([(2, 0)]);
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(edit);
        void Read(long queries, long keys) => Attention.Compute(q.narrow(2, keys - queries, queries), q.narrow(2, 0, keys), q.narrow(2, 0, keys), AttentionOptions.CausalSelf, site, hooks);
        Read(6, 6);
        Read(1, 7);
        Read(2, 9);
        Assert.Contains("was cut", Assert.Throws<InvalidOperationException>(() => Read(1, 7)).Message);
        Read(6, 6);
        Read(1, 7);
        edit.Reset();
        Assert.Contains("not seen", Assert.Throws<InvalidOperationException>(() => Read(1, 8)).Message);
    }
}
