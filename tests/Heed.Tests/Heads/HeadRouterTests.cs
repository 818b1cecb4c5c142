using Heed.Heads;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class HeadRouterTests
{
    [Fact]
    public void A_router_that_prefers_nothing_and_chooses_all_gives_every_head_the_weight_one()
    {
        using var scope = NewDisposeScope();
        using var router = new HeadRouter(8, 6, 2, 4);
        Zero(router);
        var routing = router.Route(randn(2, 5, 8), balance: true);
        Assertions.Close(ones(2, 5, 6), routing.Gates, 1e-6);
        Assert.Equal(4, routing.LoadBalanceLoss!.item<float>(), 1e-5);
        Assert.True(routing.Chosen.all().item<bool>());
    }

    [Fact]
    public void Of_equal_heads_the_first_are_chosen()
    {
        using var scope = NewDisposeScope();
        using var router = new HeadRouter(8, 6, 1, 2);
        Zero(router);
        var routing = router.Route(randn(1, 3, 8));
        Assert.Equal([true, true, true, false, false, false], Enumerable.Range(0, 6).Select(head => routing.Chosen[0, 1, head].item<bool>()));
    }

    [Theory]
    [InlineData(6, 2, 2)]
    [InlineData(6, 1, 3)]
    [InlineData(5, 0, 2)]
    [InlineData(4, 4, 0)]
    [InlineData(1, 1, 0)]
    public void Weights_sum_to_the_heads_used_when_the_parts_are_alike_and_are_zero_elsewhere(int heads, int shared, int routed)
    {
        using var scope = NewDisposeScope();
        using var router = new HeadRouter(12, heads, shared, routed);
        var routing = router.Route(randn(2, 7, 12), balance: true);
        Assert.Equal([2, 7, heads], routing.Gates.shape);
        Assert.Equal(0, (routing.Gates * routing.Chosen.logical_not().to(float32)).abs().sum().item<float>());
        Assert.Equal(2 * 7 * (shared + routed), routing.Chosen.sum().item<long>());
        Assert.Equal(routed == 0, routing.LoadBalanceLoss is null);

        // With shared s and routed r the parts weigh a0 s and a1 r with a0 + a1 = 2.
        var parts = (shared > 0 ? routing.Gates.narrow(2, 0, shared).sum(2) / shared : zeros(2, 7)) + (routed > 0 ? routing.Gates.narrow(2, shared, heads - shared).sum(2) / routed : zeros(2, 7));
        Assertions.Close(full(2, 7, shared > 0 && routed > 0 ? 2 : 1), parts, 1e-5);
    }

    [Fact]
    public void Padding_does_not_count_in_the_balance()
    {
        using var scope = NewDisposeScope();
        using var router = new HeadRouter(8, 6, 2, 2);
        var tokens = randn(2, 6, 8);
        var counted = tensor(new[] { true, true, true, true, false, false, true, true, true, true, true, true }).view(2, 6);
        var whole = router.Route(tokens, true, counted).LoadBalanceLoss!;
        tokens[0, 4].add_(3);
        tokens[0, 5].add_(-2);
        Assertions.Close(whole, router.Route(tokens, true, counted).LoadBalanceLoss!, 1e-6);
        var kept = cat([tokens[0].narrow(0, 0, 4), tokens[1]]).unsqueeze(0);
        Assertions.Close(router.Route(kept, true).LoadBalanceLoss!, whole, 1e-6);
        Assert.Contains("boolean [2, 6]", Assert.Throws<ArgumentException>(() => router.Route(tokens, true, ones(2, 5, dtype: @bool))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_attached_loss_reaches_the_router_whatever_the_task_asks()
    {
        using var scope = NewDisposeScope();
        using var router = new HeadRouter(8, 6, 2, 2);
        var tokens = randn(2, 6, 8);
        Tensor Gradient(double weight, bool added)
        {
            router.zero_grad();
            var routing = router.Route(tokens, true, null, weight);
            var task = (routing.Gates * 3).square().sum();
            (added ? task + (routing.LoadBalanceLoss! * 0.25) : task).backward();
            return router.ToRouted!.Weight.grad!.clone();
        }

        Assertions.Close(Gradient(0, added: true), Gradient(0.25, added: false), 1e-5);
    }

    [Theory]
    [InlineData(4, 3, 2, "more than the 4")]
    [InlineData(4, 2, 0, "all 4 heads must be shared")]
    [InlineData(4, -1, 2, "cannot be negative")]
    [InlineData(4, 2, -1, "cannot be negative")]
    [InlineData(0, 0, 0, "at least one head")]
    public void Counts_that_do_not_fit_are_refused(int heads, int shared, int routed, string reason)
    {
        Assert.Contains(reason, Assert.Throws<ArgumentException>(() => new HeadRouter(8, heads, shared, routed)).Message, StringComparison.Ordinal);
        Assert.Contains(reason, Assert.Throws<ArgumentException>(() => new QueryNormHeadRouter(heads, shared, routed)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_longest_queries_win_and_a_rotation_changes_nothing()
    {
        using var scope = NewDisposeScope();
        var router = QueryNormHeadRouter.OfFractions(8);
        Assert.Equal((4, 2), (router.SharedHeads, router.RoutedHeads));
        var query = randn(2, 9, 8, 16);
        var routing = router.Route(query);
        var lengths = query.norm(-1, false, 2).narrow(2, 4, 4);
        var (_, order) = lengths.topk(2, -1);
        Assert.Equal(2 * 9 * 2, routing.Chosen.narrow(2, 4, 4).gather(2, order).sum().item<long>());
        Assert.True(routing.Gates.Equals(routing.Chosen.to(float32)));
        var turned = new RotaryEmbedding(16).Tables(arange(9), ScalarType.Float32).Apply(query);
        Assert.True(router.Route(turned).Chosen.Equals(routing.Chosen));
    }

    [Theory]
    [InlineData(6, 2)]
    [InlineData(5, 1)]
    public void Training_quantises_with_a_straight_through_gradient(int heads, int routed)
    {
        // With one candidate there is no deviation to divide by.
        using var scope = NewDisposeScope();
        var router = new QueryNormHeadRouter(heads, heads == 6 ? 2 : 4, routed);
        var query = randn(1, 4, heads, 8).requires_grad_();
        var routing = router.Route(query, training: true);
        Assert.True(routing.Gates.detach().Equals(routing.Chosen.to(float32)));
        Assert.True(routing.NeedsAllHeads);
        routing.Gates.square().sum().backward();
        Assert.True(query.grad!.isfinite().all().item<bool>());
        Assert.Equal(heads == 6, query.grad!.abs().sum().item<float>() > 0);
        Assert.NotNull(routing.LoadBalanceLoss);
    }

    [Theory]
    [InlineData(-0.1, 0.5)]
    [InlineData(0.5, 1.1)]
    [InlineData(0.75, 0.5)]
    [InlineData(double.NaN, 0.5)]
    public void Shares_out_of_range_are_refused(double shared, double active) =>
        Assert.Contains("between 0 and 1", Assert.Throws<ArgumentException>(() => QueryNormHeadRouter.OfFractions(8, shared, active)).Message, StringComparison.Ordinal);

    [Fact]
    public void One_shared_head_beside_routed_ones_works_in_the_attention_of_DiT()
    {
        using var scope = NewDisposeScope();
        using var module = new MixtureOfHeadAttention(new() { Width = 12, Heads = 4, SharedHeads = 1, RoutedHeads = 2 });
        Assert.DoesNotContain("wg_1.weight", module.named_parameters().Select(parameter => parameter.name));
        Assert.Equal([2, 5, 12], module.forward(randn(2, 5, 12)).shape);
    }

    [Fact]
    public void Permuting_tokens_permutes_outputs()
    {
        using var scope = NewDisposeScope();
        using var module = new MixtureOfHeadAttention(new() { Width = 16, Heads = 4, SharedHeads = 1, RoutedHeads = 1 });
        module.eval();
        var (input, order) = (randn(1, 11, 16), randperm(11, dtype: int64));
        Assertions.Close(module.forward(input).index_select(1, order), module.forward(input.index_select(1, order)), 1e-5);
    }

    [Fact]
    public void Weights_are_shown_over_the_picture()
    {
        using var scope = NewDisposeScope();
        using var module = new MixtureOfHeadAttention(new() { Width = 8, Heads = 4, SharedHeads = 1, RoutedHeads = 1, Grid = (2, 3) });
        using var model = nn.Sequential(("mixer", module));
        using var recorder = MapRecorder.Install(model);
        var (_, routing) = module.ForwardWithRouting(randn(2, 7, 8));
        var maps = Assert.Single(recorder.Maps);
        Assert.Equal([2, 4, 2, 3], maps.Values.shape);
        Assert.Equal(routing.Gates[1, 4, 2].item<float>(), maps.Values[1, 2, 1, 0].item<float>());
    }

    [Fact]
    public void Many_steps_leave_no_tensor_behind()
    {
        using var module = new MixtureOfHeadAttention(new() { Width = 16, Heads = 4, SharedHeads = 1, RoutedHeads = 1, BalanceWeight = 0.1, Computation = RoutedComputation.ChosenHeads });
        using var optimizer = optim.SGD(module.parameters(), 1e-3);
        using var input = randn(2, 9, 16);
        long Count() => TorchSharp.DisposeScopeManager.Statistics.ThreadTotalLiveCount;
        void Step()
        {
            using var scope = NewDisposeScope();
            optimizer.zero_grad();
            module.forward(input).square().sum().backward();
            optimizer.step();
        }

        for (var i = 0; i < 5; i++)
        {
            Step();
        }

        var before = Count();
        for (var i = 0; i < 60; i++)
        {
            Step();
        }

        Assert.InRange(Count(), before - 20, before + 20);
    }

    private static void Zero(HeadRouter router)
    {
        using var quiet = no_grad();
        foreach (var parameter in router.parameters())
        {
            parameter.zero_();
        }
    }
}
