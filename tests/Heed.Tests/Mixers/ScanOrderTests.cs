using Heed.Mixers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class ScanOrderTests
{
    public static TheoryData<string> Patterns => new("raster", "cross2d", "bidi", "unidi", "continuous", "local2", "local3", "atrous");

    [Theory]
    [MemberData(nameof(Patterns))]
    public void Merging_is_the_transpose_of_gathering(string pattern)
    {
        using var scope = NewDisposeScope();
        foreach (var (height, width) in new[] { (1, 1), (3, 5), (4, 4), (5, 2) })
        {
            var order = ScanPattern.Parse(pattern).Order(height, width);
            var tokens = randn([2, 3, order.Tokens], dtype: float64).requires_grad_();
            var routes = randn([2, order.Count, 3, order.Length], dtype: float64);
            var product = (order.Gather(tokens) * routes).sum();
            var merged = order.ScatterAdd(routes);
            Assert.Equal(product.item<double>(), (tokens * merged).sum().item<double>(), 10);

            // And so the gradient of the gather.
            product.backward();
            Assert.True(tokens.grad!.allclose(merged));
        }
    }

    [Theory]
    [MemberData(nameof(Patterns))]
    public void Every_token_stands_in_every_route_once_or_in_one_of_them(string pattern)
    {
        using var scope = NewDisposeScope();
        var order = ScanPattern.Parse(pattern).Order(5, 6);
        var times = order.ScatterAdd(order.Gather(ones(1, 1, 30)));
        Assert.True(times.eq(pattern == "atrous" ? 1 : order.Count).all().item<bool>());
        Assert.Equal(pattern == "atrous" ? 9 : pattern == "local3" ? 36 : pattern == "local2" ? 36 : 30, order.Length);
    }

    [Fact]
    public void Restoring_puts_every_route_back_by_itself()
    {
        using var scope = NewDisposeScope();
        var tokens = randn(1, 2, 12);
        Assert.True(ScanOrder.Continuous(3, 4).Restore(ScanOrder.Continuous(3, 4).Gather(tokens)).eq(tokens.unsqueeze(1)).all().item<bool>());
    }

    [Fact]
    public void Serpentines_step_to_neighbours_and_come_in_pairs_of_opposites()
    {
        for (var height = 1; height < 6; height++)
        {
            for (var width = 1; width < 6; width++)
            {
                var order = ScanOrder.Continuous(height, width);
                Assert.True(order.IsContinuous);
                Assert.Equal(order.Routes[0].Order.ToArray().Reverse(), order.Routes[1].Order.ToArray());
                Assert.Equal(order.Routes[2].Order.ToArray().Reverse(), order.Routes[3].Order.ToArray());
                Assert.All(Enumerable.Range(0, 4), route => Assert.Equal(ScanDirection.Start, order.Directions(route)[0]));
            }
        }

        Assert.All(Enumerable.Range(2, 4), side => Assert.True(ScanOrder.Zigzag(side).IsContinuous));
    }

    [Fact]
    public void Windows_are_walked_by_columns_where_asked_and_flipped_with_their_padding()
    {
        Assert.Equal([0, 3, 1, 4, 6, -1, 7, -1, 2, 5, -1, -1, 8, -1, -1, -1], ScanOrder.Local(3, 3, 2, columnFirst: true).Routes[0].Order.ToArray());
        Assert.Equal([-1, -1, -1, 8, -1, -1, 7, 6, -1, 5, -1, 2, 4, 3, 1, 0], ScanOrder.Local(3, 3, 2, flip: true).Routes[0].Order.ToArray());
    }

    [Fact]
    public void Hilbert_ranks_are_those_of_the_authors_code()
    {
        // Printed by the authors' hilbert_path(3).
        long[][] expected =
        [
            [0, 1, 2, 7, 6, 3, 8, 5, 4], [0, 7, 8, 1, 6, 5, 2, 3, 4], [2, 3, 4, 1, 6, 5, 0, 7, 8], [2, 1, 0, 3, 6, 7, 4, 5, 8], [4, 5, 8, 3, 6, 7, 2, 1, 0], [4, 3, 2, 5, 6, 1, 8, 7, 0],
            [8, 7, 0, 5, 6, 1, 4, 3, 2], [8, 5, 4, 7, 6, 3, 0, 1, 2],
        ];
        Assert.Equal(expected, ScanOrder.HilbertRanks(3));
        // A weighted sum of what it prints for 6.
        Assert.Equal(577_948, ScanOrder.HilbertRanks(6).Select((ranks, row) => ranks.Select((rank, place) => (place + 1) * (row + 3) * rank).Sum()).Sum());
    }

    [Fact]
    public void A_hilbert_walk_steps_to_neighbours_and_the_reference_use_of_its_ranks_does_not()
    {
        Assert.True(ScanOrder.Hilbert(8).IsContinuous);
        Assert.False(ScanOrder.Hilbert(8, asReference: true).IsContinuous);
        Assert.Equal(ScanOrder.HilbertRanks(4)[3], ScanOrder.Hilbert(4, asReference: true).Routes[3].Order.ToArray());
    }

    [Fact]
    public void Layers_take_turns_with_the_eight_routes_of_a_square()
    {
        Assert.Equal(ScanOrder.Zigzag(4).Routes[3].Order.ToArray(), ScanPattern.Zigzag(11).Order(4, 4).Routes[0].Order.ToArray());
        Assert.Equal(ScanOrder.Hilbert(4).Routes[2].Order.ToArray(), ScanPattern.Parse("hilbert", 2).Order(4, 4).Routes[0].Order.ToArray());
    }

    [Fact]
    public void Wrong_orders_are_refused_with_a_sentence()
    {
        Says("at a step of 2 only, not 3", () => ScanOrder.Atrous(4, 4, 3));
        Says("at least 1 x 1 tokens, not 0 x 4", () => ScanOrder.Cross(0, 4));
        Says("side of at least 1, not 0", () => ScanOrder.Local(4, 4, 0));
        Says("goes over squares only, not over 3 x 4", () => ScanPattern.Zigzag(0).Order(3, 4));
        Says("There is no scan pattern 'spiral'", () => ScanPattern.Parse("spiral"));
        Says("There is no scan pattern 'local0'", () => ScanPattern.Parse("local0"));
        using var scope = NewDisposeScope();
        Says("takes tokens [batch, channels, tokens] of length 12, not [1, 2, 11]", () => ScanOrder.Raster(3, 4).Gather(zeros(1, 2, 11)));
        Says("takes routes [batch, 4, channels, places] of length 12", () => ScanOrder.Cross(3, 4).ScatterAdd(zeros(1, 3, 2, 12)));
        Assert.Contains("jumps", Assert.Throws<InvalidOperationException>(() => ScanOrder.Raster(2, 3).Directions(0)).Message, StringComparison.Ordinal);
    }

    private static void Says(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
}
