using CsCheck;
using Heed.Heads;
using Heed.Masks;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Masks;

public sealed class InwardWindowTests
{
    [Fact]
    public void Bounds_are_those_of_the_papers_formula_and_every_query_sees_equally_many() => Gen.Select(Gen.Int[1, 40], Gen.Int[0, 25]).Sample((length, half) =>
    {
        for (var r = 0; r < length; r++)
        {
            var (first, last) = InwardWindow.Bounds(r, length, half);
            // The published formula, clipped to the grid.
            Assert.Equal(Math.Max(r - half - Math.Max(0, half + r - length + 1), 0), first);
            Assert.Equal(Math.Min(r + half + Math.Max(0, half - r), length - 1), last);
            Assert.Equal(Math.Min((2 * half) + 1, length), last - first + 1);
        }
    });

    [Fact]
    public void The_receptive_field_is_constant_and_a_cut_window_has_fewer_keys_at_borders()
    {
        // 480 x 832 pixels to train, 1088 x 1920 to sample, scaled down by four.
        var (frames, height, width, halfHeight, halfWidth) = (2, 17, 30, 4, 7);
        var (inward, cut) = (InwardWindow.Of(frames, height, width, halfHeight, halfWidth), InwardWindow.Cut(frames, height, width, halfHeight, halfWidth));
        var full = frames * 9 * 15;
        for (var query = 0; query < inward.Tokens; query++)
        {
            var (row, column) = (query / width % height, query % width);
            var isInside = row >= halfHeight && row < height - halfHeight && column >= halfWidth && column < width - halfWidth;
            var keys = Enumerable.Range(0, (int)inward.Tokens).Where(key => cut.Allows(0, 0, query, key)).ToList();
            Assert.Equal(full, Enumerable.Range(0, (int)inward.Tokens).Count(key => inward.Allows(query, key)));
            Assert.True(isInside ? keys.Count == full : keys.Count < full);
            Assert.All(keys, key => Assert.True(inward.Allows(query, key)));
        }
    }

    [Fact]
    public void Attention_is_neighborhood_attention_of_the_stated_window()
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn(2, 3 * 7 * 9, 4, 8), randn(2, 3 * 7 * 9, 2, 8), randn(2, 3 * 7 * 9, 2, 6));
        Tensor Grid(Tensor tensor) => tensor.reshape([2, 3, 7, 9, tensor.shape[2], tensor.shape[3]]);
        var expected = NeighborhoodAttention.Compute(Grid(query), Grid(key), Grid(value), [3, 5, 7], scale: 0.4).flatten(1, 3);
        Assertions.Close(expected, InwardWindowAttention.Compute(query, key, value, 3, 7, 9, 2, 3, 0.4), 0);
        // Wider than the grid: everything.
        var dense = Attention.Compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2);
        Assertions.Close(dense, InwardWindowAttention.Compute(query, key, value, 3, 7, 9, 100, 4), 1e-5);
        // Windows that touch no border are the same cut or not.
        var inside = InwardWindowAttention.Compute(query, key, value, 3, 7, 9, 2, 3, isCut: true).reshape([2, 3, 7, 9, 4, 6]);
        var inward = InwardWindowAttention.Compute(query, key, value, 3, 7, 9, 2, 3).reshape([2, 3, 7, 9, 4, 6]);
        Assertions.Close(inward.narrow(2, 2, 3).narrow(3, 3, 3), inside.narrow(2, 2, 3).narrow(3, 3, 3), 1e-5);
        Assert.False(inward.allclose(inside, 1e-3, 1e-3));
    }

    [Fact]
    public void The_temperature_grows_with_the_logarithm_of_the_tokens()
    {
        Assert.Equal(1 / Math.Sqrt(128), AttentionTemperature.LogScale(128, 1560, 1560), 12);
        Assert.Equal(Math.Sqrt(Math.Log(3120) / Math.Log(1560) / 128), AttentionTemperature.LogScale(128, 1560, 3120), 12);
        Assert.Throws<ArgumentOutOfRangeException>(() => AttentionTemperature.LogScale(128, 1, 10));
    }

    [Fact]
    public void Bad_input_is_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        void Says(string sentence, Action call) => Assert.Contains(sentence, Assert.Throws<ArgumentException>(call).Message, StringComparison.Ordinal);
        Says("positions 0 to 4, not 5", () => InwardWindow.Bounds(5, 5, 1));
        Says("a half of at least 0", () => InwardWindow.Of(1, 5, 5, -1, 1));
        var tokens = zeros(1, 24, 2, 8);
        Says("has 25 tokens", () => InwardWindowAttention.Compute(tokens, tokens, tokens, 1, 5, 5, 1, 1));
    }
}
