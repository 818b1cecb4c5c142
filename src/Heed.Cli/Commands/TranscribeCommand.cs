using System.CommandLine;
using System.Globalization;
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
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        var command = new Command("transcribe", "Write speech down with a speech model, with the time of every word read off its cross-attention.") { audio, model, beams, threads, json };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var sound = Waveform.Read(result.GetRequiredValue(audio));
            using var pretrained = InspectAudio.Load(result.GetValue(model));
            using var scope = torch.NewDisposeScope();
            using var still = torch.no_grad();
            var encoded = pretrained.Model.Encode(pretrained.Features.Compute(sound).unsqueeze(0));
            var written = pretrained.Model.Transcribe(encoded, new() { Beams = result.GetValue(beams) }, cancellation)[0];
            using var maps = pretrained.Model.CrossAttention(encoded, torch.tensor((long[])[.. written.Tokens, pretrained.Model.Configuration.EndToken]));
            var words = WordTimes.Of(pretrained, maps.Mean(), written.Tokens);
            if (!written.IsComplete)
            {
                terminal.Notice("The model did not end the text by itself: what it heard may be nothing that it knows.");
            }

            if (result.GetValue(json))
            {
                terminal.WriteJson(new
                {
                    Text = string.Join(' ', words.Select(word => word.Text)), sound.Seconds, written.LogProbability, written.IsComplete,
                    Words = words.Select(word => new { word.Text, word.Start, word.End, word.AreaStart, word.AreaEnd }),
                });
                return ExitCode.Success;
            }

            foreach (var word in words)
            {
                terminal.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{word.Start,7:F2}  {word.End,7:F2}  {word.Text}"));
            }

            return ExitCode.Success;
        });
    }
}
