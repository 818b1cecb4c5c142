using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class TransNeXtTests
{
    private static readonly TransNeXtOptions Small = new()
    {
        ImageSize = 32, Classes = 5, Widths = [8, 16, 24], Heads = [2, 4, 6], Depths = [1, 1, 2], FeedForwardRatios = [2, 2, 2], Reductions = [4, 2, 1], SharedHeads = [1, 2, 2], RoutedHeads = [1, 1, 2],
    };

    public static TheoryData<string, double> Published => new()
    {
        { nameof(TransNeXt.Micro), 12.8 }, { nameof(TransNeXt.Tiny), 28.2 }, { nameof(TransNeXt.Small), 49.7 }, { nameof(TransNeXt.Base), 89.7 }, { nameof(TransNeXt.MoHSmall75), 50 },
        { nameof(TransNeXt.MoHSmall80), 50 }, { nameof(TransNeXt.MoHBase75), 90 }, { nameof(TransNeXt.MoHBase50), 90 },
    };

    // A stage's blocks are alike: models of one and of two blocks a stage tell what a block has.
    [Theory]
    [MemberData(nameof(Published))]
    public void Published_sizes_have_the_published_number_of_parameters(string name, double millions)
    {
        var options = (TransNeXtOptions)typeof(TransNeXt).GetProperty(name)!.GetValue(null)!;
        using var one = new TransNeXt(options with { Depths = [1, 1, 1, 1] });
        long Of(string prefix) => one.named_parameters().Where(entry => entry.name.StartsWith(prefix, StringComparison.Ordinal)).Sum(entry => entry.parameter.numel());
        var count = Of("") + Enumerable.Range(0, 4).Sum(stage => (options.Depths[stage] - 1) * Of($"block{stage + 1}."));
// Tables give one digit (12.8) or none (50), of some models rounded and of some cut.
        var digits = millions % 1 == 0 ? 0 : 1;
        var (exact, unit) = (count / 1e6, Math.Pow(10, -digits));
        Assert.Contains(Math.Round(millions / unit), new[] { Math.Round(exact / unit), Math.Floor(exact / unit) });
    }

    [Fact]
    public void Names_are_those_of_the_authors_and_tables_are_passed_over()
    {
        using var model = new TransNeXt(Small);
        var names = model.named_parameters().Select(entry => entry.name).ToHashSet();
        foreach (var name in new[]
        {
            "patch_embed1.proj.weight", "patch_embed2.norm.bias", "block1.0.attn.q.weight", "block1.0.attn.kv.bias", "block1.0.attn.sr.weight", "block1.0.attn.norm.weight", "block1.0.attn.relative_pos_bias_local",
            "block1.0.attn.learnable_tokens", "block1.0.attn.learnable_bias", "block1.0.attn.wg.weight", "block2.0.attn.wg_1.weight", "block3.1.attn.qkv.weight", "block3.1.attn.temperature",
            "block3.1.attn.query_embedding", "block3.0.attn.cpb_fc1.weight", "block3.0.attn.wg_0.weight", "block3.0.mlp.dwconv.dwconv.weight", "norm3.weight", "head.bias",
        })
        {
            Assert.Contains(name, names);
        }

        Assert.DoesNotContain("block1.0.attn.wg_1.weight", names);
        Assert.Null(model.NameOf("relative_pos_index1"));
        Assert.Equal("head.weight", model.NameOf("head.weight"));
    }

    [Fact]
    public void Saved_under_the_authors_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var folder = new TemporaryFolder();
        using var saved = new TransNeXt(Small);
        using var loaded = new TransNeXt(Small);
        saved.eval();
        loaded.eval();
        SafetensorsWriter.Write(folder.At("moh-vit.safetensors"), new Dictionary<string, Tensor>(saved.state_dict())
        {
            ["relative_pos_index1"] = zeros(4, 4, dtype: int64), ["relative_coords_table1"] = zeros(9, 2), ["block1.0.attn.padding_mask"] = zeros(1, dtype: @bool),
        });
        var images = randn(2, 3, 32, 32);
        Assert.False(saved.forward(images).allclose(loaded.forward(images)));
        loaded.LoadCheckpoint(folder.At("moh-vit.safetensors"));
        Assert.True(saved.forward(images).Equals(loaded.forward(images)));
    }

    [Fact]
    public void It_classifies_trains_every_parameter_and_shows_its_weights()
    {
        using var scope = NewDisposeScope();
        using var model = new TransNeXt(Small);
        using var recorder = MapRecorder.Install(model);
        var images = randn(2, 3, 32, 32);
        model.forward(images).square().sum().backward();
        Assert.Equal(4, recorder.Maps.Count);
        Assert.Equal([2, 6, 2, 2], recorder.Maps[^1].Values.shape);
        Assert.All(model.named_parameters(), entry => Assert.True(entry.parameter.grad is not null && entry.parameter.grad.isfinite().all().item<bool>(), entry.name));
        Assert.Equal([2, 24, 2, 2], model.Features(images).shape);
    }

    [Fact]
    public void Wrong_shapes_and_lists_are_refused()
    {
        Assert.Contains("entry per stage", Assert.Throws<ArgumentException>(() => new TransNeXt(Small with { Heads = [2, 4] })).Message, StringComparison.Ordinal);
        Assert.Contains("multiple of 16", Assert.Throws<ArgumentException>(() => new TransNeXt(Small with { ImageSize = 40 })).Message, StringComparison.Ordinal);
        Assert.Contains("smaller reduction", Assert.Throws<ArgumentException>(() => new TransNeXt(Small with { Reductions = [16, 2, 1] })).Message, StringComparison.Ordinal);
        Assert.Contains("more than the 2", Assert.Throws<ArgumentException>(() => new TransNeXt(Small with { SharedHeads = [2, 2, 2] })).Message, StringComparison.Ordinal);
        using var model = new TransNeXt(Small);
        Assert.Contains("resize them", Assert.Throws<ArgumentException>(() => model.forward(zeros(1, 3, 64, 64))).Message, StringComparison.Ordinal);
    }
}
