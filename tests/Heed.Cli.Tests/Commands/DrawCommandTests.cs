using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class DrawCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-draw-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_mask_becomes_a_picture_and_its_numbers()
    {
        var path = Path.Combine(_folder, "causal.png");

        var result = await Shell.RunAsync("draw", "causal:block=32", "--tokens", "128", "--out", path, "--json");

        Assert.Equal(0, result.Code);
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G'], File.ReadAllBytes(path)[..4]);
        using var json = JsonDocument.Parse(result.Out);
        Assert.Equal(128 * 129 / 2, json.RootElement.GetProperty("pairs").GetInt64());
        Assert.Equal((6, 4, 6), (Count("full_blocks"), Count("partial_blocks"), Count("empty_blocks")));

        int Count(string name) => json.RootElement.GetProperty(name).GetInt32();
    }

    [Fact]
    public async Task Without_a_mask_the_masks_are_listed()
    {
        var result = await Shell.RunAsync("draw");

        Assert.Equal(0, result.Code);
        Assert.Contains("window:w=128", result.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_mechanism_draws_what_it_selects_among_given_queries_and_keys()
    {
        var (inputs, path) = (Path.Combine(_folder, "inputs.safetensors"), Path.Combine(_folder, "window.png"));
        using (var tensor = TorchSharp.torch.randn(3, 40, 8))
        {
            Heed.Models.Checkpoints.SafetensorsWriter.Write(inputs, new Dictionary<string, TorchSharp.torch.Tensor> { ["query"] = tensor, ["key"] = tensor });
        }

        var result = await Shell.RunAsync("draw", "window:w=5", "--inputs", inputs, "--head", "2", "--out", path, "--json");

        Assert.Equal("", result.Error);
        using var json = JsonDocument.Parse(result.Out);
        Assert.Equal((40, 10 + (36 * 5), 2), (Number("queries"), Number("pairs"), Number("head")));
        Assert.True(new FileInfo(path).Length < 60_000);
        var free = await Shell.RunAsync("draw", "window:w=5", "--no-causal", "--tokens", "40", "--out", path, "--json");
        Assert.True(JsonDocument.Parse(free.Out).RootElement.GetProperty("pairs").GetInt64() > 190);
        Assert.Contains("--head 3 is none of them", (await Shell.RunAsync("draw", "window:w=5", "--inputs", inputs, "--head", "3")).Error, StringComparison.Ordinal);

        long Number(string name) => json.RootElement.GetProperty(name).GetInt64();
    }

    [Theory]
    [InlineData(1, "no mechanism", "causal", "--no-causal")]
    [InlineData(1, "All heads share this mask", "causal", "--head", "1")]
    [InlineData(2, "brings its own tokens", "window", "--inputs", "x.safetensors", "--tokens", "5")]
    [InlineData(1, "There is no mask 'spiral'", "spiral")]
    [InlineData(1, "does not exist", "none.safetensors")]
    [InlineData(2, "--tokens must be between 1 and 65536", "causal", "--tokens", "0")]
    public async Task Mistakes_are_one_sentence_and_leave_no_file(int code, string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync(["draw", .. arguments, "--out", Path.Combine(_folder, "mask.png")]);

        Assert.Equal(code, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.Empty(Directory.GetFiles(_folder));
    }
}
