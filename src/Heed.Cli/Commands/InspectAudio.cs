using System.Globalization;
using Heed.Lab.Inspection;
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
    /// <param name="Output">The report.</param>
    /// <param name="Json">Whether to write JSON.</param>
    internal sealed record Request(string? Model, string Audio, int? Masks, string Output, bool Json);

    public static int Run(Request request, Terminal terminal, CancellationToken cancellation)
    {
        var sound = Waveform.Read(request.Audio);
        using var pretrained = Load(request.Model);
        var options = new SpeechInspectionOptions();
        options = request.Masks is { } masks ? options with { Masks = masks, EncoderMasks = masks == 0 ? 0 : Math.Max(masks, options.EncoderMasks) } : options;
        terminal.Notice($"Hiding parts of the sound {options.Masks} times and of the encoder's output {options.EncoderMasks} times.");
        var inspection = SpeechInspector.Run(pretrained, ModelFolder.NameOf(request.Model!), sound, Path.GetFileName(request.Audio), options, cancellation);
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
        foreach (var notice in inspection.Notices)
        {
            console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[yellow]{notice}[/]");
        }

        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"[bold]{inspection.Model}[/] on {inspection.Source} ({inspection.Duration:F2} s): [bold]{inspection.Text}[/] ({inspection.Seconds:F1} s)");
        console.MarkupLineInterpolated(CultureInfo.InvariantCulture, $"Report: [bold]{path}[/]; open it in a browser.");
    }

    private static object ForPrograms(SpeechInspection inspection, string path) => new
    {
        inspection.Model,
        inspection.Source,
        inspection.Duration,
        inspection.Text,
        Words = inspection.Words.Select(word => new { word.Text, word.Start, word.End, word.AreaStart, word.AreaEnd }),
        Tokens = inspection.Tokens.Zip(inspection.Probabilities, (token, probability) => new { Text = token, Probability = probability }),
        inspection.Frames,
        inspection.States,
        inspection.SecondsPerState,
        CorrelationWithInput = inspection.MeanWithInput,
        CorrelationWithEncoderOutput = inspection.MeanWithEncoder,
        Heads = inspection.Heads.Select(head => new { head.Layer, head.Head, CorrelationWithInput = head.WithInput, CorrelationWithEncoderOutput = head.WithEncoder }),
        inspection.Notices,
        inspection.Seconds,
        Report = path,
    };

    private static string Text(double? value) => value?.ToString("F2", CultureInfo.InvariantCulture) ?? "–";
}
