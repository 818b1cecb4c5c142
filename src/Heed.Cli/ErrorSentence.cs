using System.Runtime.InteropServices;
using System.Text.RegularExpressions;

namespace Heed.Cli;

/// <summary>Turns an exception into the one sentence that the user reads.</summary>
internal static partial class ErrorSentence
{
    /// <summary>Whether <c>HEED_DEBUG</c> asks for stack traces.</summary>
    public static bool Debugging => Environment.GetEnvironmentVariable("HEED_DEBUG") is { Length: > 0 } and not "0";

    /// <summary>The sentence for an exception.</summary>
    public static string Of(Exception exception)
    {
        var cause = exception;
        while (cause is TypeInitializationException or System.Reflection.TargetInvocationException or AggregateException && cause.InnerException is { } inner)
        {
            cause = inner;
        }

        var sentence = OneLine(cause switch
        {
            UnauthorizedAccessException => $"{cause.Message.TrimEnd('.')}: check its permissions.",
            OutOfMemoryException => "There is not enough memory for this; try fewer tokens (--tokens) or a smaller model.",
            ArgumentException argument => WithoutParameter(argument),
            IOException or InvalidDataException or DllNotFoundException or NotSupportedException or InvalidOperationException or NotFiniteNumberException => cause.Message,
            ExternalException => $"libtorch: {cause.Message}",
            _ => $"{cause.GetType().Name}: {cause.Message}",
        });
        return IsExpected(cause) ? sentence : $"{sentence} (This looks like a defect of heed: run again with HEED_DEBUG=1 and report what it prints.)";
    }

    private static bool IsExpected(Exception cause) => cause
        is ArgumentException or IOException or InvalidDataException or UnauthorizedAccessException or DllNotFoundException or NotSupportedException
        or OutOfMemoryException or OperationCanceledException or NotFiniteNumberException;

    /// <summary>.NET appends the parameter's name and value to an argument's message, which says nothing to somebody at a terminal.</summary>
    private static string WithoutParameter(ArgumentException exception)
    {
        var message = exception.Message;
        var suffix = message.IndexOf(" (Parameter '", StringComparison.Ordinal);
        return suffix > 0 ? message[..suffix] : message;
    }

    private static string OneLine(string message)
    {
        var line = Breaks().Replace(message, " ").Trim();
        return line.Length == 0 ? "Something went wrong." : line;
    }

    [GeneratedRegex(@"\s*[\r\n]+\s*")]
    private static partial Regex Breaks();
}
