using System.CommandLine;
using Spectre.Console;

namespace Heed.Cli;

/// <summary>Where a command writes: results to <see cref="Out"/>, everything else to <see cref="Error"/>. Plain text where a stream is redirected.</summary>
internal sealed class Terminal
{
    private const int WidthWhenRedirected = 140;

    private Terminal(TextWriter output, TextWriter error)
    {
        Out = output;
        Error = error;
        Console = For(output, ReferenceEquals(output, System.Console.Out) && !System.Console.IsOutputRedirected);
        Notices = For(error, ReferenceEquals(error, System.Console.Error) && !System.Console.IsErrorRedirected);
    }

    /// <summary>Results, as text.</summary>
    public TextWriter Out { get; }

    /// <summary>Errors and notices, as text.</summary>
    public TextWriter Error { get; }

    /// <summary>Results, as tables and colours.</summary>
    public IAnsiConsole Console { get; }

    /// <summary>Progress, notices: on standard error, so that results can be piped.</summary>
    public IAnsiConsole Notices { get; }

    /// <summary>The terminal that a command line was invoked with.</summary>
    public static Terminal Of(ParseResult result) => new(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error);

    /// <summary>Writes a value as JSON in the stable shape for programs, and a line end.</summary>
    public void WriteJson<T>(T value) => Out.WriteLine(JsonOutput.Serialize(value));

    /// <summary>Writes a sentence for the user to standard error.</summary>
    public void Notice(string sentence) => Error.WriteLine(sentence);

    private static IAnsiConsole For(TextWriter writer, bool interactive)
    {
        var console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Out = new AnsiConsoleOutput(writer),
            Ansi = interactive ? AnsiSupport.Detect : AnsiSupport.No,
            ColorSystem = interactive ? ColorSystemSupport.Detect : ColorSystemSupport.NoColors,
            Interactive = interactive ? InteractionSupport.Detect : InteractionSupport.No,
        });
        if (!interactive)
        {
            console.Profile.Width = WidthWhenRedirected;
        }

        return console;
    }
}
