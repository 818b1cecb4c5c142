using System.CommandLine;
using System.Globalization;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Models.Speech;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed transcribe FILE</c>: writes speech down, with the time of every word.</summary>
internal static class TranscribeCommand
{
    public static Command Create()
    {
        var audio = new Argument<string>("file") { Description = "A WAV file." };
        var model = new Option<string?>("--model") { Description = "The folder of a speech model: what heed train speech wrote, or a Whisper checkpoint.", HelpName = "FOLDER" };
        var beams = new Option<int>("--beams") { Description = "Texts that are followed at once; 1: always the likeliest token.", HelpName = "N", DefaultValueFactory = _ => 1 }.Between(1, 100);
        var edit = CommandExtensions.EditOption();
        var compare = new Option<bool>("--compare") { Description = "With --edit: also write what the model hears without it." };
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        var command = new Command("transcribe", "Write speech down with a speech model, with the time of every word read off its cross-attention.") { audio, model, beams, edit, compare, threads, json };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var edits = result.GetValue(edit) ?? [];
            var parsed = edits.Select(ModelEdit.Parse).ToArray();
            if (result.GetValue(compare) && edits.Length == 0)
            {
                throw new ArgumentException("--compare shows a text with and without an edit: say which with --edit.");
            }

            var sound = Waveform.Read(result.GetRequiredValue(audio));
            using var pretrained = InspectAudio.Load(result.GetValue(model));
            using var scope = torch.NewDisposeScope();
            using var still = torch.no_grad();
            var features = pretrained.Features.Compute(sound).unsqueeze(0);
            SpeechReading Hear(IReadOnlyList<Func<EditTarget, IDisposable>> changes)
            {
                using var edited = ModelEdit.Apply(changes, EditTarget.Of(pretrained.Model));
                return SpeechReading.Run(pretrained, pretrained.Model.Encode(features), new() { Beams = result.GetValue(beams) }, changes.Count > 0, cancellation);
            }

            using var heard = Hear(parsed);
            using var unedited = result.GetValue(compare) ? Hear([]) : null;
            if (!heard.Transcript.IsComplete)
            {
                terminal.Notice("The model did not end the text by itself: what it heard may be nothing that it knows.");
            }

            if (result.GetValue(json))
            {
                terminal.WriteJson(new
                {
                    Text = TextOf(heard), sound.Seconds, heard.Transcript.LogProbability, heard.Transcript.IsComplete, Words = WordsOf(heard), Edits = edits,
                    Unedited = unedited is null ? null : new { Text = TextOf(unedited), unedited.Transcript.LogProbability, unedited.Transcript.IsComplete, Words = WordsOf(unedited) },
                });
                return ExitCode.Success;
            }

            Print(terminal, heard);
            if (unedited is not null)
            {
                terminal.Out.WriteLine("\nWithout the edit:");
                Print(terminal, unedited);
            }

            return ExitCode.Success;
        });
    }

    private static string TextOf(SpeechReading reading) => string.Join(' ', reading.Words.Select(word => word.Text));

    private static IEnumerable<object> WordsOf(SpeechReading reading) => reading.Words.Select(word => new { word.Text, word.Start, word.End, word.AreaStart, word.AreaEnd });

    private static void Print(Terminal terminal, SpeechReading reading)
    {
        foreach (var word in reading.Words)
        {
            terminal.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{word.Start,7:F2}  {word.End,7:F2}  {word.Text}"));
        }
    }
}
