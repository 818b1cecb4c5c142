using System.Text.Json;
using Heed.Lab.Tests.Images;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class InspectImageTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-inspect-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_model_that_the_recipe_trained_is_inspected_and_compared()
    {
        var (data, model, report) = (SmallPictures.Write(_folder), At("model"), At("report.html"));
        var trained = await Shell.RunAsync("train", "fashion", "--model", "vit:depth=1,patch=7,width=16", "--steps", "2", "--out", model, "--data", data);
        Assert.Equal(0, trained.Code);
        Assert.Contains("held-out accuracy", trained.Out, StringComparison.Ordinal);

        var shown = await Shell.RunAsync("inspect", "--model", model, "--image", "4", "--data", data, "--out", report);
        Assert.Equal(("", 0), (shown.Error, shown.Code));
        Assert.Contains("Fashion-MNIST test 4", shown.Out, StringComparison.Ordinal);
        Assert.Contains("blocks.0.attn", shown.Out, StringComparison.Ordinal);
        Assert.Contains("(mean of 16)", shown.Out, StringComparison.Ordinal);
        var json = JsonDocument.Parse((await Shell.RunAsync("inspect", "--model", model, "--data", data, "--out", report, "--json")).Out).RootElement;
        Assert.Equal("Fashion-MNIST test 0", json.GetProperty("source").GetString());
        Assert.Equal(10, json.GetProperty("probabilities").GetArrayLength());
        Assert.Equal(4, json.GetProperty("heads").GetArrayLength());

        var edited = await Shell.RunAsync("inspect", "--model", model, "--image", "4", "--data", data, "--out", report, "--edit", "heads:scale=0.*", "--edit", "ablate:mlp=0");
        Assert.Equal(("", 0), (edited.Error, edited.Code));
        Assert.Contains(", as trained: ", edited.Out, StringComparison.Ordinal);
        Assert.Contains("with heads:scale=0.* ablate:mlp=0: ", edited.Out, StringComparison.Ordinal);
        var both = JsonDocument.Parse((await Shell.RunAsync("inspect", "--model", model, "--data", data, "--out", report, "--json", "--edit", "ablate:mlp=0")).Out).RootElement;
        static double[] Probabilities(JsonElement seen) => [.. seen.GetProperty("probabilities").EnumerateArray().Select(one => one.GetProperty("probability").GetDouble())];
        Assert.Equal(Probabilities(json), Probabilities(both.GetProperty("before")));
        Assert.NotEqual(Probabilities(json), Probabilities(both));

        var compared = await Shell.RunAsync("compare", "--models", "vit:patch=7", "--seconds", "0.1", "--seed", "1", "--parameters", "8000", "--data", data, "--out", At("runs"), "--json");
        Assert.Equal(0, compared.Code);
        Assert.Equal(1, JsonDocument.Parse(compared.Out).RootElement.GetProperty("models").GetArrayLength());
    }

    [Fact]
    public async Task Weights_of_ones_own_are_loaded_and_fresh_ones_are_told()
    {
        var data = SmallPictures.Write(_folder);
        var fresh = await Shell.RunAsync("inspect", "--model", "mlp-mixer:depth=1", "--image", "0", "--data", data, "--out", At("fresh.html"));
        Assert.Equal(0, fresh.Code);
        Assert.Contains("fresh weights", fresh.Error, StringComparison.Ordinal);
        await Shell.RunAsync("train", "fashion", "--model", "mlp-mixer:depth=1", "--steps", "1", "--out", At("model"), "--data", data);
        var loaded = await Shell.RunAsync("inspect", "--model", "mlp-mixer:depth=1", "--weights", At("model/model.safetensors"), "--image", "0", "--data", data, "--out", At("loaded.html"));
        Assert.Equal(("", 0), (loaded.Error, loaded.Code));
    }

    [Theory]
    [InlineData("--text is for ONNX models and texts, not for pictures", "--model", "vit", "--image", "0", "--text", "a")]
    [InlineData("--weights is for pictures", "--weights", "a")]
    [InlineData("Say which vision model", "--image", "0")]
    [InlineData("There is no picture 'none.png'", "--model", "vit", "--image", "none.png")]
    [InlineData("There is no vision model 'painter'", "--model", "painter", "--image", "0")]
    public async Task Mistakes_are_one_sentence(string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync(["inspect", .. arguments, "--out", At("none.html")]);
        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.False(File.Exists(At("none.html")));
    }

    private string At(string name) => Path.Combine(_folder, name);
}
