using System.CommandLine;
using System.Globalization;
using Heed.Lab.Mechanisms;
using Heed.Lab.Search;
using Heed.Models;
using Spectre.Console;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed search</c>: tries an edit in every head of a model, one by one, and keeps those in which it helps.</summary>
internal static class SearchCommand
{
    // A minute or two for the shipped reader.
    private const int DefaultBytes = 16_384, DefaultTokens = 512;

    private static readonly TimeSpan LineEvery = TimeSpan.FromSeconds(15);

    public static Command Create()
    {
        var model = new Option<string>("--model") { Description = "A model folder, or a shipped model's name.", HelpName = "NAME|FOLDER", DefaultValueFactory = _ => ModelFolder.Default };
        var edit = new Option<string>("--edit") { Description = "What to try in each head: zero removes it; or an edit that takes heads, without saying which, for example act:beta=0.4.", HelpName = "zero|NAME[:option=value,...]", DefaultValueFactory = _ => SearchEdit.Zero };
        var text = new Option<string?>("--text") { Description = "UTF-8 text to judge by; - for standard input. Without it, the page that ships with the model.", HelpName = "FILE|-" };
        var bytes = new Option<int>("--bytes") { Description = "The most bytes of the text to read: the search reads them once for every head.", HelpName = "N", DefaultValueFactory = _ => DefaultBytes }.AtLeast(64);
        var tokens = new Option<int>("--tokens") { Description = $"Tokens read at once. Default: the model's context, at most {DefaultTokens}.", HelpName = "N" }.AtLeast(2);
        var layers = new Option<string?>("--layers") { Description = "The layers to search, for example 2-6. Default: all.", HelpName = "FIRST-LAST" };
        var margin = new Option<double>("--margin") { Description = "Keep a head where the edit lowers the bits per byte by more than this.", HelpName = "BITS" }.AtLeast(0.0);
        var output = new Option<string>("--out") { Description = "Where the kept heads go, as JSON.", HelpName = "FILE", DefaultValueFactory = _ => "heads.json" };
        var report = new Option<string?>("--report") { Description = "Where the report goes. Default: beside the JSON.", HelpName = "FILE" };
        var cache = new Option<string?>("--cache") { Description = "Folder that keeps measurements, so that a stopped search goes on. Default: in the user's data folder.", HelpName = "FOLDER" };
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        var command = new Command("search", "Try an edit in every head of a model, one by one, and keep the heads in which it helps: head search and ablation.")
        {
            model, edit, text, bytes, tokens, layers, margin, output, report, cache, threads, json,
        };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var tried = SearchEdit.Parse(result.GetRequiredValue(edit));
            var folder = ModelFolder.Find(result.GetRequiredValue(model));
            var most = result.GetValue(bytes);
            var (page, source) = TextSource.Read(result.GetValue(text), folder, most, cancellation);
            using var pretrained = PretrainedModel.Load(folder);
            var shape = pretrained.Configuration;
            var chosen = Layers(result.GetValue(layers), shape.Layers);
            var evaluation = new TextEvaluation(pretrained, folder, page, result.GetResult(tokens) is null ? Math.Min(DefaultTokens, shape.ContextLength) : result.GetValue(tokens));
            var target = new EditTarget(pretrained.Model.Hooks, shape.Layers, shape.Heads);
            var kept = new MetricCache(
                result.GetValue(cache) ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData), "heed", "search"), [.. evaluation.Identity, ("edit", tried.Text)]);
            var problem = new HeadSearchProblem
            {
                Layers = chosen, Heads = shape.Heads, Edit = heads => tried.Install(target, heads), Metric = evaluation.Measure, LowerIsBetter = true, Margin = result.GetValue(margin),
            };
            HeadSearchResult found;
            try
            {
                found = WithProgress(terminal, report => HeadSearch.Run(problem, kept, report, cancellation));
            }
            catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
            {
                terminal.Notice($"Stopped; nothing is lost: {kept.Count} measurements are kept, run the same command to go on.");
                throw;
            }

            var list = result.GetRequiredValue(output);
            var pagePath = result.GetValue(report) ?? Path.ChangeExtension(list, ".html");
            var subject = new HeadSearchSubject(
                ModelFolder.NameOf(folder), tried.Text, TextEvaluation.Metric, LowerIsBetter: true, $"{System.Text.Encoding.UTF8.GetByteCount(page):N0} bytes of {source}", found.Kept.Count > 0 ? tried.With(found.Kept) : null);
            var forPrograms = ForPrograms(subject, found);
            AtomicFile.WriteText(list, JsonOutput.Serialize(forPrograms) + "\n");
            AtomicFile.Write(pagePath, stream => HeadSearchReport.Write(subject, found, stream));
            if (result.GetValue(json))
            {
                terminal.WriteJson(forPrograms);
                return ExitCode.Success;
            }

            Print(terminal, subject, found);
            terminal.Out.WriteLine($"wrote {list}");
            terminal.Out.WriteLine($"wrote {pagePath}");
            return ExitCode.Success;
        });
    }

    private static HeadSearchResult WithProgress(Terminal terminal, Func<Action<HeadSearchProgress>, HeadSearchResult> run)
    {
        static string Describe(HeadSearchProgress at) => $"{at.What}{(at.Kept > 0 ? $", {at.Kept} kept from before" : "")}";
        if (!terminal.Notices.Profile.Capabilities.Interactive)
        {
            var sinceLine = System.Diagnostics.Stopwatch.StartNew();
            return run(at =>
            {
                if (sinceLine.Elapsed >= LineEvery)
                {
                    sinceLine.Restart();
                    terminal.Notice($"{at.Done} of {at.Total}: {Describe(at)}");
                }
            });
        }

        return terminal.Notices.Progress().AutoClear(true).Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new RemainingTimeColumn()).Start(context =>
        {
            var task = context.AddTask("Searching");
            return run(at =>
            {
                task.MaxValue = at.Total;
                task.Value = at.Done;
                task.Description = Markup.Escape(Describe(at));
            });
        });
    }

    private static object ForPrograms(HeadSearchSubject subject, HeadSearchResult found) => new
    {
        // What edits read; the rest says where it comes from.
        Heads = found.Kept.Select(head => new[] { head.Layer, head.Head }),
        subject.Model,
        subject.Edit,
        subject.Metric,
        subject.LowerIsBetter,
        subject.Data,
        found.Baseline,
        found.Together,
        Tried = found.Heads.Select(head => new { head.Layer, head.Head, head.Value, head.Gain, head.Kept }),
    };

    private static void Print(Terminal terminal, HeadSearchSubject subject, HeadSearchResult found)
    {
        var invariant = CultureInfo.InvariantCulture;
        var table = new Table().Border(TableBorder.Simple);
        table.AddColumn(new TableColumn("layer").RightAligned());
        for (var head = 0; head <= found.Heads.Max(head => head.Head); head++)
        {
            table.AddColumn(new TableColumn($"head {head}").RightAligned());
        }

        foreach (var layer in found.Heads.GroupBy(head => head.Layer))
        {
            table.AddRow([$"{layer.Key}", .. layer.Select(head => string.Create(invariant, $"[{(head.Kept ? "green" : head.Gain < 0 ? "red" : "grey")}]{-head.Gain:+0.0000;-0.0000;0}{(head.Kept ? " *" : "")}[/]"))]);
        }

        terminal.Console.Write(table);
        terminal.Out.WriteLine(string.Create(invariant, $"change of {subject.Metric} by {subject.Edit} in each head alone, on {subject.Data}; without it {found.Baseline:F4}; * kept"));
        terminal.Out.WriteLine(found.Together is { } together
            ? string.Create(invariant, $"{found.Kept.Count} of {found.Heads.Count} heads kept; with all of them {together:F4}: --edit {subject.Again}")
            : $"No head is kept: the edit helps in none of the {found.Heads.Count}.");
    }

    private static int[] Layers(string? text, int layers)
    {
        if (text is null)
        {
            return [.. Enumerable.Range(0, layers)];
        }

        var ends = text.Split('-').Select(end => int.TryParse(end, NumberStyles.None, CultureInfo.InvariantCulture, out var layer) ? layer : -1).ToArray();
        return ends.Length is 1 or 2 && ends.All(layer => layer >= 0 && layer < layers) && ends[0] <= ends[^1]
            ? [.. Enumerable.Range(ends[0], ends[^1] - ends[0] + 1)]
            : throw new ArgumentException($"--layers is one layer or two with a - between them, from 0 to {layers - 1}, not '{text}'.");
    }
}
