using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class NiNformerClassifierTests
{
    [Fact]
    public void The_authors_model_has_2652170_parameters()
    {
        using var model = new NiNformerClassifier(new());
        Assert.Equal(2_652_170, model.parameters().Sum(parameter => parameter.numel()));
    }

    [Fact]
    public void The_head_reads_the_mean_of_the_features()
    {
        using var scope = NewDisposeScope();
        using var model = Small();
        model.eval();
        var images = randn(2, 1, 12, 12);
        var features = model.Features(images);
        Assert.Equal([2L, 8, 3, 3], features.shape);
        var state = model.state_dict();
        Assert.True(model.forward(images).allclose(nn.functional.linear(features.mean([2, 3]), state["classifier.weight"], state["classifier.bias"]), atol: 1e-5));
    }

    [Fact]
    public void Mistakes_are_refused()
    {
        Assert.Contains("must divide into patches", Assert.Throws<ArgumentException>(() => new NiNformerClassifier(new() { ImageSize = 30 })).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => new NiNformerClassifier(new() { Depth = 0 }));
        Assert.Throws<ArgumentOutOfRangeException>(() => new NiNformerClassifier(new() { Dropout = 1 }));
        using var model = Small();
        using var large = zeros(1, 1, 16, 16);
        Assert.Contains("12 x 12", Assert.Throws<ArgumentException>(() => model.forward(large)).Message, StringComparison.Ordinal);
        using var coloured = zeros(1, 3, 12, 12);
        Assert.Contains("[batch, 1, height, width]", Assert.Throws<ArgumentException>(() => model.forward(coloured)).Message, StringComparison.Ordinal);
    }

    private static NiNformerClassifier Small() => new(new() { ImageSize = 12, Channels = 1, Classes = 4, Width = 8, Hidden = 6, Depth = 2 });
}
