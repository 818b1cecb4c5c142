using Heed.Lab.Catalogue;
using Heed.Lab.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

/// <summary>What every model that the image recipes know must do.</summary>
public sealed class ImageModelTests
{
    public static TheoryData<string> Names => [.. ImageModel.All.Select(model => model.Name)];

    [Fact]
    public void Names_are_different_and_papers_exist()
    {
        Assert.Equal(ImageModel.All.Count, ImageModel.All.Select(model => model.Name).Distinct().Count());
        Assert.All(ImageModel.All, model => Assert.StartsWith(model.Name, model.Usage, StringComparison.Ordinal));
        Assert.All(ImageModel.All.Where(model => model.Slug is not null), model => Assert.Equal(model.Slug, PaperCatalogue.Find(model.Slug!).Slug));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_batch_gives_logits_features_gradients_and_maps(string name)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var model = ImageModel.Make(name, FashionMnist.Task);
        var parameters = model.parameters().Sum(parameter => parameter.numel());
        Assert.InRange(parameters, 15_000, 250_000);
        var (images, labels) = SmallPictures.Data(4, 1).Train.Range(0, 4);
        var loss = nn.functional.cross_entropy(model.forward(images), labels);
        (model.ExtraLoss() is { } extra ? loss + extra : loss).backward();
        Assert.True(double.IsFinite(loss.item<float>()));
        // An auxiliary head reads what the forward pass does not return.
        Assert.All(model.named_parameters().Where(entry => !entry.name.StartsWith("aux_head", StringComparison.Ordinal)), entry => Assert.True(entry.parameter.grad is not null || !entry.parameter.requires_grad, $"{entry.name} gets no gradient."));

        model.eval();
        using var quiet = no_grad();
        using var recorder = MapRecorder.Install(model);
        var logits = model.forward(images);
        Assert.Equal([4L, 10], logits.shape);
        Assert.All(recorder.Maps, maps =>
        {
            Assert.Equal(4, maps.Values.shape[0]);
            Assert.Equal(maps.Labels.Count, maps.Values.shape[1]);
            Assert.True(maps.Values.isfinite().all().item<bool>(), maps.Name);
        });
        var features = model.Features(images);
        Assert.Equal(4, features.dim());
        Assert.Equal(4, features.shape[0]);
    }

    [Fact]
    public void A_model_or_an_option_that_is_not_there_is_told()
    {
        Assert.Contains("there are: vit", Assert.Throws<ArgumentException>(() => ImageModel.Make("painter", FashionMnist.Task)).Message, StringComparison.Ordinal);
        Assert.Contains("no option 'wide'", Assert.Throws<ArgumentException>(() => ImageModel.Make("vit:wide=3", FashionMnist.Task)).Message, StringComparison.Ordinal);
        Assert.Contains("product or sum", Assert.Throws<ArgumentException>(() => ImageModel.Make("ninformer:combine=mean", FashionMnist.Task)).Message, StringComparison.Ordinal);
    }
}
