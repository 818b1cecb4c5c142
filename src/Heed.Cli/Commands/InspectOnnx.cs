using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Lab.Onnx;
using Heed.Models;
using Heed.Onnx;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed inspect MODEL.onnx</c>: run an ONNX model on a picture, a text or tensors and write a report of what it attended to, before and after edits.</summary>
internal static class InspectOnnx
{
    private const string Extension = ".onnx";

    /// <summary>Whether a name is that of an ONNX model.</summary>
    public static bool Is(string? name) => name?.EndsWith(Extension, StringComparison.OrdinalIgnoreCase) == true;

    /// <summary>Inspects a model.</summary>
    /// <param name="file">The model.</param>
    /// <param name="request">What is to be looked at.</param>
    /// <param name="save">Where the edited model goes; null: nowhere.</param>
    /// <param name="output">The report.</param>
    /// <param name="json">Whether to write JSON.</param>
    /// <param name="terminal">The terminal.</param>
    /// <param name="cancellation">Ctrl+C.</param>
    public static int Run(string file, OnnxRequest request, string? save, string output, bool json, Terminal terminal, CancellationToken cancellation)
    {
        if (save is not null && request.Edits.Count == 0)
        {
            throw new ArgumentException("--save writes the edited model: say what to change with --edit.");
        }

        using var model = OnnxModel.Load(file);
        if (save is not null && model.WeightFiles.Count > 0 && Path.GetDirectoryName(Path.GetFullPath(save)) != Path.GetDirectoryName(Path.GetFullPath(file)))
        {
            throw new ArgumentException($"The model keeps weights in files beside it ({string.Join(", ", model.WeightFiles)}), so the edited one must be saved into the same folder.");
        }

        var (inspection, made) = OnnxInspector.Run(model, request, cancellation);
        using var edited = made;
        AtomicFile.Write(output, stream => OnnxInspectionReport.Write(inspection, stream));
        if (save is not null)
        {
            AtomicFile.Write(save, edited!.WriteTo);
        }

        if (json)
        {
            terminal.WriteJson(ForPrograms(inspection, output, save));
        }
        else
        {
            Print(terminal, inspection, output, save);
        }

        return ExitCode.Success;
    }

    private static void Print(Terminal terminal, OnnxInspection inspection, string output, string? save)
    {
        var edited = inspection.Edits.Count > 0;
        var table = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[] { ("attention", true), ("head", false), ("entropy", false), ("of most", false), ("on first", false), ("near", false), ("distance", false), ("looks", true) })
        {
            table.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        foreach (var layer in inspection.Layers)
        {
            for (var i = 0; i < layer.Heads.Count; i++)
            {
                var (head, after) = (layer.Heads[i], layer.After?[i]);
                string Both(Func<HeadStatistics, double> of, Func<double, string> format) =>
                    after is null || format(of(head.Statistics)) == format(of(after.Statistics)) ? format(of(head.Statistics)) : $"{format(of(head.Statistics))} > {format(of(after.Statistics))}";
                table.AddRow(
                    Markup.Escape(i > 0 ? "" : $"{layer.Attention.Layer} {layer.Attention.Name} ({(layer.Attention.Kind == OnnxAttentionKind.Self ? "self" : "cross")}{(layer.IsCausal ? ", causal" : "")}, {layer.Queries} x {layer.Keys})"),
                    Text(head.Head),
                    Both(of => of.Entropy, value => Text(value, "F2")), Both(of => of.EntropyShare, Percent), Both(of => of.FirstMass, Percent), Both(of => of.NearMass, Percent),
                    Both(of => of.MeanDistance, value => Text(value, "F1")), HeadLooks.Word(head.Look) + (after is { } now && now.Look != head.Look ? $" > {HeadLooks.Word(now.Look)}" : ""));
            }
        }

        terminal.Console.Write(table);
        if (inspection.Characters is { } characters)
        {
            var read = new Table().Border(TableBorder.Simple).AddColumns("character", "probability", "its columns");
            var looks = characters.SelectMany(character => character.Looks).Select(look => (look.Layer, look.Head)).Distinct().ToList();
            looks.ForEach(look => read.AddColumn($"{look.Layer}{(look.Head is { } head ? $".{head}" : " mean")}: most on").AddColumn("on its own"));
            foreach (var character in characters)
            {
                read.AddRow([
                    Markup.Escape(character.Read.Text == " " ? "(space)" : character.Read.Text), Percent(character.Read.Probability), Columns(character.First, character.Last),
                    .. character.Looks.SelectMany(look => new[] { Columns(look.PeakFirst, look.PeakLast), $"{Text(look.OwnMass / look.EqualMass, "F1")}x" })]);
            }

            terminal.Console.Write(read);
            terminal.Out.WriteLine("columns in pixels of the picture; where the mean of an attention's heads, and the head that keeps most to what is near, put most; mass on the character's own columns and one step beside, as a multiple of what equal weights would have there");
            terminal.Out.WriteLine($"Read: {inspection.Text}{(inspection.TextAfter is { } after ? $"; after the edits: {after}" : "")}");
        }

        foreach (var notice in inspection.Notices)
        {
            terminal.Notice(notice);
        }

        terminal.Out.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{inspection.Model} on {inspection.Source}: {inspection.Layers.Count} attentions, {inspection.Layers.Sum(layer => layer.Heads.Count)} heads, {inspection.Parameters:N0} weights ({inspection.Seconds:F1} s)"));
        foreach (var (name, change) in inspection.Changes)
        {
            terminal.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"The edits change the output {name} by at most {change:G3}."));
        }

        if (edited && save is not null)
        {
            terminal.Out.WriteLine($"Edited model: {save}");
        }

        terminal.Out.WriteLine($"Report: {output}; open it in a browser.");
    }

    private static object ForPrograms(OnnxInspection inspection, string output, string? save) => new
    {
        inspection.Model,
        inspection.Source,
        inspection.Parameters,
        inspection.OperatorVersion,
        inspection.Edits,
        inspection.Notices,
        inspection.Text,
        inspection.TextAfter,
        Characters = inspection.Characters?.Select(character => new
        {
            character.Read.Text,
            character.Read.Probability,
            Columns = new[] { character.First, character.Last },
            Attention = character.Looks.Select(look => new { look.Layer, look.Head, Peak = new[] { look.PeakFirst, look.PeakLast }, look.OwnMass, look.EqualMass }),
        }),
        Attentions = inspection.Layers.Select(layer => new
        {
            layer.Attention.Layer,
            layer.Attention.Name,
            layer.Attention.Operator,
            layer.Attention.Kind,
            Causal = layer.IsCausal,
            layer.Queries,
            layer.Keys,
            Heads = layer.Heads.Select((head, i) => new { head.Head, head.Look, Statistics = Numbers(head.Statistics), After = layer.After is { } after ? new { after[i].Look, Statistics = Numbers(after[i].Statistics) } : null }),
        }),
        Outputs = inspection.Outputs.Select(entry => new { Name = entry.Key, entry.Value.Shape, Change = inspection.Changes.Where(change => change.Name == entry.Key).Select(change => (double?)change.Change).FirstOrDefault() }),
        inspection.Seconds,
        Report = output,
        Saved = save,
    };

    private static object Numbers(HeadStatistics statistics) => new
    {
        statistics.Entropy, statistics.EntropyShare, statistics.FirstMass, statistics.NearMass, statistics.MeanDistance, statistics.PreviousShare, statistics.SelfShare,
    };

    private static string Columns(double first, double last) => $"{Text(first, "F0")}-{Text(last, "F0")}";

    private static string Text(IFormattable value, string? format = null) => value.ToString(format, CultureInfo.InvariantCulture);

    private static string Percent(double share) => Text(100 * share, share is > 0 and < 0.0995 ? "F1" : "F0") + "%";
}
