using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Models;
using Heed.Probes;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary>What <c>heed inspect</c> does with a text: run a decoder on it and write a report of what it attended to.</summary>
internal static class InspectText
{
    private const double MegaByte = 1 << 20;

    // No tokenizer makes tokens this long on average; what lies beyond could not be shown.
    private const int MostBytesPerToken = 64;

    /// <summary>What was asked for.</summary>
    /// <param name="Model">A model folder, or a shipped model's name.</param>
    /// <param name="Text">The text's file, - for standard input; null: the page that ships with the model.</param>
    /// <param name="Output">The report to write.</param>
    /// <param name="Json">Whether to write JSON.</param>
    internal sealed record Request(string Model, string? Text, string Output, bool Json);

    /// <summary>Inspects a model.</summary>
    public static int Run(Request request, InspectionOptions options, Terminal terminal, CancellationToken cancellation)
    {
        var folder = ModelFolder.Find(request.Model);
        var mostBytes = (long)MostBytesPerToken * Math.Max(1024, options.Tokens ?? InspectionOptions.DefaultTokens);
        var (page, source) = TextSource.Read(request.Text, folder, mostBytes, cancellation);
        using var pretrained = PretrainedModel.Load(folder);
        var inspection = WithProgress(terminal, progress => Inspector.Run(pretrained, ModelFolder.NameOf(folder), page, source, options, progress, cancellation));
        AtomicFile.Write(request.Output, stream => InspectionReport.Write(inspection, stream));
        if (request.Json)
        {
            terminal.WriteJson(ForPrograms(inspection, request.Output));
        }
        else
        {
            Print(terminal.Console, inspection, request.Output);
        }

        return ExitCode.Success;
    }

    private static InspectionResult WithProgress(Terminal terminal, Func<IProgress<InspectionProgress>?, InspectionResult> run)
    {
        if (!terminal.Notices.Profile.Capabilities.Interactive)
        {
            return run(null);
        }

        return terminal.Notices.Progress().AutoClear(true).Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new RemainingTimeColumn()).Start(context =>
        {
            var task = context.AddTask("Reading");
            return run(new Reporter(step => task.Value = 100.0 * step.Done / step.Total));
        });
    }

    private static void Print(IAnsiConsole console, InspectionResult inspection, string path)
    {
        var table = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[]
        {
            ("layer", false), ("head", false), ("entropy", false), ("of most", false), ("on first", false), ("near", false), ("distance", false), ("previous", false), ("self", false), ("induction", false), ("looks", true),
        })
        {
            table.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        if (inspection.Attention is not null)
        {
            table.AddColumn(new TableColumn("computed") { Alignment = Justify.Right });
        }

        var layer = 0;
        foreach (var head in inspection.Heads)
        {
            if (head.Layer != layer)
            {
                table.AddEmptyRow();
                layer = head.Layer;
            }

            var statistics = head.Statistics;
            string[] cells =
            [
                Text(head.Layer), Text(head.Head), Text(statistics.Entropy, "F2"), Percent(statistics.EntropyShare), Percent(statistics.FirstMass), Percent(statistics.NearMass), Text(statistics.MeanDistance, "F1"),
                Percent(statistics.PreviousShare), Percent(statistics.SelfShare), statistics.Induction is { } induction ? Percent(induction) : "–",
                $"[{Colour(head.Look)}]{HeadLooks.Word(head.Look)}[/]{(head.IsDormant ? ", dormant" : "")}",
            ];
            cells = head.ComputedShare is { } computed ? [.. cells, Percent(computed)] : cells;
            table.AddRow(head.IsDormant ? Array.ConvertAll(cells, cell => $"[grey]{cell}[/]") : cells);
        }

        console.Write(table);
        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"entropy in nats and as share of the most a row can have; mass on the first token and on the nearest 16; mean distance in tokens; rows whose largest weight is the previous token or the token itself{(inspection.Attention is null ? "" : "; pairs computed, of those that the layer has")}");
        if (inspection.Heads.Any(head => head.IsDormant))
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"dormant (grey): {InspectedHead.DormantMeaning}");
        }

        PrintNorms(console, inspection);
        PrintSinks(console, inspection);
        foreach (var notice in inspection.Notices)
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[yellow]{notice}[/]");
        }

        console.WriteLine();
        console.MarkupLineInterpolated(
            CultureInfo.InvariantCulture,
            $"[bold]{inspection.Model.Name}[/] on {inspection.Source}: {inspection.Tokens.Count:N0} tokens, [bold]{inspection.BitsPerByte:F3}[/] bits per byte, {inspection.LossPerToken:F3} nats per token ({inspection.Seconds:F1} s)");
        if (inspection.BitsPerByteWithout is { } without)
        {
            var change = (inspection.BitsPerByte / without) - 1;
            console.MarkupLineInterpolated(
                CultureInfo.InvariantCulture,
                $"[bold]{inspection.Attention}[/] computes {Percent(inspection.Heads.Average(head => head.ComputedShare ?? 1))} of the pairs; the model's own attention reads the text at [bold]{without:F3}[/] bits per byte: the swap costs {change:+0.0%;-0.0%;0.0%}");
        }

        if (inspection.Before is { } before)
        {
            var changes = inspection.Tokens.Zip(before.Tokens, (after, first) => after.Loss - first.Loss).OfType<double>().ToArray();
            console.MarkupLineInterpolated(
                CultureInfo.InvariantCulture,
                $"[bold]{string.Join(" ", inspection.Edits)}[/]: the unedited model reads the text at [bold]{before.BitsPerByte:F3}[/] bits per byte, a change of {(inspection.BitsPerByte / before.BitsPerByte) - 1:+0.0%;-0.0%;0.0%}; {changes.Count(change => change < 0)} tokens predicted better, {changes.Count(change => change > 0)} worse");
        }

        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"Report: [bold]{path}[/] ({new FileInfo(path).Length / MegaByte:F1} MB); open it in a browser.");
    }

    private static void PrintNorms(IAnsiConsole console, InspectionResult inspection)
    {
        if (inspection.Layers.Count == 0)
        {
            return;
        }

        var table = new Table().Border(TableBorder.Simple);
        foreach (var name in new[] { "layer", "first token's norm", "others' mean", "others' largest", "first token's value", "others' value", "logit gap" })
        {
            table.AddColumn(new TableColumn(name) { Alignment = Justify.Right });
        }

        foreach (var layer in inspection.Layers)
        {
            table.AddRow(
                Text(layer.Layer), Text(layer.Residual.Norm, "F1"), Text(layer.Residual.OthersMean, "F1"), Text(layer.Residual.OthersMaximum, "F1"), Text(layer.SinkValueNorm, "F2"), Text(layer.OthersValueNorm, "F2"),
                layer.SinkLogitGap is { } gap ? Text(gap, "F1") : "–");
        }

        console.Write(table);
    }

    private static void PrintSinks(IAnsiConsole console, InspectionResult inspection)
    {
        if (inspection.Sinks is not { } sinks)
        {
            return;
        }

        // Most first tokens are sinks; a text full of sinks has its longest-lived shown.
        const int rows = 12;
        var shown = sinks.Tokens.Where(sink => sink.Label != SinkLabel.Noise).OrderByDescending(sink => sink.Lifetime).ThenBy(sink => sink.Token).Take(rows).OrderBy(sink => sink.Token).ToArray();
        var table = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[] { ("sink", false), ("token", true), ("kind", true), ("from layer", false), ("layers", false), ("attention received", false) })
        {
            table.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        foreach (var sink in shown)
        {
            table.AddRow(
                Text(sink.Token), Markup.Escape(inspection.Tokens[sink.Token].Text.Replace("\n", "↵", StringComparison.Ordinal).Replace("\t", "⇥", StringComparison.Ordinal)), sink.Label == SinkLabel.Primary ? "[bold]primary[/]" : "secondary",
                Text(sink.Creation), Text(sink.Lifetime), Percent(sink.Received));
        }

        console.Write(table);
        console.MarkupLineInterpolated(
            CultureInfo.InvariantCulture,
            $"sinks: tokens whose residual stream is parallel (|cos| > {sinks.CosineThreshold}) to that of token {sinks.Primary} in layers {sinks.Start} to {sinks.End - 1}; primary from {inspection.Model.Layers - sinks.PrimarySlack} layers on; {sinks.Tokens.Count - shown.Length} more not listed");
    }

    private static object ForPrograms(InspectionResult inspection, string path) => new
    {
        inspection.Model,
        inspection.Source,
        inspection.Attention,
        Tokens = inspection.Tokens.Count,
        inspection.PredictedTokens,
        inspection.PredictedBytes,
        inspection.LossPerToken,
        inspection.BitsPerByte,
        inspection.BitsPerByteWithout,
        inspection.Edits,
        Before = inspection.Before is not { } before ? null : new
        {
            before.LossPerToken,
            before.BitsPerByte,
            Heads = before.Heads.Select(head => new
            {
                head.Layer, head.Head, head.Look, head.Statistics.Entropy, head.Statistics.EntropyShare, head.Statistics.FirstMass, head.Statistics.NearMass, head.Statistics.MeanDistance,
                head.Statistics.PreviousShare, head.Statistics.SelfShare, head.Statistics.Induction,
            }),
            TokenLosses = before.Tokens.Select(token => token.Loss),
        },
        inspection.Seconds,
        Report = path,
        inspection.Notices,
        Heads = inspection.Heads.Select(head => new
        {
            head.Layer,
            head.Head,
            head.Look,
            head.Statistics.Entropy,
            head.Statistics.EntropyShare,
            head.Statistics.FirstMass,
            head.Statistics.NearMass,
            head.Statistics.MeanDistance,
            head.Statistics.PreviousShare,
            head.Statistics.SelfShare,
            head.Statistics.Induction,
            head.ComputedShare,
            Dormant = head.IsDormant,
            head.ColumnEntropy,
            head.SinkLogitGap,
            head.AttentionSinks,
        }),
        Dormancy = new { DormantHeads.RowThreshold, DormantHeads.ColumnThreshold, LeastScore = SinkMask.AttentionThreshold, Meaning = InspectedHead.DormantMeaning },
        Sinks = inspection.Sinks is not { } sinks ? null : new
        {
            sinks.Primary,
            sinks.Start,
            sinks.End,
            sinks.PrimarySlack,
            sinks.NoiseLifetime,
            sinks.CosineThreshold,
            Tokens = sinks.Tokens.Select(sink => new { sink.Token, inspection.Tokens[sink.Token].Text, sink.Label, sink.Creation, sink.Lifetime, sink.Layers, AttentionReceived = sink.Received }),
        },
        Layers = inspection.Layers.Select(layer => new
        {
            layer.Layer,
            FirstTokenNorm = layer.Residual.Norm,
            OthersMeanNorm = layer.Residual.OthersMean,
            OthersLargestNorm = layer.Residual.OthersMaximum,
            FirstTokenValueNorm = layer.SinkValueNorm,
            layer.OthersValueNorm,
            layer.SinkLogitGap,
        }),
        TokenLosses = inspection.Tokens.Select(token => token.Loss),
    };

    private static string Text(IFormattable value, string? format = null) => value.ToString(format, CultureInfo.InvariantCulture);

    private static string Percent(double share) => Text(100 * share, share is > 0 and < 0.0995 ? "F1" : "F0") + "%";

    private static string Colour(HeadLook look) => look switch
    {
        HeadLook.Previous => "blue",
        HeadLook.Self => "purple",
        HeadLook.Induction => "hotpink2",
        HeadLook.Sink => "grey",
        HeadLook.Local => "green",
        HeadLook.Broad => "darkorange",
        _ => "default",
    };

    /// <summary>Unlike <see cref="Progress{T}"/>, reports on the thread that does the work, so that the last report is not lost.</summary>
    private sealed class Reporter(Action<InspectionProgress> report) : IProgress<InspectionProgress>
    {
        public void Report(InspectionProgress value) => report(value);
    }
}
