using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Speech;
using Spectre.Console;

namespace Heed.Cli.Commands;

/// <summary><c>heed inspect --audio</c>: run a speech model on a sound and write a report of what it heard.</summary>
internal static class InspectAudio
{
    /// <summary>What the user asked for.</summary>
    /// <param name="Model">The folder of a speech model; null: none was named.</param>
    /// <param name="Audio">A WAV file.</param>
    /// <param name="Masks">Masks of the spectrogram; null: as many as is usual.</param>
    /// <param name="Edits">Changes of the model, as written on the command line.</param>
    /// <param name="Output">The report.</param>
    /// <param name="Json">Whether to write JSON.</param>
    internal sealed record Request(string? Model, string Audio, int? Masks, IReadOnlyList<string> Edits, string Output, bool Json);

    public static int Run(Request request, Terminal terminal, CancellationToken cancellation)
    {
        var edits = request.Edits.Select(ModelEdit.Parse).ToArray();
        var sound = Waveform.Read(request.Audio);
        using var pretrained = Load(request.Model);
        var options = new SpeechInspectionOptions();
        options = request.Masks is { } masks ? options with { Masks = masks, EncoderMasks = masks == 0 ? 0 : Math.Max(masks, options.EncoderMasks) } : options;
        IDisposable Edited() => ModelEdit.Apply(edits, EditTarget.Of(pretrained.Model) with { Materialize = true });

        // What the model lacks is told before the work begins.
        Edited().Dispose();
        terminal.Notice($"Hiding parts of the sound {options.Masks} times and of the encoder's output {options.EncoderMasks} times.");
        var inspection = SpeechInspector.Run(pretrained, ModelFolder.NameOf(request.Model!), sound, Path.GetFileName(request.Audio), options, edits.Length == 0 ? null : (request.Edits, Edited), cancellation);
        AtomicFile.Write(request.Output, stream => SpeechInspectionReport.Write(inspection, stream));
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

    /// <summary>Loads a speech model.</summary>
    /// <exception cref="ArgumentException">None was named.</exception>
    /// <exception cref="DirectoryNotFoundException">The folder holds none.</exception>
    internal static PretrainedSpeech Load(string? folder) => folder is null
        ? throw new ArgumentException("Say which speech model is to listen: --model FOLDER (what heed train speech wrote, or a Whisper checkpoint).")
        : PretrainedSpeech.IsIn(folder) ? PretrainedSpeech.Load(folder)
        : throw new DirectoryNotFoundException($"'{folder}' is not the folder of a speech model: it lacks a config.json of the type whisper or heed-speech. heed train speech makes one.");

    private static void Print(IAnsiConsole console, SpeechInspection inspection, string path)
    {
        var words = new Table().Border(TableBorder.Simple);
        foreach (var name in new[] { "word", "start", "end", "start by area", "end by area", "probability" })
        {
            words.AddColumn(new TableColumn(name) { Alignment = name == "word" ? Justify.Left : Justify.Right });
        }

        foreach (var word in inspection.Words)
        {
            words.AddRow(Markup.Escape(word.Text), Text(word.Start), Text(word.End), Text(word.AreaStart), Text(word.AreaEnd), Text(inspection.Probabilities[word.FirstToken]));
        }

        console.Write(words);
        var heads = new Table().Border(TableBorder.Simple);
        foreach (var name in new[] { "layer", "head", "r with the sound", "r with the encoder's output" })
        {
            heads.AddColumn(new TableColumn(name) { Alignment = Justify.Right });
        }

        foreach (var head in inspection.Heads)
        {
            heads.AddRow($"{head.Layer}", $"{head.Head}", Text(head.WithInput), Text(head.WithEncoder));
        }

        heads.AddRow("mean", "", Text(inspection.MeanWithInput), Text(inspection.MeanWithEncoder));
        console.Write(heads);
        if (inspection.Edited is { } changed)
        {
            PrintEdit(console, inspection, changed);
        }

        foreach (var notice in inspection.Notices)
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[yellow]{notice}[/]");
        }

        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[bold]{inspection.Model}[/] on {inspection.Source} ({inspection.Duration:F2} s): [bold]{inspection.Text}[/] ({inspection.Seconds:F1} s)");
        if (inspection.Edited is { } edited)
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[bold]{string.Join(" ", edited.Edits)}[/]: [bold]{edited.Text}[/]");
        }

        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"Report: [bold]{path}[/]; open it in a browser.");
    }

    private static void PrintEdit(IAnsiConsole console, SpeechInspection inspection, EditedSpeech edited)
    {
        var words = new Table().Border(TableBorder.Simple);
        foreach (var (name, left) in new[] { ("token", false), ("as trained", true), ("probability", false), ("with the edit", true), ("probability", false) })
        {
            words.AddColumn(new TableColumn(name) { Alignment = left ? Justify.Left : Justify.Right });
        }

        for (var token = 0; token < Math.Max(inspection.Tokens.Count, edited.Tokens.Count); token++)
        {
            string[] Side(IReadOnlyList<string> tokens, IReadOnlyList<double> probabilities) => token < tokens.Count ? [Markup.Escape(tokens[token].Trim()), Text(probabilities[token])] : ["", ""];
            words.AddRow([$"{token}", .. Side(inspection.Tokens, inspection.Probabilities), .. Side(edited.Tokens, edited.Probabilities)]);
        }

        console.Write(words);
        console.MarkupLineInterpolated(
            CultureInfo.InvariantCulture,
            $"cross-attention that lies elsewhere with the edit, token by token: {Percent(edited.Moved)} of the mean of all heads; {string.Join(", ", edited.Heads.Select(head => string.Create(CultureInfo.InvariantCulture, $"{head.Layer}.{head.Head} {Percent(head.Moved)}")))}");
    }

    private static object ForPrograms(SpeechInspection inspection, string path) => new
    {
        inspection.Model,
        inspection.Source,
        inspection.Duration,
        Text = inspection.Edited?.Text ?? inspection.Text,
        Words = WordsForPrograms(inspection.Edited?.Words ?? inspection.Words),
        Tokens = TokensForPrograms(inspection.Edited?.Tokens ?? inspection.Tokens, inspection.Edited?.Probabilities ?? inspection.Probabilities),
        Edits = inspection.Edited?.Edits ?? [],
        Before = inspection.Edited is null ? null : new { inspection.Text, Words = WordsForPrograms(inspection.Words), Tokens = TokensForPrograms(inspection.Tokens, inspection.Probabilities) },
        AttentionMoved = inspection.Edited?.Moved,
        inspection.Frames,
        inspection.States,
        inspection.SecondsPerState,
        CorrelationWithInput = inspection.MeanWithInput,
        CorrelationWithEncoderOutput = inspection.MeanWithEncoder,
        Heads = inspection.Heads.Select((head, at) => new
        {
            head.Layer, head.Head, CorrelationWithInput = head.WithInput, CorrelationWithEncoderOutput = head.WithEncoder, AttentionMoved = inspection.Edited?.Heads[at].Moved,
        }),
        inspection.Notices,
        inspection.Seconds,
        Report = path,
    };

    private static IEnumerable<object> WordsForPrograms(IReadOnlyList<TimedWord> words) => words.Select(word => new { word.Text, word.Start, word.End, word.AreaStart, word.AreaEnd });

    private static IEnumerable<object> TokensForPrograms(IReadOnlyList<string> tokens, IReadOnlyList<double> probabilities) =>
        tokens.Zip(probabilities, (token, probability) => new { Text = token, Probability = probability });

    private static string Percent(double share) => (100 * share).ToString("F0", CultureInfo.InvariantCulture) + "%";

    private static string Text(double? value) => value?.ToString("F2", CultureInfo.InvariantCulture) ?? "–";
}
