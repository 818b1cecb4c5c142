using Heed.Edits;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Edits;

/// <summary>What edits of weights promise where a prompt is read in several calls with a cache, and what they refuse.</summary>
public sealed class ChunkedPromptTests
{
    private const long Tokens = 26, ImageStart = 3, ImageLength = 8, Window = 9;
    private const double Threshold = 0.06, Beta = 0.3;
    private static readonly int[] s_heads = [1, 3];
    private static readonly AttentionSite Site = new(2, AttentionKind.Self, "layer.2");
    private static readonly TokenLayout Layout = new(
        new TokenSpan(TokenKind.Text, 0, ImageStart), new TokenSpan(TokenKind.Image, ImageStart, ImageLength), new TokenSpan(TokenKind.Text, ImageStart + ImageLength, Tokens - ImageStart - ImageLength));

    /// <summary>Where a prompt is cut: nowhere, in the text, within the picture, token by token.</summary>
    public static TheoryData<string> Cuts => ["26", "7,19", "1,1,24", "9,8,9", "13,12,1", "5,1,1,1,18", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"];

    [Theory]
    [MemberData(nameof(Cuts))]
    public void Calibration_goes_by_the_columns_found_up_to_the_end_of_each_call(string cuts)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(4);
        var unedited = Attention.Compute(q, k, v, AttentionOptions.CausalSelf);
        foreach (var window in new long?[] { null, Window })
        {
            var options = AttentionOptions.CausalSelf with { WindowBefore = window - 1 };
            var expected = Calibrated(q, k, v, options, Lengths(cuts), window);
            Assert.True((expected - unedited).abs().max().item<double>() > 0.01);
            foreach (var materialize in new[] { false, true })
            {
                Assertions.Close(expected, Calibrate(q, k, v, options, Lengths(cuts), window, float32, materialize), 2e-5, $"{cuts}, window {window}, {materialize}");
                Assertions.Close(expected, Calibrate(q, k, v, options, Lengths(cuts), window, float64, materialize), 1e-12, $"{cuts}, window {window}, {materialize}, float64");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Cuts))]
    public void The_last_call_of_a_calibrated_prompt_is_as_if_it_were_read_at_once(string cuts)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(5);
        var last = Lengths(cuts)[^1];
        var whole = Calibrate(q, k, v, AttentionOptions.CausalSelf, [Tokens], null, float32, materialize: false);
        Assertions.Close(whole.narrow(2, Tokens - last, last), Calibrate(q, k, v, AttentionOptions.CausalSelf, Lengths(cuts), null, float32, materialize: false).narrow(2, Tokens - last, last), 2e-5, cuts);
    }

    [Theory]
    [MemberData(nameof(Cuts))]
    public void Redistribution_of_a_prompt_in_parts_is_that_of_the_whole(string cuts)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(6);
        var unedited = Attention.Compute(q, k, v, AttentionOptions.CausalSelf);
        foreach (var materialize in new[] { false, true })
        {
            foreach (var type in new[] { float32, float64 })
            {
                using var hooks = new Redistributing(materialize);
                var whole = hooks.Read(q, k, v, [Tokens], type, seed: 1);
                Assertions.Close(unedited.narrow(2, 0, ImageStart + ImageLength), whole.narrow(2, 0, ImageStart + ImageLength), 2e-5);
                Assert.True((whole - unedited).abs().max().to(float64).item<double>() > 0.01);

                // The same edit, and a fresh one that knows no other text.
                using var fresh = new Redistributing(materialize);
                Assertions.Close(whole, fresh.Read(q, k, v, Lengths(cuts), type, seed: 1), type == float64 ? 1e-12 : 2e-5, cuts);
                Assert.Equal(hooks.Edit.SinksOf(2), fresh.Edit.SinksOf(2));
                Assertions.Close(whole, hooks.Read(q, k, v, Lengths(cuts), type, seed: 1), type == float64 ? 1e-12 : 2e-5, $"{cuts}, second text");
            }
        }
    }

    [Fact]
    public void Another_prompt_in_parts_forgets_the_sinks_of_the_one_before()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(7);
        using var fresh = new Redistributing(materialize: false);
        var expected = fresh.Read(q, k, v, [6, 14, 6], float32, seed: 2);
        using var used = new Redistributing(materialize: false);
        used.Read(q, k, v, [6, 14, 6], float32, seed: 1);
        Assertions.Close(expected, used.Read(q, k, v, [6, 14, 6], float32, seed: 2), 1e-6);
        Assert.Equal(fresh.Edit.SinksOf(2), used.Edit.SinksOf(2));

        // Stopped half-way, and begun again.
        used.Read(q, k, v, [6, 14], float32, seed: 1);
        Assertions.Close(expected, used.Read(q, k, v, [6, 14, 6], float32, seed: 2), 1e-6);
    }

    [Fact]
    public void A_redistribution_that_missed_tokens_is_refused()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(8);
        using var cut = new Redistributing(materialize: false);
        cut.Read(q, k, v, [20], float32, seed: 1);
        // Two tokens back, as after a cache was cut.
        Assert.Contains("a cache that was cut or has a window cannot be gone on with, read the prompt again", Assert.Throws<InvalidOperationException>(() => cut.Call(q, k, v, 18, 3, float32, 1)).Message, StringComparison.Ordinal);
        using var late = new Redistributing(materialize: false);
        Assert.Contains("has seen 0 tokens of this text and the call continues 7", Assert.Throws<InvalidOperationException>(() => late.Call(q, k, v, 7, 3, float32, 1)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(null)]
    [InlineData(Window)]
    public void A_calibration_that_missed_the_beginning_or_whose_cache_was_cut_is_refused(long? window)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(9);
        var options = AttentionOptions.CausalSelf with { WindowBefore = window - 1 };
        foreach (var queries in new long[] { 1, 3 })
        {
            var hooks = new AttentionHooks();
            using var edit = hooks.Install(Calibration(materialize: false));
            Tensor Call(long at, long count) => Continue(hooks, q, k, v, options, window, at, count, float32);
            Assert.Contains("install it before the text is read", Assert.Throws<InvalidOperationException>(() => Call(4, queries)).Message, StringComparison.Ordinal);
            // Cut before any window dropped a token, and after.
            foreach (var (read, back) in new long[][] { [6, 4], [15, 14], [15, 12] }.Select(pair => (pair[0], pair[1])))
            {
                Call(0, 3);
                Call(3, read - 3);
                Assert.Contains("a cache that was cut cannot be gone on with, read the text again", Assert.Throws<InvalidOperationException>(() => Call(back, queries)).Message, StringComparison.Ordinal);
            }

            // Another text may follow.
            Call(0, 5);
            Call(5, queries);
        }
    }

    [Fact]
    public void A_single_query_that_sees_everything_is_a_text_of_its_own()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k, v) = Inputs(10);
        var one = q.narrow(2, Tokens - 1, 1);
        Tensor Run(bool materialize, ScalarType type)
        {
            var hooks = new AttentionHooks();
            using var edit = hooks.Install(Calibration(materialize));
            return Attention.Compute(one.to(type), k.to(type), v.to(type), AttentionOptions.Default, Site, hooks);
        }

        var expected = Run(materialize: true, float64);
        Assert.True((expected - Attention.Compute(one, k, v, AttentionOptions.Default)).abs().max().item<double>() > 0.01);
        Assertions.Close(expected, Run(materialize: false, float32), 2e-5);
    }

    private static CalibrationEdit Calibration(bool materialize) => new(s_heads.Select(head => (2, head)), Threshold, Beta) { Materialize = materialize };

    /// <summary>A call with a cache that keeps what a window reaches.</summary>
    private static Tensor Continue(AttentionHooks hooks, Tensor q, Tensor k, Tensor v, AttentionOptions options, long? window, long at, long count, ScalarType type)
    {
        var first = Math.Max(0, at - ((window ?? long.MaxValue) - 1));
        hooks.FirstPosition = at;
        return Attention.Compute(q.narrow(2, at, count).to(type), k.narrow(2, first, at + count - first).to(type), v.narrow(2, first, at + count - first).to(type), options, Site, hooks);
    }

    private static Tensor Calibrate(Tensor q, Tensor k, Tensor v, AttentionOptions options, long[] lengths, long? window, ScalarType type, bool materialize)
    {
        var hooks = new AttentionHooks();
        using var edit = hooks.Install(Calibration(materialize));
        var at = 0L;
        return cat([.. lengths.Select(length => Continue(hooks, q, k, v, options, window, (at += length) - length, length, type))], 2);
    }

    /// <summary>The same from the whole map in float64: the columns of a call are those whose mean weight over the rows so far that saw them exceeds the threshold, among the keys that the cache still holds.</summary>
    private static Tensor Calibrated(Tensor q, Tensor k, Tensor v, AttentionOptions options, long[] lengths, long? window)
    {
        using var probe = new AttentionMapProbe();
        var hooks = new AttentionHooks();
        using var installed = hooks.Install(probe);
        Attention.Compute(q.to(float64), k.to(float64), v.to(float64), options, Site, hooks);
        var (map, values) = (probe[Site], v.to(float64).repeat_interleave(2, 1));
        List<Tensor> parts = [];
        var at = 0L;
        foreach (var length in lengths)
        {
            var (end, first) = (at + length, Math.Max(0, at - ((window ?? long.MaxValue) - 1)));
            var rows = arange(first, end).neg().add(end).clamp(max: window ?? long.MaxValue).to(float64);
            var score = map.narrow(2, 0, end).narrow(3, first, end - first).sum(2) / rows;
            var columns = AttentionCalibration.Columns(score, s_heads, Threshold);
            var edited = AttentionCalibration.Apply(map.narrow(2, at, length).narrow(3, first, end - first), columns, Beta, at == 0 ? s_heads : []);
            parts.Add(edited.matmul(values.narrow(2, first, end - first)));
            at = end;
        }

        return cat(parts, 2);
    }

    private static long[] Lengths(string cuts) => [.. cuts.Split(',').Select(long.Parse)];

    private static (Tensor Query, Tensor Key, Tensor Value) Inputs(int seed)
    {
        using var generator = new Generator((ulong)seed);
        var k = randn([2, 2, Tokens, 16], generator: generator);
        // Some keys that everybody looks at, among them one of the image and two of the text after it.
        var q = randn([2, 4, Tokens, 16], generator: generator) + 0.7;
        k.index_add_(2, tensor(new long[] { 0, ImageStart + 2, 14, 19 }), ones(2, 2, 4, 16) * 0.5, 1);
        return (q, k, randn([2, 2, Tokens, 16], generator: generator));
    }

    /// <summary>A model of one layer that shows its hidden states: sinks at the first token, one or two image tokens and two tokens after the image, by batch item and seed.</summary>
    private sealed class Redistributing : IDisposable
    {
        private readonly AttentionHooks _hooks = new() { Layout = Layout };
        private readonly IDisposable _installed;

        public Redistributing(bool materialize)
        {
            Edit = new([0, 5], 2.5, 0.7, 0.05, 0.3) { Materialize = materialize };
            _installed = Edit.InstallOn(_hooks);
        }

        public RedistributionEdit Edit { get; }

        public Tensor Read(Tensor q, Tensor k, Tensor v, long[] lengths, ScalarType type, int seed)
        {
            var at = 0L;
            return cat([.. lengths.Select(length => Call(q, k, v, (at += length) - length, length, type, seed))], 2);
        }

        public Tensor Call(Tensor q, Tensor k, Tensor v, long at, long count, ScalarType type, int seed)
        {
            using var generator = new Generator((ulong)seed);
            var states = randn([2, Tokens, 16], generator: generator);
            states[0, 0, 5] = states[1, 0, 5] = states[0, ImageStart + seed, 0] = states[1, ImageStart + seed, 5] = states[1, ImageStart + 5, 0] = states[0, 14, 5] = states[1, 19, 0] = 40;
            _hooks.FirstPosition = at;
            new StreamPlace(_hooks, 2, "layer.2").Pass(StreamPoint.BlockInput, states.narrow(1, at, count));
            return Attention.Compute(q.narrow(2, at, count).to(type), k.narrow(2, 0, at + count).to(type), v.narrow(2, 0, at + count).to(type), AttentionOptions.CausalSelf, Site, _hooks);
        }

        public void Dispose() => _installed.Dispose();
    }
}
