using Heed.Models.Diffusion;
using Heed.Mixers;
using TorchSharp;
using TorchSharp.Modules;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Diffusion;

public sealed class AgentEditTests
{
    [Fact]
    public void Parameters_have_the_names_of_stable_diffusion()
    {
        using var block = new BasicTransformerBlock(8, 2, 4, 6);
        var names = block.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter.shape);
        Assert.Equal([8, 8], names["attn1.to_q.weight"]);
        Assert.Equal([8, 6], names["attn2.to_k.weight"]);
        Assert.Equal([8], names["attn1.to_out.0.bias"]);
        Assert.Equal([64, 8], names["ff.net.0.proj.weight"]);
        Assert.Equal([8, 32], names["ff.net.2.weight"]);
        Assert.Equal([8], names["norm3.weight"]);
        Assert.DoesNotContain("attn1.to_q.bias", names.Keys);
        Assert.Equal(20, names.Count);
    }

    [Fact]
    public void The_edit_follows_its_schedule_and_is_taken_back()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var block = new BasicTransformerBlock(8, 2, 4, 6);
        var (x, context) = (randn(2, 64, 8), randn(2, 3, 6));
        var plain = block.forward(x, context);
        using (var edit = AgentEdit.Apply(block, (8, 8)))
        {
            var early = block.forward(x, context);
            Assert.True(block.SelfAttention.UsedAgents);
            Assert.False(block.ContextAttention.UsedAgents);
            Assert.True((early - plain).abs().max().item<float>() > 1e-4);
            edit.Step = 20;
            block.forward(x, context);
            Assert.False(block.SelfAttention.UsedAgents);
            Assert.Throws<InvalidOperationException>(() => AgentEdit.Apply(block, (8, 8)));
            edit.Size = (16, 16);

            // Half of the resolution: not edited.
            Assert.True(block.forward(x, context).eq(plain).all().item<bool>());
            edit.Size = (8, 9);
            Assert.Contains("8 x 9", Assert.Throws<ArgumentException>(() => block.forward(x, context)).Message, StringComparison.Ordinal);
        }

        Assert.True(block.forward(x, context).eq(plain).all().item<bool>());
        AgentEdit.Apply(block, (8, 8));
        AgentEdit.Remove(block);
        Assert.True(block.forward(x, context).eq(plain).all().item<bool>());
    }

    [Fact]
    public void An_edited_block_is_what_its_parts_make()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var block = new BasicTransformerBlock(8, 2, 4);
        block.to(float64);
        var x = randn(1, 64, 8, dtype: float64);
        var options = new AgentEditOptions { MergeCrossAttention = true, MergeFeedForward = true };
        using var edit = AgentEdit.Apply(block, (8, 8), [(0, options)]);

        // An odd batch: destinations are the top left of each cell.
        using var merge = TokenMerge.Plan(x, 8, 8, 4, 4, 25, 60);
        var parts = block.named_children().ToDictionary(entry => entry.name, entry => entry.module);
        Tensor Norm(string name, Tensor tokens) => ((LayerNorm)parts[name]).forward(tokens);
        var y = x;
        foreach (var (norm, attention) in new[] { ("norm1", block.SelfAttention), ("norm2", block.ContextAttention) })
        {
            var tokens = Norm(norm, y);
            y = y + merge.Unmerge(attention.forward(merge.Merge(tokens), null, merge.MergeAgents(tokens)));
        }

        y = y + merge.Unmerge(((nn.Module<Tensor, Tensor>)parts["ff"]).forward(merge.Merge(Norm("norm3", y))));
        Assert.True((y - block.forward(x)).abs().max().item<double>() < 1e-12);
    }

    [Fact]
    public void Without_anything_merged_nothing_changes()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var block = new BasicTransformerBlock(8, 2, 4);
        var x = randn(2, 16, 8);
        var plain = block.forward(x);
        using var edit = AgentEdit.Apply(block, (4, 4), [(0, new() { Ratio = 0 })]);
        Assert.True(block.forward(x).eq(plain).all().item<bool>());
    }

    [Fact]
    public void Errors_say_what_was_expected()
    {
        static void Refused(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
        using var block = new BasicTransformerBlock(8, 2, 4, 6);
        using var other = nn.Linear(2, 2);
        Refused(nameof(BasicTransformerBlock), () => AgentEdit.Apply(other, (4, 4)));
        Refused("starts at step 0", () => AgentEdit.Apply(block, (4, 4), [(3, new())]));
        Refused("A ratio is from 0", () => AgentEdit.Apply(block, (4, 4), [(0, new() { Ratio = 1 })]));
        Refused("rows and columns", () => AgentEdit.Apply(block, (0, 4)));
        Refused(nameof(AgentReading.ValueShortcut), () => block.ContextAttention.forward(randn(1, 16, 8), randn(1, 3, 6), randn(1, 2, 8)));
    }
}
