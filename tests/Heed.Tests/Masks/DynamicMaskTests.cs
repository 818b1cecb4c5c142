using CsCheck;
using Heed.Biases;
using Heed.Heads;
using Heed.Masks;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class DynamicMaskTests
{
    [Fact]
    public void The_running_top_w_is_the_top_w_of_every_query() => Gen.Select(
        Gen.Int[1, 70], Gen.Int[1, 90], Choices.OneOf(1, 3, 16, 200), Choices.OneOf(64, 5), Gen.Bool, Gen.Int).Sample(
        (queries, more, windowSize, block, padded, seed) =>
        {
            using var scope = NewDisposeScope();
            var keys = queries + more - 1;
            using var generator = new Generator((ulong)seed);
            // Few distinct values: ties everywhere.
            var importance = randint(0, 6, [2, 3, keys], generator: generator).to(ScalarType.Float32);
            var usable = padded ? rand([2, keys], generator: generator).gt(0.3) : null;
            var runs = DynamicMask.Running(importance, queries, windowSize, usable, block);
            var allowed = ones(queries, keys, ScalarType.Bool).tril(keys - queries).view(1, 1, queries, keys);
            allowed = usable is null ? allowed : allowed.logical_and(usable.view(2, 1, 1, keys));
            var expected = DynamicMask.TopK(importance.unsqueeze(2), allowed.expand(2, 1, queries, keys), windowSize);
            for (var b = 0; b < 2; b++)
            {
                for (var h = 0; h < 3; h++)
                {
                    for (var i = 0; i < queries; i++)
                    {
                        for (var j = 0; j < keys; j++)
                        {
                            Assert.Equal(expected[b, h, i, j].item<bool>(), runs.Allows(b, h, i, j));
                        }
                    }
                }
            }
        },
        iter: 30);

    [Fact]
    public void Equal_importance_keeps_the_latest_keys()
    {
        using var scope = NewDisposeScope();
        var runs = DynamicMask.Running(zeros(1, 1, 40), 40, 7);
        for (var i = 0; i < 40; i++)
        {
            for (var j = 0; j < 40; j++)
            {
                Assert.Equal(j <= i && j > i - 7, runs.Allows(0, 0, i, j));
            }
        }

        var mask = DynamicMask.TopK(zeros(1, 1, 1, 40), null, 7);
        Assert.Equal(Enumerable.Range(33, 7).Select(key => (long)key), mask.view(40).nonzero().view(-1).data<long>().ToArray());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Runs_compute_what_a_mask_of_all_pairs_computes(bool causal) => Gen.Select(Gen.Int[1, 80], Gen.Int[1, 60], Gen.Int[1, 40], Gen.Int[1, 1 << 20]).Sample(
        (queries, more, windowSize, seed) =>
        {
            using var scope = NewDisposeScope();
            using var generator = new Generator((ulong)seed);
            var keys = queries + more - 1;
            var (q, k, v) = (randn([2, 4, queries, 8], generator: generator), randn([2, 2, keys, 8], generator: generator), randn([2, 2, keys, 6], generator: generator));
            var importance = randn([2, 2, keys], generator: generator);
            var options = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default;
            var actual = DynamicMaskAttention.Compute(q, k, v, importance, windowSize, options);
            var allowed = ones(queries, keys, ScalarType.Bool).tril(causal ? keys - queries : keys).expand(2, 4, queries, keys);
            var mask = DynamicMask.TopK(importance.repeat_interleave(2, 1).unsqueeze(2), allowed, windowSize);
            var (dq, dk, dv) = (q.to(float64), k.to(float64), v.to(float64));
            var plain = new AttentionOptions { Mask = mask, Biases = [new KeyBias(importance.to(float64).repeat_interleave(2, 1))] };
            Assertions.Close(Attention.Compute(dq, dk, dv, plain), actual, 1e-5);
        },
        iter: 30);

    [Fact]
    public void Keeping_everything_is_dense_attention_with_the_importance_as_bias()
    {
        using var scope = NewDisposeScope();
        var (q, k, v, importance) = (randn(1, 4, 50, 16), randn(1, 2, 50, 16), randn(1, 2, 50, 16), randn(1, 2, 50));
        var dense = Attention.Compute(q, k, v, AttentionOptions.CausalSelf with { Biases = [new KeyBias(importance.repeat_interleave(2, 1))] });
        Assertions.Close(dense, DynamicMaskAttention.Compute(q, k, v, importance, 50), 1e-6);
        Assertions.Close(dense, DynamicMaskAttention.Compute(q, k, v, importance, 49 + 1000), 1e-6);
    }

    [Fact]
    public void What_is_drawn_is_what_is_applied()
    {
        using var scope = NewDisposeScope();
        var (q, k, v, importance) = (randn(1, 2, 90, 8), randn(1, 1, 90, 8), randn(1, 1, 90, 8), randn(1, 1, 90));
        var call = new DynamicMaskSelector(9, _ => importance).Select(q, k, v, AttentionOptions.CausalSelf);
        var pairs = call.Pairs();
        var runs = call.Options.KeyRuns!;
        for (var i = 0; i < 90; i++)
        {
            Assert.Equal(Math.Min(i + 1, 9), pairs[0, 0, i].sum().item<long>());
            for (var j = 0; j < 90; j++)
            {
                Assert.Equal(pairs[0, 1, i, j].item<bool>(), runs.Allows(0, 0, i, j));
            }
        }

        var masked = Attention.Compute(q, k, v, new AttentionOptions { Mask = pairs, Biases = call.Options.Biases });
        Assertions.Close(masked, Attention.Compute(q, k, v, AttentionOptions.CausalSelf with { Selector = new DynamicMaskSelector(9, _ => importance) }), 1e-5);
    }

    [Fact]
    public void A_causal_layer_ignores_the_future()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(3);
        using var module = Module(ImportanceForm.Exponential, 6);
        var (q, k, v) = (randn(1, 4, 80, 8), randn(1, 2, 80, 8), randn(1, 2, 80, 8));
        var before = module.forward(q, k, v).clone();
        foreach (var tensor in new[] { q, k, v })
        {
            tensor.narrow(2, 50, 30).mul_(-3).add_(5);
        }

        // The kernels may sum a row in another order where later blocks are listed otherwise.
        Assertions.Close(before.narrow(1, 0, 50), module.forward(q, k, v).narrow(1, 0, 50), 1e-6);
    }

    [Theory]
    [InlineData(ImportanceForm.Linear)]
    [InlineData(ImportanceForm.Exponential)]
    public void Gradients_are_those_of_differences(ImportanceForm form)
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        using var module = Module(form, 4);
        module.to(float64);
        var (q, k, v) = (randn(1, 4, 12, 8, float64), randn(1, 2, 12, 8, float64), randn(1, 2, 12, 8, float64));
        var weights = randn(1, 12, 4, 8, float64);
        Tensor Loss() => (module.forward(q, k, v) * weights).sum();
        var inputs = new[] { q, k, v }.Concat(module.parameters()).ToList();
        foreach (var input in inputs)
        {
            input.requires_grad_(true);
        }

        Loss().backward();
        using var quiet = no_grad();
        foreach (var input in inputs)
        {
            var direction = randn(input.shape, float64);
            const double Step = 1e-6;
            input.add_(direction * Step);
            var up = Loss().item<double>();
            input.sub_(direction * (2 * Step));
            var down = Loss().item<double>();
            input.add_(direction * Step);
            var expected = (input.grad! * direction).sum().item<double>();
            Assert.Equal(expected, (up - down) / (2 * Step), 1e-6 * (1 + Math.Abs(expected)));
        }
    }

    [Fact]
    public void Fused_gradients_are_those_of_the_plain_path()
    {
        using var scope = NewDisposeScope();
        manual_seed(6);
        using var fused = Module(ImportanceForm.Linear, 20);
        using var plain = Module(ImportanceForm.Linear, 20);
        plain.load_state_dict(fused.state_dict());
        plain.to(float64);
        var inputs = new[] { randn(1, 4, 150, 8), randn(1, 2, 150, 8), randn(1, 2, 150, 8) };
        var weights = randn(1, 150, 4, 8);
        var wide = inputs.Select(input => input.to(float64).requires_grad_(true)).ToArray();
        foreach (var input in inputs)
        {
            input.requires_grad_(true);
        }

        (fused.forward(inputs[0], inputs[1], inputs[2]) * weights).sum().backward();
        (plain.forward(wide[0], wide[1], wide[2]) * weights).sum().backward();
        for (var i = 0; i < 3; i++)
        {
            Assertions.Close(wide[i].grad!, inputs[i].grad!, 2e-5, $"gradient {i}");
        }

        foreach (var (name, parameter) in plain.named_parameters())
        {
            // Sums over 150 tokens and 4 heads.
            Assertions.Close(parameter.grad!, fused.named_parameters().Single(entry => entry.name == name).parameter.grad!, 1e-4, name);
        }
    }

    [Fact]
    public void Windows_lengths_and_masks_narrow_the_choice_and_not_only_the_result()
    {
        using var scope = NewDisposeScope();
        var (q, k, v, importance) = (randn(2, 2, 40, 8), randn(2, 2, 40, 8), randn(2, 2, 40, 8), randn(2, 2, 40));
        foreach (var options in new[]
        {
            AttentionOptions.CausalSelf with { WindowBefore = 9 },
            AttentionOptions.CausalSelf with { KeyLengths = tensor(new long[] { 40, 31 }), QueryLengths = tensor(new long[] { 40, 31 }) },
            AttentionOptions.CausalSelf with { Mask = rand(2, 1, 1, 40).gt(0.4) },
            AttentionOptions.CausalSelf with { Mask = rand(1, 2, 40, 40).gt(0.4) },
        })
        {
            var possible = new AttentionSelectorOfNothing().Select(q, k, v, options).Pairs();
            var kept = new DynamicMaskSelector(5, _ => importance).Select(q, k, v, options).Pairs();
            Assert.Equal(possible.sum(-1).clamp(max: 5).data<long>().ToArray(), kept.sum(-1).data<long>().ToArray());
            Assert.False(kept.logical_and(possible.logical_not()).any().item<bool>());
        }
    }

    [Fact]
    public void A_short_padding_mask_counts_from_the_end()
    {
        using var scope = NewDisposeScope();
        var bias = arange(8, dtype: float32).view(1, 1, 1, 8);
        var mask = DynamicMask.TopK(bias, tensor(new[] { true, false }).view(1, 2), 3);
        Assert.Equal([4, 5, 6], mask.view(8).nonzero().view(-1).data<long>().ToArray());
    }

    [Fact]
    public void Smoothing_rounds_blocks_by_their_majority()
    {
        using var scope = NewDisposeScope();
        // Two of four are no majority; in the short last block two of three are.
        var mask = tensor(new[] { true, true, false, false, true, true, true, false, true, true, false });
        Assert.Equal([4, 5, 6, 7, 8, 9, 10], DynamicMask.Smooth(mask, 4).nonzero().view(-1).data<long>().ToArray());
        Assert.Equal(mask.data<bool>().ToArray(), DynamicMask.Smooth(mask, 1).data<bool>().ToArray());
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        using var module = Module(ImportanceForm.Linear, 4);
        var (q, k, v) = (randn(1, 4, 6, 8), randn(1, 2, 6, 8), randn(1, 2, 6, 8));
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("at least one key", () => DynamicMask.TopK(zeros(1, 1, 1, 4), null, 0));
        Refused("at least one key", () => _ = new DynamicMaskSelector(0, importance => importance));
        Refused("must be positive", () => _ = new DynamicMaskAttention(4, 2, 8, 0));
        Refused("do not divide", () => _ = new DynamicMaskAttention(4, 3, 8, 4));
        Refused("[B, 2, n, 8]", () => module.forward(q, k, randn(1, 4, 6, 8)));
        Refused("dt_proj is [2, 16]", () => DynamicMask.Importance(v, zeros(2, 8), null, zeros(2), ImportanceForm.Linear));
        Refused("does not broadcast", () => DynamicMask.TopK(zeros(1, 1, 1, 4), ones(1, 1, 3, 5, ScalarType.Bool), 2));
        Refused("is boolean", () => DynamicMask.Relu(zeros(1, 1, 1, 4), zeros(1, 4)));
        Refused("not a number", () => DynamicMask.TopK(full([1, 1, 1, 4], float.NaN), null, 2));
        Refused("not a number", () => DynamicMask.Running(full([1, 1, 4], float.NaN), 4, 2));
        Refused("not a number", () => DynamicMaskAttention.Compute(q, k, v, full([1, 2, 6], float.NaN), 2));
        Refused("1 to n queries", () => DynamicMask.Running(zeros(1, 1, 4), 5, 2));
        Refused("at least one key", () => DynamicMask.Smooth(ones(4, ScalarType.Bool), -1));
    }

    private static DynamicMaskAttention Module(ImportanceForm form, int windowSize)
    {
        var module = new DynamicMaskAttention(4, 2, 8, windowSize, form);
        using var still = no_grad();
        foreach (var parameter in module.parameters())
        {
            // Away from the small initial values, so that choices are no near-ties.
            parameter.normal_(0, 0.4);
        }

        return module;
    }

    private sealed class AttentionSelectorOfNothing : AttentionSelector
    {
        public override void Apply(AttentionCall call)
        {
        }
    }
}
