using System.CommandLine;
using Heed.Lab.Mechanisms;

namespace Heed.Cli.Commands;

/// <summary><c>heed edits</c>: what <c>--edit</c> knows.</summary>
internal static class EditsCommand
{
    public static Command Create()
    {
        var json = CommandExtensions.JsonOption();
        return new Command("edits", "List the changes that --edit makes to a trained model while it runs.") { json }.Runs(
            (result, terminal, _) =>
            {
                if (result.GetValue(json))
                {
                    terminal.WriteJson(ModelEdit.All.Select(known => new { known.Name, known.Usage, known.Summary, Paper = known.Slug }));
                    return ExitCode.Success;
                }

                foreach (var known in ModelEdit.All)
                {
                    terminal.Out.WriteLine($"{known.Name,-10}  {known.Summary}{(known.Slug is null ? "" : $" ({known.Slug})")}");
                    terminal.Out.WriteLine($"{"",-10}  {known.Usage}");
                }

                terminal.Out.WriteLine("--edit may be given several times.");
                return ExitCode.Success;
            },
            usesLibTorch: false);
    }
}
