using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class FocalNetTests
{
    private static readonly FocalNetOptions Small = new() { Width = 8, Depths = [1, 2], Classes = 5, FeedForwardRatio = 2 };

    // Millions of parameters with 1000 classes, from the authors' table.
    public static TheoryData<string, FocalNetOptions, double, double> Published => new()
    {
        { "tiny srf", FocalNetOptions.TinySrf, 28.4, 0.05 },
        { "tiny lrf", FocalNetOptions.TinyLrf, 28.6, 0.05 },
        { "small srf", FocalNetOptions.SmallSrf, 49.9, 0.05 },
        { "small lrf", FocalNetOptions.SmallLrf, 50.3, 0.05 },
        { "base srf", FocalNetOptions.BaseSrf, 88.1, 0.05 },
        { "base lrf", FocalNetOptions.BaseLrf, 88.7, 0.05 },
        { "large fl3", FocalNetOptions.LargeFl3 with { Classes = 1000 }, 207, 0.5 },
        { "large fl4", FocalNetOptions.LargeFl4 with { Classes = 1000 }, 207, 0.5 },
        { "xlarge fl3", FocalNetOptions.XLargeFl3 with { Classes = 1000 }, 366, 0.5 },
        { "xlarge fl4", FocalNetOptions.XLargeFl4 with { Classes = 1000 }, 366, 0.5 },
        { "huge fl3", FocalNetOptions.HugeFl3 with { Classes = 1000 }, 687, 0.5 },
        { "huge fl4", FocalNetOptions.HugeFl4 with { Classes = 1000 }, 689, 0.5 },
        { "tiny iso", FocalNetOptions.TinyIso, 5.9, 0.05 },
        { "small iso", FocalNetOptions.SmallIso, 22.4, 0.05 },
        { "base iso", FocalNetOptions.BaseIso, 87.2, 0.05 },
    };

    public static TheoryData<FocalNetOptions> Variants =>
    [
        Small, Small with { Levels = [3], Windows = [5] }, Small with { ConvolutionalEmbedding = true, PostNorm = true, LayerScale = 1e-4, NormalizeModulator = true },
        Small with { PostNormInModulation = true, PatchNorm = false }, Small with { Levels = [1, 4], Windows = [7, 3] }, Small with { Gates = false }, Small with { GlobalLevel = false },
    ];

    [Theory]
    [MemberData(nameof(Published))]
    public void Published_sizes_have_the_published_parameters(string name, FocalNetOptions options, double millions, double half) =>
        Assert.True(Math.Abs((Count(options) / 1e6) - millions) <= half, $"{name}: {Count(options) / 1e6:0.000} million, not {millions}");

    // The formula by which the published sizes are counted without making them.
    [Theory]
    [MemberData(nameof(Variants))]
    public void The_formula_counts_what_a_model_has(FocalNetOptions options)
    {
        using var model = new FocalNet(options);
        Assert.Equal(model.parameters().Sum(parameter => parameter.numel()), Count(options));
    }

    [Theory]
    [MemberData(nameof(Variants))]
    public void A_checkpoint_in_the_authors_names_gives_the_same_model(FocalNetOptions options)
    {
        using var scope = NewDisposeScope();
        using var first = new FocalNet(options);
        using var second = new FocalNet(options);
        ModelChecks.SurvivesCheckpoint(first, second, randn(2, 3, 36, 28));
    }

    [Fact]
    public void Names_are_the_authors()
    {
        using var model = new FocalNet(Small with { LayerScale = 1e-4, PostNormInModulation = true });
        var names = model.state_dict().Keys;
        foreach (var name in new[]
        {
            "patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.0.gamma_1", "layers.1.blocks.1.gamma_2", "layers.0.blocks.0.modulation.f.weight", "layers.0.blocks.0.modulation.focal_layers.1.0.weight",
            "layers.0.blocks.0.modulation.h.bias", "layers.0.blocks.0.modulation.ln.weight", "layers.0.blocks.0.modulation.proj.weight", "layers.0.blocks.0.mlp.fc2.bias", "layers.0.downsample.proj.weight", "norm.weight", "head.bias",
        })
        {
            Assert.Contains(name, names);
        }
    }

    [Fact]
    public void Features_modulator_and_maps_have_the_grid_of_their_stage()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new FocalNet(Small);
        var images = randn(2, 3, 32, 40);
        Assert.Equal([2, 16, 4, 5], model.Features(images).shape);
        Assert.Equal([2, 16, 4, 5], model.LastModulator(images).shape);
        using var recorder = MapRecorder.Install(model);
        model.forward(images);
        Assert.Equal(6, recorder.Maps.Count);
        Assert.Equal("layers.1.blocks.1.modulation", recorder.Maps[^1].Site);
        Assert.Equal([2, 3, 4, 5], recorder.Maps[^1].Values.shape);
    }

    [Fact]
    public void The_last_modulator_is_what_the_forward_pass_multiplies_by()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new FocalNet(Small with { PostNorm = true });
        var images = randn(1, 3, 32, 32);
        using var recorder = MapRecorder.Install(model);
        model.forward(images);
        var recorded = recorder.Maps[^2].Values;
        var computed = linalg.norm(model.LastModulator(images), dims: [1], keepdim: true);
        Assert.True(recorded.allclose(computed, 1e-5, 1e-6));
    }

    [Fact]
    public void Gradients_in_float32_are_those_in_float64()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        using var model = new FocalNet(new() { Width = 48, Depths = [1], Channels = 1, Classes = 10, FeedForwardRatio = 2 });
        ModelChecks.GradientsInFloat32AreThoseInFloat64(model, randn(3, 1, 28, 28), arange(3));
    }

    [Fact]
    public void What_cannot_be_is_refused()
    {
        Assert.Contains("stages", Assert.Throws<ArgumentException>(() => new FocalNet(Small with { Depths = [] })).Message, StringComparison.Ordinal);
        Assert.Contains("one for all or one for each", Assert.Throws<ArgumentException>(() => new FocalNet(Small with { Levels = [1, 2, 3] })).Message, StringComparison.Ordinal);
        using var model = new FocalNet(Small);
        using var wrong = randn(1, 1, 32, 32);
        Assert.Contains("[batch, 3, height, width]", Assert.Throws<ArgumentException>(() => model.forward(wrong)).Message, StringComparison.Ordinal);
        using var block = new FocalNetBlock(8);
        using var tokens = randn(1, 12, 8);
        Assert.Contains("[batch, 20, 8]", Assert.Throws<ArgumentException>(() => block.forward(tokens, 4, 5)).Message, StringComparison.Ordinal);
    }

    private static long Count(FocalNetOptions options)
    {
        long Norm(long width) => 2 * width;
        long Linear(long from, long to) => (from * to) + to;
        var stages = options.Depths.Count;
        var patch = options.ConvolutionalEmbedding ? 7L : options.PatchSize;
        var total = Linear(patch * patch * options.Channels, options.Width) + (options.PatchNorm ? Norm(options.Width) : 0);
        for (var stage = 0; stage < stages; stage++)
        {
            var width = (long)options.Width << stage;
            var levels = options.Levels.Count == 1 ? options.Levels[0] : options.Levels[stage];
            var window = options.Windows.Count == 1 ? options.Windows[0] : options.Windows[stage];
            var gates = options.Gates ? levels + (options.GlobalLevel ? 1 : 0) : 0;
            var hidden = (long)(width * options.FeedForwardRatio);
            var filters = Enumerable.Range(0, levels).Sum(level => (long)(window + (2 * level)) * (window + (2 * level)));
            var block = Linear(width, (2 * width) + gates) + (width * filters) + (2 * Linear(width, width)) + (options.PostNormInModulation ? Norm(width) : 0)
                + (2 * Norm(width)) + Linear(width, hidden) + Linear(hidden, width) + (options.LayerScale is null ? 0 : 2 * width);
            total += options.Depths[stage] * block;
            var step = options.ConvolutionalEmbedding ? 9 : 4;
            total += stage == stages - 1 ? Norm(width) + Linear(width, options.Classes) : Linear(step * width, 2 * width) + Norm(2 * width);
        }

        return total;
    }
}
