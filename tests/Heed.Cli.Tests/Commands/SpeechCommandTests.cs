using System.Text.Json;
using Heed.Lab.Speech;
using Heed.Models.Speech;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Cli.Tests.Commands;

public sealed class SpeechCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-speech-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task A_sound_is_written_down_and_inspected()
    {
        var (model, sound, report) = (At("model"), At("sound.wav"), At("report.html"));
        Make(model, sound);
        var written = await Shell.RunAsync("transcribe", sound, "--model", model, "--json");
        Assert.Equal(0, written.Code);
        var json = JsonDocument.Parse(written.Out).RootElement;
        Assert.Equal(1, json.GetProperty("seconds").GetDouble(), 1e-6);
        var words = json.GetProperty("words").EnumerateArray().ToArray();
        Assert.Equal(string.Join(' ', words.Select(word => word.GetProperty("text").GetString())), json.GetProperty("text").GetString());
        Assert.All(words, word => Assert.InRange(word.GetProperty("start").GetDouble(), 0, 1));
        Assert.Equal(words.Length, (await Shell.RunAsync("transcribe", sound, "--model", model)).Out.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        Assert.Equal(0, (await Shell.RunAsync("transcribe", sound, "--model", model, "--beams", "2")).Code);

        var inspected = await Shell.RunAsync("inspect", "--audio", sound, "--model", model, "--masks", "6", "--out", report, "--json");
        Assert.Equal(0, inspected.Code);
        Assert.Contains("Hiding parts of the sound 6 times", inspected.Error, StringComparison.Ordinal);
        var root = JsonDocument.Parse(inspected.Out).RootElement;
        Assert.Equal(4, root.GetProperty("heads").GetArrayLength());
        Assert.Equal(report, root.GetProperty("report").GetString());
        Assert.Contains("state_seconds", await File.ReadAllTextAsync(report, TestContext.Current.CancellationToken), StringComparison.Ordinal);
        var shown = await Shell.RunAsync("inspect", "--audio", sound, "--model", model, "--masks", "0", "--out", report);
        Assert.Equal(0, shown.Code);
        Assert.Contains("sound.wav", shown.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_edit_is_written_down_and_shown_beside_the_model_as_it_was_trained()
    {
        var (model, sound, report) = (At("model"), At("sound.wav"), At("report.html"));
        Make(model, sound);
        static string[] Words(JsonElement text) => [.. text.GetProperty("words").EnumerateArray().Select(word => word.GetProperty("text").GetString()!)];
        var plain = JsonDocument.Parse((await Shell.RunAsync("transcribe", sound, "--model", model, "--json")).Out).RootElement;
        var compared = await Shell.RunAsync("transcribe", sound, "--model", model, "--edit", "heads:scale=*.*,by=-5,kind=cross", "--edit", "ablate:mlp=1", "--compare", "--json");
        Assert.Equal(0, compared.Code);
        var json = JsonDocument.Parse(compared.Out).RootElement;
        Assert.Equal(Words(plain), Words(json.GetProperty("unedited")));
        Assert.NotEqual(plain.GetProperty("log_probability").GetDouble(), json.GetProperty("log_probability").GetDouble());
        Assert.Equal(2, json.GetProperty("edits").GetArrayLength());
        var shown = (await Shell.RunAsync("transcribe", sound, "--model", model, "--edit", "heads:scale=*.*,by=-5,kind=cross", "--edit", "ablate:mlp=1", "--compare")).Out.Split("Without the edit:");
        Assert.Equal(2, shown.Length);
        static string[] Last(string lines) => [.. lines.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => line.Split(' ')[^1])];
        Assert.Equal(Words(json), Last(shown[0]));
        Assert.Equal(Words(plain), Last(shown[1]));

        var inspected = await Shell.RunAsync("inspect", "--audio", sound, "--model", model, "--edit", "heads:scale=*.*,by=-5,kind=cross", "--edit", "ablate:mlp=1", "--masks", "0", "--out", report, "--json");
        Assert.Equal(0, inspected.Code);
        var root = JsonDocument.Parse(inspected.Out).RootElement;
        Assert.Equal(Words(json), Words(root));
        Assert.Equal(Words(plain), Words(root.GetProperty("before")));
        Assert.Equal(root.GetProperty("before").GetProperty("tokens").GetArrayLength(), Words(plain).Length + 1);
        Assert.All(root.GetProperty("heads").EnumerateArray(), head => Assert.InRange(head.GetProperty("attention_moved").GetDouble(), 0, 1));
        Assert.Contains("\"edited\":{\"name\":\"heads:scale=*.*,by=-5,kind=cross ablate:mlp=1\"", await File.ReadAllTextAsync(report, TestContext.Current.CancellationToken), StringComparison.Ordinal);
        var printed = await Shell.RunAsync("inspect", "--audio", sound, "--model", model, "--edit", "heads:scale=0.0", "--masks", "0", "--out", report);
        Assert.Equal(0, printed.Code);
        Assert.Contains("as trained", printed.Out, StringComparison.Ordinal);
        Assert.Contains("heads:scale=0.0: ", printed.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("There is no edit 'loud'", "inspect", "--audio", "SOUND", "--model", "MODEL", "--out", "REPORT", "--edit", "loud")]
    [InlineData("layers of cross-attention are 0 to 1", "inspect", "--audio", "SOUND", "--model", "MODEL", "--out", "REPORT", "--edit", "heads:scale=2.0,kind=cross")]
    [InlineData("keys 0 to 24", "inspect", "--audio", "SOUND", "--model", "MODEL", "--out", "REPORT", "--edit", "move:kind=cross,sink=25")]
    [InlineData("not finite", "inspect", "--audio", "SOUND", "--model", "MODEL", "--out", "REPORT", "--edit", "heads:scale=*.*,by=1e38")]
    [InlineData("token by token", "transcribe", "SOUND", "--model", "MODEL", "--edit", "dormant")]
    [InlineData("reads no such thing", "transcribe", "SOUND", "--model", "MODEL", "--edit", "var")]
    [InlineData("say which with --edit", "transcribe", "SOUND", "--model", "MODEL", "--compare")]
    public async Task Edits_that_cannot_be_are_one_sentence_and_leave_no_report(string sentence, params string[] arguments)
    {
        Make(At("model"), At("sound.wav"));
        var result = await Shell.RunAsync([.. arguments.Select(argument =>
            argument.Replace("MODEL", At("model"), StringComparison.Ordinal).Replace("SOUND", At("sound.wav"), StringComparison.Ordinal).Replace("REPORT", At("report.html"), StringComparison.Ordinal))]);
        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", result.Error, StringComparison.Ordinal);
        Assert.Empty(result.Out);
        Assert.False(File.Exists(At("report.html")));
    }

    [Theory]
    [InlineData("Say which speech model", "transcribe", "SOUND")]
    [InlineData("There is no sound file", "transcribe", "none.wav", "--model", "MODEL")]
    [InlineData("is not the folder of a speech model", "transcribe", "SOUND", "--model", "none")]
    [InlineData("Say which speech model", "inspect", "--audio", "SOUND")]
    [InlineData("--text is for ONNX models and texts, not for sounds", "inspect", "--audio", "SOUND", "--model", "MODEL", "--text", "a")]
    [InlineData("--masks is for sounds", "inspect", "--masks", "5")]
    [InlineData("is not a WAV file", "inspect", "--audio", "MODEL/config.json", "--model", "MODEL")]
    public async Task Mistakes_are_one_sentence(string sentence, params string[] arguments)
    {
        Make(At("model"), At("sound.wav"));
        var result = await Shell.RunAsync([.. arguments.Select(argument => argument.Replace("MODEL", At("model"), StringComparison.Ordinal).Replace("SOUND", At("sound.wav"), StringComparison.Ordinal))]);
        Assert.Equal(1, result.Code);
        Assert.Contains(sentence, result.Error, StringComparison.Ordinal);
    }

    private static void Make(string folder, string sound)
    {
        manual_seed(3);
        using var pretrained = new PretrainedSpeech(new SpeechTransformer(SpeechTraining.Configuration(32, 1, 2, 2)), SpokenCorpus.Features, SpokenCorpus.Vocabulary);
        pretrained.Save(folder);
        var random = new Random(2);
        new Waveform([.. Enumerable.Range(0, 16_000).Select(_ => (float)random.NextDouble() - 0.5f)], 16_000).Write(sound);
    }

    private string At(string name) => Path.Combine(_folder, name);
}
