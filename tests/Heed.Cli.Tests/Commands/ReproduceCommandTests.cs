using System.Text.Json;
using Heed.Lab.Reproductions;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class ReproduceCommandTests
{
    [Fact]
    public async Task Without_a_paper_the_reproductions_are_listed()
    {
        var result = await Shell.RunAsync("reproduce", "--json");

        Assert.Equal(0, result.Code);
        Assert.Equal(Reproduction.All.Select(known => known.Slug), JsonDocument.Parse(result.Out).RootElement.EnumerateArray().Select(known => known.GetProperty("slug").GetString()));
    }

    [Theory]
    [InlineData(1, "There is no reproduction of 'none'", "none")]
    [InlineData(2, "--threads must be at least 0", "none", "--threads", "-1")]
    public async Task Mistakes_are_one_sentence(int code, string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync(["reproduce", .. arguments]);

        Assert.Equal(code, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.Single(result.Error.TrimEnd().Split('\n'));
        Assert.False(Directory.Exists("reproductions"));
    }
}
