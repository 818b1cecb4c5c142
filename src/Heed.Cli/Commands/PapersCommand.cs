using System.CommandLine;
using Heed.Lab.Catalogue;
using Heed.Lab.Reproductions;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed papers [SLUG]</c>: the catalogue.</summary>
internal static class PapersCommand
{
    public static Command Create()
    {
        var slug = new Argument<string?>("slug") { Description = "One paper; without it, all.", HelpName = "SLUG", Arity = ArgumentArity.ZeroOrOne };
        slug.CompletionSources.Add(_ => PaperCatalogue.All.Select(paper => new System.CommandLine.Completions.CompletionItem(paper.Slug)));
        var json = CommandExtensions.JsonOption();
        var command = new Command("papers", "List the papers: what each is, where it lives in the code, its claim, the last measured verdict.") { slug, json };
        return command.Runs(
            (result, terminal, _) =>
            {
                var chosen = result.GetValue(slug) is { } name ? PaperCatalogue.Find(name) : null;
                if (result.GetValue(json))
                {
                    terminal.WriteJson((chosen is null ? PaperCatalogue.All : [chosen]).Select(paper => new Row(
                        paper.Slug, paper.Title, paper.ArXiv, paper.StateName, paper.Location, paper.Verdict)));
                }
                else if (chosen is not null)
                {
                    WritePage(terminal.Console, chosen);
                }
                else
                {
                    WriteTable(terminal.Console);
                }

                return ExitCode.Success;
            },
            usesLibTorch: false);
    }

    private static void WriteTable(IAnsiConsole console)
    {
        var table = new Table().Border(TableBorder.Rounded).Expand();
        table.AddColumn(new TableColumn("[bold]paper[/]").NoWrap());
        table.AddColumn(new TableColumn("[bold]arXiv[/]").NoWrap());
        table.AddColumn("[bold]what it is[/]");
        table.AddColumn(new TableColumn("[bold]room[/]").NoWrap());
        table.AddColumn(new TableColumn("[bold]state[/]").NoWrap());
        foreach (var paper in PaperCatalogue.All)
        {
            table.AddRow(Markup.Escape(paper.Slug), paper.ArXiv, Markup.Escape(paper.What), $"{paper.Room}", Coloured(paper));
        }

        console.Write(table);
        var counts = string.Join(", ", PaperCatalogue.All.GroupBy(paper => paper.State).OrderByDescending(group => group.Key).Select(group => $"{group.Count()} {group.First().StateName}"));
        console.WriteLine($"{PaperCatalogue.All.Count} papers: {counts}. `heed papers SLUG` tells one paper's claim and where it lives in the code.");
    }

    private static void WritePage(IAnsiConsole console, Paper paper)
    {
        var grid = new Grid().AddColumn(new GridColumn().NoWrap().PadRight(2)).AddColumn();
        AddRow("paper", $"{paper.Title} ({paper.Year})");
        AddRow("arXiv", $"{paper.ArXiv}  https://arxiv.org/abs/{paper.ArXiv}");
        AddRow("what", paper.What);
        AddRow("claim", paper.Claim);
        grid.AddRow("[grey]state[/]", Coloured(paper));
        AddRow("code", paper.Location ?? $"not yet; its room is {paper.Room}");
        AddRow("verdict", paper.Verdict ?? "not measured yet");
        if (ReproductionLog.Recorded.TryGetValue(paper.Slug, out var record))
        {
            foreach (var claim in record.Claims)
            {
                grid.AddRow($"[grey]{Verdicts.Word(claim.Verdict)}[/]", Markup.Escape($"{claim.Claim} Measured: {claim.Measured}"));
            }
        }

        console.Write(new Rule($"[bold]{Markup.Escape(paper.Slug)}[/]").LeftJustified());
        console.Write(grid);

        void AddRow(string name, string value) => grid.AddRow($"[grey]{name}[/]", Markup.Escape(value));
    }

    private static string Coloured(Paper paper) => paper.State switch
    {
        PaperState.Reproduced => $"[green]{paper.StateName}[/]",
        PaperState.Verified => $"[blue]{paper.StateName}[/]",
        _ => $"[grey]{paper.StateName}[/]",
    };

    // The stable shape for programs.
    private sealed record Row(string Slug, string Title, string Arxiv, string State, string? Location, string? Verdict);
}
