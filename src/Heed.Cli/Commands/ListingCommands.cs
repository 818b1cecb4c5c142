using System.CommandLine;
using Heed.Lab.Mechanisms;

namespace Heed.Cli.Commands;

/// <summary><c>heed attention</c> and <c>heed edits</c>: what the options of that name know.</summary>
internal static class ListingCommands
{
    public static Command Attention() => Create(
        "attention", "List the mechanisms that --attention puts in place of a model's attention.", AttentionSwap.Known, "Every one also takes dense=N: the first N layers keep their own attention.");

    public static Command Edits() => Create(
        "edits", "List the changes that --edit makes to a trained model while it runs.", ModelEdit.All.Select(known => (known.Name, known.Usage, known.Summary, known.Slug)), "--edit may be given several times.");

    private static Command Create(string name, string description, IEnumerable<(string Name, string Usage, string Summary, string? Slug)> known, string last)
    {
        var json = CommandExtensions.JsonOption();
        return new Command(name, description) { json }.Runs(
            (result, terminal, _) =>
            {
                if (result.GetValue(json))
                {
                    terminal.WriteJson(known.Select(one => new { one.Name, one.Usage, one.Summary, Paper = one.Slug }));
                    return ExitCode.Success;
                }

                foreach (var one in known)
                {
                    terminal.Out.WriteLine($"{one.Name,-10}  {one.Summary}{(one.Slug is null ? "" : $" ({one.Slug})")}");
                    terminal.Out.WriteLine($"{"",-10}  {one.Usage}");
                }

                terminal.Out.WriteLine(last);
                return ExitCode.Success;
            },
            usesLibTorch: false);
    }
}
