using Heed.Models.Texts;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Texts;

public sealed class TransformerXLTests
{
    private static readonly TransformerXLOptions Small = new()
    {
        Vocabulary = 11, Layers = 2, FeedForwardWidth = 12, Attention = new() { Width = 8, Heads = 2, Reach = 24, IsConvolutional = false },
    };

    [Fact]
    public void Without_convolutions_segments_with_a_long_memory_give_the_whole_text()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = Model(Small);
        using var memory = new SegmentMemory(24);
        var tokens = randint(0, 11, [3, 12], dtype: int64);
        var whole = model.forward(tokens);

        var parts = Enumerable.Range(0, 3).Select(part => model.forward(tokens.narrow(1, part * 4, 4).contiguous(), memory)).ToArray();

        Assert.True((whole - cat(parts, 1)).abs().max().item<double>() < 1e-12);
        Assert.Equal(12, memory.Count);
    }

    [Fact]
    public void A_memory_keeps_the_last_inputs_of_every_layer_without_gradient()
    {
        using var scope = NewDisposeScope();
        using var model = Model(Small);
        using var memory = new SegmentMemory(5);
        var tokens = randint(0, 11, [2, 4], dtype: int64);
        model.forward(tokens, memory).Dispose();
        Assert.Equal(4, memory.Count);
        model.forward(tokens, memory).sum().backward();

        Assert.Equal(5, memory.Count);
        Assert.Equal(2, memory.Layers.Count);
        Assert.All(memory.Layers, layer => Assert.Equal([2, 5, 8], layer.shape));
        Assert.All(memory.Layers, layer => Assert.False(layer.requires_grad));
        var embedded = model.get_parameter("src_embed.weight")!.index_select(0, tokens.view(-1)).view(2, 4, 8);
        Assert.True((memory.Layers[0].narrow(1, 1, 4) - embedded).abs().max().item<double>() == 0);
        memory.Clear();
        Assert.Equal(0, memory.Count);
    }

    [Fact]
    public void Segments_leave_nothing_behind()
    {
        using var model = new TransformerXL(Small with { HasSquaredRelu = true });
        using var memory = new SegmentMemory(6);
        var before = 0L;
        for (var step = 0; step < 30; step++)
        {
            using (NewDisposeScope())
            {
                model.forward(randint(0, 11, [2, 4], dtype: int64), memory).sum().backward();
            }

            model.zero_grad();
            before = step == 9 ? DisposeScopeManager.Statistics.ThreadTotalLiveCount : before;
        }

        Assert.Equal(before, DisposeScopeManager.Statistics.ThreadTotalLiveCount);
    }

    [Fact]
    public void What_does_not_fit_is_told()
    {
        Assert.Contains("at least 1 token", Assert.Throws<ArgumentOutOfRangeException>(() => new SegmentMemory(0)).Message);
        Assert.Throws<ArgumentOutOfRangeException>(() => new TransformerXL(Small with { Layers = 0 }));
        using var model = new TransformerXL(Small);
        Assert.Contains("1 to 24", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 25, dtype: int64))).Message);
        using var memory = new SegmentMemory(24);
        using var scope = NewDisposeScope();
        model.forward(zeros(1, 20, dtype: int64), memory).Dispose();
        Assert.Contains("reach 24", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 20, dtype: int64), memory)).Message);
        using var positioned = new TransformerXL(Small with { Positions = 6, Attention = Small.Attention with { IsRelative = false } });
        Assert.Contains("1 to 6", Assert.Throws<ArgumentException>(() => positioned.forward(zeros(1, 7, dtype: int64))).Message);
    }

    private static TransformerXL Model(TransformerXLOptions options)
    {
        var model = new TransformerXL(options);
        model.to(float64);
        using var quiet = no_grad();
        foreach (var parameter in model.parameters())
        {
            parameter.copy_(randn_like(parameter) * 0.5);
        }

        return model;
    }
}
