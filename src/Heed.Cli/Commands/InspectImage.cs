using System.Globalization;
using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Images;
using Spectre.Console;
using static TorchSharp.torch;

namespace Heed.Cli.Commands;

/// <summary><c>heed inspect --image</c>: run a vision model on a picture and write a report of where it looks.</summary>
internal static class InspectImage
{
    // The receptive field is averaged over as many pictures of the test split.
    private const int FieldPictures = 16;

    /// <summary>What the user asked for.</summary>
    /// <param name="Model">A folder or a model's specification; null: neither.</param>
    /// <param name="Image">A file or a number; null: the first picture.</param>
    /// <param name="Weights">A checkpoint; null: none.</param>
    /// <param name="Data">Folder of Fashion-MNIST; null: its package's.</param>
    /// <param name="Edits">Changes to the model.</param>
    /// <param name="Output">The report.</param>
    /// <param name="Json">Whether to write JSON.</param>
    internal sealed record Request(string? Model, string? Image, string? Weights, string? Data, IReadOnlyList<string> Edits, string Output, bool Json);

    public static int Run(Request request, Terminal terminal, CancellationToken cancellation)
    {
        var edits = request.Edits.Select(ModelEdit.Parse).ToArray();
        using var scope = NewDisposeScope();
        var (card, loaded) = Load(request, terminal);
        using var model = loaded;
        var suits = card.Task == FashionMnist.Task && FashionMnist.IsInstalled(request.Data);
        var inspection = ImageInspector.Run(
            model, card, PictureOf(request, card), suits ? FashionMnist.LoadTest(request.Data).Take(FieldPictures) : null,
            edits.Length == 0 ? null : (string.Join(" ", request.Edits), target => ModelEdit.Apply(edits, target)), cancellation);
        AtomicFile.Write(request.Output, stream => ImageInspectionReport.Write(inspection, stream));
        if (request.Json)
        {
            terminal.WriteJson(ForPrograms(inspection, request.Output));
        }
        else
        {
            Print(terminal, inspection, request.Output);
        }

        return ExitCode.Success;
    }

    private static (ImageModelCard Card, ImageClassifier Model) Load(Request request, Terminal terminal)
    {
        if (request.Model is not { } name)
        {
            throw new ArgumentException("Say which vision model is to look at the picture: --model FOLDER (what heed train fashion wrote), or --model NAME with its --weights FILE.");
        }

        if (Directory.Exists(name))
        {
            return request.Weights is not null ? throw new ArgumentException($"The folder '{name}' has its own weights: leave --weights out.")
                : ImageModelCard.IsIn(name) ? ImageModelCard.Load(name)
                : throw new DirectoryNotFoundException($"'{name}' is not the folder of a vision model: it lacks model.json or model.safetensors, which heed train fashion writes.");
        }

        manual_seed(1);
        var model = ImageModel.Make(name, FashionMnist.Task);
        if (request.Weights is { } weights)
        {
            model.LoadCheckpoint(weights);
        }
        else
        {
            terminal.Notice($"{name} has fresh weights: it was not trained. Give a folder that heed train fashion wrote, or --weights FILE.");
        }

        return (new(name, "", FashionMnist.Task, FashionMnist.ClassNames, double.NaN, model.parameters().Sum(parameter => parameter.numel()), FashionMnist.Scale), model);
    }

    private static InspectedPicture PictureOf(Request request, ImageModelCard card)
    {
        if (request.Image is { } file && !int.TryParse(file, NumberStyles.None, CultureInfo.InvariantCulture, out _))
        {
            return new(Path.GetFileName(file), PictureFile.Read(file, card.Task));
        }

        if (card.Task != FashionMnist.Task)
        {
            throw new ArgumentException($"The model does not read pictures of Fashion-MNIST but {card.Task.Size} x {card.Task.Size} ones with {card.Task.Channels} channel(s): give a file with --image FILE.");
        }

        var test = FashionMnist.LoadTest(request.Data);
        var index = request.Image is { } number ? int.Parse(number, CultureInfo.InvariantCulture) : 0;
        return index < test.Count
            ? new($"Fashion-MNIST test {index}", test.PixelsAt(index).ToArray(), test.LabelOf(index))
            : throw new ArgumentException($"Fashion-MNIST's test split has the pictures 0 to {test.Count - 1}, not {index}.");
    }

    private static void Print(Terminal terminal, ImageInspection inspection, string path)
    {
        var table = new Table().Border(TableBorder.Simple).AddColumns("maps of", "what", "maps", "grid", "smallest", "largest");
        foreach (var group in inspection.Maps.GroupBy(map => (map.Site, map.Name, map.Height, map.Width)))
        {
            table.AddRow(Markup.Escape(group.Key.Site), Markup.Escape(group.Key.Name), Text(group.Count()), $"{group.Key.Height} x {group.Key.Width}", Text(group.Min(map => map.Minimum)), Text(group.Max(map => map.Maximum)));
        }

        foreach (var group in inspection.Heads.GroupBy(head => head.Site))
        {
            table.AddRow(Markup.Escape(group.Key), "attention", Text(group.Count()), $"{group.First().Side} x {group.First().Side}", "", $"distance {Text(group.Average(head => head.MeanDistance))}");
        }

        if (table.Rows.Count > 0)
        {
            terminal.Console.Write(table);
        }

        inspection.Notices.ToList().ForEach(terminal.Notice);
        var field = inspection.ReceptiveField;
        var name = $"{inspection.Model} on {inspection.Picture.Source}{(inspection.Picture.Label is { } label ? $" ({inspection.ClassNames[label]})" : "")}";
        if (inspection.Before is { } before)
        {
            terminal.Out.WriteLine($"{name}, as trained: {Likeliest(before)}");
            name = $"with {inspection.Edit}";
        }

        terminal.Out.WriteLine($"{name}: {Likeliest(inspection)}");
        terminal.Out.WriteLine($"Receptive field: half of the gradient of the centre lies in the middle {field.HalfSide} x {field.HalfSide} of {field.Side} x {field.Side} pixels (mean of {field.Pictures}).");
        terminal.Out.WriteLine($"Report: {path}; open it in a browser.");
    }

    private static string Likeliest(ImageInspection inspection) => string.Join(", ", Enumerable.Range(0, inspection.Probabilities.Count).OrderByDescending(index => inspection.Probabilities[index]).Take(3)
        .Select(index => string.Create(CultureInfo.InvariantCulture, $"{inspection.ClassNames[index]} {100 * inspection.Probabilities[index]:F1}%")));

    private static object ForPrograms(ImageInspection inspection, string? path) => new
    {
        inspection.Model,
        inspection.Parameters,
        inspection.Picture.Source,
        Label = inspection.Picture.Label is { } label ? inspection.ClassNames[label] : null,
        Predicted = inspection.ClassNames[inspection.Predicted],
        Probabilities = inspection.Probabilities.Select((probability, index) => new { Class = inspection.ClassNames[index], Probability = probability }),
        ReceptiveField = new { inspection.ReceptiveField.HalfSide, inspection.ReceptiveField.Side, inspection.ReceptiveField.Pictures },
        Maps = inspection.Maps.Select(map => new { map.Site, map.Name, map.Label, map.Height, map.Width, map.Minimum, map.Maximum }),
        Heads = inspection.Heads.Select(head => new { head.Site, head.Head, head.Side, head.MeanDistance }),
        inspection.Notices,
        inspection.Seconds,
        inspection.Edit,
        Before = inspection.Before is { } before ? ForPrograms(before, null) : null,
        Report = path,
    };

    private static string Text(IFormattable value) => value.ToString(value is float or double ? "0.###" : null, CultureInfo.InvariantCulture);
}
