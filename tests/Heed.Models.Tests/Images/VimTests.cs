using System.Runtime.CompilerServices;
using Heed.Mixers;
using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class VimTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    static VimTests() => RuntimeHelpers.RunModuleConstructor(typeof(Vim).Module.ModuleHandle);

    public void Dispose() => _folder.Dispose();

    // README of hustvl/Vim: Vim-tiny 7M, Vim-small 26M, Vim-base 98M.
    [Theory]
    [InlineData(192, 7)]
    [InlineData(384, 26)]
    [InlineData(768, 98)]
    public void Published_sizes_have_the_millions_of_parameters_of_the_authors_table(int width, int millions)
    {
        set_default_device(META);
        try
        {
            using var model = width switch { 192 => Vim.Tiny(), 384 => Vim.Small(), _ => Vim.Base() };
            Assert.Equal(millions, Math.Round(model.parameters().Sum(parameter => parameter.numel()) / 1e6));
        }
        finally
        {
            set_default_device(CPU);
        }
    }

    [Fact]
    public void Saved_under_the_authors_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var first = new Vim(Small);
        using var second = new Vim(Small);
        SafetensorsWriter.Write(_folder.At("vim.safetensors"), first.state_dict());
        Assert.Contains("layers.1.mixer.conv1d_b.weight", first.state_dict().Keys);
        var images = randn(2, 1, 12, 12);
        Assert.False(first.forward(images).allclose(second.forward(images)));
        second.LoadCheckpoint(_folder.At("vim.safetensors"));
        Assert.True(first.forward(images).equal(second.forward(images)).all().item<bool>());
    }

    [Theory]
    [InlineData(ClassTokenPlace.Middle, 10)]
    [InlineData(ClassTokenPlace.First, 10)]
    [InlineData(ClassTokenPlace.BothEnds, 11)]
    [InlineData(ClassTokenPlace.None, 9)]
    public void Class_tokens_stand_where_they_should_and_features_leave_them_out(ClassTokenPlace place, int tokens)
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new Vim(Small with { ClassToken = place });
        Assert.Equal([1L, tokens, 8], model.state_dict()["pos_embed"].shape);
        var images = randn(2, 1, 12, 12);
        var features = model.Features(images);
        Assert.Equal([2L, 8, 3, 3], features.shape);
        Assert.Equal([2L, 5], model.forward(images).shape);
        using var recorder = MapRecorder.Install(model);
        model.forward(images);
        Assert.All(recorder.Maps, map => Assert.Equal([2L, 2, 3, 3], map.Values.shape));
        Assert.Equal(4, recorder.Maps.Count);
        if (place == ClassTokenPlace.None)
        {
            Assert.True(features.mean([2, 3]).allclose(model.Pooled(images), atol: 1e-6));
        }
    }

    [Fact]
    public void Without_class_token_the_head_reads_what_the_pool_says()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var images = randn(2, 1, 12, 12);
        using var model = new Vim(Small with { ClassToken = ClassTokenPlace.None, Pool = TokenPool.All });
        var tokens = model.Pooled(images);
        var logits = model.forward(images);
        Assert.Equal([2L, 9, 5], logits.shape);
        foreach (var (pool, expected) in new[] { (TokenPool.Max, logits.amax([1L])), (TokenPool.Mean, logits.mean([1L])), (TokenPool.Last, logits.select(1, 8)) })
        {
            using var other = new Vim(Small with { ClassToken = ClassTokenPlace.None, Pool = pool });
            other.load_state_dict(model.state_dict());
            Assert.True(expected.allclose(other.forward(images), atol: 1e-5), $"{pool}");
            Assert.Equal(pool == TokenPool.Max ? tokens.shape : [2L, 8], other.Pooled(images).shape);
        }
    }

    [Fact]
    public void Patches_may_overlap_and_norms_may_be_layer_norms()
    {
        using var scope = NewDisposeScope();
        using var model = new Vim(Small with { Stride = 2, RmsNorm = false, Positions = false, Backward = BackwardScan.SharedMaps, LayerScale = 0.1, DropPath = 0.5 });
        var state = model.state_dict();
        Assert.Contains("norm_f.bias", state.Keys);
        Assert.Contains("layers.0.mixer.gamma", state.Keys);
        Assert.DoesNotContain("pos_embed", state.Keys);
        Assert.DoesNotContain("layers.0.mixer.conv1d_b.weight", state.Keys);
        model.train();
        model.forward(randn(2, 1, 12, 12)).sum().backward();
        Assert.Equal(5, model.Options.Grid);
        Assert.All(model.named_parameters(), entry => Assert.True(entry.parameter.grad is not null && entry.parameter.grad.isfinite().all().item<bool>(), entry.name));
    }

    [Fact]
    public void Mistakes_are_refused()
    {
        Assert.Contains("must divide into patches of side 5", Assert.Throws<ArgumentException>(() => new Vim(Small with { PatchSize = 5 })).Message, StringComparison.Ordinal);
        Assert.Contains("leave one of the two out", Assert.Throws<ArgumentException>(() => new Vim(Small with { Pool = TokenPool.Max })).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => new Vim(Small with { Depth = 0 }));
        using var model = new Vim(Small);
        using var large = zeros(1, 1, 16, 16);
        Assert.Contains("12 x 12", Assert.Throws<ArgumentException>(() => model.forward(large)).Message, StringComparison.Ordinal);
    }

    private static VimOptions Small => new() { ImageSize = 12, PatchSize = 4, Channels = 1, Classes = 5, Width = 8, Depth = 2, States = 3 };
}
