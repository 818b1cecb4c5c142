using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Heed.Lab.Reproductions;
using Spectre.Console;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed reproduce SLUG|all</c>: measures what a paper claims, at the scale of this machine, and lets the numbers decide.</summary>
internal static class ReproduceCommand
{
    private const string Everything = "all";
    private const string DefaultFolder = "reproductions";
    private static readonly TimeSpan LineEvery = TimeSpan.FromSeconds(15);

    public static Command Create()
    {
        var slug = new Argument<string?>("slug") { Description = $"The paper, or {Everything}; without it, the reproductions are listed.", HelpName = "SLUG", Arity = ArgumentArity.ZeroOrOne };
        slug.CompletionSources.Add(_ => Reproduction.All.Select(known => new System.CommandLine.Completions.CompletionItem(known.Slug)));
        var output = new Option<string?>("--out")
        {
            Description = $"Where results.json and report.html go (with {Everything}: into a folder for each paper). Default: {DefaultFolder}/SLUG.", HelpName = "FOLDER",
        };
        var quick = new Option<bool>("--quick") { Description = "Within 20 seconds, on problems too small to judge the claims by: to see that everything runs." };
        var resume = new Option<bool>("--resume") { Description = $"Go on with a run that was stopped; with {Everything}, keep what is finished." };
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        var command = new Command("reproduce", "Test what a paper claims by a small honest experiment; the numbers decide.") { slug, output, quick, resume, threads, json };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(slug) is not { } wanted)
            {
                List(terminal, result.GetValue(json));
                return ExitCode.Success;
            }

            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var (all, isQuick, goesOn) = (wanted == Everything, result.GetValue(quick), result.GetValue(resume));
            var chosen = all ? Reproduction.All : [Reproduction.Find(wanted)];
            var folder = result.GetValue(output);
            string FolderOf(Reproduction reproduction) => all || folder is null ? Path.Combine(folder ?? DefaultFolder, reproduction.Slug) : folder;
            if (!goesOn)
            {
                // Known before the first of them spends its minutes.
                chosen.ToList().ForEach(reproduction => ReproductionRunner.RefuseUnfinished(FolderOf(reproduction), isQuick));
            }

            var records = new List<ReproductionRecord>();
            var failed = 0;
            foreach (var reproduction in chosen)
            {
                if (all && goesOn && !ReproductionRunner.IsUnfinished(FolderOf(reproduction), isQuick) && ReproductionRunner.Finished(FolderOf(reproduction), isQuick) is { } kept)
                {
                    terminal.Notice($"{reproduction.Slug}: finished on {kept.Date.ToString("yyyy-MM-dd HH:mm", CultureInfo.InvariantCulture)} UTC, kept.");
                    records.Add(kept);
                    continue;
                }

                try
                {
                    var record = Run(reproduction, FolderOf(reproduction), isQuick, goesOn, terminal, cancellation);
                    records.Add(record);
                    Tell(record, FolderOf(reproduction), terminal, result.GetValue(json));
                }
                catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
                {
                    terminal.Notice("Stopped; nothing that was measured is lost: run the same command with --resume to go on.");
                    throw;
                }
                catch (Exception error) when (all)
                {
                    // One that cannot be run must not keep the others from running.
                    failed++;
                    terminal.Notice($"{reproduction.Slug}: {ErrorSentence.Of(error)}");
                }
            }

            if (result.GetValue(json))
            {
                terminal.WriteJson(records);
            }

            return failed == 0 ? ExitCode.Success : ExitCode.Failure;
        });
    }

    private static void List(Terminal terminal, bool json)
    {
        if (json)
        {
            terminal.WriteJson(Reproduction.All.Select(known => new { known.Slug, known.Summary }));
            return;
        }

        foreach (var known in Reproduction.All)
        {
            terminal.Out.WriteLine($"{known.Slug,-36}  {known.Summary}");
        }
    }

    private static void Tell(ReproductionRecord record, string folder, Terminal terminal, bool json)
    {
        if (!record.Quick && Directory.Exists("docs"))
        {
            var page = Path.Combine("docs", "reproductions.md");
            ReproductionLog.Update(page, record);
            terminal.Notice($"Recorded in {page}; `heed papers` tells it from the next build on.");
        }

        if (json)
        {
            return;
        }

        var table = new Table().Border(TableBorder.Rounded);
        foreach (var column in new[] { "verdict", "claim", "confirmed if", "measured" })
        {
            table.AddColumn(column);
        }

        foreach (var claim in record.Claims)
        {
            var colour = claim.Verdict switch { Verdict.Confirmed => "green", Verdict.NotConfirmed => "red", _ => "yellow" };
            table.AddRow($"[{colour}]{Verdicts.Word(claim.Verdict)}[/]", Markup.Escape(claim.Claim), Markup.Escape(claim.Expected), Markup.Escape(claim.Measured));
        }

        terminal.Console.Write(table);
        terminal.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{record.Slug}: {record.Counts}{(record.Quick ? " (a quick run: too small to judge by)" : "")}, {record.Seconds:0.0} s."));
        terminal.Out.WriteLine($"wrote {Path.Combine(folder, ReproductionRunner.ResultsFile)}");
        terminal.Out.WriteLine($"wrote {Path.Combine(folder, ReproductionRunner.ReportFile)}");
    }

    private static ReproductionRecord Run(Reproduction reproduction, string folder, bool quick, bool resume, Terminal terminal, CancellationToken cancellation)
    {
        if (!terminal.Notices.Profile.Capabilities.Interactive)
        {
            return ReproductionRunner.Run(reproduction, folder, quick, resume, Lines(reproduction.Slug, terminal), cancellation);
        }

        return terminal.Notices.Progress().AutoClear(true).Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn(), new ElapsedTimeColumn())
            .Start(context =>
            {
                var task = context.AddTask(Markup.Escape(reproduction.Slug), maxValue: 1);
                return ReproductionRunner.Run(reproduction, folder, quick, resume, progress =>
                {
                    task.Value = progress.Share;
                    task.Description = Markup.Escape($"{reproduction.Slug}: {progress.What}");
                }, cancellation);
            });
    }

    // Where nobody watches a bar, a line now and then tells a log the same.
    private static Action<ReproductionProgress> Lines(string slug, Terminal terminal)
    {
        var sinceLine = new Stopwatch();
        return progress =>
        {
            if (!sinceLine.IsRunning || sinceLine.Elapsed >= LineEvery)
            {
                sinceLine.Restart();
                terminal.Notice(string.Create(CultureInfo.InvariantCulture, $"{slug}: {progress.What} ({progress.Share:P0})"));
            }
        };
    }
}
