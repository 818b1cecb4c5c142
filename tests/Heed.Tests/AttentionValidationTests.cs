using Heed.Biases;
using Heed.Kernels;
using Heed.Masks;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

/// <summary>What cannot be computed is refused with one sentence that says what was wrong and what was expected.</summary>
public sealed class AttentionValidationTests : IDisposable
{
    private readonly DisposeScope _scope = NewDisposeScope();
    private readonly Tensor _q, _k, _v;

    public AttentionValidationTests() => (_q, _k, _v) = (randn(2, 4, 6, 8), randn(2, 2, 9, 8), randn(2, 2, 9, 5));

    public void Dispose() => _scope.Dispose();

    [Fact]
    public void Inputs_that_do_not_fit_together()
    {
        Refused("[B, H, Nq, D]", () => Attention.Compute(randn(4, 6, 8), _k, _v));
        Refused("batch size", () => Attention.Compute(_q, randn(1, 2, 9, 8), randn(1, 2, 9, 5)));
        Refused("width", () => Attention.Compute(_q, randn(2, 2, 9, 7), _v));
        Refused("heads and length", () => Attention.Compute(_q, _k, randn(2, 2, 8, 5)));
        Refused("heads and length", () => Attention.Compute(_q, _k, randn(2, 1, 9, 5)));
        Refused("3 does not divide 4", () => Attention.Compute(_q, randn(2, 3, 9, 8), randn(2, 3, 9, 5)));
        Refused("0 does not divide 4", () => Attention.Compute(_q, randn(2, 0, 9, 8), randn(2, 0, 9, 5)));
        Refused("Int64", () => Attention.Compute(_q.to(int64), _k.to(int64), _v.to(int64)));
        Refused("one dtype", () => Attention.Compute(_q, _k.to(float64), _v.to(float64)));
        Refused("one dtype", () => Attention.Compute(_q, _k, _v.to(bfloat16)));
        Refused("one dtype", () => Attention.Compute(_q.to(bfloat16), _k.to(float16), _v.to(float16)));
        Refused("one device", () => Attention.Compute(_q, _k.to(META), _v.to(META)));
        Assert.Throws<ArgumentNullException>(() => Attention.Compute(_q, null!, _v));
    }

    [Fact]
    public void Numbers_out_of_range()
    {
        Wrong("Scale is a finite number", new() { Scale = double.NaN });
        Wrong("Softcap is a positive number", new() { Softcap = 0 });
        Wrong("Softcap is a positive number", new() { Softcap = double.PositiveInfinity });
        Wrong("WindowBefore counts tokens", new() { WindowBefore = -1 });
        Wrong("WindowAfter counts tokens", new() { WindowAfter = -3 });
        Wrong("Threads is 0", new() { Threads = -1 });
    }

    [Fact]
    public void Tensors_that_do_not_fit_the_call()
    {
        Wrong("one floating-point logit per query head, [4]", new() { Sinks = randn(2) });
        Wrong("one floating-point logit per query head, [4]", new() { Sinks = ones(4, ScalarType.Int64) });
        Wrong("DenseBias broadcasts to [B, H, Nq, Nk] = [2, 4, 6, 9]", new() { Biases = [new DenseBias(randn(6, 8))] });
        Wrong("DenseBias is a floating-point tensor", new() { Biases = [new DenseBias(ones(6, 9, ScalarType.Int32))] });
        Wrong("KeyBias broadcasts to [B, H, Nk]", new() { Biases = [new KeyBias(randn(6))] });
        Wrong("one slope per query head", new() { Biases = [new AlibiBias(randn(3))] });
        Wrong("one rank", new() { Biases = [new LowRankBias(randn(6, 2), randn(9, 3))] });
        Wrong("query factors", new() { Biases = [new LowRankBias(randn(5, 2), randn(9, 2))] });
        Wrong("DenseBias is on the query's device", new() { Biases = [new DenseBias(randn(6, 9).to(META))] });
        Wrong("Gate broadcasts to [B, H, Nq, Dv] = [2, 4, 6, 5]", new() { Gate = randn(2, 4, 6, 8) });
        Wrong("Mask is boolean", new() { Mask = randn(6, 9) });
        Wrong("Mask broadcasts to [B, H, Nq, Nk] = [2, 4, 6, 9]", new() { Mask = ones(9, 9, ScalarType.Bool) });
        Wrong("BlockMask covers 6 queries and 8 keys", new() { BlockMask = BlockMasks.Causal(6, 8) });
        Wrong("BlockMask has lists for", new() { BlockMask = new KeySelection(6, 9, batches: 1, heads: 2).ToBlockMask() });
        Wrong("KeyRuns covers 6 queries and 8 keys", new() { KeyRuns = new KeyRuns(1, 1, 6, 8, 6, [0, 1], [0], [1]) });
        Wrong("KeyRuns has lists for", new() { KeyRuns = new KeyRuns(1, 3, 6, 9, 6, [0, 0, 0, 0], [], []) });
        Wrong("KeyRuns cannot be combined with BlockMask", new() { KeyRuns = new KeyRuns(1, 1, 6, 9, 6, [0, 1], [0], [1]), BlockMask = BlockMasks.Causal(6, 9) });
        Wrong("KeyLengths holds one int64", new() { KeyLengths = tensor(new[] { 3, 4 }) });
        Wrong("KeyLengths holds one int64", new() { KeyLengths = tensor(new[] { 3L }) });
        Wrong("KeyLengths holds lengths from 0 to 9, not 10", new() { KeyLengths = tensor(new[] { 3L, 10 }) });
        Wrong("QueryLengths holds lengths from 0 to 6, not -1", new() { QueryLengths = tensor(new[] { -1L, 2 }) });
    }

    [Fact]
    public void Packed_sequences_that_do_not_fit()
    {
        var (q, k, v) = (randn(1, 4, 6, 8), randn(1, 2, 9, 8), randn(1, 2, 9, 5));
        void Packed(string words, AttentionOptions options) => Refused(words, () => Attention.Compute(q, k, v, options));
        Packed("int64 row offsets", new() { QueryOffsets = tensor(new[] { 0, 6 }) });
        Packed("int64 row offsets", new() { QueryOffsets = tensor(new[] { 0L }) });
        Packed("does not decrease", new() { QueryOffsets = tensor(new[] { 0L, 4, 2, 6 }), KeyOffsets = tensor(new[] { 0L, 1, 2, 9 }) });
        Packed("lies between 0 and 6", new() { QueryOffsets = tensor(new[] { 0L, 7 }), KeyOffsets = tensor(new[] { 0L, 9 }) });
        Packed("1 and 2 sequences", new() { QueryOffsets = tensor(new[] { 0L, 6 }), KeyOffsets = tensor(new[] { 0L, 3, 9 }) });
    }

    [Fact]
    public void Combinations_that_cannot_be_name_both_options()
    {
        Both("Sinks", "Normalizer.Sigmoid", new() { Sinks = randn(4), Normalizer = Normalizer.Sigmoid });
        Both("Sinks", "Normalizer.ReluOverPosition", new() { Sinks = randn(4), Normalizer = Normalizer.ReluOverPosition });
        Both("QueryOffsets", "a batch of 2", new() { QueryOffsets = tensor(new[] { 0L, 6 }), KeyOffsets = tensor(new[] { 0L, 9 }) });
        Both("KeyOffsets", "QueryOffsets", new() { KeyOffsets = tensor(new[] { 0L, 9 }) });
        Both("Biases", "a second AlibiBias", new() { Biases = [new AlibiBias(randn(4)), new AlibiBias(randn(4))] });
        var (q, k, v) = (randn(1, 4, 6, 8), randn(1, 2, 9, 8), randn(1, 2, 9, 5));
        var offsets = new AttentionOptions { QueryOffsets = tensor(new[] { 0L, 6 }), KeyOffsets = tensor(new[] { 0L, 9 }) };
        Refused("KeyLengths", () => Attention.Compute(q, k, v, offsets with { KeyLengths = tensor(new[] { 3L }) }));
        Refused("QueryLengths", () => Attention.Compute(q, k, v, offsets with { QueryLengths = tensor(new[] { 3L }) }));
    }

    [Fact]
    public void Statistics_that_are_not_defined_or_do_not_fit()
    {
        void Asked(string words, AttentionStatisticsRequest request, AttentionOptions? options = null)
        {
            var hooks = new AttentionHooks();
            using var installed = hooks.Install(new Asking(request));
            Refused(words, () => Attention.Compute(_q, _k, _v, options, new(0, AttentionKind.Self, "site"), hooks));
        }

        Asked("Normalizer.Sigmoid", new() { Entropy = true }, new() { Normalizer = Normalizer.Sigmoid });
        Asked("0 to 64", new() { TopCount = 65 });
        Asked("key set", new() { KeySet = ones(10, ScalarType.Bool) });
        Asked("key set", new() { KeySet = ones(9) });
        Asked("key set", new() { KeySet = ones(3, 9, ScalarType.Bool) });
    }

    [Fact]
    public void Zero_lengths_are_calls_like_any_other()
    {
        foreach (var type in new[] { float32, float64 })
        {
            foreach (var causal in Enum.GetValues<Causality>())
            {
                var options = new AttentionOptions { Causal = causal };
                Assert.Equal([0, 4, 6, 5], Attention.Compute(randn(0, 4, 6, 8, type), randn(0, 2, 9, 8, type), randn(0, 2, 9, 5, type), options).shape);
                Assert.Equal([2, 4, 0, 5], Attention.Compute(randn(2, 4, 0, 8, type), randn(2, 2, 9, 8, type), randn(2, 2, 9, 5, type), options).shape);
                Assert.Equal([2, 4, 6, 0], Attention.Compute(randn(2, 4, 6, 8, type), randn(2, 2, 9, 8, type), randn(2, 2, 9, 0, type), options).shape);
                Assert.Equal([2, 0, 6, 5], Attention.Compute(randn(2, 0, 6, 8, type), randn(2, 2, 9, 8, type), randn(2, 2, 9, 5, type), options).shape);

                // Nothing to attend to gives zeros; no width makes all scores equal.
                Assertions.Close(zeros(2, 4, 6, 5), Attention.Compute(randn(2, 4, 6, 8, type), randn(2, 2, 0, 8, type), randn(2, 2, 0, 5, type), options), 0);
            }

            var value = randn(2, 2, 9, 5, type);
            var mean = value.repeat_interleave(2, dim: 1).mean([2L], keepdim: true).expand(2, 4, 6, 5);
            Assertions.Close(mean, Attention.Compute(randn(2, 4, 6, 0, type), randn(2, 2, 9, 0, type), value), 1e-6);
        }
    }

    [Fact]
    public void Not_a_number_stays_in_the_rows_that_read_it()
    {
        using var still = no_grad();
        foreach (var type in new[] { float32, float64 })
        {
            var (q, k, v) = (randn(1, 2, 12, 8, type), randn(1, 2, 12, 8, type), randn(1, 2, 12, 8, type));
            var clean = Attention.Compute(q, k, v, AttentionOptions.CausalSelf);
            foreach (var bad in new[] { double.NaN, double.PositiveInfinity })
            {
                foreach (var which in new[] { 1, 2 })
                {
                    var (dirtyKey, dirtyValue) = (k.clone(), v.clone());
                    (which == 1 ? dirtyKey : dirtyValue).narrow(2, 7, 1).fill_(bad);
                    var output = Attention.Compute(q, dirtyKey, dirtyValue, AttentionOptions.CausalSelf);

                    // Rows before the eighth never see it: masked means absent.
                    Assertions.Close(clean.narrow(2, 0, 7), output.narrow(2, 0, 7), 0);
                    Assert.True(output.narrow(2, 7, 5).isfinite().all().item<bool>() is false);
                }
            }

            var dirtyQuery = q.clone();
            dirtyQuery.narrow(2, 3, 1).fill_(double.NaN);
            var rows = Attention.Compute(dirtyQuery, k, v, AttentionOptions.CausalSelf);
            Assert.True(rows.narrow(2, 3, 1).isnan().all().item<bool>());
            Assertions.Close(clean.narrow(2, 4, 8), rows.narrow(2, 4, 8), 0);

            // A bias counts where its pair exists: at query 2 it does, at query 5 key 8 is in the future.
            var bias = zeros(12, 12, type);
            bias[2, 1] = double.NaN;
            bias[5, 8] = double.NaN;
            var biased = Attention.Compute(q, k, v, AttentionOptions.CausalSelf with { Biases = [new DenseBias(bias)] });
            Assert.True(biased.narrow(2, 2, 1).isnan().all().item<bool>());
            Assertions.Close(clean.narrow(2, 3, 9), biased.narrow(2, 3, 9), 1e-6);
        }
    }

    private static void Refused(string words, Func<Tensor> compute)
    {
        var message = Assert.ThrowsAny<ArgumentException>(compute).Message;
        Assert.Contains(words, message);
    }

    private void Wrong(string words, AttentionOptions options) => Refused(words, () => Attention.Compute(_q, _k, _v, options));

    private void Both(string first, string second, AttentionOptions options)
    {
        Wrong(first, options);
        Wrong(second, options);
    }

    private sealed class Asking(AttentionStatisticsRequest request) : AttentionHook
    {
        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Statistics;

        public override AttentionStatisticsRequest? StatisticsAt(AttentionSite site) => request;
    }
}
