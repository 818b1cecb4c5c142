using Heed.Lab.Images;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

/// <summary>FocalNet and MambaOut as the command line names them.</summary>
public sealed class ConvolutionModelTests
{
    [Theory]
    [InlineData("focalnet", 49)]
    [InlineData("focalnet:stages=2,depth=1,levels=3,gates=off,global=off", 9)]
    [InlineData("mambaout", 49)]
    [InlineData("mambaout:stages=2,depth=1,scan=bidi,states=4", 16)]
    public void A_picture_gives_ten_numbers_and_features_on_the_grid(string text, int positions)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = ImageModel.Make(text, FashionMnist.Task);
        var images = randn(2, 1, 28, 28);
        Assert.Equal([2, 10], model.forward(images).shape);
        Assert.Equal(positions, model.Features(images).shape[2..].Aggregate((rows, columns) => rows * columns));
    }

    [Theory]
    [InlineData("focalnet")]
    [InlineData("mambaout")]
    public void By_default_they_are_small(string text)
    {
        using var model = ImageModel.Make(text, FashionMnist.Task);
        Assert.InRange(model.parameters().Sum(parameter => parameter.numel()), 60_000, 120_000);
    }

    [Fact]
    public void Options_reach_the_model()
    {
        using var focal = (FocalNet)ImageModel.Make("focalnet:width=32,levels=3,window=5,gates=off,ratio=4", FashionMnist.Task);
        Assert.Equal((32, 3, 5, false, 4.0), (focal.Options.Width, focal.Options.Levels[0], focal.Options.Windows[0], focal.Options.Gates, focal.Options.FeedForwardRatio));
        using var mamba = (MambaOut)ImageModel.Make("mambaout:width=32,kernel=5,conv=0.5,scan=raster", FashionMnist.Task);
        Assert.Equal((32, 5, 0.5), (mamba.Options.Widths[0], mamba.Options.KernelSize, mamba.Options.ConvRatio));
        Assert.NotNull(mamba.Options.Scan);
    }

    [Theory]
    [InlineData("focalnet:gates=maybe", "gates")]
    [InlineData("focalnet:window=4", "side 4")]
    [InlineData("mambaout:scan=sideways", "no scan pattern 'sideways'")]
    [InlineData("mambaout:depths=3", "no option 'depths'")]
    public void A_mistake_is_told(string text, string told) =>
        Assert.Contains(told, Assert.Throws<ArgumentException>(() => ImageModel.Make(text, FashionMnist.Task)).Message, StringComparison.Ordinal);
}
