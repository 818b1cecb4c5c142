using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class SearchCommandTests(TinyModelFolder folder) : IClassFixture<TinyModelFolder>
{
    [Fact]
    public async Task A_search_leaves_a_list_of_heads_and_a_report_and_measures_nothing_twice()
    {
        string[] search = ["search", "--model", folder.Model, "--out", folder.At("heads.json"), "--cache", folder.At("cache"), "--tokens", "16"];
        var result = await Shell.RunAsync([.. search, "--json"]);

        Assert.Equal((0, ""), (result.Code, result.Error));
        using var json = JsonDocument.Parse(result.Out);
        var root = json.RootElement;
        var tried = root.GetProperty("tried").EnumerateArray().ToList();
        var baseline = root.GetProperty("baseline").GetDouble();
        Assert.All(tried, head => Assert.Equal(baseline - head.GetProperty("value").GetDouble(), head.GetProperty("gain").GetDouble()));
        Assert.All(tried, head => Assert.Equal(head.GetProperty("gain").GetDouble() > 0, head.GetProperty("kept").GetBoolean()));
        int[][] kept = [.. tried.Where(head => head.GetProperty("kept").GetBoolean()).Select(head => new[] { head.GetProperty("layer").GetInt32(), head.GetProperty("head").GetInt32() })];
        Assert.Equal(kept, root.GetProperty("heads").EnumerateArray().Select(head => head.EnumerateArray().Select(part => part.GetInt32()).ToArray()));
        Assert.Equal(result.Out.Trim(), File.ReadAllText(folder.At("heads.json")).Trim());
        Assert.Contains("<table class=\"heat\">", File.ReadAllText(folder.At("heads.html")), StringComparison.Ordinal);

        var cache = Assert.Single(Directory.GetFiles(folder.At("cache")));
        var written = File.GetLastWriteTimeUtc(cache);
        var again = await Shell.RunAsync([.. search, "--report", folder.At("other.html")]);
        Assert.Equal(0, again.Code);
        Assert.Contains("bits per byte by zero", again.Out, StringComparison.Ordinal);
        Assert.True(File.Exists(folder.At("other.html")));
        Assert.Equal(written, File.GetLastWriteTimeUtc(cache));
    }

    [Fact]
    public async Task A_search_that_is_stopped_says_how_to_go_on()
    {
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        var text = folder.Write("long.txt", System.Text.Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat("And there was light. ", 600))));
        string[] search = ["search", "--model", folder.Model, "--text", text, "--bytes", "12000", "--cache", folder.At("stopped"), "--out", folder.At("none.json")];
        var running = Task.Run(() => Shell.RunAsync(stop.Token, search), CancellationToken.None);
        // The first measurement is kept, the others take their time.
        while (!running.IsCompleted && !(Directory.Exists(folder.At("stopped")) && Directory.GetFiles(folder.At("stopped"), "*.json").Length > 0))
        {
            await Task.Delay(5, TestContext.Current.CancellationToken);
        }

        await stop.CancelAsync();
        var result = await running;

        Assert.Equal(130, result.Code);
        Assert.Contains("run the same command to go on", result.Error, StringComparison.Ordinal);
        Assert.False(File.Exists(folder.At("none.json")));
    }

    [Theory]
    [InlineData("no edit 'spiral'", "--edit", "spiral")]
    [InlineData("leave scale= out", "--edit", "heads:scale=0.0")]
    [InlineData("from 0 to", "--layers", "1-99")]
    [InlineData("tokens at once", "--tokens", "99999")]
    [InlineData("There is no file", "--text", "no-such-file.txt")]
    public async Task What_cannot_be_searched_is_told_in_a_sentence(string sentence, params string[] options)
    {
        var result = await Shell.RunAsync(["search", "--model", folder.Model, "--out", folder.At("wrong.json"), "--cache", folder.At("wrong"), .. options]);

        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.Single(result.Error.Trim().Split('\n'));
        Assert.False(File.Exists(folder.At("wrong.json")));
    }
}
