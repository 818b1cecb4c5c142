using Heed.Heads;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class ReducedAttentionTests
{
    [Fact]
    public void Without_values_every_output_lies_between_the_inputs()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = new ReducedAttention(6, 1, QueryKeyMode.Collapsed, ValueOutputMode.None);
        module.to(float64);
        var x = randn(3, 9, 6, dtype: float64) * 3;

        var output = module.forward(x);

        Assert.True((output <= x.amax([1L], keepdim: true) + 1e-12).all().item<bool>());
        Assert.True((output >= x.amin([1L], keepdim: true) - 1e-12).all().item<bool>());

        // Layer after layer they contract towards each other.
        var spread = Spread(x);
        for (var layer = 0; layer < 4; layer++)
        {
            x = module.forward(x);
            Assert.True(Spread(x) <= spread + 1e-12);
            spread = Spread(x);
        }

        static double Spread(Tensor tokens) => (tokens.amax([1L]) - tokens.amin([1L])).max().item<double>();
    }

    [Fact]
    public void Shared_and_Cholesky_similarities_are_semidefinite_the_mirror_is_symmetric_and_separate_ones_are_neither()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        foreach (var mode in Enum.GetValues<QueryKeyMode>())
        {
            using var module = new ReducedAttention(8, mode is QueryKeyMode.Separate or QueryKeyMode.Shared ? 2 : 1, mode, ValueOutputMode.Separate);
            module.to(float64);
            foreach (var head in module.Similarity().unbind(0))
            {
                var symmetric = (head - head.t()).abs().max().item<double>() < 1e-12;
                var lowest = linalg.eigvalsh((head + head.t()) / 2).min().item<double>();

                Assert.Equal(mode is QueryKeyMode.Shared or QueryKeyMode.SymmetricMirror or QueryKeyMode.SymmetricCholesky, symmetric);
                Assert.Equal(mode is QueryKeyMode.Shared or QueryKeyMode.SymmetricCholesky, lowest > -1e-12);
            }
        }
    }

    [Fact]
    public void A_symmetric_similarity_does_not_make_the_map_symmetric()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var module = new ReducedAttention(8, 1, QueryKeyMode.Shared, ValueOutputMode.None);
        module.to(float64);
        using var probe = new Heed.Probes.AttentionMapProbe();
        module.Hooks = new();
        using var installed = module.Hooks.Install(probe);
        module.forward(randn(1, 5, 8, dtype: float64)).Dispose();
        var map = probe[probe.Sites[0]];

        Assert.True((map - map.transpose(-2, -1)).abs().max().item<double>() > 1e-3);
    }

    [Fact]
    public void Parameters_are_counted_as_the_paper_counts_them()
    {
        foreach (var mode in Enum.GetValues<QueryKeyMode>())
        {
            foreach (var output in Enum.GetValues<ValueOutputMode>())
            {
                using var module = new ReducedAttention(12, 1, mode, output);
                Assert.Equal(ReducedAttention.ParameterCount(12, mode, output), module.parameters().Sum(parameter => parameter.numel()));
            }
        }

        // Section 3: what is left of a layer with h = 4.
        static double Share(QueryKeyMode mode, ValueOutputMode output) => ReducedEncoder.MatrixParameterCount(new() { Width = 1000, Heads = 1, QueryKey = mode, ValueOutput = output, FeedForward = false })
            / (double)ReducedEncoder.MatrixParameterCount(new() { Width = 1000, Heads = 1 });
        Assert.Equal(0.333, Share(QueryKeyMode.Separate, ValueOutputMode.Separate), 0.001);
        Assert.Equal(0.250, Share(QueryKeyMode.Shared, ValueOutputMode.Separate), 0.001);
        Assert.Equal(0.083, Share(QueryKeyMode.Collapsed, ValueOutputMode.None), 0.001);
        using var encoder = new ReducedEncoder(new() { Width = 12, Heads = 2 });
        Assert.Equal(1836, encoder.parameters().Sum(parameter => parameter.numel()));
    }

    [Fact]
    public void An_encoder_is_its_equations_wherever_it_normalises()
    {
        foreach (var placement in Enum.GetValues<NormPlacement>())
        {
            foreach (var residual in new[] { true, false })
            {
                using var scope = NewDisposeScope();
                using var quiet = no_grad();
                using var encoder = new ReducedEncoder(new() { Width = 6, Heads = 2, FeedForwardRatio = 3, Norm = placement, Residual = residual, NormEpsilon = 1e-3 });
                encoder.to(float64);
                foreach (var parameter in encoder.parameters())
                {
                    parameter.copy_(randn_like(parameter));
                }

                Tensor P(string name) => encoder.get_parameter(name)!;
                Tensor Norm(Tensor x, int index) => ((x - x.mean([-1L], keepdim: true)) / (x.var(-1, false, true) + 1e-3).sqrt() * P($"norm{index}_gamma")) + P($"norm{index}_beta");
                Tensor Branch(Tensor x, int index, Func<Tensor, Tensor> map)
                {
                    var mixed = map(placement == NormPlacement.Pre ? Norm(x, index) : x);
                    mixed = residual ? x + mixed : mixed;
                    return placement == NormPlacement.Post ? Norm(mixed, index) : mixed;
                }

                var input = randn(2, 5, 6, dtype: float64);
                var expected = Branch(Branch(input, 1, encoder.Attention.forward), 2, x => nn.functional.gelu(x.matmul(P("w_1")) + P("b_1")).matmul(P("w_2")) + P("b_2"));

                Assertions.Close(expected, encoder.forward(input), 1e-11);
            }
        }
    }

    [Fact]
    public void A_stack_collapses_exactly_in_every_mode()
    {
        foreach (var (mode, output) in new[]
        {
            (QueryKeyMode.Separate, ValueOutputMode.Separate), (QueryKeyMode.SymmetricCholesky, ValueOutputMode.Collapsed), (QueryKeyMode.SymmetricMirror, ValueOutputMode.Separate),
            (QueryKeyMode.Shared, ValueOutputMode.None), (QueryKeyMode.Collapsed, ValueOutputMode.Collapsed),
        })
        {
            foreach (var causal in new[] { false, true })
            {
                using var scope = NewDisposeScope();
                using var quiet = no_grad();
                var layers = Enumerable.Range(0, 3).Select(_ => new ReducedAttention(7, 1, mode, output, causal)).ToList();
                layers.ForEach(layer => layer.to(float64));
                using var collapsed = AttentionReduction.CollapseStack(layers);
                var x = randn(2, 6, 7, dtype: float64);

                Assertions.Close(layers.Aggregate(x, (tokens, layer) => layer.forward(tokens)), collapsed.forward(x), 1e-12);
                Assert.Equal(4 * 49, collapsed.parameters().Sum(parameter => parameter.numel()));
                layers.ForEach(layer => layer.Dispose());
            }
        }
    }

    [Fact]
    public void What_cannot_be_collapsed_or_built_is_told()
    {
        using var two = new ReducedAttention(8, 2, QueryKeyMode.Separate, ValueOutputMode.Separate);
        using var one = new ReducedAttention(8, 1, QueryKeyMode.Separate, ValueOutputMode.Separate);
        using var wide = new ReducedAttention(9, 1, QueryKeyMode.Separate, ValueOutputMode.Separate);
        using var causal = new ReducedAttention(8, 1, QueryKeyMode.Separate, ValueOutputMode.Separate, causal: true);
        static string Attentions(params ReducedAttention[] layers) => Assert.Throws<ArgumentException>(() => AttentionReduction.CollapseStack(layers)).Message;
        Assert.Contains("at least one", Attentions());
        Assert.Contains("Layer 1 has 2 heads", Attentions(one, two));
        Assert.Contains("layer 1 has the width 9", Attentions(one, wide));
        Assert.Contains("one causality", Attentions(one, causal));
        static string Encoders(ReducedEncoderOptions options)
        {
            using var encoder = new ReducedEncoder(options);
            return Assert.Throws<ArgumentException>(() => AttentionReduction.CollapseStack([encoder])).Message;
        }

        var bare = new ReducedEncoderOptions { Width = 8, Heads = 1, Residual = false, Norm = NormPlacement.None, FeedForward = false };
        Assert.Contains("residual", Encoders(bare with { Residual = true }));
        Assert.Contains("norms", Encoders(bare with { Norm = NormPlacement.Pre }));
        Assert.Contains("perceptron", Encoders(bare with { FeedForward = true }));
        using (var encoder = new ReducedEncoder(bare))
        {
            AttentionReduction.CollapseStack([encoder]).Dispose();
        }

        Assert.Contains("QueryKey Collapsed", Assert.Throws<ArgumentException>(() => new ReducedAttention(8, 2, QueryKeyMode.Collapsed, ValueOutputMode.Separate)).Message);
        Assert.Contains("8 does not divide into 3", Assert.Throws<ArgumentException>(() => new ReducedAttention(8, 3, QueryKeyMode.Shared, ValueOutputMode.Separate)).Message);
        Assert.Contains("at least 1 time", Assert.Throws<ArgumentException>(() => new ReducedEncoder(new() { Width = 8, Heads = 1, FeedForwardRatio = 0 })).Message);
    }

    [Fact]
    public void Overdetermination_is_facts_over_parameters()
    {
        Assert.Equal(600_000 / 1e5, Overdetermination.Ratio(60_000, 10, 100_000));
        Assert.Throws<ArgumentOutOfRangeException>(() => Overdetermination.Ratio(-1, 10, 10));
        Assert.Throws<ArgumentOutOfRangeException>(() => Overdetermination.Ratio(1, 0, 10));
        Assert.Throws<ArgumentOutOfRangeException>(() => Overdetermination.Ratio(1, 10, 0));
    }
}
