using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace Heed.Cli.Tests;

public sealed class HeedCommandTests(TinyModelFolder folder) : IClassFixture<TinyModelFolder>
{
    [Fact]
    public async Task Nothing_asked_shows_what_there_is()
    {
        var result = await Shell.RunAsync();
        Assert.Equal(0, result.Code);
        Assert.Contains("inspect", result.Out, StringComparison.Ordinal);
        Assert.Contains("generate", result.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("inspct")]
    [InlineData("inspect", "--bogus")]
    [InlineData("inspect", "picture.png")]
    [InlineData("inspect", "--tokens", "1")]
    [InlineData("inspect", "--tokens", "many")]
    [InlineData("inspect", "--map-budget", "0")]
    [InlineData("inspect", "--threads", "-1")]
    [InlineData("generate", "--top-p", "0")]
    [InlineData("generate", "--temperature", "-1")]
    [InlineData("generate", "--tokens", "0")]
    public async Task Mistakes_in_the_command_line_are_one_line_and_exit_code_2(params string[] arguments)
    {
        var result = await Shell.RunAsync(arguments);
        Assert.Equal(ExitCode.Usage, result.Code);
        Assert.Empty(result.Out);
        Assert.Single(result.Error.TrimEnd().Split('\n'));
        Assert.Contains("--help", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Value_of_the_wrong_kind_is_told_without_names_of_types()
    {
        var result = await Shell.RunAsync("inspect", "--tokens", "many");
        Assert.Equal("many is not a valid value for --tokens. See `heed inspect --help`.", result.Error.Trim());
    }

    [Fact]
    public async Task Misspelt_command_is_suggested() =>
        Assert.Contains("inspect", (await Shell.RunAsync("inspct")).Error, StringComparison.Ordinal);

    [Theory]
    [InlineData(typeof(InvalidOperationException))]
    [InlineData(typeof(NullReferenceException))]
    public void Defects_are_told_as_defects(Type type)
    {
        var sentence = ErrorSentence.Of((Exception)Activator.CreateInstance(type)!);
        Assert.Contains("defect", sentence, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', sentence);
    }

    [Fact]
    public void Errors_of_the_user_are_told_as_they_are()
    {
        Assert.Equal("The file is broken.", ErrorSentence.Of(new InvalidDataException("The file is\n broken.")));
        Assert.Equal("Not this.", ErrorSentence.Of(new ArgumentException("Not this.", "name")));
        Assert.Equal("The file is broken.", ErrorSentence.Of(new TypeInitializationException("T", new InvalidDataException("The file is broken."))));
    }

    [Fact]
    public void Json_has_no_number_that_json_has_not()
    {
        var json = JsonDocument.Parse(JsonOutput.Serialize(new { NotANumber = double.NaN, TooLarge = float.PositiveInfinity, Half = 0.5, ManyWords = "é" }));
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("not_a_number").ValueKind);
        Assert.Equal(JsonValueKind.Null, json.RootElement.GetProperty("too_large").ValueKind);
        Assert.Equal(0.5, json.RootElement.GetProperty("half").GetDouble());
        Assert.Equal("é", json.RootElement.GetProperty("many_words").GetString());
    }

    [Fact]
    public async Task Process_reads_standard_input_and_exits_with_0()
    {
        var report = folder.At("piped.html");
        using var process = Shell.Start(["inspect", "--model", folder.Model, "--text", "-", "--out", report, "--json"]);
        await process.StandardInput.WriteAsync("Let there be light.");
        var result = await Shell.EndAsync(process);
        Assert.Equal("", result.Error);
        Assert.Equal(0, result.Code);
        Assert.Equal(20, JsonDocument.Parse(result.Out).RootElement.GetProperty("tokens").GetInt32());
        Assert.True(File.Exists(report));
    }

    [Fact]
    public async Task Process_says_one_sentence_and_exits_with_1()
    {
        using var process = Shell.Start(["inspect", "--model", "/no/such/model"]);
        var result = await Shell.EndAsync(process);
        Assert.Equal(1, result.Code);
        Assert.Equal("", result.Out);
        Assert.Single(result.Error.TrimEnd().Split('\n'));
        Assert.DoesNotContain("   at ", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Debugging_shows_the_stack_trace()
    {
        using var process = Shell.Start(["inspect", "--model", "/no/such/model"], ("HEED_DEBUG", "1"));
        var result = await Shell.EndAsync(process);
        Assert.Equal(1, result.Code);
        Assert.Contains("   at ", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Interrupted_process_exits_with_130_and_leaves_nothing()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "Signals are sent with kill.");
        var report = folder.At("interrupted.html");
        using var process = Shell.Start(["inspect", "--model", folder.Model, "--text", "-", "--out", report]);
        // It waits for standard input, which nobody closes; the signal must come after it has begun to listen for signals.
        await Task.Delay(2500, TestContext.Current.CancellationToken);
        // SIGTERM, which the tool treats as Ctrl+C: a test run that was itself started in the background has SIGINT ignored, and its children inherit that.
        using (var kill = Process.Start("kill", ["-TERM", $"{process.Id}"]))
        {
            await kill.WaitForExitAsync(TestContext.Current.CancellationToken);
        }

        await process.WaitForExitAsync(TestContext.Current.CancellationToken).WaitAsync(TimeSpan.FromSeconds(20), TestContext.Current.CancellationToken);
        Assert.Equal(ExitCode.Interrupted, process.ExitCode);
        Assert.Equal("Interrupted.", (await process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken)).Trim());
        Assert.False(File.Exists(report));
    }
}
