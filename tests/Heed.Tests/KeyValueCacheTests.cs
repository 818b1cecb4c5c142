using Heed.Kernels;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class KeyValueCacheTests
{
    private static Tensor Random(Generator generator, params long[] shape) => randn(shape, generator: generator);

    [Fact]
    public void Decoding_token_by_token_equals_the_rows_of_the_prefill()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var generator = new Generator(1);
        const int tokens = 150;
        var (q, k, v) = (Random(generator, 2, 4, tokens, 8), Random(generator, 2, 2, tokens, 8), Random(generator, 2, 2, tokens, 6));
        foreach (var window in new long?[] { null, 1, 7, 70 })
        {
            var options = AttentionOptions.CausalSelf with { WindowBefore = window - 1 };
            var expected = Attention.Compute(q, k, v, options);
            using var cache = new KeyValueCache(1, window: window);
            long at = 0;
            foreach (var step in new long[] { 30, 1, 1, 5, 63, 1, 49 })
            {
                using var inner = NewDisposeScope();
                var (keys, values) = cache.Append(0, k.narrow(2, at, step), v.narrow(2, at, step));
                var output = Attention.Compute(q.narrow(2, at, step), keys, values, options);
                Assertions.Close(expected.narrow(2, at, step), output, 1e-5, $"window {window}, tokens {at} to {at + step}");
                at += step;
                Assert.Equal(at, cache.Length);
            }
        }
    }

    [Fact]
    public void A_window_keeps_memory_constant()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var cache = new KeyValueCache(1, window: 16);
        var (k, v) = (zeros(1, 1, 1, 4), zeros(1, 1, 1, 4));
        for (var i = 0; i < 2000; i++)
        {
            using var inner = NewDisposeScope();
            var (keys, _) = cache.Append(0, k, v);
            Assert.Equal(Math.Min(i + 1, 16), keys.size(2));
        }

        Assert.Equal(2000, cache.Length);
        Assert.Equal(16, cache.Held(0));
        Assert.Equal(2 * 64 * 4 * sizeof(float), cache.Bytes);
    }

    [Theory]
    [InlineData(ScalarType.Float16, 2)]
    [InlineData(ScalarType.BFloat16, 2)]
    [InlineData(ScalarType.Float64, 8)]
    public void Buffers_have_the_chosen_element_type(ScalarType type, int bytes)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var cache = new KeyValueCache(2, type);
        var (k, v) = (ones(1, 2, 64, 4), ones(1, 2, 64, 3));
        var (keys, values) = cache.Append(1, k, v);
        Assert.Equal(type, keys.dtype);
        Assert.Equal(type, values.dtype);
        Assert.Equal(2 * 64 * (4 + 3) * bytes, cache.Bytes);
        Assert.Equal(0, cache.Length);
        cache.Append(0, k, v);
        Assert.Equal(64, cache.Length);
    }

    [Fact]
    public void Truncating_forgets_the_end_and_resetting_everything()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var cache = new KeyValueCache(1);
        var k = arange(10, float32).view(1, 1, 10, 1);
        cache.Append(0, k, k);
        cache.Truncate(4);
        var (keys, _) = cache.Append(0, k.narrow(2, 9, 1), k.narrow(2, 9, 1));
        Assert.Equal([0f, 1, 2, 3, 9], keys.data<float>().ToArray());
        cache.Reset();
        Assert.Equal(0, cache.Length);

        // After a reset another batch is welcome.
        (keys, _) = cache.Append(0, ones(3, 2, 5, 4), ones(3, 2, 5, 4));
        Assert.Equal([3, 2, 5, 4], keys.shape);
    }

    [Fact]
    public void Wrong_use_is_refused_in_one_sentence()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        Assert.Throws<ArgumentException>(() => new KeyValueCache(0));
        Assert.Throws<ArgumentException>(() => new KeyValueCache(1, ScalarType.Int64));
        Assert.Throws<ArgumentException>(() => new KeyValueCache(1, limit: 0));
        Assert.Throws<ArgumentException>(() => new KeyValueCache(1, window: 0));
        using var cache = new KeyValueCache(1, limit: 8, window: 4);
        Assert.Contains(
            "layers 0 to 0", Assert.Throws<ArgumentException>(() => cache.Append(1, zeros(1, 1, 1, 2), zeros(1, 1, 1, 2))).Message);
        Assert.Throws<ArgumentException>(() => cache.Append(0, zeros(1, 1, 2, 2), zeros(1, 1, 1, 2)));
        cache.Append(0, zeros(1, 1, 6, 2), zeros(1, 1, 6, 2));
        Assert.Throws<ArgumentException>(() => cache.Append(0, zeros(2, 1, 1, 2), zeros(2, 1, 1, 2)));
        Assert.Contains(
            "limited to 8", Assert.Throws<InvalidOperationException>(() => cache.Append(0, zeros(1, 1, 6, 2), zeros(1, 1, 6, 2))).Message);
        Assert.Throws<ArgumentException>(() => cache.Truncate(7));
        cache.Append(0, zeros(1, 1, 1, 2), zeros(1, 1, 1, 2));
        Assert.Contains("dropped", Assert.Throws<InvalidOperationException>(() => cache.Truncate(3)).Message);
        using (enable_grad())
        {
            var leaf = zeros(1, 1, 1, 2).requires_grad_();
            Assert.Contains("no_grad", Assert.Throws<InvalidOperationException>(() => cache.Append(0, leaf, leaf)).Message);
        }

        cache.Dispose();
        Assert.Throws<ObjectDisposedException>(() => cache.Append(0, zeros(1, 1, 1, 2), zeros(1, 1, 1, 2)));
    }

    [Fact]
    public void Half_precision_keys_attend_with_float32_queries()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var generator = new Generator(2);
        var (q, k, v) = (Random(generator, 1, 2, 3, 8), Random(generator, 1, 2, 20, 8), Random(generator, 1, 2, 20, 8));
        foreach (var type in new[] { ScalarType.Float16, ScalarType.BFloat16 })
        {
            using var cache = new KeyValueCache(1, type);
            var (keys, values) = cache.Append(0, k, v);
            var output = Attention.Compute(q, keys, values, new() { Causal = Causality.AlignedToEnd });
            var expected = Attention.Compute(q, k.to(type).to(float32), v.to(type).to(float32), new() { Causal = Causality.AlignedToEnd });
            Assert.Equal(float32, output.dtype);
            Assertions.Close(expected, output, 1e-5);
        }
    }
}
