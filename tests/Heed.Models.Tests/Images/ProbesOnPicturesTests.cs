using Heed.Heads;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class ProbesOnPicturesTests
{
    [Fact]
    public void Sinks_gates_and_activations_of_a_vision_model_are_measured_as_of_any_other()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        manual_seed(1);
        using var model = new VisionTransformer(
            new() { ImageSize = 8, PatchSize = 2, Channels = 1, Classes = 3, Width = 16, Depth = 2, ClassToken = true },
            place => new MultiHeadAttention(
                new() { Width = place.Width, Heads = 2 }, place.Site, headOutput: new HeadGate(new() { Granularity = GateGranularity.Headwise }, bias: true)) { Hooks = place.Hooks });
        var biases = model.named_parameters().Where(entry => entry.name.EndsWith("gate.bias", StringComparison.Ordinal)).Select(entry => entry.parameter).ToList();
        Assert.Equal(2, biases.Count);
        var images = randn(3, 1, 8, 8);
        var before = model.forward(images);
        using var maps = new AttentionMapProbe();
        using var statistics = AttentionStatisticsProbe.OfEverything(topCount: 2);
        var gates = new GateProbe();
        using (model.Hooks.Install(maps))
        using (model.Hooks.Install(statistics))
        using (model.Hooks.Install(gates))
        {
            // A probe changes nothing but the order of a product.
            Assert.True((model.forward(images) - before).abs().max().item<float>() < 1e-5);
            Assert.Equal(["blocks.0.attn", "blocks.1.attn"], gates.Sites.Select(site => site.Name).Order(StringComparer.Ordinal));

            // A class token and 16 patches; no mask, so the first query is like any other.
            Assert.All(maps.Sites, site => Assert.Equal([3, 2, 17, 17], maps[site].shape));
            Assert.All(maps.Sites, site => Assert.InRange(AttentionSinks.FirstTokenShare(maps[site]).item<float>(), 0.03, 0.1));

            // Gates that are told to close do.
            Assert.All(gates.Sites, site => Assert.InRange(gates[site].MeanScore, 0.4, 0.6));
            biases.ForEach(bias => bias.fill_(-6));
            model.forward(images).Dispose();
            Assert.All(gates.Sites, site => Assert.InRange(gates[site].MeanScore, 0, 0.01));
            Assert.All(gates.Sites, site => Assert.Equal(1, gates[site].ShareBelowHalf));
        }

        var activations = MassiveActivations.Maximum(model.LayerTokens(images).transpose(0, 1));
        Assert.Equal([2], activations.shape);
        Assert.True(activations.gt(0).all().item<bool>());
    }
}
