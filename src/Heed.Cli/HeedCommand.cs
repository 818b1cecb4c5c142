using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.Text.RegularExpressions;
using Heed.Cli.Commands;

namespace Heed.Cli;

/// <summary>The root command: its subcommands, and the one place where what goes wrong becomes a sentence and an exit code.</summary>
internal static partial class HeedCommand
{
    /// <summary>The subcommands, in the order in which help lists them.</summary>
    public static RootCommand Create()
    {
        var root = new RootCommand("Attention for .NET: see what a transformer attends to, generate, verify, benchmark and train.")
        {
            InspectCommand.Create(),
            GenerateCommand.Create(),
            TranscribeCommand.Create(),
            VerifyCommand.Create(),
            BenchCommand.Create(),
            ReproduceCommand.Create(),
            TrainCommand.Create(),
            CompareCommand.Create(),
            DrawCommand.Create(),
            RankCommand.Create(),
            SearchCommand.Create(),
            ListingCommands.Attention(),
            ListingCommands.Edits(),
            PapersCommand.Create(),
        };
        root.SetAction(result => new HelpAction().Invoke(result));
        return root;
    }

    /// <summary>Parses and runs one command line.</summary>
    /// <param name="arguments">The arguments after the program's name.</param>
    /// <param name="output">Receives results.</param>
    /// <param name="error">Receives errors and notices.</param>
    /// <param name="cancellation">Cancelled by Ctrl+C.</param>
    /// <returns>One of <see cref="ExitCode"/>, or what the command chose.</returns>
    public static async Task<int> RunAsync(IReadOnlyList<string> arguments, TextWriter output, TextWriter error, CancellationToken cancellation = default)
    {
        var configuration = new InvocationConfiguration { Output = output, Error = error, EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null };
        var result = Create().Parse(arguments);
        try
        {
            if (result.Action is ParseErrorAction mistake)
            {
                // The default also prints the whole help, which buries the mistake.
                mistake.ShowHelp = false;
                using var explanation = new StringWriter();
                await result.InvokeAsync(new InvocationConfiguration { Output = explanation, Error = explanation }, cancellation);
                var lines = explanation.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
                error.WriteLine($"{Conversion().Replace(string.Join(' ', lines), "$1 is not a valid value for $2.")} See `{CommandPath(result)} --help`.");
                return ExitCode.Usage;
            }

            return await result.InvokeAsync(configuration, cancellation);
        }
        catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
        {
            error.WriteLine("Interrupted.");
            return ExitCode.Interrupted;
        }
#pragma warning disable CA1031 // The outermost frame of the program: whatever comes here must become a sentence, not a stack trace.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            error.WriteLine(ErrorSentence.Of(exception));
            if (ErrorSentence.Debugging)
            {
                error.WriteLine(exception);
            }

            return ExitCode.Failure;
        }
    }

    private static string CommandPath(ParseResult result)
    {
        var names = new Stack<string>();
        for (SymbolResult? at = result.CommandResult; at is not null; at = at.Parent)
        {
            names.Push(at is CommandResult { Command: not RootCommand } command ? command.Command.Name : "heed");
        }

        return string.Join(' ', names);
    }

    /// <summary>The parser's words for a value of the wrong kind, which name a .NET type.</summary>
    [GeneratedRegex(@"Cannot parse argument '([^']*)' for (?:option|command) '([^']*)' as expected type '[^']*'\.")]
    private static partial Regex Conversion();
}
