using Heed.Heads;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Tests.Heads;

public sealed class PackedAttentionTests
{
    [Fact]
    public void Of_one_sequence_it_is_multi_head_attention_with_a_fused_projection()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        manual_seed(3);
        using var packed = new PackedAttention(12, 3);
        using var fused = new MultiHeadAttention(new() { Width = 12, Heads = 3 });
        foreach (var (mine, other) in new[] { ("in_proj_weight", "qkv.weight"), ("in_proj_bias", "qkv.bias"), ("out_proj.weight", "proj.weight"), ("out_proj.bias", "proj.bias") })
        {
            packed.get_parameter(mine)!.normal_();
            fused.get_parameter(other)!.copy_(packed.get_parameter(mine)!);
        }

        var x = randn(2, 7, 12);
        Assertions.Close(fused.forward(x), packed.forward(x, x, x), 1e-5);
    }

    [Fact]
    public void Padding_is_as_if_the_keys_were_not_there()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var attention = new PackedAttention(8, 2);
        var (query, key, value) = (randn(2, 3, 8), randn(2, 6, 8), randn(2, 6, 8));
        var padding = tensor(new[] { false, false, false, false, true, true }).unsqueeze(0).expand(2, -1);
        var expected = attention.forward(query, key.narrow(1, 0, 4), value.narrow(1, 0, 4));
        Assertions.Close(expected, attention.forward(query, key, value, padding), 1e-6);
        // Where nothing is there, the bias of the output is all that is left.
        var nothing = attention.forward(query, key, value, ones(2, 6, ScalarType.Bool));
        Assertions.Close(attention.get_parameter("out_proj.bias")!.expand(2, 3, 8), nothing, 0);
    }

    [Fact]
    public void What_does_not_fit_is_told()
    {
        using var scope = NewDisposeScope();
        void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<ArgumentException>(action).Message, StringComparison.Ordinal);
        Refused("divides the width", () => _ = new PackedAttention(8, 3));
        using var attention = new PackedAttention(8, 2);
        Refused("keys and values [batch, keys, 8]", () => attention.forward(zeros(1, 2, 8), zeros(1, 3, 8), zeros(1, 4, 8)));
        Refused("padding must be boolean [1, 3]", () => attention.forward(zeros(1, 2, 8), zeros(1, 3, 8), zeros(1, 3, 8), zeros(1, 2, ScalarType.Bool)));
    }
}
