using Heed.Kernels;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class SpanSearchTests
{
    [Theory]
    [InlineData(0.5, 0.5, 2, 0, 0)]
    [InlineData(0.5, 0.5, 2, 0, 3)]
    [InlineData(0.5, 0.5, 2, 1, 1)]
    [InlineData(0.55, 0.55, 3, 1, 0)]
    [InlineData(0.55, 0.55, 3, 1, 65)]
    [InlineData(1.0 / 3, 2.0 / 3, 3, 0, 2)]
    [InlineData(0.6, 0.4, 2, 0, 0)]
    public void No_earlier_position_is_excluded(double searchPower, double spanPower, double backward, double forward, int stripe)
    {
        var options = new SuperlinearOptions { SearchPower = searchPower, SpanPower = spanPower, BackwardFactor = backward, ForwardFactor = forward, SwIndex = stripe };
        for (var position = 0L; position < 4096; position++)
        {
            Assert.Equal([], Unreachable(options, position));
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void Reaching_ahead_does_not_make_up_for_reaching_back_too_little(double forward)
    {
        // What lies before the farthest anchor is only reached by looking back.
        var options = new SuperlinearOptions { BackwardFactor = 1, ForwardFactor = forward };

        Assert.Equal(7, Enumerable.Range(0, 4096).First(position => Unreachable(options, position).Contains(0)));
        Assert.Equal([0, 1], Unreachable(options, 22).Where(key => key < 2));
    }

    [Fact]
    public void Sparser_anchors_need_longer_spans()
    {
        var options = new SuperlinearOptions { SearchPower = 0.4, SpanPower = 0.6, BackwardFactor = 2 };
        Assert.Contains(Enumerable.Range(0, 4096), position => Unreachable(options, position).Count > 0);
        Assert.DoesNotContain(Enumerable.Range(0, 4096), position => Unreachable(options with { BackwardFactor = 2.5 }, position).Count > 0);
    }

    [Theory]
    [InlineData(0.5, new long[] { 1, 4, 9, 16, 25 })]
    [InlineData(1.0 / 3, new long[] { 1, 8, 27, 64, 125 })]
    [InlineData(0.55, new long[] { 1, 3, 7, 12, 18 })]
    public void Stripes_lie_at_powers_rounded_down(double searchPower, long[] distances) =>
        Assert.Equal(distances, Enumerable.Range(1, 5).Select(stripe => new SuperlinearOptions { SearchPower = searchPower }.Stripe(stripe)));

    [Fact]
    public void The_window_ends_one_position_after_the_nearest_anchor()
    {
        Assert.Equal(2032, new SuperlinearOptions { SearchPower = 0.55, SwIndex = 65 }.Window);
        Assert.Equal(0, new SuperlinearOptions().Window);
        for (var stripe = 1; stripe < 70; stripe++)
        {
            var options = new SuperlinearOptions { SwIndex = stripe, ForwardFactor = 3 };
            Assert.Equal(options.Window, options.Distances(100_000)[0]);
            // A span never enters the window.
            Assert.True(options.Span(10_000 - options.Window, 10_000).Last <= 10_000 - options.Window);
        }
    }

    [Fact]
    public void Spans_of_perfect_squares_are_not_one_key_too_long()
    {
        // 2 sqrt(p + 1) is whole at p = 99: twenty keys, not twenty-one by a rounding of the power.
        Assert.Equal((60, 80), new SuperlinearOptions().Span(80, 99));
        Assert.Equal((60, 83), new SuperlinearOptions { ForwardFactor = 0.3 }.Span(80, 99));
        Assert.Equal((75, 80), new SuperlinearOptions { BackwardFactor = 1 }.Span(80, 99, start: 75));
    }

    [Fact]
    public void The_best_anchors_are_chosen_and_of_equal_ones_the_more_distant()
    {
        for (var seed = 0; seed < 20; seed++)
        {
            using var scope = NewDisposeScope();
            var random = new Random(seed);
            using var generator = new Generator((ulong)seed);
            var options = new SuperlinearOptions { NumSpans = random.Next(1, 5), SwIndex = random.Next(0, 3), SearchPower = random.Next(2) == 0 ? 0.5 : 0.6, ForwardFactor = random.Next(3) };
            var keys = random.Next(1, 120);
            // Whole numbers: ties abound, and both types compute the same.
            var (query, key) = (randint(-2, 3, [2, 4, keys, 4], float32, generator: generator), randint(-2, 3, [2, 2, keys, 4], float32, generator: generator));
            var mask = rand([2, keys], generator: generator) > (seed % 2 == 0 ? -1 : 0.3);
            var positions = Enumerable.Range(0, keys).Select(position => (long)position).ToArray();
            var found = SpanSearch.Select(query, key, positions, options, mask);
            var precise = SpanSearch.Select(query.to(float64), key.to(float64), positions, options, mask);
            Assert.True(found.Anchor().eq(precise.Anchor()).all().item<bool>());
            Assert.True(found.Score().to(float64).eq(precise.Score()).all().item<bool>());
            var anchors = found.Anchor().data<int>().ToArray();
            var padded = mask.logical_not().data<bool>().ToArray();
            for (var list = 0; list < anchors.Length / options.NumSpans; list++)
            {
                var (batch, head, row) = (list / keys / 4, list / keys % 4, list % keys);
                var expected = options.Distances(row + 1).Select(distance => row - distance).Where(anchor => !padded[(batch * keys) + anchor])
                    .Select(anchor => (Anchor: anchor, Score: query[batch, head, row].dot(key[batch, head / 2, anchor]).item<float>()))
                    .OrderByDescending(pair => pair.Score).ThenBy(pair => pair.Anchor).Select(pair => pair.Anchor).Concat(Enumerable.Repeat(-1, options.NumSpans)).Take(options.NumSpans);
                Assert.Equal(expected, anchors.AsSpan(list * options.NumSpans, options.NumSpans).ToArray());
            }
        }
    }

    [Fact]
    public void The_selector_computes_window_and_spans_once_each()
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        foreach (var (options, queries) in new[] { (new SuperlinearOptions { SwIndex = 2, ForwardFactor = 1 }, 150), (new SuperlinearOptions { NumSpans = 5 }, 40), (new SuperlinearOptions { SwIndex = 20 }, 150) })
        {
            var (query, key) = (randn([2, 4, queries, 8], generator: generator), randn([2, 2, 150, 8], generator: generator));
            var call = new SuperlinearSelector(options).Select(query, key, key, AttentionOptions.CausalSelf);
            var positions = Enumerable.Range(150 - queries, queries).Select(position => (long)position).ToArray();
            var spans = SpanSearch.Select(query, key, positions, options);
            var (start, end) = (spans.Start().unsqueeze(-1), spans.End().unsqueeze(-1));
            var (column, row) = (arange(150), tensor(positions).unsqueeze(-1));
            var inSpan = column.ge(start).logical_and(column.le(end)).logical_and(start.ge(0)).any(-2);
            var inWindow = column.le(row).logical_and(column.gt(row - options.Window));
            Assert.True(call.Pairs().eq(inSpan.logical_or(inWindow)).all().item<bool>());
            Assert.Equal(call.Pairs().sum().item<long>(), call.Options.KeyRuns!.Pairs);
        }

        // A window over everything is dense attention.
        var (q, k, v) = (randn([1, 2, 90, 8], generator: generator), randn([1, 2, 90, 8], generator: generator), randn([1, 2, 90, 8], generator: generator));
        Assertions.Close(
            Attention.Compute(q, k, v, AttentionOptions.CausalSelf),
            Attention.Compute(q, k, v, AttentionOptions.CausalSelf with { Selector = new SuperlinearSelector(new() { SwIndex = 10 }) }), 1e-5);
    }

    [Fact]
    public void What_cannot_be_searched_is_refused()
    {
        using var scope = NewDisposeScope();
        foreach (var options in new SuperlinearOptions[]
        {
            new() { SearchPower = 1 }, new() { SearchPower = double.NaN }, new() { SpanPower = 0 }, new() { NumSpans = 0 }, new() { SwIndex = -1 }, new() { BackwardFactor = 0 }, new() { ForwardFactor = -1 },
        })
        {
            Assert.Contains("SuperlinearOptions", Assert.Throws<ArgumentException>(() => new SuperlinearSelector(options)).Message, StringComparison.Ordinal);
        }

        var key = ones(1, 2, 10, 4);
        Refuses("3 were expected, not 2", () => SpanSearch.Select(ones(1, 2, 3, 4), key, [1, 2]));
        Refuses("0 to 9", () => SpanSearch.Select(ones(1, 2, 1, 4), key, [10]));
        Refuses("ascend", () => SpanSearch.Select(ones(1, 2, 2, 4), key, [4, 4]));
        Refuses("boolean [1, 10]", () => SpanSearch.Select(ones(1, 2, 1, 4), key, [4], attentionMask: ones(1, 9, dtype: @bool)));
        var options2 = AttentionOptions.CausalSelf with { Selector = new SuperlinearSelector() };
        Refuses("looks back", () => Attention.Compute(key, key, key, options2 with { Causal = Causality.None }));
        Refuses("looks back", () => Attention.Compute(ones(1, 2, 11, 4), key, key, options2));
        Refuses("one length", () => Attention.Compute(key, key, key, options2 with { KeyLengths = tensor(new long[] { 9 }) }));
        Refuses("BlockMask", () => Attention.Compute(key, key, key, options2 with { BlockMask = BlockMasks.Causal(10, 10) }));

        static void Refuses(string words, Action action) => Assert.Contains(words, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
    }

    /// <summary>Positions at or before a query that neither the window nor any candidate span reaches.</summary>
    private static List<long> Unreachable(SuperlinearOptions options, long position)
    {
        var reached = new bool[position + 1];
        reached.AsSpan((int)Math.Max(0, position + 1 - options.Window)).Fill(true);
        foreach (var distance in options.Distances(position + 1))
        {
            var (first, last) = options.Span(position - distance, position);
            reached.AsSpan((int)first, (int)(last - first + 1)).Fill(true);
        }

        return [.. Enumerable.Range(0, reached.Length).Where(key => !reached[key]).Select(key => (long)key)];
    }
}
