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

    [Theory]
    [InlineData("Say which speech model", "transcribe", "SOUND")]
    [InlineData("There is no sound file", "transcribe", "none.wav", "--model", "MODEL")]
    [InlineData("is not the folder of a speech model", "transcribe", "SOUND", "--model", "none")]
    [InlineData("Say which speech model", "inspect", "--audio", "SOUND")]
    [InlineData("--text is not for sounds", "inspect", "--audio", "SOUND", "--model", "MODEL", "--text", "a")]
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
