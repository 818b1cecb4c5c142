using Heed.Models.VideoTransformers;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VideoTransformers;

public sealed class WanTransformerTests
{
    internal static WanConfiguration Small { get; } = new()
    {
        Heads = 2, HeadWidth = 12, InputChannels = 4, OutputChannels = 4, TextWidth = 10, FrequencyWidth = 8, FeedForwardWidth = 32, Layers = 2,
    };

    [Fact]
    public void A_saved_model_loads_in_the_layout_of_diffusers_and_predicts_the_same()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var folder = new TemporaryFolder();
        using var model = new WanTransformer(Small, seed: 3);
        model.Save(folder.Path);
        using var loaded = WanTransformer.Load(folder.Path);
        Assert.Equal(Small, loaded.Configuration);
        var (latents, time, prompt) = Inputs();
        Assert.True(model.forward(latents, time, prompt).equal(loaded.forward(latents, time, prompt)).all().item<bool>());
        Assert.Contains("blocks.1.attn2.to_out.0.weight", model.named_parameters().Select(entry => entry.name));
        Assert.Contains("blocks.0.ffn.net.0.proj.bias", model.named_parameters().Select(entry => entry.name));
    }

    [Fact]
    public void Files_that_are_not_such_a_model_are_told_in_a_sentence()
    {
        using var folder = new TemporaryFolder();
        using var model = new WanTransformer(Small);
        void Says<T>(string sentence, string? configuration = null)
            where T : Exception
        {
            model.Save(folder.Path);
            if (configuration is not null)
            {
                File.WriteAllText(Path.Combine(folder.Path, "config.json"), configuration);
            }

            Assert.Contains(sentence, Assert.Throws<T>(() => WanTransformer.Load(folder.Path)).Message, StringComparison.Ordinal);
        }

        Says<InvalidDataException>("not valid JSON", "{");
        Says<InvalidDataException>("a WanTransformer3DModel was expected", "{\"_class_name\":\"Other\"}");
        Says<InvalidDataException>("models that take images are not supported", "{\"image_dim\":1280}");
        Says<InvalidDataException>("num_layers must be a whole number from 1", "{\"num_layers\":0}");
        Says<InvalidDataException>("patch_size must be three whole numbers", "{\"patch_size\":[1,2]}");
        Says<InvalidDataException>("lack the tensor 'blocks.2.", (Small with { Layers = 3 }).ToJson());
        Says<InvalidDataException>("have the tensor 'blocks.1.", (Small with { Layers = 1 }).ToJson());
        Says<InvalidDataException>("was expected", (Small with { FeedForwardWidth = 16 }).ToJson());
        model.Save(folder.Path);
        File.Delete(Path.Combine(folder.Path, "diffusion_pytorch_model.safetensors"));
        Assert.Contains("neither diffusion_pytorch_model.safetensors nor", Assert.Throws<FileNotFoundException>(() => WanTransformer.Load(folder.Path)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Probes_see_self_and_cross_attention_by_the_names_of_the_checkpoint()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new WanTransformer(Small);
        using var probe = new AttentionMapProbe();
        var (latents, time, prompt) = Inputs();
        using (model.Hooks.Install(probe))
        {
            model.forward(latents, time, prompt);
        }

        Assert.Equal(["blocks.0.attn1", "blocks.0.attn2", "blocks.1.attn1", "blocks.1.attn2"], probe.Sites.Select(site => site.Name));
        Assert.Equal([1, 2, 48, 5], probe[probe.Sites[1]].shape);
    }

    [Fact]
    public void Inputs_that_do_not_fit_are_told_in_a_sentence()
    {
        using var scope = NewDisposeScope();
        using var model = new WanTransformer(Small);
        var (latents, time, prompt) = Inputs();
        void Says(string sentence, Action call) => Assert.Contains(sentence, Assert.Throws<ArgumentException>(call).Message, StringComparison.Ordinal);
        Says("in patches of 1 x 2 x 2", () => model.forward(latents.narrow(3, 0, 7), time, prompt));
        Says("time steps are [1]", () => model.forward(latents, zeros(3), prompt));
        Says("an even head width from 6", () => new WanTransformer(Small with { HeadWidth = 7 }).Dispose());
    }

    internal static (Tensor Latents, Tensor Time, Tensor Prompt) Inputs()
    {
        using var generator = new Generator(5);
        return (randn([1, 4, 2, 8, 12], generator: generator), tensor(new float[] { 700 }), randn([1, 5, 10], generator: generator));
    }
}
