using CsCheck;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class TokenOrderTests
{
    [Fact]
    public void Restoring_what_was_applied_gives_the_tensor_back() => Gen.Select(Gen.Int[1, 40], Gen.Int[0, 9], Gen.Int[0, 2], Gen.Int).Sample((tokens, padding, axis, seed) =>
    {
        using var scope = NewDisposeScope();
        var order = Enumerable.Range(0, tokens).Select(token => (long)token).Concat(Enumerable.Repeat(-1L, padding)).ToArray();
        new Random(seed).Shuffle(order);
        var permutation = new TokenOrder(order, tokens);
        Assert.True(permutation.IsComplete && permutation.IsDistinct && permutation.HasPadding == padding > 0);
        var shape = new long[] { 2, 3, 4 };
        shape[axis] = tokens;
        var tensor = randn(shape);
        var applied = permutation.Apply(tensor, axis - 3);
        Assert.Equal(tokens + padding, applied.shape[axis]);
        Assert.True(permutation.Restore(applied, axis).equal(tensor).all().item<bool>());
        Assert.True(permutation.Inverse.Apply(applied, axis).equal(tensor).all().item<bool>());
        var places = permutation.Order.ToArray();
        for (var place = 0; place < places.Length; place++)
        {
            var expected = places[place] < 0 ? zeros_like(applied.select(axis, place)) : tensor.select(axis, places[place]);
            Assert.True(expected.equal(applied.select(axis, place)).all().item<bool>());
        }
    });

    [Fact]
    public void Restore_is_the_transpose_of_apply_even_where_tokens_repeat_or_are_left_out()
    {
        using var scope = NewDisposeScope();
        var order = new TokenOrder([3, -1, 0, 3, 2], 5);
        Assert.False(order.IsDistinct || order.IsComplete);
        var (left, right) = (randn([5, 2], dtype: float64), randn([5, 2], dtype: float64));
        // <A x, y> = <x, A^T y>
        Assert.Equal((order.Apply(left, 0) * right).sum().item<double>(), (left * order.Restore(right, 0)).sum().item<double>(), 12);
        Assert.Throws<InvalidOperationException>(() => order.Inverse);
        Assert.True(new TokenOrder([1], 3).Restore(ones(1), 0).equal(tensor(new float[] { 0, 1, 0 })).all().item<bool>());
    }

    [Fact]
    public void Gradients_go_back_through_both_directions()
    {
        using var scope = NewDisposeScope();
        var order = new TokenOrder([3, -1, 0, 3, 2], 4);
        var tensor = randn([4, 2], dtype: float64).requires_grad_();
        var weight = randn([5, 2], dtype: float64);
        (order.Apply(tensor, 0) * weight).sum().backward();
        Assert.True(order.Restore(weight, 0).equal(tensor.grad!).all().item<bool>());
        var places = randn([5, 2], dtype: float64).requires_grad_();
        (order.Restore(places, 0) * tensor.detach()).sum().backward();
        Assert.True(order.Apply(tensor.detach(), 0).equal(places.grad!).all().item<bool>());
    }

    [Fact]
    public void Orders_follow_one_another()
    {
        using var scope = NewDisposeScope();
        var (first, second) = (new TokenOrder([2, -1, 0, 1], 3), new TokenOrder([3, 0, -1, 1], 4));
        var tensor = randn(3, 2);
        Assert.True(second.Apply(first.Apply(tensor, 0), 0).equal(first.Then(second).Apply(tensor, 0)).all().item<bool>());
        Assert.Contains("cannot follow", Assert.Throws<ArgumentException>(() => second.Then(first)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Tiles_of_a_dilated_grid_are_what_views_and_permutations_make_of_it()
    {
        using var scope = NewDisposeScope();
        foreach (var isReversed in new[] { false, true })
        {
            // 5 x 7 in tiles of 2 x 3 with dilation 2 x 1: padded to 8 x 9, then [rest, tile, dilation] on each axis.
            var order = TokenOrder.Tiles([5, 7], [2, 3], [2, 1], isReversed);
            var numbers = arange(1, 36).view(5, 7);
            var padded = nn.functional.pad(numbers, [0, 2, 0, 3]).view(2, 2, 2, 3, 3, 1);
            var expected = (isReversed ? padded.permute(5, 2, 3, 0, 4, 1) : padded.permute(2, 5, 0, 3, 1, 4)).reshape(-1) - 1;
            Assert.Equal(expected.data<long>().ToArray(), order.Order.ToArray());
        }
    }

    [Fact]
    public void Bad_input_is_told_in_a_sentence()
    {
        Assert.Contains("names token 3", Assert.Throws<ArgumentException>(() => new TokenOrder([0, 3], 3)).Message, StringComparison.Ordinal);
        Assert.Contains("at least one token", Assert.Throws<ArgumentException>(() => new TokenOrder([], 3)).Message, StringComparison.Ordinal);
        Assert.Contains("order is one of 2 tokens", Assert.Throws<ArgumentException>(() => TokenOrder.Identity(2).Apply(zeros(3, 2), 0)).Message, StringComparison.Ordinal);
        Assert.Contains("one length of at least 1 per axis", Assert.Throws<ArgumentException>(() => TokenOrder.Tiles([4, 4], [2])).Message, StringComparison.Ordinal);
    }
}
