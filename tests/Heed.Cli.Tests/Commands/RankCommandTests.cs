using System.Text.Json;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Cli.Tests.Commands;

public sealed class RankCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-rank-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_bias_becomes_a_table_numbers_and_a_figure()
    {
        var (bias, figure) = (Path.Combine(_folder, "bias.safetensors"), Path.Combine(_folder, "rank.png"));
        using (NewDisposeScope())
        {
            // Squared distances on a line: rank 3, and 1 of it is a row constant.
            var distance = (arange(12, dtype: float32).unsqueeze(1) - arange(12, dtype: float32)).square().neg();
            SafetensorsWriter.Write(bias, new Dictionary<string, Tensor> { ["bias"] = distance });
        }

        var result = await Shell.RunAsync("rank", bias, "--out", figure, "--json");

        Assert.Equal(0, result.Code);
        using var json = JsonDocument.Parse(result.Out);
        var rows = json.RootElement.GetProperty("ranks").EnumerateArray().ToList();
        Assert.Equal([1, 2, 4, 8], rows.Select(row => row.GetProperty("rank").GetInt32()).Where(rank => rank is 1 or 2 or 4 or 8));
        Assert.True(rows.Single(row => row.GetProperty("rank").GetInt32() == 4).GetProperty("output_error").GetDouble() < 1e-3);
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G'], File.ReadAllBytes(figure)[..4]);
        Assert.Contains("of the energy of every head: rank", (await Shell.RunAsync("rank", bias)).Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task What_cannot_be_read_is_told_in_a_sentence()
    {
        var result = await Shell.RunAsync("rank", Path.Combine(_folder, "none.safetensors"));

        Assert.NotEqual(0, result.Code);
        Assert.Contains("does not exist", result.Error, StringComparison.Ordinal);
        Assert.Single(result.Error.Trim().Split('\n'));
    }
}
