using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests.Commands;

/// <summary><c>heed inspect</c> and <c>heed generate</c> with a vision-language model and a picture.</summary>
public sealed class PictureModelTests(TinyCaptionsFolder folder) : IClassFixture<TinyCaptionsFolder>, IDisposable
{
    private readonly string _out = Directory.CreateTempSubdirectory("heed-picture-model-").FullName;

    private string Report => Path.Combine(_out, "report.html");

    public void Dispose() => Directory.Delete(_out, recursive: true);

    [Fact]
    public async Task What_is_said_is_inspected_word_by_word()
    {
        var inspected = await Inspect("--tokens", "6", "--prompt", "colour of disc ?");
        Assert.Equal(("captions", "scene.png", "colour of disc ?"), (inspected.GetProperty("model").GetString(), inspected.GetProperty("source").GetString(), inspected.GetProperty("prompt").GetString()));
        Assert.Equal(Report, inspected.GetProperty("report").GetString());
        var run = Assert.Single(inspected.GetProperty("runs").EnumerateArray());
        Assert.Equal("as trained", run.GetProperty("name").GetString());
        var words = run.GetProperty("words").EnumerateArray().ToArray();
        Assert.Equal(6, words.Length);
        Assert.All(words, word =>
        {
            var layers = word.GetProperty("image_mass").EnumerateArray().ToArray();
            Assert.Equal(TinyCaptionsFolder.Layers, layers.Length);
            Assert.All(layers, layer => Assert.Equal(TinyCaptionsFolder.Heads, layer.GetArrayLength()));
            Assert.All(layers.SelectMany(layer => layer.EnumerateArray()), mass => Assert.InRange(mass.GetDouble(), 0, 1));
            Assert.InRange(word.GetProperty("looks_at").GetInt32(), 0, (TinyCaptionsFolder.Grid * TinyCaptionsFolder.Grid) - 1);
        });

        // The other command says the same, and for people it is a line a word.
        var generated = await Generate("colour of disc ?", "--tokens", "6");
        Assert.Equal(run.GetProperty("text").GetString(), generated.GetProperty("text").GetString());
        var written = await Shell.RunAsync("inspect", "--model", folder.Model, "--image", folder.Picture, "--tokens", "6", "--prompt", "colour of disc ?", "--out", Report);
        Assert.Equal((0, ""), (written.Code, written.Error));
        Assert.StartsWith(run.GetProperty("text").GetString() + Environment.NewLine, written.Out, StringComparison.Ordinal);
        Assert.Equal(6, written.Out.Split('\n').Count(line => line.Contains("of its attention on the picture", StringComparison.Ordinal)));

        // Another prompt, other words.
        Assert.NotEqual(run.GetProperty("text").GetString(), (await Inspect("--tokens", "6")).GetProperty("runs")[0].GetProperty("text").GetString());
        Assert.Equal([Report], Directory.GetFileSystemEntries(_out));
    }

    [Theory]
    [InlineData("informed:alpha=0.9,from=0,tokens=all")]
    [InlineData("stream:at=output,layers=1,scale=-1")]
    public async Task An_edit_is_shown_beside_the_model_as_it_was_trained(string edit)
    {
        var inspected = await Inspect("--tokens", "5", "--edit", edit);
        var runs = inspected.GetProperty("runs").EnumerateArray().ToArray();
        Assert.Equal(["as trained", edit], runs.Select(run => run.GetProperty("name").GetString()));
        double Mass(JsonElement run) => run.GetProperty("words")[0].GetProperty("image_mass").EnumerateArray().SelectMany(layer => layer.EnumerateArray()).Average(mass => mass.GetDouble());
        if (edit.StartsWith("informed", StringComparison.Ordinal))
        {
            Assert.True(Mass(runs[1]) > Mass(runs[0]) + 0.01, $"{Mass(runs[0])} before, {Mass(runs[1])} after");
        }
        else
        {
            Assert.NotEqual(runs[0].GetProperty("text").GetString(), runs[1].GetProperty("text").GetString());
        }

        // The page holds both, and generation without the maps says the same.
        var page = await File.ReadAllTextAsync(Report, TestContext.Current.CancellationToken);
        Assert.Contains($"\"name\":\"{edit}\"", page, StringComparison.Ordinal);
        Assert.Contains("\"name\":\"as trained\"", page, StringComparison.Ordinal);
        var generated = await Generate("what is here ?", "--tokens", "5", "--edit", edit, "--compare");
        Assert.Equal(runs[1].GetProperty("text").GetString(), generated.GetProperty("text").GetString());
        Assert.Equal(runs[0].GetProperty("text").GetString(), generated.GetProperty("unedited").GetProperty("text").GetString());
        Assert.Equal(edit, Assert.Single(generated.GetProperty("edits").EnumerateArray()).GetString());
    }

    [Fact]
    public async Task Every_edit_of_pictures_goes_with_both_commands()
    {
        foreach (var edit in new[] { "var:from=0,threshold=1,image=0,rho=1,keep=0", "informed:from=0", "act:layers=0-2,threshold=0.02" })
        {
            var said = (await Generate("what is here ?", "--tokens", "4", "--edit", edit)).GetProperty("text").GetString();
            Assert.Equal(said, (await Inspect("--tokens", "4", "--edit", edit)).GetProperty("runs")[1].GetProperty("text").GetString());
        }
    }

    [Fact]
    public async Task Text_about_a_picture_is_written_as_it_comes()
    {
        var whole = await Generate("what is here ?", "--tokens", "7");
        Assert.Equal(JsonValueKind.Null, whole.GetProperty("guidance").ValueKind);
        Assert.Equal(folder.Picture, whole.GetProperty("image").GetString());
        // Begin token, nine patches, four words.
        Assert.Equal(14, whole.GetProperty("prompt_tokens").GetInt32());
        var written = await Shell.RunAsync("generate", "--model", folder.Model, "--image", folder.Picture, "--temperature", "0", "--tokens", "7");
        Assert.Equal(0, written.Code);
        Assert.Equal($"what is here ?\n{whole.GetProperty("text").GetString()}{Environment.NewLine}", written.Out);
        Assert.Contains("7 tokens at ", written.Error, StringComparison.Ordinal);
        var marked = await Generate("what<image>is here ?", "--tokens", "7");
        Assert.Equal(14, marked.GetProperty("prompt_tokens").GetInt32());
        Assert.NotEqual(whole.GetProperty("text").GetString(), marked.GetProperty("text").GetString());
    }

    [Fact]
    public async Task Guidance_pushes_the_text_away_and_a_strength_of_one_does_not()
    {
        string? Text(JsonElement generated) => generated.GetProperty("text").GetString();
        var plain = await Generate("what is here ?", "--tokens", "6");
        var one = await Generate("what is here ?", "--tokens", "6", "--guidance", "1");
        var strong = await Generate("what is here ?", "--tokens", "6", "--guidance", "3");
        Assert.Equal(1, one.GetProperty("guidance").GetDouble());
        Assert.Equal(3, strong.GetProperty("guidance").GetDouble());
        Assert.Equal(Text(plain), Text(one));
        Assert.NotEqual(Text(plain), Text(strong));
    }

    [Theory]
    [InlineData("There is no edit 'spiral'", "--edit", "spiral")]
    [InlineData("names dimension 99", "--edit", "var:dims=99")]
    [InlineData("layers are 0 to 2", "--edit", "ablate:mlp=9")]
    [InlineData("is not a picture that can be read", "--image", "MODEL/config.json")]
    [InlineData("There is no picture 'none.png'", "--image", "none.png")]
    [InlineData("the model's context only 128", "PROMPT", "LONG")]
    [InlineData("this one has it 2 times", "PROMPT", "<image> is <image>")]
    [InlineData("does not know 'z', '!' in the prompt 'what zero!'", "PROMPT", "what zero!")]
    public async Task What_cannot_be_done_is_one_sentence_for_both_commands_and_nothing_is_written(string sentence, string option, string value)
    {
        value = value.Replace("MODEL", folder.Model, StringComparison.Ordinal).Replace("LONG", string.Join(' ', Enumerable.Repeat("what", 200)), StringComparison.Ordinal);
        string[] image = option == "--image" ? [] : ["--image", folder.Picture];
        string[] given = option == "PROMPT" ? [] : [option, value];
        string[] inspect = option == "PROMPT" ? ["--prompt", value] : [], generate = option == "PROMPT" ? [value] : [];
        foreach (var command in new string[][] { ["inspect", "--out", Report, .. inspect], ["generate", .. generate] })
        {
            var result = await Shell.RunAsync([.. command, "--model", folder.Model, .. image, .. given]);
            Assert.Equal((1, ""), (result.Code, result.Out));
            Assert.Contains(sentence, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
            Assert.DoesNotContain("defect of heed", result.Error, StringComparison.Ordinal);
        }

        Assert.Empty(Directory.GetFileSystemEntries(_out));
    }

    [Theory]
    [InlineData("talks about pictures: give one with --image", "inspect")]
    [InlineData("talks about pictures: give one with --image", "inspect", "--prompt", "what")]
    [InlineData("talks about pictures: give one with --image", "generate", "what")]
    [InlineData("--text is for ONNX models and texts, not for vision-language models", "inspect", "--image", "PICTURE", "--text", "a")]
    [InlineData("--attention is for texts, not for vision-language models", "inspect", "--image", "PICTURE", "--attention", "window:w=2")]
    [InlineData("--guidance must be between 0 and 10", "generate", "--image", "PICTURE", "--guidance", "11")]
    [InlineData("--compare shows a text with and without an edit", "generate", "--image", "PICTURE", "--compare")]
    public async Task Options_that_do_not_fit_are_told(string sentence, params string[] arguments)
    {
        var result = await Shell.RunAsync([.. arguments.Select(argument => argument.Replace("PICTURE", folder.Picture, StringComparison.Ordinal)), "--model", folder.Model, .. (string[])(arguments[0] == "inspect" ? ["--out", Report] : [])]);
        Assert.NotEqual(0, result.Code);
        Assert.Equal("", result.Out);
        Assert.Contains(sentence, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
        Assert.Empty(Directory.GetFileSystemEntries(_out));
    }

    [Fact]
    public async Task What_a_model_is_not_made_for_is_one_sentence_and_no_defect()
    {
        var (nameless, whole) = (folder.Changed("nameless", "\"bos_token_id\": 1", "\"bos_token_id\": null"), folder.Changed("whole", "\"vision_feature_select_strategy\": \"default\"", "\"vision_feature_select_strategy\": \"full\""));
        foreach (var (sentence, arguments) in new (string, string[])[]
        {
            ("this model has none: name them, for example dims=2533/1415.", ["generate", "--model", nameless, "--edit", "var:from=0"]),
            ("this model has none: name them, for example dims=2533/1415.", ["inspect", "--model", nameless, "--edit", "var:from=0", "--out", Report]),
            ("that has no place in the picture: it cannot be inspected.", ["inspect", "--model", whole, "--out", Report]),
        })
        {
            var result = await Shell.RunAsync([.. arguments, "--image", folder.Picture]);
            Assert.Equal((1, ""), (result.Code, result.Out));
            Assert.EndsWith(sentence, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
        }

        Assert.Empty(Directory.GetFileSystemEntries(_out));
        // Both can talk, and be edited where it is known how.
        foreach (var (model, edit) in new[] { (nameless, "var:from=0,dims=3"), (whole, "informed:from=0") })
        {
            Assert.Equal(0, (await Shell.RunAsync("generate", "--model", model, "--image", folder.Picture, "--tokens", "3", "--edit", edit)).Code);
        }
    }

    [Fact]
    public async Task A_report_that_cannot_be_written_leaves_nothing()
    {
        var taken = Path.Combine(_out, "taken");
        await File.WriteAllTextAsync(taken, "old", TestContext.Current.CancellationToken);
        foreach (var (target, sentence) in new[] { (_out, "is a folder: name a file"), (Path.Combine(taken, "report.html"), "cannot be written") })
        {
            var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--image", folder.Picture, "--tokens", "3", "--out", target, "--json");
            Assert.Equal((1, ""), (result.Code, result.Out));
            Assert.StartsWith(target, Assert.Single(result.Error.TrimEnd().Split('\n')), StringComparison.Ordinal);
            Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        }

        Assert.Equal([taken], Directory.GetFileSystemEntries(_out));
        Assert.Equal("old", await File.ReadAllTextAsync(taken, TestContext.Current.CancellationToken));
    }

    private async Task<JsonElement> Inspect(params string[] arguments) => await Json(["inspect", .. arguments, "--out", Report]);

    private async Task<JsonElement> Generate(params string[] arguments) => await Json(["generate", .. arguments, "--temperature", "0"]);

    private async Task<JsonElement> Json(string[] arguments)
    {
        var result = await Shell.RunAsync([.. arguments, "--model", folder.Model, "--image", folder.Picture, "--json"]);
        Assert.Equal((0, ""), (result.Code, result.Error));
        return JsonDocument.Parse(result.Out).RootElement;
    }
}
