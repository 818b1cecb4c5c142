using CsCheck;
using Heed.Biases;
using Heed.Heads;
using Heed.Kernels;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Biases;

public sealed class LowRankBiasesTests
{
    [Fact]
    public void Factors_multiply_out_to_the_formulas() => Gen.Select(Gen.Int[1, 12], Gen.Int[1, 12], Gen.Int[1, 3], Gen.Enum<Causality>(), Gen.Int[1, 1 << 20]).Sample(
        (queries, keys, axes, alignment, seed) =>
        {
            using var scope = NewDisposeScope();
            using var generator = new Generator((ulong)seed);
            var (x, y) = (randn([2, queries, axes], generator: generator).to(float64), randn([2, keys, axes], generator: generator).to(float64));
            var squared = (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1).unsqueeze(1);
            foreach (var form in Enum.GetValues<DistanceFactors>())
            {
                Assertions.Close(squared, LowRankBiases.Dense(LowRankBiases.SquaredDistance(x, y, 1, form)), 1e-12);
                Assertions.Close(squared * -0.7, LowRankBiases.Dense(LowRankBiases.SquaredDistance(x, y, -0.7, form)), 1e-12);
                var weight = randn([2, 3, queries], generator: generator).to(float64);
                Assertions.Close(squared.neg() * weight.unsqueeze(-1), LowRankBiases.Dense(LowRankBiases.SquaredDistance(x, y, form: form, weight: weight)), 1e-12);
            }

            Assert.Equal(axes + 2, LowRankBiases.SquaredDistance(x, y).QueryFactors.shape[^1]);
            Assert.Equal(3 * axes, LowRankBiases.SquaredDistance(x, y, form: DistanceFactors.PerAxis).QueryFactors.shape[^1]);
            var shift = alignment == Causality.AlignedToEnd ? keys - queries : 0;
            var signed = (arange(queries, dtype: float64).unsqueeze(1) + shift - arange(keys, dtype: float64)).unsqueeze(0).unsqueeze(0);
            var slopes = LowRankBiases.AlibiSlopes(3, type: float64);
            Assertions.Close(signed.neg() * slopes.view(1, 3, 1, 1), LowRankBiases.Dense(LowRankBiases.Alibi(slopes, queries, keys, alignment: alignment)), 1e-12);
            Assertions.Close(signed * slopes.view(1, 3, 1, 1), LowRankBiases.Dense(LowRankBiases.Alibi(slopes, queries, keys, AlibiSign.Reward, alignment)), 1e-12);
            Assertions.Close((signed * 0.3).cos(), LowRankBiases.Dense(LowRankBiases.Cosine(queries, keys, 0.3, alignment)).to(float64), 1e-6);
        },
        iter: 30);

    [Fact]
    public void Slopes_are_those_of_the_papers()
    {
        using var scope = NewDisposeScope();
        Assert.Equal([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625], LowRankBiases.AlibiSlopes(8, type: float64).data<double>().ToArray());
        // As published ALiBi models have it for 6 heads: those of 4, then every other one of 8.
        Assert.Equal([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125], LowRankBiases.AlibiSlopes(6, interpolate: true, float64).data<double>().ToArray());
        Assert.Equal(Math.Pow(2, -8.0 / 6), LowRankBiases.AlibiSlopes(6, type: float64)[0].item<double>(), 1e-15);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Factored_attention_is_attention_with_the_dense_bias(bool causal)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        // Long enough for several tiles; unequal lengths are aligned at the start.
        var (q, k, v) = (randn(2, 150, 3, 16), randn(2, 130, 3, 16), randn(2, 130, 3, 12));
        var (left, right) = (randn(2, 150, 1, 4), randn(1, 130, 3, 4));
        var mask = randn(1, 3, 150, 130);
        var actual = FactoredBiasAttention.Compute(q, k, v, left, right, mask, causal, 0.2);
        Tensor Heads(Tensor rows) => rows.to(float64).transpose(1, 2);
        var scores = (matmul(Heads(q), Heads(k).transpose(-1, -2)) * 0.2) + matmul(Heads(left), Heads(right).transpose(-1, -2)) + mask.to(float64);
        scores = causal ? scores.masked_fill(ones(150, 130, ScalarType.Bool).triu(1), double.NegativeInfinity) : scores;
        Assertions.Close(matmul(softmax(scores, -1), Heads(v)).transpose(1, 2), actual, 1e-5);
        var vector = mask.narrow(2, 0, 1);
        Assertions.Close(
            FactoredBiasAttention.Compute(q, k, v, left, right, vector.expand(1, 3, 150, 130), causal), FactoredBiasAttention.Compute(q, k, v, left, right, vector, causal), 1e-5);
    }

    [Fact]
    public void Factored_attention_has_the_gradients_of_the_dense_form()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        var inputs = new[] { randn(1, 20, 2, 8), randn(1, 24, 2, 8), randn(1, 24, 2, 8), randn(1, 20, 1, 3), randn(1, 24, 2, 3) };
        var weights = randn(1, 20, 2, 8);
        var wide = inputs.Select(input => input.to(float64).requires_grad_(true)).ToArray();
        foreach (var input in inputs)
        {
            input.requires_grad_(true);
        }

        (FactoredBiasAttention.Compute(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]) * weights).sum().backward();
        Tensor Heads(int i) => wide[i].transpose(1, 2);
        var scores = (matmul(Heads(0), Heads(1).transpose(-1, -2)) / Math.Sqrt(8)) + matmul(Heads(3), Heads(4).transpose(-1, -2));
        (matmul(softmax(scores, -1), Heads(2)).transpose(1, 2) * weights).sum().backward();
        for (var i = 0; i < inputs.Length; i++)
        {
            Assertions.Close(wide[i].grad!, inputs[i].grad!, 1e-5, $"gradient {i}");
        }
    }

    [Theory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.Float16)]
    public void Far_positions_keep_their_differences(ScalarType keyType)
    {
        // The factors stay in float32 beside half-precision keys; a float16 position beyond 2,048 would round to even numbers.
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(3);
        const int Keys = 40_000;
        var slopes = tensor(new float[] { 0.25f });
        var (q, k, v) = (randn(1, 1, 4, 8), randn(1, 1, Keys, 8).to(keyType), randn(1, 1, Keys, 8).to(keyType));
        var bias = LowRankBiases.Alibi(slopes, 4, Keys);
        Assert.Equal(Keys / 2, bias.KeyFactors.select(-1, 0).abs().max().item<float>());
        var actual = Attention.Compute(q, k, v, AttentionOptions.CausalSelf with { Biases = [bias] });
        var exact = Attention.Compute(q.to(float64), k.to(float64), v.to(float64), AttentionOptions.CausalSelf with { Biases = [new AlibiBias(slopes.to(float64))] });
        // The score of a near pair is what is left of two terms of slope * N / 2 = 5,000, each rounded to 2^-11: half a thousandth, twice.
        Assertions.Close(exact, actual, 1e-3);
    }

    [Fact]
    public void A_multiplied_bias_is_attention_over_repeated_channels()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        var (q, k, v) = (randn(2, 30, 2, 8), randn(2, 34, 2, 8), randn(2, 34, 2, 8));
        var (left, right) = (randn(1, 30, 1, 3), randn(1, 34, 1, 3));
        Tensor Heads(Tensor rows) => rows.to(float64).transpose(1, 2);
        var scores = matmul(Heads(q), Heads(k).transpose(-1, -2)) * matmul(Heads(left), Heads(right).transpose(-1, -2)) / Math.Sqrt(8);
        Assertions.Close(matmul(softmax(scores, -1), Heads(v)).transpose(1, 2), FactoredBiasAttention.Multiply(q, k, v, left, right), 1e-5);
        Assert.Equal(2, MultiplicativeBias.LargestWorthwhileRank(64, 16384));
        Assert.Equal(1, MultiplicativeBias.LargestWorthwhileRank(64, 4096));
    }

    [Fact]
    public void A_decomposition_keeps_what_it_says()
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        var exact = matmul(randn(3, 20, 5, float64), randn(3, 5, 26, float64));
        using (var decomposition = SvdBias.Decompose(exact))
        {
            Assert.Equal((3, 20, false), (decomposition.Heads, decomposition.FullRank, decomposition.RemovedRowMeans));
            Assert.True(decomposition.RankFor(1 - 1e-12) <= 5);
            foreach (var split in Enum.GetValues<FactorSplit>())
            {
                Assertions.Close(exact, LowRankBiases.Dense(decomposition.Truncate(5, split, float64)).squeeze(0), 1e-12);
            }

            for (var head = 0; head < 3; head++)
            {
                var cut = LowRankBiases.Dense(decomposition.Truncate(2, type: float64))[0, head];
                var kept = 1 - ((exact[head] - cut).square().sum() / exact[head].square().sum()).item<double>();
                Assert.Equal(kept, decomposition.Energy(head, 2), 1e-12);
                Assert.True(decomposition.Energy(head, decomposition.RankFor(head, 0.9)) >= 0.9);
                Assert.True(decomposition.RankFor(head, 0.9) == 1 || decomposition.Energy(head, decomposition.RankFor(head, 0.9) - 1) < 0.9);
            }
        }

        // A large constant is all energy and no attention.
        using var whole = SvdBias.Decompose(exact + 100);
        using var centred = SvdBias.Decompose(exact + 100, removeRowMeans: true);
        Assert.Equal(1, whole.RankFor(0.99));
        Assert.True(centred.RankFor(0.99) > 1);
        var (q, k, v) = (randn(1, 3, 20, 8, float64), randn(1, 3, 26, 8, float64), randn(1, 3, 26, 8, float64));
        Tensor Attend(AttentionBias bias) => Attention.Compute(q, k, v, new AttentionOptions { Biases = [bias] });
        Assertions.Close(Attend(new DenseBias(exact + 100)), Attend(centred.Truncate(6, type: float64)), 1e-10);
    }

    [Fact]
    public void The_point_module_is_attention_with_weighted_distances()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(6);
        using var module = new SpatialBiasAttention(24, 3);
        foreach (var parameter in module.parameters())
        {
            parameter.normal_(0, 0.3);
        }

        var (x, points) = (randn(2, 30, 24), randn(2, 30, 2) + 50);
        var weight = matmul(x.view(2, 30, 3, 8), module.get_parameter("pos_weight.weight")!.t()).squeeze(-1).permute(0, 2, 1).to(float64);
        var distances = (points.unsqueeze(2) - points.unsqueeze(1)).to(float64).square().sum(-1).unsqueeze(1);
        // Points far from the origin lose nothing: distances are taken around their middle.
        Assertions.Close(distances.neg() * weight.unsqueeze(-1), LowRankBiases.Dense(module.Bias(x, points)).to(float64), 1e-4);
        Assertions.Close(module.forward(x, points), module.forward(x, points - 50), 1e-4);
    }

    [Fact]
    public void A_shifted_window_keeps_its_output_with_enough_rank()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(7);
        using var module = new ShiftedWindowAttention(16, 2, 4);
        var x = randn(6, 16, 16);
        var mask = zeros(3, 16, 16).masked_fill(rand(3, 16, 16).gt(0.7), double.NegativeInfinity);
        mask.diagonal(0, 1, 2).zero_();
        foreach (var shift in new[] { null, mask })
        {
            module.UseRank(0);
            var dense = module.forward(x, shift);
            Assert.InRange(module.UseRank(15), 0.999999, 1);
            Assert.Equal(15, module.Factors!.QueryFactors.shape[^1]);
            Assertions.Close(dense, module.forward(x, shift), 1e-4);
        }

        Assert.Equal(
            ["cpb_mlp.0.bias", "cpb_mlp.0.weight", "cpb_mlp.2.weight", "logit_scale", "proj.bias", "proj.weight", "q_bias", "qkv.weight", "v_bias"],
            module.named_parameters().Select(entry => entry.name).Order(StringComparer.Ordinal));
        // Offsets along rows and columns count alike: a bias of a window turned over is the bias turned over.
        var bias = module.PositionBias();
        Assert.Equal([2, 16, 16], bias.shape);
        Assert.InRange(bias.min().item<float>(), 0, 16);
        Assert.Equal(bias[0, 0, 5].item<float>(), bias[0, 10, 15].item<float>());
    }

    [Fact]
    public void Factors_are_chosen_where_they_are_faster_or_the_bias_does_not_fit()
    {
        Assert.True(FactoredBiasCost.UseFactors(5, 4096, 4096, 64, 64));
        Assert.False(FactoredBiasCost.UseFactors(100, 4096, 4096, 64, 64));
        Assert.True(FactoredBiasCost.UseFactors(100, 1 << 17, 1 << 17, 64, 64));
        Assert.Equal(128, FactoredBiasCost.LargestLighterRank(16384));
    }

    [Fact]
    public void What_cannot_be_is_refused_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<Exception>(action).Message, StringComparison.Ordinal);
        var rows = randn(1, 4, 2, 8);
        Refused("at least one head", () => LowRankBiases.AlibiSlopes(0));
        Refused("one per head", () => LowRankBiases.Alibi(ones(2, 2), 4, 4));
        Refused("at least one query", () => LowRankBiases.Alibi(ones(2), 0, 4));
        Refused("one number of axes", () => LowRankBiases.SquaredDistance(ones(3, 2), ones(3, 3)));
        Refused("one rank of at least 1", () => FactoredBiasAttention.Compute(rows, rows, rows, ones(1, 4, 1, 2), ones(1, 4, 1, 3)));
        Refused("one rank of at least 1", () => FactoredBiasAttention.Compute(rows, rows, rows, ones(1, 4, 1, 0), ones(1, 4, 1, 0)));
        Refused("query factors [B, H, Nq, R]", () => FactoredBiasAttention.Compute(rows, rows, rows, ones(1, 5, 1, 2), ones(1, 4, 1, 2)));
        Refused("[batch, tokens, heads, width]", () => FactoredBiasAttention.Compute(randn(4, 8), rows, rows, rows, rows));
        Refused("finite numbers only", () => SvdBias.Decompose(full([4, 4], float.NegativeInfinity)));
        Refused("[H, Nq, Nk]", () => SvdBias.Decompose(ones(4)));
        using var decomposition = SvdBias.Decompose(ones(4, 4));
        Refused("from 1 to 4", () => decomposition.Truncate(5));
        Refused("above 0 and at most 1", () => decomposition.RankFor(1.5));
        Refused("does not divide", () => _ = new AlibiAttention(10, 3));
        using var points = new SpatialBiasAttention(8, 2);
        Refused("one point per token", () => points.forward(randn(1, 4, 8), randn(1, 5, 2)));
        Refused("[batch, tokens, 8]", () => points.forward(randn(1, 4, 9), randn(1, 4, 2)));
        Refused("are at least 1", () => _ = new NeuralBiasFactorizer(2, 2, 1, 0));
        using var factorizer = new NeuralBiasFactorizer(2, 2, 1, 4, 8);
        Refused("made without pair features", () => factorizer.PairBias(randn(3, 3, 2)));
        Refused("has 16 tokens", () => new ShiftedWindowAttention(16, 2, 4).forward(randn(1, 15, 16), null));
    }

    [Fact]
    public void Networks_learn_the_factors_of_a_bias()
    {
        using var scope = NewDisposeScope();
        manual_seed(8);
        var points = rand(40, 2);
        var target = LowRankBiases.Dense(LowRankBiases.SquaredDistance(points, points, 1));
        using var module = new NeuralBiasFactorizer(2, 2, 1, 6, 16);
        using var optimizer = optim.Adam(module.parameters(), 1e-2);
        var first = NeuralBiasFactorizer.Loss(module.forward(points, points), target).item<float>();
        for (var step = 0; step < 150; step++)
        {
            using var inner = NewDisposeScope();
            var loss = NeuralBiasFactorizer.Loss(module.forward(points, points), target);
            optimizer.zero_grad();
            loss.backward();
            optimizer.step();
        }

        // Without biases the networks give zero at the origin, so a tenth is what so short a training reaches.
        var last = NeuralBiasFactorizer.Loss(module.forward(points, points), target).item<float>();
        Assert.True(last < first / 10, $"{first} fell to {last}");
    }
}
