using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class VisualMambaModelsTests
{
    public static TheoryData<string> Names => new("vmamba", "vmamba v1", "plainmamba", "localvim", "localvim class token", "efficientvmamba");

    [Theory]
    [MemberData(nameof(Names))]
    public void Checkpoints_of_the_authors_load(string name)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        manual_seed(1);
        using var saved = Make(name);
        using var loaded = Make(name);
        var path = folder.At("authors.safetensors");
        var tensors = saved.state_dict().Where(entry => !entry.Key.EndsWith("num_batches_tracked", StringComparison.Ordinal)).ToDictionary(entry => Authors(name, entry.Key), entry => entry.Value, StringComparer.Ordinal);
        if (name == "localvim")
        {
            tensors["rope.freqs_cos"] = zeros(16, 8);
            tensors["rope.freqs_sin"] = zeros(16, 8);
        }

        SafetensorsWriter.Write(path, tensors);
        loaded.LoadCheckpoint(path);
        saved.eval();
        loaded.eval();
        var images = randn(2, 3, 32, 32);
        var logits = saved.forward(images);
        Assert.Equal([2, 5], logits.shape);
        Assert.True(logits.allclose(loaded.forward(images)));
        Assert.False(logits[0].allclose(logits[1]));
        Assert.Equal(2, saved.Features(images).shape[0]);
        Assert.Equal(4, saved.Features(images).dim());
    }

    [Theory]
    [InlineData("vmamba", "patch_embed.0.weight|patch_embed.2.bias|patch_embed.5.weight|patch_embed.7.weight|layers.0.blocks.0.op.x_proj_weight|layers.0.downsample.1.weight|layers.0.downsample.3.weight|layers.1.blocks.1.mlp.fc2.bias|classifier.norm.weight|classifier.head.weight")]
    [InlineData("vmamba v1", "patch_embed.0.weight|patch_embed.2.bias|layers.0.blocks.0.op.out_norm.weight|layers.0.downsample.reduction.weight|layers.0.downsample.norm.weight|classifier.head.bias")]
    [InlineData("plainmamba", "patch_embed.stem.0.weight|patch_embed.stem.1.running_mean|patch_embed.convs.3.weight|patch_embed.projection.bias|pos_embed|layers.0.norm.weight|layers.0.dw.0.weight|layers.0.dw.1.weight|layers.1.mamba.direction_Bs|ln1.weight")]
    [InlineData("localvim", "patch_embed.proj.weight|pos_embed|layers.1.mixer.A_log_3|layers.1.mixer.conv1d_2.weight|layers.0.mixer.attn.global_reduce.weight|layers.0.norm.weight|norm_f.weight|head.weight")]
    [InlineData("efficientvmamba", "patch_embed.0.weight|layers.0.blocks.0.se.channel_select.weight|layers.0.blocks.0.conv_branch.1.running_var|layers.0.blocks.0.conv_branch.3.weight|layers.0.downsample.reduction.weight|layers.1.1.conv_pw.0.weight|layers.1.2.conv_pw2.1.weight|layers.1.1.se.conv_reduce.bias|layers.1.4.reduction.weight|classifier.head.weight")]
    public void Tensors_have_the_authors_names(string name, string expected)
    {
        using var model = Make(name);
        Assert.Empty(expected.Split('|').Except(model.state_dict().Keys));
    }

    [Fact]
    public void Older_names_are_known()
    {
        using var vmamba = Make("vmamba");
        Assert.Equal("patch_embed.0.weight", vmamba.NameOf("patch_embed.proj.weight"));
        Assert.Equal("layers.0.blocks.1.op.Ds", vmamba.NameOf("layers.0.blocks.1.self_attention.Ds"));
        Assert.Equal("layers.0.blocks.1.norm.bias", vmamba.NameOf("layers.0.blocks.1.ln_1.bias"));
        Assert.Equal("classifier.head.bias", vmamba.NameOf("head.bias"));
        Assert.Equal("layers.0.blocks.1.norm.bias", vmamba.NameOf("layers.0.blocks.1.norm.bias"));
        using var local = Make("localvim");
        Assert.Null(local.NameOf("rope.freqs_cos"));
    }

    [Fact]
    public void Rotary_positions_tell_places_apart()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var options = new VimOptions { ImageSize = 16, PatchSize = 4, Width = 8, Depth = 2, Classes = 5, States = 2, Positions = false, ClassToken = ClassTokenPlace.None, Rotary = true };
        using var rotary = LocalVim.Make(options, _ => ["h"]);
        manual_seed(1);
        using var plain = LocalVim.Make(options with { Rotary = false }, _ => ["h"]);
        var images = randn(1, 3, 16, 16);
        Assert.False(rotary.forward(images).allclose(plain.forward(images)));
        Assert.True(rotary.forward(images).isfinite().all().item<bool>());
    }

    [Fact]
    public void Wrong_shapes_are_refused_with_a_sentence()
    {
        Says("a depth and a width of at least 1 for each stage", () => new VMamba(new() { Depths = [1, 2], Widths = [8] }).Dispose());
        Says("an even side into an even width, not 3 and 8", () => new VMamba(new() { Depths = [1], Widths = [8], PatchSize = 3 }).Dispose());
        Says("takes a mixer of that width, not 4", () => new VSSBlock(new() { Width = 8, Mixer = new() { Width = 4 } }).Dispose());
        Says("an even patch", () => new PlainMamba(new() { Width = 8, Depth = 1, PatchSize = 7 }).Dispose());
        Says("a width of at least 8", () => new EfficientVMamba(new() { Width = 4, Depths = [1] }).Dispose());
        Says("Rotary positions", () => LocalVim.Make(new() { Width = 8, Rotary = true }, _ => ["h"]).Dispose());
        using var scope = NewDisposeScope();
        using var plain = Make("plainmamba");
        Says("reads pictures of 32 x 32 pixels, not 16 x 32", () => plain.forward(zeros(1, 3, 16, 32)));
        using var vmamba = Make("vmamba");
        Says("[batch, 3, height, width]", () => vmamba.forward(zeros(1, 1, 32, 32)));
    }

    private static ImageClassifier Make(string name) => name switch
    {
        "vmamba" => new VMamba(new() { Depths = [1, 2], Widths = [8, 16], Classes = 5 }),
        "vmamba v1" => new VMamba(new() { Depths = [1, 1], Widths = [8, 16], Classes = 5, TwoConvolutions = false, Downsampling = ScanDownsampling.PatchMerging, FeedForwardRatio = 0, Mixer = new() { Width = 1, States = 2 } }),
        "plainmamba" => new PlainMamba(new() { ImageSize = 32, PatchSize = 8, Width = 8, Depth = 2, StemConvolutions = 2, StemWidth = 4, ConvolvedBlocks = [0], States = 2, Classes = 5 }),
        "localvim" => LocalVim.Make(new() { ImageSize = 32, PatchSize = 8, Width = 8, Depth = 2, Classes = 5, States = 2, ClassToken = ClassTokenPlace.None, Rotary = true }, _ => LocalVim.PlainDirections),
        "localvim class token" => LocalVim.Make(new() { ImageSize = 32, PatchSize = 8, Width = 8, Depth = 2, Classes = 5, States = 2 }, LocalVim.Directions),
        _ => new EfficientVMamba(new() { Depths = [1, 2, 1], Width = 8, ScannedStages = 1, Classes = 5, States = 2 }),
    };

    private static string Authors(string model, string name) => model != "plainmamba" ? name
        : name.StartsWith("head.", StringComparison.Ordinal) ? "head.fc." + name["head.".Length..]
        : "backbone." + name;

    private static void Says(string part, Action action) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(action).Message, StringComparison.Ordinal);
}
