using System.CommandLine;
using Heed.Lab.Images;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed compare</c>: vision models with equal parameters and equal time.</summary>
internal static class CompareCommand
{
    public static Command Create()
    {
        var defaults = new ImageComparisonOptions { Folder = Path.Combine("runs", "compare") };
        var models = new Option<string?>("--models") { Description = "The models, with commas between them; the default is all that heed train fashion knows.", HelpName = "NAME,NAME:option=value,..." };
        var seconds = new Option<double>("--seconds") { Description = "Seconds of training of each model and seed, on one thread.", HelpName = "S", DefaultValueFactory = _ => defaults.Seconds }.AtLeast(0.1);
        var parameters = new Option<long>("--parameters") { Description = "Number of parameters that every model is scaled to.", HelpName = "N", DefaultValueFactory = _ => defaults.Parameters }.AtLeast(1000L);
        var seeds = new Option<int>("--seeds") { Description = "Number of seeds, from 1 on.", HelpName = "N", DefaultValueFactory = _ => defaults.Seeds.Count }.AtLeast(1);
        var seed = new Option<int>("--seed") { Description = "This seed only: so can several processes share the work.", HelpName = "N" }.AtLeast(1);
        var output = new Option<string>("--out") { Description = "Folder of the results; what lies in it is not measured again.", HelpName = "FOLDER", DefaultValueFactory = _ => defaults.Folder };
        var report = new Option<string?>("--report") { Description = "The page to write; the default is comparison.md in the folder.", HelpName = "FILE" };
        var data = new Option<string?>("--data") { Description = "Folder of Fashion-MNIST; the default is where its Debian package puts it.", HelpName = "FOLDER" };
        var json = CommandExtensions.JsonOption();
        return new Command("compare", "Train vision models with equal parameters for equal time and write a table of what they reach.") { models, seconds, parameters, seeds, seed, output, report, data, json }.Runs(
            (result, terminal, cancellation) =>
            {
                if (result.GetResult(seed) is not null && result.GetResult(seeds) is { Implicit: false })
                {
                    throw new ArgumentException("--seed and --seeds both say which seeds to run: give one of them.");
                }

                var options = new ImageComparisonOptions
                {
                    Folder = result.GetRequiredValue(output), Seconds = result.GetValue(seconds), Parameters = result.GetValue(parameters),
                    Models = result.GetValue(models) is { } wanted ? ImageComparison.ModelsOf(wanted) : [],
                    Seeds = result.GetResult(seed) is null ? [.. Enumerable.Range(1, result.GetValue(seeds))] : [result.GetValue(seed)],
                };
                IReadOnlyList<ComparedRun> runs;
                try
                {
                    runs = WithProgress(terminal, progress => ImageComparison.Run(options, FashionMnist.Load(result.GetValue(data)), progress, cancellation));
                }
                catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
                {
                    terminal.Notice($"Stopped; finished runs lie in {options.Folder}: run the same command again to go on.");
                    throw;
                }

                // What other processes measured belongs on the page, unless single models were asked for.
                var shown = options.Models.Count == 0 ? ImageComparison.Found(options) : runs;
                var files = ImageComparisonReport.Write(result.GetValue(report) ?? Path.Combine(options.Folder, "comparison.md"), shown);
                if (result.GetValue(json))
                {
                    terminal.WriteJson(new { Models = ImageComparisonReport.Summary(shown), Runs = shown, Files = files });
                }
                else
                {
                    Print(terminal, ImageComparisonReport.Summary(shown));
                    files.ToList().ForEach(file => terminal.Out.WriteLine($"wrote {file}"));
                }

                return ExitCode.Success;
            });
    }

    private static void Print(Terminal terminal, IReadOnlyList<ComparedModel> models)
    {
        var table = new Table().Border(TableBorder.Simple).AddColumn("model");
        foreach (var name in new[] { "parameters", "seeds", "accuracy", "loss", "steps", "pictures/s", "ms per picture" })
        {
            table.AddColumn(new TableColumn(name) { Alignment = Justify.Right });
        }

        foreach (var model in models)
        {
            FormattableString[] cells =
            [
                $"{model.Scaled}", $"{model.Parameters:N0}", $"{model.Seeds}", model.Spread is { } spread ? (FormattableString)$"{100 * model.Accuracy:F1} ± {100 * spread:F1}%" : $"{100 * model.Accuracy:F1}%",
                $"{model.Loss:F3}", $"{model.Steps:N0}", $"{model.PicturesPerSecond:N0}", $"{model.MillisecondsPerPicture:F3}",
            ];
            table.AddRow([.. cells.Select(cell => Markup.Escape(FormattableString.Invariant(cell)))]);
        }

        terminal.Console.Write(table);
    }

    private static IReadOnlyList<ComparedRun> WithProgress(Terminal terminal, Func<Action<ComparisonProgress>, IReadOnlyList<ComparedRun>> run)
    {
        if (!terminal.Notices.Profile.Capabilities.Interactive)
        {
            return run(progress =>
            {
                if (progress.Training is null)
                {
                    terminal.Notice($"{progress.Done + 1} of {progress.Total}: {progress.Model}, seed {progress.Seed}");
                }
            });
        }

        IReadOnlyList<ComparedRun> runs = [];
        terminal.Notices.Progress().AutoClear(true).Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn(), new RemainingTimeColumn()).Start(context =>
        {
            var task = context.AddTask("compare");
            runs = run(progress =>
            {
                task.MaxValue = progress.Total;
                task.Value = progress.Done + (progress.Training is { } training ? training.Step / (double)training.Steps : 0);
                task.Description = Markup.Escape($"{progress.Model}, seed {progress.Seed}{(progress.Training is { } step ? FormattableString.Invariant($", loss {step.Loss:F3}") : "")}");
            });
        });
        return runs;
    }
}
