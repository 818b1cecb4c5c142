using System.Text.Json;
using Heed.Models.Checkpoints;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Cli.Tests.Commands;

public sealed class VerifyCommandTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("heed-verify-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public async Task WithoutAFolderTheShippedCasesPass()
    {
        var (code, output, error) = await Run("verify");

        var lines = output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal((0, ""), (code, error));
        Assert.All(lines[..^1], line => Assert.StartsWith("pass ", line));
        Assert.Equal($"All {lines.Length - 1} cases pass.", lines[^1].TrimEnd());
    }

    [Fact]
    public async Task AFailingCaseIsReportedInBothForms()
    {
        using (NewDisposeScope())
        {
            SafetensorsWriter.Write(
                Path.Combine(_folder, "odd.safetensors"), new Dictionary<string, Tensor> { ["out.x"] = ones(1) },
                new Dictionary<string, string> { ["op"] = "no/Such", ["config"] = "{}", ["atol"] = "0", ["rtol"] = "0" });
        }

        var (code, output, _) = await Run("verify", _folder);
        var (jsonCode, json, _) = await Run("verify", _folder, "--json");

        Assert.Equal((1, 1), (code, jsonCode));
        Assert.StartsWith("FAIL  no/Such", output);
        Assert.Contains("1 of 1 cases fail.", output);
        var result = JsonDocument.Parse(json).RootElement.EnumerateArray().Single();
        Assert.Equal(["case", "op", "verdict", "max_error", "tolerance", "message"], result.EnumerateObject().Select(member => member.Name));
        Assert.Equal(("odd", "no/Such", "fail"), (result.GetProperty("case").GetString(), result.GetProperty("op").GetString(), result.GetProperty("verdict").GetString()));
        Assert.Equal(JsonValueKind.Null, result.GetProperty("max_error").ValueKind);
    }

    [Fact]
    public async Task AFolderWithoutCasesAndNoFolderAreErrors()
    {
        var (emptyCode, emptyOutput, emptyError) = await Run("verify", _folder);
        var (missingCode, _, missingError) = await Run("verify", Path.Combine(_folder, "none"));

        Assert.Equal((2, "", 1), (emptyCode, emptyOutput, emptyError.Trim().Split('\n').Length));
        Assert.Contains("no golden case", emptyError);
        Assert.Equal(1, missingCode);
        Assert.Contains("does not exist", missingError);
    }

    private static async Task<(int Code, string Output, string Error)> Run(params string[] arguments)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        var code = await HeedCommand.RunAsync(arguments, output, error, TestContext.Current.CancellationToken);
        return (code, output.ToString(), error.ToString());
    }
}
