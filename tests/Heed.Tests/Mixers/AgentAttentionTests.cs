using Heed.Mixers;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class AgentAttentionTests
{
    private static readonly AttentionSite s_site = new(2, AttentionKind.Self, "blocks.2.attn");

    [Theory]
    [InlineData(ScalarType.Float32, 1e-5)]
    [InlineData(ScalarType.Float64, 1e-12)]
    public void It_is_two_softmax_maps_one_after_the_other(ScalarType type, double tolerance)
    {
        using var scope = NewDisposeScope();
        var (q, a, k, v) = (randn(2, 3, 40, 8, dtype: type), randn(2, 3, 5, 8, dtype: type), randn(2, 3, 33, 8, dtype: type), randn(2, 3, 33, 6, dtype: type));
        var (b1, b2) = (randn(1, 3, 5, 33, dtype: type), randn(1, 3, 40, 5, dtype: type));
        var expected = matmul(softmax((matmul(q, a.transpose(-1, -2)) * 0.7) + b2, -1), matmul(softmax((matmul(a, k.transpose(-1, -2)) * 0.4) + b1, -1), v));
        Assertions.Close(expected, AgentAttention.Compute(q, a, k, v, b1, b2, 0.4, 0.7), tolerance);
    }

    [Fact]
    public void Its_map_has_rank_n_and_the_convolution_lifts_it()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var (q, k) = (randn(1, 1, 64, 8, dtype: float64), randn(1, 1, 64, 8, dtype: float64));
        var a = AgentAttention.Pool(q.squeeze(1), 8, 8, 3).unsqueeze(1);

        // With the identity as values, the output is the map itself.
        var map = AgentAttention.Compute(q, a, k, eye(64, dtype: float64).view(1, 1, 64, 64))[0, 0];
        Assert.Equal(9, linalg.matrix_rank(map).item<long>());
        Assertions.Close(ones(64, dtype: float64), map.sum(1), 1e-12);
        using var layer = new AgentAttention2d(new() { Width = 64, Heads = 1, Grid = (8, 8), Agents = 9 });
        using var bare = new AgentAttention2d(new() { Width = 64, Heads = 1, Grid = (8, 8), Agents = 9, Convolution = false });
        layer.to(float64);
        bare.to(float64);
        var x = randn(1, 64, 64, dtype: float64);
        long Rank(nn.Module<Tensor, Tensor> module) => linalg.matrix_rank(module.forward(x)[0] - module.get_parameter("proj.bias")!, 1e-9).item<long>();
        Assert.Equal(9, Rank(bare));
        Assert.True(Rank(layer) > 32);
    }

    [Fact]
    public void As_many_agents_as_tokens_cover_every_token_alone()
    {
        using var scope = NewDisposeScope();
        var tokens = randn(2, 35, 4);
        Assertions.Close(tokens.view(2, 5, 7, 4).mean([1L, 2L], keepdim: false), AgentAttention.Pool(tokens, 5, 7, 1).squeeze(1), 1e-6);
        var square = randn(2, 36, 4);
        Assertions.Close(square, AgentAttention.Pool(square, 6, 6, 6), 1e-7);
        var cells = nn.functional.adaptive_avg_pool2d(tokens.transpose(1, 2).reshape(2, 4, 5, 7), [3L, 3L]).flatten(2).transpose(1, 2);
        Assertions.Close(cells, AgentAttention.Pool(tokens, 5, 7, 3), 1e-6);
    }

    [Theory]
    [InlineData(false, 1)]
    [InlineData(true, 1)]
    [InlineData(false, 2)]
    public void Gradients_are_those_of_finite_differences(bool classToken, int reduction)
    {
        using var scope = NewDisposeScope();
        using var layer = new AgentAttention2d(new() { Width = 4, Heads = 2, Grid = (4, 6), Agents = 4, ClassToken = classToken, Reduction = reduction, SeparateQuery = reduction > 1, BiasGrid = 3 });
        layer.to(float64);
        var x = randn(2, classToken ? 25 : 24, 4, dtype: float64).requires_grad_();
        var weight = randn_like(x);
        Tensor Loss() => (layer.forward(x) * weight).sum();
        var leaves = layer.parameters().Select(parameter => (Tensor)parameter).Append(x).ToArray();
        var gradients = autograd.grad([Loss()], leaves);
        using var still = no_grad();
        for (var i = 0; i < leaves.Length; i++)
        {
            var direction = randn_like(leaves[i]);
            const double Step = 1e-5;
            leaves[i].add_(direction * Step);
            var up = Loss().item<double>();
            leaves[i].sub_(direction * (2 * Step));
            var down = Loss().item<double>();
            leaves[i].add_(direction * Step);
            var expected = (up - down) / (2 * Step);
            Assert.Equal(expected, (gradients[i] * direction).sum().item<double>(), 1e-6 * (1 + Math.Abs(expected)));
        }
    }

    [Fact]
    public void Probes_see_both_maps()
    {
        using var scope = NewDisposeScope();
        var hooks = new AttentionHooks();
        using var layer = new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 4 }) { Site = s_site, Hooks = hooks };
        using var probe = new Heed.Probes.AttentionMapProbe();
        using var installed = hooks.Install(probe);
        layer.forward(randn(1, 16, 8));
        Assert.Equal([1, 2, 4, 16], probe[AgentAttention.AggregateSite(s_site)].shape);
        Assert.Equal([1, 2, 16, 4], probe[AgentAttention.BroadcastSite(s_site)].shape);
        Assert.Equal("blocks.2.attn.aggregate", probe.Sites[0].Name);
    }

    [Fact]
    public void Stripes_are_layers_of_their_own()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var layer = new StripedAgentAttention(4, 2, (4, 6), (4, 3), 4);
        var input = randn(3, 1, 24, 4);
        var output = layer.forward(input).view(4, 6, 4);
        var other = input.clone();
        other.view(3, 1, 4, 6, 4).narrow(3, 3, 3).add_(1);
        var changed = layer.forward(other).view(4, 6, 4);
        Assertions.Close(output.narrow(1, 0, 3), changed.narrow(1, 0, 3), 1e-7);
        Assert.True((output - changed).narrow(1, 3, 3).abs().max().item<float>() > 1e-3);
    }

    [Fact]
    public void Errors_say_what_was_expected()
    {
        static void Refused(string part, Func<object?> action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("square number", () => new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 8 }));
        Refused("divides the width", () => new AgentAttention2d(new() { Width = 8, Heads = 3, Grid = (4, 4), Agents = 4 }));
        Refused("divides both sides", () => new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (5, 4), Agents = 4, Reduction = 2, SeparateQuery = true }));
        Refused("projection of their own", () => new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 4, Reduction = 2 }));
        Refused("side from 0", () => new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 4, BiasGrid = -1 }));
        Refused("Stripes divide", () => new StripedAgentAttention(8, 2, (4, 4), (4, 3), 4));
        using var layer = new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 4, ClassToken = true });
        Refused("4 x 4 + 1 = 17 tokens", () => layer.forward(randn(1, 16, 8)));
        using var striped = new StripedAgentAttention(8, 2, (4, 4), (4, 2), 4);
        Refused("queries, keys, values", () => striped.forward(randn(2, 1, 16, 8)));
        Refused("at least one agent", () => AgentAttention.Compute(randn(1, 1, 4, 2), randn(1, 1, 0, 2), randn(1, 1, 4, 2), randn(1, 1, 4, 2)));
        Refused("into 2 x 2 cells", () => AgentAttention.Pool(randn(1, 5, 2), 2, 2, 2));
        Refused("divides the width", () => new LinearAttention(8, 3));
    }

    [Fact]
    public void Linear_attention_is_a_weighted_mean()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (randn(1, 2, 9, 4, dtype: float64), randn(1, 2, 7, 4, dtype: float64), randn(1, 2, 7, 3, dtype: float64));
        var weights = matmul(nn.functional.elu(q, 1.0) + 1, (nn.functional.elu(k, 1.0) + 1).transpose(-1, -2));
        Assertions.Close(matmul(weights / weights.sum(-1, keepdim: true), v), LinearAttention.Compute(q, k, v), 1e-12);
    }

    [Fact]
    public void Training_steps_leave_nothing_behind()
    {
        using var layer = new AgentAttention2d(new() { Width = 8, Heads = 2, Grid = (4, 4), Agents = 4, ClassToken = true });
        using var x = randn(2, 17, 8);
        long Live(int steps)
        {
            for (var i = 0; i < steps; i++)
            {
                using var scope = NewDisposeScope();
                layer.forward(x).sum().backward();
                layer.zero_grad();
            }

            return DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        }

        var before = Live(5);
        Assert.Equal(before, Live(50));
    }
}
