using Heed.Mixers;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Mixers;

public sealed class TokenMergeTests
{
    [Theory]
    [InlineData(4, 6, 2, 2, 7)]
    [InlineData(5, 7, 3, 2, 11)]
    [InlineData(3, 3, 1, 1, 4)]
    [InlineData(4, 4, 4, 4, 100)]
    public void Every_token_gets_the_mean_of_its_group_back(int height, int width, int strideX, int strideY, int merged)
    {
        using var scope = NewDisposeScope();
        var tokens = height * width;
        var x = randn(2, tokens, 5, dtype: float64);
        using var generator = new Generator(3);
        var choices = TokenMerge.DrawChoices(height, width, strideX, strideY, generator);
        using var merge = TokenMerge.Plan(x, height, width, strideX, strideY, merged, choices: choices);
        var sources = tokens - (height / strideY * (width / strideX));
        Assert.Equal(tokens - Math.Min(merged, sources), merge.MergedTokens);

        // What is merged and unmerged is a projection: doing it again changes nothing, and the sum over tokens stays.
        var once = merge.Unmerge(merge.Merge(x));
        Assertions.Close(once, merge.Unmerge(merge.Merge(once)), 1e-12);
        Assertions.Close(x.sum(1), once.sum(1), 1e-12);
    }

    [Fact]
    public void Nothing_to_merge_is_the_identity_without_agents()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 16, 3);
        using var merge = TokenMerge.Plan(x, 4, 4, 2, 2, 0, 12);
        Assertions.Close(x, merge.Merge(x), 0);
        Assertions.Close(x, merge.Unmerge(x), 0);
        Assert.Null(merge.MergeAgents(x));
    }

    [Fact]
    public void Agents_are_made_where_they_are_fewer_than_half()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 64, 3);
        using var few = TokenMerge.Plan(x, 8, 8, 4, 4, 25, 60);
        Assert.Equal(4, few.Agents);
        Assert.Equal([2, 4, 3], few.MergeAgents(x)!.shape);
        using var many = TokenMerge.Plan(x, 8, 8, 4, 4, 25, 40);
        Assert.Equal(0, many.Agents);
    }

    [Fact]
    public void Gradients_flow_through_merging_and_back()
    {
        using var scope = NewDisposeScope();
        var x = randn(1, 16, 3, dtype: float64).requires_grad_();
        using var merge = TokenMerge.Plan(x, 4, 4, 2, 2, 8);
        var weight = randn_like(x);
        var gradient = autograd.grad([(merge.Unmerge(merge.Merge(x)) * weight).sum()], [x])[0];

        // Averaging within groups is its own transpose.
        Assertions.Close(merge.Unmerge(merge.Merge(weight)), gradient, 1e-12);
    }

    [Fact]
    public void A_token_of_length_zero_is_similar_to_none()
    {
        using var scope = NewDisposeScope();
        var x = rand(1, 16, 3) + 0.1;
        x[0, 5] = 0;
        using var merge = TokenMerge.Plan(x, 4, 4, 2, 2, 11);
        Assert.True(merge.Merge(x).isfinite().all().item<bool>());

        // Eleven of twelve sources are merged; the zero token is the one that stays, and stands first.
        Assertions.Close(zeros(3), merge.Merge(x)[0, 0], 0);
    }

    [Fact]
    public void Errors_say_what_was_expected()
    {
        static void Refused(string part, Func<object?> action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        using var scope = NewDisposeScope();
        var x = randn(1, 16, 3);
        Refused("4 x 5 = 20", () => TokenMerge.Plan(x, 4, 5, 2, 2, 4));
        Refused("does not fit the grid", () => TokenMerge.Plan(x, 4, 4, 5, 2, 4));
        Refused("2 x 2 cells", () => TokenMerge.Plan(x, 4, 4, 2, 2, 4, choices: zeros(1, 2, dtype: int64)));
        Refused("from 0 to 3", () => TokenMerge.Plan(x, 4, 4, 2, 2, 4, choices: full(2, 2, 4, dtype: int64)));
        using var merge = TokenMerge.Plan(x, 4, 4, 2, 2, 4);
        Refused("12 tokens", () => merge.Unmerge(x));
        Refused("16 tokens", () => merge.Merge(randn(1, 12, 3)));
    }
}
