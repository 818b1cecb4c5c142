using System.Diagnostics;
using Xunit;

namespace Heed.Cli.Tests;

/// <summary>What a command line gave.</summary>
internal sealed record ShellResult(int Code, string Out, string Error);

/// <summary>Runs command lines as a user would.</summary>
internal static class Shell
{
    /// <summary>Within this process: fast, and everything but the process's own matters is the same.</summary>
    public static async Task<ShellResult> RunAsync(params string[] arguments) => await RunAsync(TestContext.Current.CancellationToken, arguments);

    public static async Task<ShellResult> RunAsync(CancellationToken cancellation, params string[] arguments)
    {
        using StringWriter output = new(), error = new();
        var code = await HeedCommand.RunAsync(arguments, output, error, cancellation);
        return new(code, output.ToString(), error.ToString());
    }

    /// <summary>As a process of its own.</summary>
    public static Process Start(IEnumerable<string> arguments, params (string Name, string Value)[] environment)
    {
        var start = new ProcessStartInfo(Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet")
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        foreach (var argument in arguments.Prepend(Path.Combine(AppContext.BaseDirectory, "Heed.Cli.dll")))
        {
            start.ArgumentList.Add(argument);
        }

        foreach (var (name, value) in environment)
        {
            start.Environment[name] = value;
        }

        return Process.Start(start)!;
    }

    /// <summary>Waits for a process of <see cref="Start"/>.</summary>
    public static async Task<ShellResult> EndAsync(Process process)
    {
        process.StandardInput.Close();
        var (output, error) = (process.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new(process.ExitCode, await output, await error);
    }
}
