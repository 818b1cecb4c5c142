using System.CommandLine;
using System.Globalization;
using Heed.Lab.Verification;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed verify [FOLDER] [--json]</c>: runs the golden cases of a folder and one level below.</summary>
internal static class VerifyCommand
{
    public static Command Create()
    {
        var folder = new Argument<string?>("FOLDER") { Description = "Folder of golden cases; default: those that came with the program.", Arity = ArgumentArity.ZeroOrOne };
        var json = CommandExtensions.JsonOption();
        return new Command("verify", "Run golden cases: results of the papers' own code, recomputed by Heed and compared.") { folder, json }
            .Runs((result, terminal, cancellation) => Run(result.GetValue(folder), result.GetValue(json), terminal, cancellation));
    }

    private static int Run(string? folder, bool json, Terminal terminal, CancellationToken cancellation)
    {
        var chosen = folder ?? Path.Combine(AppContext.BaseDirectory, "golden");
        var results = new List<GoldenResult>();
        foreach (var result in GoldenVerifier.Verify(chosen))
        {
            cancellation.ThrowIfCancellationRequested();
            results.Add(result);
            if (!json)
            {
                // The verdict in colour, the rest as plain text: one line per case, however narrow the terminal.
                terminal.Console.Markup(result.Passed ? "[green]pass[/]" : "[red]FAIL[/]");
                terminal.Out.WriteLine($"  {result.Operation,-38}  {result.Case,-44}  {Figures(result)}");
            }
        }

        if (results.Count == 0)
        {
            terminal.Notice($"There is no golden case in {chosen} or one level below: give a folder of safetensors files whose headers name an op.");
            return ExitCode.Usage;
        }

        var failed = results.Count(result => !result.Passed);
        if (json)
        {
            terminal.WriteJson(results.Select(result => new
            {
                result.Case, Op = result.Operation, Verdict = result.Passed ? "pass" : "fail", result.MaxError, result.Tolerance, result.Message,
            }));
        }
        else
        {
            terminal.Out.WriteLine(failed == 0 ? $"All {results.Count} cases pass." : $"{failed} of {results.Count} cases fail.");
        }

        return failed == 0 ? ExitCode.Success : ExitCode.Failure;
    }

    private static string Figures(GoldenResult result) => result is { MaxError: { } error, Tolerance: { } tolerance }
        ? string.Create(CultureInfo.InvariantCulture, $"error {error:0.0e+00}, allowed {tolerance:0.0e+00} ({result.Message})")
        : result.Message;
}
