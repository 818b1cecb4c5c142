using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests;

public sealed class AttentionMergeTests
{
    [Fact]
    public void Parts_over_disjoint_keys_merge_into_attention_over_all()
    {
        using var scope = NewDisposeScope();
        var (query, key, value) = (randn([2, 3, 5, 4], dtype: float64), randn([2, 3, 12, 4], dtype: float64), randn([2, 3, 12, 6], dtype: float64));
        var parts = new[] { (0, 3), (3, 1), (4, 8) }.Select(part => Attention.ComputePart(query, key.narrow(2, part.Item1, part.Item2), value.narrow(2, part.Item1, part.Item2))).ToArray();
        var (output, logSumExp) = AttentionMerge.Merge([.. parts.Select(part => part.Output)], [.. parts.Select(part => part.LogSumExp)]);
        var whole = Attention.ComputePart(query, key, value);
        Assertions.Close(whole.Output, output, 1e-12);
        Assertions.Close(whole.LogSumExp, logSumExp, 1e-12);
    }

    [Fact]
    public void Any_difference_is_stable_and_one_part_is_itself()
    {
        using var scope = NewDisposeScope();
        var outputs = new[] { ones(2, 3), zeros(2, 3) };
        var (output, logSumExp) = AttentionMerge.Merge(outputs, [tensor(new float[] { 1000, -1000 }), tensor(new float[] { -1000, 1000 })]);
        Assertions.Close(tensor(new float[,] { { 1, 1, 1 }, { 0, 0, 0 } }), output, 0);
        Assertions.Close(tensor(new float[] { 1000, 1000 }), logSumExp, 0);
        Assertions.Close(outputs[0], AttentionMerge.Merge([outputs[0]], [zeros(2)]).Output, 0);
    }

    [Fact]
    public void Parts_that_do_not_fit_are_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        Assert.Contains("at least one part", Assert.Throws<ArgumentException>(() => AttentionMerge.Merge([], [])).Message, StringComparison.Ordinal);
        Assert.Contains("part 1 has", Assert.Throws<ArgumentException>(() => AttentionMerge.Merge([ones(2, 3), ones(3, 3)], [ones(2), ones(3)])).Message, StringComparison.Ordinal);
        Assert.Contains("without the last dimension", Assert.Throws<ArgumentException>(() => AttentionMerge.Merge([ones(2, 3)], [ones(2, 1)])).Message, StringComparison.Ordinal);
    }
}
