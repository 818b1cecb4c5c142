using Heed.Lab.Images;
using Heed.Probes;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Lab.Tests.Images;

public sealed class ScanModelsTests
{
    [Theory]
    [InlineData("ss2d")]
    [InlineData("ss2d:routes=unidi")]
    [InlineData("ss2d:routes=zigzag,depth=2")]
    [InlineData("plainmamba:paper=1")]
    [InlineData("localvim:directions=h+v_flip+w3")]
    [InlineData("atrous")]
    public void Small_models_classify_and_show_their_routes(string text)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var model = ImageModel.Make(text, new(28, 1, 10));
        model.eval();
        using var recorder = MapRecorder.Install(model);
        Assert.Equal([2, 10], model.forward(randn(2, 1, 28, 28)).shape);
        Assert.InRange(model.parameters().Sum(parameter => parameter.numel()), 30_000, 120_000);
        Assert.Contains(recorder.Maps, map => map.Name == "response" && map.Values.dim() == 4);
    }
}
