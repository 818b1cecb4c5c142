using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class PapersCommandTests
{
    [Fact]
    public async Task Json_lists_every_paper_in_the_stable_shape()
    {
        var result = await Shell.RunAsync("papers", "--json");

        Assert.Equal(0, result.Code);
        using var json = JsonDocument.Parse(result.Out);
        Assert.Equal(42, json.RootElement.GetArrayLength());
        Assert.All(json.RootElement.EnumerateArray(), paper =>
        {
            Assert.Equal(["slug", "title", "arxiv", "state", "location", "verdict"], paper.EnumerateObject().Select(property => property.Name));
            Assert.Contains(paper.GetProperty("state").GetString(), new[] { "not yet", "verified", "reproduced" });
        });
    }

    [Fact]
    public async Task The_table_names_every_paper_within_140_columns()
    {
        var result = await Shell.RunAsync("papers");

        Assert.Equal(0, result.Code);
        Assert.All(result.Out.Split('\n'), line => Assert.InRange(line.TrimEnd().Length, 0, 140));
        Assert.Contains("generalized-neighborhood-attention", result.Out, StringComparison.Ordinal);
        Assert.Contains("42 papers", result.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task One_paper_is_a_page_and_an_unknown_one_a_suggestion()
    {
        var page = await Shell.RunAsync("papers", "moh");
        var unknown = await Shell.RunAsync("papers", "mohh");

        Assert.Equal(0, page.Code);
        Assert.Contains("https://arxiv.org/abs/2410.11842", page.Out, StringComparison.Ordinal);
        Assert.Equal(1, unknown.Code);
        Assert.Contains("did you mean 'moh'", unknown.Error, StringComparison.Ordinal);
        Assert.Empty(unknown.Out);
    }
}
