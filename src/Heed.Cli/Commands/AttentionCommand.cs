using System.CommandLine;
using Heed.Lab.Mechanisms;

namespace Heed.Cli.Commands;

/// <summary><c>heed attention</c>: what <c>--attention</c> knows.</summary>
internal static class AttentionCommand
{
    public static Command Create()
    {
        var json = CommandExtensions.JsonOption();
        return new Command("attention", "List the mechanisms that --attention puts in place of a model's attention.") { json }.Runs(
            (result, terminal, _) =>
            {
                if (result.GetValue(json))
                {
                    terminal.WriteJson(AttentionSwap.Known.Select(known => new { known.Name, known.Usage, known.Summary, Paper = known.Slug }));
                    return ExitCode.Success;
                }

                foreach (var known in AttentionSwap.Known)
                {
                    terminal.Out.WriteLine($"{known.Name,-10}  {known.Summary}{(known.Slug is null ? "" : $" ({known.Slug})")}");
                    terminal.Out.WriteLine($"{"",-10}  {known.Usage}");
                }

                terminal.Out.WriteLine("Every one also takes dense=N: the first N layers keep their own attention.");
                return ExitCode.Success;
            },
            usesLibTorch: false);
    }
}
