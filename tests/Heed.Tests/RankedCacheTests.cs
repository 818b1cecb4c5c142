using CsCheck;
using Heed.Heads;
using Heed.Masks;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class RankedCacheTests
{
    [Fact]
    public void What_stays_is_what_the_full_computation_keeps_for_the_last_query() => Gen.Select(
        Gen.Int[1, 12].List[1, 12], Choices.OneOf(1, 4, 10, 100), Choices.OneOf(3, 1000), Gen.Int[1, 1 << 20]).Sample(
        (steps, slots, levels, seed) =>
        {
            using var scope = NewDisposeScope();
            using var still = no_grad();
            using var generator = new Generator((ulong)seed);
            var total = steps.Sum();
            // The key of a token is its position, so that what is held can be told; few levels: ties.
            var keys = arange(total, dtype: float32).view(1, 1, total, 1).expand(2, 3, total, 1);
            var importance = randint(0, levels, [2, 3, total], generator: generator).to(float64);
            using var cache = new KeyValueCache(1, ScalarType.Float32, null, _ => null, _ => slots);
            long at = 0;
            foreach (var step in steps)
            {
                var (given, ranks) = (keys.narrow(2, at, step), importance.narrow(2, at, step));
                var (k, v, r) = cache.AppendRanked(0, given, given, ranks);
                at += step;
                // The new tokens' own choices, among what was returned.
                var kept = DynamicMask.TopK(r.unsqueeze(2), ones(step, k.shape[2], ScalarType.Bool).tril(k.shape[2] - step).view(1, 1, step, -1).expand(2, 3, step, -1), slots);
                kept = step == 1 ? ones_like(kept) : kept;
                var full = DynamicMask.TopK(importance.narrow(2, 0, at).unsqueeze(2), ones(step, at, ScalarType.Bool).tril(at - step).view(1, 1, step, at).expand(2, 3, step, at), slots);
                for (var b = 0; b < 2; b++)
                {
                    for (var h = 0; h < 3; h++)
                    {
                        for (var i = 0; i < step; i++)
                        {
                            var chosen = k[b, h].view(-1)[kept[b, h, i]].to(int64).data<long>().Order().ToArray();
                            Assert.Equal(full[b, h, i].nonzero().view(-1).data<long>().ToArray(), chosen);
                        }
                    }
                }

                Assert.Equal(k.data<float>().ToArray(), v.data<float>().ToArray());
            }

            Assert.Equal(total, cache.Length);
            Assert.Equal(Math.Min(total, slots), cache.Held(0));
        },
        iter: 40);

    [Theory]
    [InlineData(ScalarType.Float32, 1e-5)]
    [InlineData(ScalarType.Float64, 1e-12)]
    public void A_layer_decodes_as_it_reads(ScalarType type, double tolerance)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(7);
        using var layer = Layer(window: 9);
        layer.to(type);
        var input = randn(2, 60, 16, type);
        var rotary = new RotaryEmbedding(4);
        var whole = layer.forward(input, rotary.Tables(arange(60), type));
        using var cache = new KeyValueCache(1, type, null, _ => null, _ => 9);
        var outputs = new List<Tensor>();
        foreach (var (first, count) in new[] { (0, 5), (5, 20), (25, 1), (26, 1), (27, 3), (30, 1) }.Concat(Enumerable.Range(31, 29).Select(i => (i, 1))))
        {
            outputs.Add(layer.forward(input.narrow(1, first, count), rotary.Tables(arange(first, first + count), type), cache));
        }

        Assertions.Close(whole, cat(outputs, 1), tolerance);
        Assert.Equal(9, cache.Held(0));
    }

    [Fact]
    public void Memory_stays_that_of_the_slots()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var cache = new KeyValueCache(1, ScalarType.Float16, null, _ => null, _ => 100);
        var (tokens, importance) = (randn(1, 2, 300, 8), randn(1, 2, 300));
        cache.AppendRanked(0, tokens, tokens, importance);
        // Keys and values in two bytes, importance in four, position in eight.
        Assert.Equal(2 * 100 * ((16 * 2) + 4 + 8), cache.Bytes);
        for (var i = 0; i < 300; i++)
        {
            cache.AppendRanked(0, tokens.narrow(2, i, 1), tokens.narrow(2, i, 1), importance.narrow(2, i, 1));
        }

        Assert.Equal(2 * 100 * ((16 * 2) + 4 + 8), cache.Bytes);
        Assert.Equal(600, cache.Length);
    }

    [Fact]
    public void Only_what_nothing_was_dropped_from_can_be_cut_back()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var cache = new KeyValueCache(1, ScalarType.Float32, null, _ => null, _ => 10);
        void Append(int count) => cache.AppendRanked(0, randn(1, 1, count, 4), randn(1, 1, count, 4), randn(1, 1, count));
        Append(8);
        cache.Truncate(3);
        Assert.Equal(3, cache.Held(0));
        Append(9);
        Assert.Equal(12, cache.Length);
        cache.Truncate(12);
        Assert.Contains("has dropped", Assert.Throws<InvalidOperationException>(() => cache.Truncate(11)).Message, StringComparison.Ordinal);
        cache.Reset();
        Append(5);
        Assert.Equal(5, cache.Held(0));
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        using var ranked = new KeyValueCache(1, ScalarType.Float32, null, _ => null, _ => 10);
        using var aged = new KeyValueCache(1);
        var tokens = randn(1, 1, 2, 4);
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<Exception>(action).Message, StringComparison.Ordinal);
        Refused("give the importance", () => ranked.Append(0, tokens, tokens));
        Refused("no ranked slots", () => aged.AppendRanked(0, tokens, tokens, randn(1, 1, 2)));
        Refused("is [B, Hkv, n]", () => ranked.AppendRanked(0, tokens, tokens, randn(1, 1, 3)));
        Refused("not a number", () => ranked.AppendRanked(0, tokens, tokens, full([1, 1, 2], float.NaN)));
        Refused("at least one slot", () => _ = new KeyValueCache(1, ScalarType.Float32, null, _ => null, _ => 0));
        Refused("not both", () => _ = new KeyValueCache(1, ScalarType.Float32, null, _ => 4, _ => 4));
        using var layer = Layer(window: 5);
        Refused("no ranked slots; this layer needs 5", () => layer.forward(randn(1, 2, 16), null, aged));
        Refused("10 ranked slots; this layer needs 5", () => layer.forward(randn(1, 2, 16), null, ranked));
        Refused("[batch, tokens, 16]", () => layer.forward(randn(1, 2, 15), null));
    }

    private static DogeAttention Layer(int window)
    {
        var layer = new DogeAttention(new DogeAttentionOptions { Width = 16, Heads = 4, KeyValueHeads = 2, HeadWidth = 4, WindowSize = window });
        using var still = no_grad();
        foreach (var (name, parameter) in layer.named_parameters())
        {
            if (!name.Contains("norm", StringComparison.Ordinal))
            {
                parameter.normal_(0, 0.5);
            }
        }

        return layer;
    }
}
