using Heed.Heads;
using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class DinoV2Tests : IDisposable
{
    private static readonly DinoV2Options s_options = new() { PatchSize = 4, PositionGrid = 3, Width = 8, Heads = 2, Depth = 3 };
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void With_factors_of_one_it_is_the_vision_transformer()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var plain = new VisionTransformer(
            new() { ImageSize = 12, PatchSize = 4, Width = 8, Depth = 3, ClassToken = true, Classes = 1 }, place => new MultiHeadAttention(new() { Width = place.Width, Heads = 2 }, place.Site) { Hooks = place.Hooks });
        using var model = new DinoV2(s_options);
        var known = plain.state_dict();
        foreach (var (name, parameter) in model.named_parameters())
        {
            if (name.EndsWith(".gamma", StringComparison.Ordinal))
            {
                parameter.fill_(1);
            }
            else
            {
                parameter.copy_(known[name]);
            }
        }

        var images = randn(2, 3, 12, 12);
        var layers = plain.LayerTokens(images);
        for (var block = 0; block < 3; block++)
        {
            var expected = layers.select(1, block).narrow(1, 1, 9).transpose(1, 2).reshape(2, 8, 3, 3);
            Assert.True(expected.allclose(model.BlockFeatures(images, block), 1e-4, 1e-5));
        }

        Assert.True(model.BlockFeatures(images, 2).equal(model.BlockFeatures(images)).all().item<bool>());
        Assert.True(plain.Features(images).allclose(model.forward(images).narrow(1, 1, 9).transpose(1, 2).reshape(2, 8, 3, 3), 1e-4, 1e-5));
    }

    [Fact]
    public void Queries_are_the_first_third_of_the_projection()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new DinoV2(s_options);
        var images = randn(2, 3, 12, 12);
        var patches = nn.functional.conv2d(images, model.get_parameter("patch_embed.proj.weight")!, model.get_parameter("patch_embed.proj.bias")!, strides: [4, 4]);
        var tokens = patches.flatten(2).transpose(1, 2) + model.get_parameter("pos_embed")!.narrow(1, 1, 9);
        var normal = nn.functional.layer_norm(tokens, [8], model.get_parameter("blocks.0.norm1.weight")!, model.get_parameter("blocks.0.norm1.bias")!, 1e-6);
        var all = nn.functional.linear(normal, model.get_parameter("blocks.0.attn.qkv.weight")!, model.get_parameter("blocks.0.attn.qkv.bias")!);
        Assert.True(all.narrow(2, 0, 8).transpose(1, 2).reshape(2, 8, 3, 3).allclose(model.QueryFeatures(images, 0), 1e-4, 1e-5));
        Assert.Empty(model.Hooks.Installed);
    }

    [Fact]
    public void Positions_are_resampled_for_pictures_of_another_size()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var model = new DinoV2(s_options);
        // Positions that are the same everywhere say nothing of the place: two equal patches stay equal wherever they stand.
        model.get_parameter("pos_embed")!.fill_(0.3);
        var features = model.BlockFeatures(ones(1, 3, 8, 20));
        Assert.Equal([1, 8, 2, 5], features.shape);
        Assert.True((features - features[.., .., ..1, ..1]).abs().max().item<float>() < 1e-5);
        Assert.Contains("multiples of 4", Assert.Throws<ArgumentException>(() => model.BlockFeatures(zeros(1, 3, 9, 8))).Message, StringComparison.Ordinal);
        Assert.Contains("blocks 0 to 2; 3 is asked for", Assert.Throws<ArgumentException>(() => model.BlockFeatures(zeros(1, 3, 8, 8), 3)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_checkpoint_in_the_authors_names_loads()
    {
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var stored = new DinoV2(s_options);
        using var model = new DinoV2(s_options);
        var tensors = stored.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value);
        Assert.Equal(4 + (3 * 14) + 2, tensors.Count);
        Assert.Superset(
            new[] { "cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.2.norm1.weight", "blocks.2.attn.qkv.bias", "blocks.2.attn.proj.weight", "blocks.2.ls1.gamma", "blocks.2.mlp.fc2.bias", "blocks.2.ls2.gamma", "norm.bias" }.ToHashSet(),
            tensors.Keys.ToHashSet());
        tensors["mask_token"] = zeros(1, 8);
        SafetensorsWriter.Write(_folder.At("dino.safetensors"), tensors);
        model.LoadCheckpoint(_folder.At("dino.safetensors"));
        var images = randn(1, 3, 12, 12);
        Assert.True(stored.forward(images).equal(model.forward(images)).all().item<bool>());

        tensors["register_tokens"] = zeros(1, 4, 8);
        SafetensorsWriter.Write(_folder.At("registers.safetensors"), tensors);
        Assert.Contains("has in excess 1 tensor (register_tokens)", Assert.Throws<InvalidDataException>(() => model.LoadCheckpoint(_folder.At("registers.safetensors"))).Message, StringComparison.Ordinal);
    }
}
