using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Heed.Cli;

/// <summary>What every command needs: the terminal, Ctrl+C, libtorch, and options that check themselves.</summary>
internal static class CommandExtensions
{
    /// <summary>Sets what a command does. Exceptions become one sentence and exit code 1 (see <see cref="HeedCommand"/>).</summary>
    /// <param name="command">The command.</param>
    /// <param name="action">Gets the parsed command line, the terminal and Ctrl+C; returns the exit code.</param>
    /// <param name="usesLibTorch">Whether the command touches tensors: libtorch is loaded first, and its absence is an error that says what to do.</param>
    /// <returns>The command.</returns>
    public static Command Runs(this Command command, Func<ParseResult, Terminal, CancellationToken, int> action, bool usesLibTorch = true)
    {
        command.SetAction((result, cancellation) =>
        {
            if (usesLibTorch)
            {
                LibTorchSetup.Ensure();
            }

            return Task.FromResult(action(result, Terminal.Of(result), cancellation));
        });
        return command;
    }

    /// <summary>The option <c>--json</c>.</summary>
    public static Option<bool> JsonOption() => new("--json") { Description = "Write JSON for programs instead of tables." };

    /// <summary>The option <c>--attention</c>.</summary>
    public static Option<string?> AttentionOption() => new("--attention")
    {
        Description = "Put a mechanism in place of the model's attention, for example window:w=64; `heed attention` lists them.", HelpName = "NAME[:option=value,...]",
    };

    /// <summary>The option <c>--edit</c>, which may be given several times.</summary>
    public static Option<string[]> EditOption() => new("--edit")
    {
        Description = "Change the trained model while it runs, for example act:beta=0.4,heads=2.0/3.1; several are put in one after the other; `heed edits` lists them.", HelpName = "NAME[:option=value,...]", DefaultValueFactory = _ => [],
    };

    /// <summary>The option <c>--threads</c>.</summary>
    public static Option<int> ThreadsOption() => new Option<int>("--threads") { Description = "Number of threads; 0: every processor.", HelpName = "N" }.AtLeast(0);

    /// <summary>Refuses values below a minimum.</summary>
    public static Option<T> AtLeast<T>(this Option<T> option, T minimum)
        where T : struct, IComparable<T>, IFormattable => option.Within(value => value.CompareTo(minimum) >= 0, $"at least {minimum.ToString(null, CultureInfo.InvariantCulture)}");

    /// <summary>Refuses values outside a range.</summary>
    public static Option<T> Between<T>(this Option<T> option, T minimum, T maximum)
        where T : struct, IComparable<T>, IFormattable => option.Within(
            value => value.CompareTo(minimum) >= 0 && value.CompareTo(maximum) <= 0,
            $"between {minimum.ToString(null, CultureInfo.InvariantCulture)} and {maximum.ToString(null, CultureInfo.InvariantCulture)}");

    /// <summary>Refuses values that a test does not accept.</summary>
    public static Option<T> Within<T>(this Option<T> option, Func<T, bool> accepts, string range)
        where T : struct
    {
        option.Validators.Add(result =>
        {
            if (result.Tokens.Count > 0 && TryValue<T>(result, out var value) && !accepts(value))
            {
                result.AddError($"{option.Name} must be {range}, not {result.Tokens[0].Value}.");
            }
        });
        return option;
    }

    /// <summary>The value, where it parses; where it does not, that is the parser's own error to report.</summary>
    private static bool TryValue<T>(OptionResult result, out T value)
        where T : struct
    {
        try
        {
            value = result.GetValueOrDefault<T>();
            return true;
        }
        catch (InvalidOperationException)
        {
            value = default;
            return false;
        }
    }
}
