using System.Text.Json;
using System.Text.RegularExpressions;
using Heed.Lab.Tests.Inspection;
using Xunit;

namespace Heed.Cli.Tests.Commands;

public sealed partial class InspectCommandTests(TinyModelFolder folder) : IClassFixture<TinyModelFolder>
{
    [Fact]
    public async Task Shipped_page_gives_a_table_and_a_report()
    {
        var report = folder.At("page.html");
        var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--out", report);
        Assert.Equal("", result.Error);
        Assert.Equal(0, result.Code);
        Assert.Contains("bits per byte", result.Out, StringComparison.Ordinal);
        Assert.Contains(report, result.Out, StringComparison.Ordinal);
        // Layer, head, entropy and its share: the heads' own rows.
        var rows = result.Out.Split('\n').Count(line => HeadRow().IsMatch(line));
        Assert.Equal(TinyModel.Layers * TinyModel.Heads, rows);
        Assert.Contains("others' largest", result.Out, StringComparison.Ordinal);
        Assert.Contains("sinks: tokens whose residual stream is parallel", result.Out, StringComparison.Ordinal);
        Assert.StartsWith("<!doctype html>", await File.ReadAllTextAsync(report, TestContext.Current.CancellationToken), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Json_has_every_head_and_the_loss()
    {
        var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--out", folder.At("json.html"), "--json");
        var json = JsonDocument.Parse(result.Out).RootElement;
        Assert.Equal("tiny", json.GetProperty("model").GetProperty("name").GetString());
        Assert.Equal("page.txt", json.GetProperty("source").GetString());
        Assert.Equal(56, json.GetProperty("tokens").GetInt32());
        Assert.Equal(55, json.GetProperty("predicted_bytes").GetInt32());
        Assert.Equal(json.GetProperty("loss_per_token").GetDouble() / Math.Log(2), json.GetProperty("bits_per_byte").GetDouble(), 1e-9);
        Assert.Equal(56, json.GetProperty("token_losses").GetArrayLength());
        var heads = json.GetProperty("heads").EnumerateArray().ToArray();
        Assert.Equal(TinyModel.Layers * TinyModel.Heads, heads.Length);
        foreach (var name in new[] { "entropy", "entropy_share", "first_mass", "near_mass", "mean_distance", "previous_share", "self_share", "induction" })
        {
            Assert.All(heads, head => Assert.True(double.IsFinite(head.GetProperty(name).GetDouble())));
        }

        Assert.All(heads, head => Assert.Matches("^[a-z]+$", head.GetProperty("look").GetString()));
        Assert.All(heads, head => Assert.True(double.IsFinite(head.GetProperty("sink_logit_gap").GetDouble()) && head.GetProperty("column_entropy").GetDouble() is >= 0 and <= 1.001));
        Assert.All(heads, head => Assert.True(head.GetProperty("dormant").ValueKind is JsonValueKind.True or JsonValueKind.False && head.GetProperty("attention_sinks").ValueKind == JsonValueKind.Array));
        Assert.Equal(0.5, json.GetProperty("dormancy").GetProperty("row_threshold").GetDouble());
        Assert.Contains(json.GetProperty("sinks").GetProperty("primary").GetInt32(), new[] { 0, 1 });
        var primary = json.GetProperty("sinks").GetProperty("tokens").EnumerateArray().First();
        Assert.Equal(primary.GetProperty("lifetime").GetInt32(), primary.GetProperty("layers").GetArrayLength());
        Assert.Equal(TinyModel.Layers, json.GetProperty("layers").GetArrayLength());
        Assert.True(json.GetProperty("layers")[0].GetProperty("first_token_norm").GetDouble() > 0);
    }

    [Fact]
    public async Task A_swapped_attention_is_told_beside_the_models_own()
    {
        var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--out", folder.At("swapped.html"), "--attention", "window:w=4");
        Assert.Equal("", result.Error);
        Assert.Contains("window:w=4 computes 14% of the pairs", result.Out, StringComparison.Ordinal);
        var json = JsonDocument.Parse((await Shell.RunAsync("inspect", "--model", folder.Model, "--out", folder.At("swapped.html"), "--attention", "window:w=4", "--json")).Out).RootElement;
        Assert.Equal("window:w=4", json.GetProperty("attention").GetString());
        Assert.NotEqual(json.GetProperty("bits_per_byte").GetDouble(), json.GetProperty("bits_per_byte_without").GetDouble());
        Assert.Contains("in place of its own attention", await File.ReadAllTextAsync(folder.At("swapped.html"), TestContext.Current.CancellationToken), StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_edited_model_is_told_beside_the_unedited_one()
    {
        string[] arguments = ["inspect", "--model", folder.Model, "--out", folder.At("edited.html"), "--edit", "ablate:mlp=0"];
        var result = await Shell.RunAsync(arguments);
        Assert.Equal("", result.Error);
        Assert.Contains("ablate:mlp=0: the unedited model reads the text at", result.Out, StringComparison.Ordinal);
        var json = JsonDocument.Parse((await Shell.RunAsync([.. arguments, "--json"])).Out).RootElement;
        var plain = JsonDocument.Parse((await Shell.RunAsync("inspect", "--model", folder.Model, "--out", folder.At("plain.html"), "--json")).Out).RootElement;
        Assert.Equal("ablate:mlp=0", Assert.Single(json.GetProperty("edits").EnumerateArray()).GetString());
        Assert.Equal(plain.GetProperty("bits_per_byte").GetDouble(), json.GetProperty("before").GetProperty("bits_per_byte").GetDouble(), 1e-9);
        Assert.Equal(json.GetProperty("heads").GetArrayLength(), json.GetProperty("before").GetProperty("heads").GetArrayLength());
        Assert.NotEqual(plain.GetProperty("bits_per_byte").GetDouble(), json.GetProperty("bits_per_byte").GetDouble());
    }

    [Fact]
    public async Task Long_text_is_cut_with_a_notice()
    {
        var text = folder.Write("long.txt", System.Text.Encoding.UTF8.GetBytes(new string('é', 5000)));
        var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--text", text, "--out", folder.At("long.html"), "--json");
        var json = JsonDocument.Parse(result.Out).RootElement;
        Assert.Equal(128, json.GetProperty("tokens").GetInt32());
        Assert.Contains("context", json.GetProperty("notices")[0].GetString(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("empty", "", "is empty")]
    [InlineData("blank", "202009", "is empty")]
    [InlineData("binary", "61006200", "zero byte at offset 1")]
    [InlineData("latin1", "6361666520e9", "not UTF-8")]
    public async Task Unreadable_text_is_refused(string name, string hex, string expected)
    {
        var report = folder.At($"{name}.html");
        var result = await Shell.RunAsync("inspect", "--model", folder.Model, "--text", folder.Write(name, Convert.FromHexString(hex)), "--out", report);
        Fails(result, name, expected);
        Assert.False(File.Exists(report));
    }

    [Fact]
    public async Task Missing_things_are_named()
    {
        Fails(await Shell.RunAsync("inspect", "--model", "nobody"), "nobody");
        Fails(await Shell.RunAsync("inspect", "--model", folder.Root), "config.json");
        Fails(await Shell.RunAsync("inspect", "--model", folder.Model, "--text", folder.At("nothing.txt")), "nothing.txt");
        Fails(await Shell.RunAsync("inspect", "--model", folder.Model, "--text", folder.Root), "is a folder");
        Fails(await Shell.RunAsync("inspect", "--model", folder.Model, "--out", folder.Root), "is a folder");
    }

    [Fact]
    public async Task Model_without_page_asks_for_a_text()
    {
        var model = folder.At("pageless");
        Directory.CreateDirectory(model);
        foreach (var file in Directory.GetFiles(folder.Model).Where(file => !file.EndsWith("page.txt", StringComparison.Ordinal)))
        {
            File.Copy(file, Path.Combine(model, Path.GetFileName(file)), overwrite: true);
        }

        Fails(await Shell.RunAsync("inspect", "--model", model), "--text");
    }

    [Fact]
    public async Task Model_without_tokenizer_is_refused()
    {
        var model = folder.At("mute");
        using (var tiny = TinyModel.Create(tokenizer: false))
        {
            tiny.Save(model);
        }

        Fails(await Shell.RunAsync("inspect", "--model", model, "--text", Path.Combine(folder.Model, "page.txt")), "tokenizer.json");
    }

    [Fact]
    public async Task Full_disk_is_one_sentence()
    {
        Assert.SkipUnless(File.Exists("/dev/full"), "This system has no /dev/full.");
        Fails(await Shell.RunAsync("inspect", "--model", folder.Model, "--out", "/dev/full"), "No space left");
    }

    [Fact]
    public async Task Cancelled_run_writes_nothing()
    {
        using var source = new CancellationTokenSource();
        await source.CancelAsync();
        var report = folder.At("cancelled.html");
        var result = await Shell.RunAsync(source.Token, "inspect", "--model", folder.Model, "--out", report);
        Assert.Equal(ExitCode.Interrupted, result.Code);
        Assert.False(File.Exists(report));
    }

    [Fact]
    public void Byte_order_mark_and_windows_line_ends_are_taken_off() =>
        Assert.Equal("a\nb", TextSource.Decode("\ufeffa\r\nb"u8, "text", cut: false));

    [Theory]
    [InlineData(0, " ")]
    [InlineData(1, " a")]
    [InlineData(2, " a")]
    [InlineData(4, " a")]
    [InlineData(5, " a😀")]
    [InlineData(6, " a😀")]
    [InlineData(7, " a😀é")]
    [InlineData(8, " a😀éb")]
    public void Cut_within_a_character_takes_the_character_off(int bytes, string expected) =>
        Assert.Equal("x" + expected, TextSource.Decode("x a😀éb"u8[..(bytes + 2)], "text", cut: true));

    private static void Fails(ShellResult result, params string[] expected)
    {
        Assert.Equal(1, result.Code);
        Assert.Empty(result.Out);
        var line = Assert.Single(result.Error.TrimEnd().Split('\n'));
        Assert.DoesNotContain("defect", line, StringComparison.Ordinal);
        foreach (var part in expected)
        {
            Assert.Contains(part, line, StringComparison.Ordinal);
        }
    }

    [GeneratedRegex(@"^\s+\d+\s+\d+\s+\d+\.\d\d\s+\d+(\.\d)?%")]
    private static partial Regex HeadRow();
}
