using Heed.Models.Checkpoints;
using Heed.Models.Images;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Images;

public sealed class ImageCheckpointTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    private static string Asset => Path.Combine(AppContext.BaseDirectory, "Checkpoints", "Data", "ninformer.pth");

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void A_file_that_PyTorch_wrote_fills_the_model_in_the_order_of_the_authors_names()
    {
        using var scope = NewDisposeScope();
        using var model = Model();
        model.LoadCheckpoint(Asset);
        var state = model.state_dict();
        Assert.Equal(0, state["patcher.weight"].max().item<float>());
        Assert.Equal(3, state["model.0.norm.bias"].mean().item<float>());
        Assert.Equal(Enumerable.Range(0, state.Count).Select(i => (float)i), state.Values.Select(value => value.mean().item<float>()).Order());
    }

    [Fact]
    public void Saved_under_its_names_and_loaded_back_the_model_says_the_same()
    {
        using var scope = NewDisposeScope();
        using var first = Model();
        using var second = Model();
        SafetensorsWriter.Write(_folder.At("model.safetensors"), first.state_dict());
        var images = randn(2, 1, 4, 4);
        Assert.False(first.forward(images).allclose(second.forward(images)));
        second.LoadCheckpoint(_folder.At("model.safetensors"));
        Assert.True(first.forward(images).equal(second.forward(images)).all().item<bool>());
    }

    [Fact]
    public void What_does_not_fit_is_told_in_one_sentence_and_nothing_is_loaded()
    {
        using var scope = NewDisposeScope();
        using var model = new NiNformerClassifier(new() { ImageSize = 4, PatchSize = 2, Channels = 1, Classes = 5, Width = 4, Hidden = 3, Depth = 2, Dropout = 0 });
        var before = model.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value.clone());
        var message = Assert.Throws<InvalidDataException>(() => model.LoadCheckpoint(Asset)).Message;
        Assert.Contains("lacks 20 tensors (model.1.", message, StringComparison.Ordinal);
        Assert.Contains("has in another shape 2 tensors (module.classifier.weight [3, 4] where the model has [5, 4], ", message, StringComparison.Ordinal);
        Assert.All(model.state_dict(), entry => Assert.True(entry.Value.equal(before[entry.Key]).all().item<bool>()));

        var small = new NiNformerClassifier(new() { ImageSize = 4, PatchSize = 2, Channels = 1, Classes = 3, Width = 4, Hidden = 3, Depth = 1, Dropout = 0 });
        SafetensorsWriter.Write(_folder.At("more.safetensors"), new Dictionary<string, Tensor>(small.state_dict()) { ["extra"] = zeros(1) });
        Assert.Contains("has in excess 1 tensor (extra)", Assert.Throws<InvalidDataException>(() => small.LoadCheckpoint(_folder.At("more.safetensors"))).Message, StringComparison.Ordinal);
        small.Dispose();
    }

    private static NiNformerClassifier Model() => new(new() { ImageSize = 4, PatchSize = 2, Channels = 1, Classes = 3, Width = 4, Hidden = 3, Depth = 1, Dropout = 0 });
}
