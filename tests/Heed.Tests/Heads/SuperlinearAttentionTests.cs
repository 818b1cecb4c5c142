using Heed.Heads;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class SuperlinearAttentionTests
{
    [Fact]
    public void The_output_mixes_a_softmax_per_span()
    {
        for (var seed = 0; seed < 9; seed++)
        {
            using var scope = NewDisposeScope();
            var random = new Random(seed);
            using var generator = new Generator((ulong)seed);
            var options = new SuperlinearOptions { NumSpans = random.Next(1, 4), SwIndex = random.Next(0, 4), BackwardFactor = 1.3, ForwardFactor = random.Next(2) * 0.7, SearchPower = random.Next(2) == 0 ? 0.5 : 0.55 };
            var keys = random.Next(2, 90);
            // Any ascending positions, any padding: chunks, single rows, holes.
            var positions = Enumerable.Range(0, keys).Where(position => seed % 3 == 0 || random.Next(3) == 0 || position == keys - 1).Select(position => (long)position).ToArray();
            var mask = seed % 4 == 0 ? null : rand([2, keys], generator: generator) > 0.2;
            Tensor Make(int heads, int length, int width) => randn([2, heads, length, width], float64, generator: generator);
            Tensor[] inputs = [Make(4, positions.Length, 8).requires_grad_(), Make(4, positions.Length, 8).requires_grad_(), Make(2, keys, 8).requires_grad_(), Make(2, keys, 5).requires_grad_()];
            var outgoing = Make(4, positions.Length, 5);
            var expected = Reference(inputs[0], inputs[1], inputs[2], inputs[3], positions, options, mask);
            var actual = SuperlinearAttention.Prefill(inputs[0], inputs[1], inputs[2], inputs[3], positions, options, mask);
            Assertions.Close(expected, actual, 1e-11, $"seed {seed}");
            var wanted = autograd.grad([expected], inputs, [outgoing], allow_unused: true);
            var gradients = autograd.grad([actual], inputs, [outgoing], allow_unused: true);
            for (var i = 0; i < inputs.Length; i++)
            {
                Assertions.Close(wanted[i] ?? zeros_like(inputs[i]), gradients[i] ?? zeros_like(inputs[i]), 1e-10, $"seed {seed}: gradient {i}");
            }
        }
    }

    [Fact]
    public void The_fused_path_agrees_with_float64_forward_and_backward()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        var options = new SuperlinearOptions { SwIndex = 3, ForwardFactor = 1 };
        var positions = Enumerable.Range(0, 100).Select(position => (long)position).ToArray();
        // Whole numbers search alike in both types; the scale keeps the softmax soft.
        Tensor Make(int heads) => randint(-3, 4, [1, heads, 100, 16], float64, generator: generator);
        Tensor[] inputs = [Make(4), Make(4).mul_(0.25), Make(2), Make(2)];
        var outgoing = Make(4);
        Tensor[] Run(ScalarType type)
        {
            var typed = inputs.Select(input => input.to(type).detach().requires_grad_()).ToArray();
            var output = SuperlinearAttention.Prefill(typed[0], typed[1], typed[2], typed[3], positions, options);
            return [output, .. autograd.grad([output], typed, [outgoing.to(type)])];
        }

        Run(float64).Zip(Run(float32)).ToList().ForEach(pair => Assertions.Close(pair.First, pair.Second, 2e-4));
    }

    [Fact]
    public void Spans_or_a_window_over_everything_are_dense_attention()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make() => randn([1, 2, 60, 8], generator: generator);
        var (search, query, key, value) = (Make(), Make(), Make(), Make());
        var positions = Enumerable.Range(0, 60).Select(position => (long)position).ToArray();
        var dense = Attention.Compute(query, key, value, AttentionOptions.CausalSelf);
        Assertions.Close(dense, SuperlinearAttention.Prefill(search, query, key, value, positions, new() { SwIndex = 8 }), 1e-5);
        Assertions.Close(dense, SuperlinearAttention.Prefill(search, query, key, value, positions, new() { BackwardFactor = 60, ForwardFactor = 60 }), 1e-5);
    }

    [Fact]
    public void No_query_sees_the_future()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make(int length) => randn([1, 2, length, 8], generator: generator);
        Tensor[] inputs = [Make(80), Make(80), Make(80), Make(80)];
        var positions = Enumerable.Range(0, 80).Select(position => (long)position).ToArray();
        var options = new SuperlinearOptions { SwIndex = 2, ForwardFactor = 2 };
        var before = SuperlinearAttention.Prefill(inputs[0], inputs[1], inputs[2], inputs[3], positions, options);
        foreach (var changed in new[] { 1, 33, 79 })
        {
            var other = inputs.Select(input => cat([input.narrow(2, 0, changed), Make(80 - changed)], 2)).ToArray();
            var after = SuperlinearAttention.Prefill(other[0], other[1], other[2], other[3], positions, options);
            Assertions.Close(before.narrow(2, 0, changed), after.narrow(2, 0, changed), 1e-6);
        }
    }

    [Fact]
    public void Decoding_over_a_larger_cache_is_the_row_of_a_prefill()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make(int heads) => randn([2, heads, 120, 8], generator: generator);
        var (search, query, key, value) = (Make(4), Make(4), Make(2), Make(2));
        var positions = Enumerable.Range(0, 120).Select(position => (long)position).ToArray();
        var options = new SuperlinearOptions { SwIndex = 2 };
        var whole = SuperlinearAttention.Prefill(search, query, key, value, positions, options);
        foreach (var position in new[] { 0, 5, 8, 9, 64, 119 })
        {
            // What lies behind the position is not filled yet.
            var (keys, values) = (key.clone(), value.clone());
            keys.narrow(2, position + 1, 119 - position).fill_(double.NaN);
            values.narrow(2, position + 1, 119 - position).fill_(double.NaN);
            var step = SuperlinearAttention.Decode(search.narrow(2, position, 1), query.narrow(2, position, 1), keys, values, position, options);
            Assertions.Close(whole.narrow(2, position, 1), step, 1e-5);
        }
    }

    [Fact]
    public void The_module_decodes_with_a_cache_as_it_reads_the_whole()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        using var module = new SuperlinearAttention(new() { Width = 24, Heads = 4, KeyValueHeads = 2, Search = new() { SwIndex = 2 } }, generator: generator);
        foreach (var parameter in module.parameters())
        {
            using var still = no_grad();
            parameter.normal_(0, 0.3, generator);
        }

        Assert.Equal(["k_proj.weight", "o_proj.weight", "q_proj.weight", "q_search_proj.weight", "v_proj.weight"], module.named_parameters().Select(entry => entry.name).Order(StringComparer.Ordinal));
        var input = randn([2, 70, 24], generator: generator);
        var whole = module.forward(input);
        using var quiet = no_grad();
        using var cache = new KeyValueCache(1);
        var outputs = new[] { (0, 40), (40, 1), (41, 9), (50, 20) }.Select(part => module.forward(input.narrow(1, part.Item1, part.Item2), cache)).ToArray();
        Assertions.Close(whole, cat(outputs, 1), 1e-5);
    }

    [Fact]
    public void What_does_not_fit_is_refused()
    {
        using var scope = NewDisposeScope();
        var (query, key) = (ones(1, 4, 3, 8), ones(1, 2, 9, 8));
        Refuses("shape of the queries", () => SuperlinearAttention.Prefill(ones(1, 4, 2, 8), query, key, key, [1, 2, 3]));
        Refuses("divides", () => SuperlinearAttention.Prefill(ones(1, 3, 3, 8), ones(1, 3, 3, 8), key, key, [1, 2, 3]));
        Refuses("0 to 8", () => SuperlinearAttention.Decode(ones(1, 4, 1, 8), ones(1, 4, 1, 8), key, key, 9));
        Refuses("divide", () => new SuperlinearAttention(new() { Width = 8, Heads = 4, KeyValueHeads = 3 }).Dispose());
        Refuses("HeadWidth", () => new SuperlinearAttention(new() { Width = 9, Heads = 4 }).Dispose());
        using var module = new SuperlinearAttention(new() { Width = 8, Heads = 2 });
        Refuses("[batch, tokens, 8]", () => module.forward(ones(1, 3, 7)));

        static void Refuses(string words, Action action) => Assert.Contains(words, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
    }

    /// <summary>Steps 2 to 4 of the definition with materialised masks, for the spans of the search.</summary>
    private static Tensor Reference(Tensor search, Tensor query, Tensor key, Tensor value, long[] positions, SuperlinearOptions options, Tensor? mask)
    {
        var spans = SpanSearch.Select(search, key, positions, options, mask);
        var (keys, values) = (key.repeat_interleave(2, 1), value.repeat_interleave(2, 1));
        var (column, row) = (arange(key.shape[2]), tensor(positions).unsqueeze(-1));
        var window = column.le(row).logical_and(column.gt(row - options.Window));
        var scores = matmul(query, keys.transpose(-1, -2)) / Math.Sqrt(query.shape[3]);
        var (anchor, start, end) = (spans.Anchor().to(int64), spans.Start(), spans.End());
        var anchors = keys.gather(2, anchor.clamp_min(0).flatten(2).unsqueeze(-1).expand(-1, -1, -1, key.shape[3])).view([.. anchor.shape, key.shape[3]]);
        var gate = (anchors * search.unsqueeze(-2)).sum(-1).masked_fill(anchor.lt(0), -1e9).softmax(-1);
        Tensor total = 0.0;
        for (var span = 0; span < options.NumSpans; span++)
        {
            var seen = column.ge(start[.., .., .., span..(span + 1)]).logical_and(column.le(end[.., .., .., span..(span + 1)])).logical_and(start[.., .., .., span..(span + 1)].ge(0)).logical_or(window);
            seen = mask is null ? seen : seen.logical_and(mask.unsqueeze(1).unsqueeze(1));
            var some = seen.any(-1, true);
            var weights = where(some, scores.masked_fill(seen.logical_not(), double.NegativeInfinity), zeros_like(scores)).softmax(-1).masked_fill(seen.logical_not(), 0);
            total = total + (matmul(weights, values) * gate[.., .., .., span..(span + 1)]);
        }

        return total;
    }
}
