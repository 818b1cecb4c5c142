using CsCheck;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class NeighborhoodSelectorTests
{
    [Fact]
    public void A_call_computes_exactly_the_causal_pairs_of_the_axis() => Gen.Select(Gen.Int[1, 70], Gen.Int[1, 40], Gen.Int[1, 40], Gen.Int[1, 3]).Sample((tokens, window, stride, dilation) =>
    {
        using var scope = NewDisposeScope();
        var selector = new NeighborhoodSelector(window, stride = 1 + (stride % window), dilation);
        var input = randn(1, 2, tokens, 4);
        var pairs = selector.Select(input, input, input, AttentionOptions.CausalSelf).Pairs().expand(1, 2, tokens, tokens);
        var axis = new NeighborhoodAxis(tokens, window, stride, dilation, true);
        for (var query = 0; query < tokens; query++)
        {
            var (group, start, end) = axis.Bounds(query);
            for (var key = 0; key < tokens; key++)
            {
                Assert.Equal(key % dilation == group && key / dilation >= start && key / dilation < end, pairs[0, 1, query, key].item<bool>());
            }
        }
    }, iter: 15);

    [Fact]
    public void A_window_over_everything_is_dense_and_a_decoding_step_is_the_last_row_of_its_prefill()
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn(2, 4, 50, 8), randn(2, 2, 50, 8), randn(2, 2, 50, 8));
        var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
        Assertions.Close(dense, Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = new NeighborhoodSelector(50) }), 1e-5);
        Assertions.Close(dense, Attention.Compute(query, key, value, AttentionOptions.CausalSelf with { Selector = new NeighborhoodSelector(64, 64) }), 1e-5);
        foreach (var (stride, dilation) in new[] { (1, 1), (5, 1), (3, 2) })
        {
            var options = AttentionOptions.CausalSelf with { Selector = new NeighborhoodSelector(9, stride, dilation) };
            for (var length = 1; length <= 50; length += 7)
            {
                var (k, v) = (key.narrow(2, 0, length), value.narrow(2, 0, length));
                var prefill = Attention.Compute(query.narrow(2, 0, length), k, v, options);
                Assertions.Close(prefill.narrow(2, length - 1, 1), Attention.Compute(query.narrow(2, length - 1, 1), k, v, options), 1e-6);
            }
        }
    }

    [Fact]
    public void On_a_grid_it_has_the_pairs_of_the_neighborhood()
    {
        using var scope = NewDisposeScope();
        var neighborhood = Neighborhood.Of([5, 6], [3, 4], [2, 1], null, [false, true]);
        var input = randn(1, 1, 30, 4);
        var pairs = new NeighborhoodSelector(neighborhood).Select(input, input, input).Pairs();
        for (var query = 0; query < 30; query++)
        {
            for (var key = 0; key < 30; key++)
            {
                Assert.Equal(neighborhood.Allows(query, key), pairs[0, 0, query, key].item<bool>());
            }
        }
    }

    [Fact]
    public void What_is_drawn_is_what_is_applied() => Gen.Select(Gen.Int[2, 12], Gen.Int[2, 12], Gen.Int[1, 12], Gen.Int[1, 4], Gen.Int[1, 2], Gen.Bool).Sample((rows, columns, window, stride, dilation, isCausal) =>
    {
        window = 1 + (window % (Math.Min(rows, columns) / dilation));
        var neighborhood = Neighborhood.Of([rows, columns], [window], [Math.Min(stride, window)], [dilation], [isCausal, false]);
        var plan = NeighborhoodPlan.Of(neighborhood, new([2, 3], [3, 2]));
        var mask = plan.Mask(1);
        // A grid whose tiles are whole rows stays as it is.
        var (queries, keys) = ((plan.QueryOrder ?? TokenOrder.Identity(rows * columns)).Order.ToArray(), (plan.KeyOrder ?? TokenOrder.Identity(rows * columns)).Order.ToArray());
        var (queryPlaces, keyPlaces) = (queries.Length / plan.Groups, keys.Length / plan.Groups);
        long pairs = 0;
        for (var query = 0; query < queries.Length; query++)
        {
            for (var key = 0; key < keys.Length; key++)
            {
                if (queries[query] >= 0 && query / queryPlaces == key / keyPlaces && mask.Allows(query / queryPlaces, 0, query % queryPlaces, key % keyPlaces))
                {
                    Assert.True(keys[key] >= 0 && neighborhood.Allows(queries[query], keys[key]));
                    pairs++;
                }
            }
        }

        var all = from query in Enumerable.Range(0, rows * columns) from key in Enumerable.Range(0, rows * columns) select neighborhood.Allows(query, key) ? 1L : 0;
        Assert.Equal(all.Sum(), pairs);
    }, iter: 30);

    [Fact]
    public void Calls_that_it_cannot_serve_are_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        var input = zeros(1, 1, 6, 4);
        void Says(string sentence, AttentionSelector selector, AttentionOptions? options = null) => Assert.Contains(
            sentence, Assert.Throws<ArgumentException>(() => selector.Select(input, input, input, options)).Message, StringComparison.Ordinal);
        Says("follows causal calls", new NeighborhoodSelector(4));
        Says("has 9 tokens; the call has 6 queries", new NeighborhoodSelector(Neighborhood.Of([3, 3], [2])));
        Says("AttentionOptions.BlockMask", new NeighborhoodSelector(4, 2), AttentionOptions.CausalSelf with { BlockMask = BlockMasks.Causal(6, 6) });
        Says("lengths or offsets", new NeighborhoodSelector(4, 2), AttentionOptions.CausalSelf with { KeyLengths = tensor(new long[] { 5 }) });
        Assert.Contains("A stride is at most the window", Assert.Throws<ArgumentException>(() => new NeighborhoodSelector(4, 5)).Message, StringComparison.Ordinal);
        Assert.Contains("for each of the 2 axes", Assert.Throws<ArgumentException>(() => NeighborhoodPlan.Of(Neighborhood.Of([3, 3], [2]), new([2], [2, 2]))).Message, StringComparison.Ordinal);
    }
}
