using Heed.Heads;
using Heed.Mixers;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class LayerStackClassifierTests
{
    private static readonly LayerStackHeadOptions Small = new() { Layers = 3, Features = 16, Classes = 5, Channels = 6 };

    public static TheoryData<LayerStackHeadOptions, long> Heads => new()
    {
        { Small with { Weighting = LayerWeighting.Identity }, 4 },
        { Small, 4 },
        { Small with { Layers = 4, Heads = 2 }, 4 },
        { Small with { Weighting = LayerWeighting.MultiHead, Heads = 2 }, 4 },
        { Small with { Weighting = LayerWeighting.GroupedQueryGaussian, QueryHeads = 4, KeyHeads = 2 }, 4 },
        { Small with { Weighting = LayerWeighting.GroupedQueryGaussian, AttentionWidth = 36, QueryHeads = 6, KeyHeads = 3 }, 6 },
    };

    [Theory]
    [MemberData(nameof(Heads))]
    public void A_head_gives_pictures_and_scores_and_learns_with_all_its_parts(LayerStackHeadOptions options, long side)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        using var head = new LayerStackHead(options);
        var stack = randn(2, options.Layers, 16, requires_grad: true);
        Assert.Equal([2, options.Layers, side, side], head.Picture(stack).shape);
        var scores = head.forward(stack);
        Assert.Equal([2, 5], scores.shape);
        nn.functional.cross_entropy(scores, arange(2)).backward();
        AssertReached(head.named_parameters());
        Assert.True(stack.grad!.abs().sum().item<float>() > 0);
    }

    [Fact]
    public void Without_a_weighting_the_head_is_two_convolutions_and_a_linear_map()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var head = new LayerStackHead(Small with { Weighting = LayerWeighting.Identity });
        var state = head.state_dict();
        Assert.Equal(["conv1.bias", "conv1.weight", "conv2.bias", "conv2.weight", "fc.bias", "fc.weight"], state.Keys.Order(StringComparer.Ordinal));
        var stack = randn(2, 3, 16);
        var maps = nn.functional.conv2d(stack.view(2, 3, 4, 4), state["conv1.weight"], state["conv1.bias"], padding: [1, 1]).relu();
        maps = nn.functional.conv2d(maps, state["conv2.weight"], state["conv2.bias"], padding: [1, 1]).relu();
        var expected = nn.functional.linear(maps.flatten(1), state["fc.weight"], state["fc.bias"]);
        Assert.True(head.forward(stack).allclose(expected, 1e-5, 1e-6));
    }

    [Fact]
    public void The_importance_of_layers_and_features_is_that_of_their_distances_from_the_mean()
    {
        using var scope = NewDisposeScope();
        using var head = new LayerStackHead(Small with { Features = 4 });
        var told = new List<Tensor>();
        head.OnWeights = weights => told.Add(weights.clone().DetachFromDisposeScope());

        // A feature 0, 0, 3 has mean 1 and variance 2, so its squared distances are 1/2, 1/2 and 2; those of a constant are 0. The spread c is 2 at first: w = exp(-y^2 / 4).
        head.forward(tensor(new float[] { 0, 5, 0, 1, 0, 5, 3, 1, 3, 5, 0, 1 }).view(1, 3, 4)).Dispose();
        using var importance = ImportanceFactor.From(told);
        Assert.Single(told).Dispose();
        var (near, far) = (Math.Exp(-1 / 8.0), Math.Exp(-1 / 2.0));
        var middle = (near - far) / (1 - far);
        double[] expected = [middle, 1, middle, 1, middle, 1, 0, 1, 0, 1, middle, 1];

        // The variance has 1e-5 added to it, which moves a distance by 1e-5 of itself.
        Assert.Equal(expected, importance.Map.to(float64).data<double>().ToArray(), (a, b) => Math.Abs(a - b) < 1e-5);
        var total = (4 * near) + (2 * far) + 6;
        double[] shares = [(near + near + 2) / total, (near + far + 2) / total, (far + near + 2) / total];
        Assert.Equal(shares, importance.LayerContribution.to(float64).data<double>().ToArray(), (a, b) => Math.Abs(a - (b / 100)) < 1e-5);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void The_classifier_reads_the_mean_tokens_of_all_layers(bool classToken)
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        using var model = new LayerStackClassifier(Encoder(classToken), Small);
        var images = randn(2, 1, 8, 8);
        var scores = model.forward(images);
        Assert.Equal([2, 5], scores.shape);
        Assert.Equal([2, 3, 4, 4], model.Features(images).shape);
        var tokens = model.Encoder.LayerTokens(images);
        Assert.Equal([2, 3, classToken ? 5 : 4, 16], tokens.shape);
        var means = tokens.narrow(2, classToken ? 1 : 0, 4).mean([2L]);
        Assert.True(scores.allclose(model.Head.forward(means), 1e-5, 1e-6));

        nn.functional.cross_entropy(scores, arange(2)).backward();
        var (idle, learning) = (new List<string>(), new List<(string Name, TorchSharp.Modules.Parameter Parameter)>());
        foreach (var (name, parameter) in model.named_parameters())
        {
            if (parameter.requires_grad)
            {
                learning.Add((name, parameter));
            }
            else
            {
                idle.Add(name);
            }
        }

        Assert.Equal(["encoder.head.bias", "encoder.head.weight", "encoder.norm.bias", "encoder.norm.weight"], idle.Order(StringComparer.Ordinal));
        AssertReached(learning);
    }

    [Fact]
    public void Maps_show_the_strength_of_the_layers_and_what_the_weighting_keeps()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = new LayerStackClassifier(Encoder(true), Small);
        var images = randn(2, 1, 8, 8);
        using (var recorder = MapRecorder.Install(model))
        {
            model.forward(images);
            var strength = Assert.Single(recorder.Maps, map => map.Name == "layer strength");
            Assert.Equal([2, 3, 2, 2], strength.Values.shape);
            Assert.True(strength.Values.allclose(linalg.norm(model.Encoder.LayerTokens(images).narrow(2, 1, 4), dims: [-1]).view(2, 3, 2, 2), 1e-5, 1e-6));
            var kept = Assert.Single(recorder.Maps, map => map.Name == "importance").Values;
            Assert.Equal([2, 1, 3, 16], kept.shape);
            Assert.True(kept.gt(0).all().item<bool>() && kept.le(1).all().item<bool>());
        }

        model.forward(images);
        Assert.Null(model.Head.OnWeights);
    }

    [Fact]
    public void What_cannot_be_is_refused()
    {
        void Refused(string part, Func<object> make) => Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(make).Message, StringComparison.Ordinal);
        Refused("15 is no square number", () => new LayerStackHead(Small with { Features = 15 }));
        Refused("below 1", () => new LayerStackHead(Small with { Classes = 0 }));
        Refused("below 1", () => new LayerStackHead(Small with { Channels = 0 }));
        Refused("divides the layers", () => new LayerStackHead(Small with { Heads = 2 }));
        Refused("12 is no square number", () => new LayerStackHead(Small with { Weighting = LayerWeighting.GroupedQueryGaussian, AttentionWidth = 12 }));
        Refused("divide the width", () => new LayerStackHead(Small with { Weighting = LayerWeighting.GroupedQueryGaussian, QueryHeads = 6 }));
        Assert.Throws<ArgumentNullException>(() => new LayerStackHead(null!));
        using var head = new LayerStackHead(Small);
        using var stack = randn(2, 4, 16);
        Refused("[batch, 3 layers, 16]", () => head.forward(stack));

        Assert.Throws<ArgumentNullException>(() => new LayerStackClassifier(null!, Small));
        using var encoder = Encoder(false);
        Refused("the encoder has 3 of 16 for 5", () => new LayerStackClassifier(encoder, Small with { Layers = 2 }));
        Refused("the encoder has 3 of 16 for 5", () => new LayerStackClassifier(encoder, Small with { Features = 25 }));
        Refused("the encoder has 3 of 16 for 5", () => new LayerStackClassifier(encoder, Small with { Classes = 4 }));
        using var model = new LayerStackClassifier(encoder, Small);
        using var coloured = randn(1, 3, 8, 8);
        Refused("[batch, 1, height, width]", () => model.forward(coloured));
    }

    private static VisionTransformer Encoder(bool classToken) => new(
        new() { ImageSize = 8, Channels = 1, Classes = 5, PatchSize = 4, Width = 16, Depth = 3, FeedForwardRatio = 2, ClassToken = classToken },
        place => new MultiHeadAttention(new() { Width = place.Width, Heads = 2 }, place.Site) { Hooks = place.Hooks });

    private static void AssertReached(IEnumerable<(string Name, TorchSharp.Modules.Parameter Parameter)> parameters) => Assert.All(parameters, entry =>
    {
        Assert.True(entry.Parameter.grad is not null, $"{entry.Name} gets no gradient.");

        // A softmax does not change when all its scores do: what is added to the keys has the gradient zero.
        Assert.True(entry.Parameter.grad!.abs().sum().item<float>() > 0 || entry.Name.EndsWith("k_proj.bias", StringComparison.Ordinal), $"{entry.Name} gets the gradient zero.");
    });
}
