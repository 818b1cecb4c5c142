using Heed.Lab.Images;
using Heed.Models.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

public sealed class GaussianModelTests
{
    private static readonly ImageTask s_task = new(28, 1, 10);

    [Theory]
    [InlineData("gaam", LayerWeighting.Gaussian, 3, 64)]
    [InlineData("gaam:weighting=gaussian,depth=4,layer-heads=2,patch=7,width=16,heads=2", LayerWeighting.Gaussian, 4, 16)]
    [InlineData("gaam:weighting=identity,channels=4", LayerWeighting.Identity, 3, 64)]
    [InlineData("gaam:weighting=mha,layer-heads=4", LayerWeighting.MultiHead, 3, 64)]
    [InlineData("gaam:weighting=gq,layer-heads=3", LayerWeighting.GroupedQueryGaussian, 3, 64)]
    public void Every_weighting_makes_a_model_that_learns_and_shows_its_layers(string text, LayerWeighting weighting, long depth, long width)
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        using var model = Assert.IsType<LayerStackClassifier>(ImageModel.Make(text, s_task));
        Assert.Equal(weighting, model.Head.Options.Weighting);
        var images = randn(2, 1, 28, 28);
        var scores = model.forward(images);
        Assert.Equal([2, 10], scores.shape);
        nn.functional.cross_entropy(scores, arange(2)).backward();
        Assert.All(model.named_parameters().Where(entry => entry.parameter.requires_grad), entry => Assert.True(entry.parameter.grad is not null, $"{entry.name} gets no gradient."));

        using var quiet = no_grad();
        using var recorder = MapRecorder.Install(model);
        model.forward(images);
        Assert.Equal(depth, Assert.Single(recorder.Maps, map => map.Name == "layer strength").Values.shape[1]);
        var importance = recorder.Maps.Where(map => map.Name == "importance").ToList();
        Assert.Equal(weighting == LayerWeighting.Gaussian ? 1 : 0, importance.Count);
        Assert.All(importance, map => Assert.Equal([2, 1, depth, width], map.Values.shape));
    }

    [Theory]
    [InlineData("gaam:weighting=uniform", "gaussian, identity, mha or gq, not 'uniform'")]
    [InlineData("gaam:layer-heads=2", "divides the layers")]
    [InlineData("gaam:width=60", "60 is no square number")]
    [InlineData("gaam:weights=gq", "no option 'weights'")]
    public void What_cannot_be_is_refused(string text, string part) =>
        Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(() => ImageModel.Make(text, s_task)).Message, StringComparison.Ordinal);
}
