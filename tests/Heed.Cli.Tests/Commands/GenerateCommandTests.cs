using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed class GenerateCommandTests(TinyModelFolder folder) : IClassFixture<TinyModelFolder>
{
    [Fact]
    public async Task Text_goes_to_the_output_and_figures_to_the_notices()
    {
        var result = await Shell.RunAsync("generate", "Let there", "--model", folder.Model, "--tokens", "12");
        Assert.Equal(0, result.Code);
        Assert.StartsWith("Let there", result.Out, StringComparison.Ordinal);
        Assert.Contains("12 tokens at ", result.Error, StringComparison.Ordinal);
        Assert.Contains("cache", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Same_seed_gives_the_same_text_and_another_seed_another()
    {
        var first = await Json("generate", "Let there", "--seed", "5");
        var second = await Json("generate", "Let there", "--seed", "5");
        var other = await Json("generate", "Let there", "--seed", "6");
        Assert.Equal(first.GetProperty("text").GetString(), second.GetProperty("text").GetString());
        Assert.NotEqual(first.GetProperty("text").GetString(), other.GetProperty("text").GetString());
    }

    [Fact]
    public async Task Streamed_text_is_the_text_of_the_json()
    {
        var streamed = await Shell.RunAsync("generate", "x", "--model", folder.Model, "--tokens", "20", "--temperature", "0");
        var whole = await Json("generate", "x", "--tokens", "20", "--temperature", "0");
        Assert.Equal("x" + whole.GetProperty("text").GetString() + Environment.NewLine, streamed.Out);
        Assert.Equal(20, whole.GetProperty("tokens").GetInt32());
        Assert.Equal(2, whole.GetProperty("prompt_tokens").GetInt32());
        Assert.Equal("maximum_tokens", whole.GetProperty("stop_reason").GetString());
        Assert.True(whole.GetProperty("cache_bytes").GetInt64() > 0);
        Assert.True(whole.GetProperty("tokens_per_second").GetDouble() > 0);
    }

    [Fact]
    public async Task A_swapped_attention_changes_the_text_and_is_told()
    {
        var prompt = new string('a', 20) + "bc";
        var own = await Json("generate", prompt, "--tokens", "40", "--temperature", "0");
        var swapped = await Json("generate", prompt, "--tokens", "40", "--temperature", "0", "--attention", "window:w=2");
        var everything = await Json("generate", prompt, "--tokens", "40", "--temperature", "0", "--attention", "window:w=500");
        Assert.Equal("window:w=2", swapped.GetProperty("attention").GetString());
        Assert.NotEqual(own.GetProperty("text").GetString(), swapped.GetProperty("text").GetString());
        Assert.Equal(own.GetProperty("text").GetString(), everything.GetProperty("text").GetString());
    }

    [Fact]
    public async Task A_mixture_of_heads_changes_the_text_and_one_of_all_heads_does_not()
    {
        var prompt = new string('a', 20) + "bc";
        var own = (await Json("generate", prompt, "--tokens", "40", "--temperature", "0")).GetProperty("text").GetString();
        Assert.NotEqual(own, (await Json("generate", prompt, "--tokens", "40", "--temperature", "0", "--attention", "moh:shared=0,active=0.25")).GetProperty("text").GetString());
        Assert.Equal(own, (await Json("generate", prompt, "--tokens", "40", "--temperature", "0", "--attention", "moh:shared=0.5,active=1")).GetProperty("text").GetString());
    }

    [Theory]
    [InlineData("moh:active=2", "between 0 and 1")]
    [InlineData("spiral", "There is no attention mechanism 'spiral'")]
    [InlineData("window:width=3", "has no option 'width'")]
    [InlineData("window:w=0", "at least 1")]
    public async Task A_wrong_attention_is_one_sentence(string attention, string sentence)
    {
        var result = await Shell.RunAsync("generate", "x", "--model", folder.Model, "--attention", attention);
        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
        Assert.Empty(result.Out);
    }

    [Fact]
    public async Task Mechanisms_are_listed()
    {
        var result = await Shell.RunAsync("attention", "--json");
        Assert.Equal(0, result.Code);
        Assert.Equal(
            Heed.Lab.Mechanisms.AttentionSwap.Known.Select(known => known.Usage), JsonDocument.Parse(result.Out).RootElement.EnumerateArray().Select(known => known.GetProperty("usage").GetString()));
    }

    [Fact]
    public async Task An_edit_changes_the_text_which_stands_beside_the_unedited_one()
    {
        var prompt = new string('a', 20) + "bc";
        var own = await Json("generate", prompt, "--tokens", "40", "--temperature", "0");
        var edited = await Json("generate", prompt, "--tokens", "40", "--temperature", "0", "--edit", "act:layers=0,threshold=0.02,beta=0", "--edit", "ablate:mlp=0", "--compare");
        Assert.Equal(["act:layers=0,threshold=0.02,beta=0", "ablate:mlp=0"], edited.GetProperty("edits").EnumerateArray().Select(edit => edit.GetString()));
        Assert.NotEqual(own.GetProperty("text").GetString(), edited.GetProperty("text").GetString());
        Assert.Equal(own.GetProperty("text").GetString(), edited.GetProperty("unedited").GetProperty("text").GetString());
        var written = await Shell.RunAsync("generate", prompt, "--model", folder.Model, "--tokens", "8", "--temperature", "0", "--edit", "ablate:mlp=0", "--compare");
        Assert.Contains("Without the edit:", written.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("There is no edit 'spiral'", "--edit", "spiral")]
    [InlineData("--compare shows", "--compare")]
    [InlineData("an edit is too strong.", "--edit", "stream:scale=1e38")]
    [InlineData("acts on a picture's tokens", "--edit", "var")]
    [InlineData("acts on a picture's tokens", "--edit", "informed:alpha=0.5")]
    [InlineData("layers are 0 to", "--edit", "ablate:mlp=77")]
    public async Task A_wrong_edit_is_one_sentence(string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync(["generate", "x", "--model", folder.Model, .. arguments]);
        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
        Assert.Empty(result.Out);
    }

    [Fact]
    public async Task Edits_are_listed()
    {
        var result = await Shell.RunAsync("edits", "--json");
        Assert.Equal(0, result.Code);
        Assert.Equal(Heed.Lab.Mechanisms.ModelEdit.All.Select(known => known.Usage), JsonDocument.Parse(result.Out).RootElement.EnumerateArray().Select(known => known.GetProperty("usage").GetString()));
        Assert.Contains("act:beta=0.4", (await Shell.RunAsync("edits")).Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Without_a_prompt_the_model_begins()
    {
        var result = await Json("generate", "--tokens", "3");
        Assert.Equal(1, result.GetProperty("prompt_tokens").GetInt32());
    }

    [Fact]
    public async Task Full_context_ends_the_text()
    {
        var result = await Json("generate", new string('a', 120), "--tokens", "100");
        Assert.Equal("context_length", result.GetProperty("stop_reason").GetString());
    }

    [Fact]
    public async Task Prompt_longer_than_the_context_is_refused()
    {
        var result = await Shell.RunAsync("generate", new string('a', 500), "--model", folder.Model, "--json");
        Assert.Equal(1, result.Code);
        Assert.Contains("context", Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
        Assert.Empty(result.Out);
    }

    private async Task<JsonElement> Json(params string[] arguments)
    {
        var result = await Shell.RunAsync([.. arguments, "--model", folder.Model, "--json"]);
        Assert.Equal("", result.Error);
        return JsonDocument.Parse(result.Out).RootElement;
    }
}
