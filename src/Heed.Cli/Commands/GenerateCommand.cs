using System.CommandLine;
using System.Globalization;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Generation;
using Heed.Models.VisionLanguage;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed generate</c>: continue a text.</summary>
internal static class GenerateCommand
{
    private const double MegaByte = 1 << 20;

    public static Command Create()
    {
        var prompt = new Argument<string>("PROMPT") { Description = "The text to continue; without it, the model starts a text of its own.", Arity = ArgumentArity.ZeroOrOne, DefaultValueFactory = _ => "" };
        var model = new Option<string>("--model") { Description = "A model folder (config.json, weights, tokenizer.json), or a shipped model's name.", HelpName = "NAME|FOLDER", DefaultValueFactory = _ => ModelFolder.Default };
        var defaults = new GenerationOptions();
        var tokens = new Option<int>("--tokens") { Description = "The most tokens to generate.", HelpName = "N", DefaultValueFactory = _ => defaults.MaximumTokens }.AtLeast(1);
        var temperature = new Option<double>("--temperature") { Description = "Divides the logits before a token is drawn; 0: always the likeliest token.", HelpName = "T", DefaultValueFactory = _ => 0.8 }.Between(0, 100);
        var topK = new Option<int>("--top-k") { Description = "Draw among this many likeliest tokens; 0: all.", HelpName = "K", DefaultValueFactory = _ => defaults.TopK }.AtLeast(0);
        var topP = new Option<double>("--top-p") { Description = "Draw among the fewest likeliest tokens that together have this probability.", HelpName = "P", DefaultValueFactory = _ => 0.95 }
            .Within(share => share is > 0 and <= 1, "above 0 and at most 1");
        var seed = new Option<int>("--seed") { Description = "Seed of the draws: the same seed gives the same text.", HelpName = "N" };
        var image = new Option<string?>("--image") { Description = "A picture to talk about, with the folder of a vision-language model. In the prompt <image> says where it stands; without, first.", HelpName = "FILE" };
        var guidance = new Option<double>("--guidance") { Description = "With --image: how far to push the text away from what would be said without the picture; 1: not at all.", HelpName = "G", DefaultValueFactory = _ => 1 }.Between(0, 10);
        var edit = CommandExtensions.EditOption();
        var compare = new Option<bool>("--compare") { Description = "With --edit: also write what the model says without it." };
        var attention = CommandExtensions.AttentionOption();
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();

        var command = new Command("generate", "Continue a text with a model, or talk about a picture, as it is written; then tokens per second and the cache's size.") { prompt, model, image, edit, compare, guidance, tokens, temperature, topK, topP, seed, attention, threads, json };
        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var mechanism = result.GetValue(attention);
            var swap = mechanism is null ? null : AttentionSwap.Parse(mechanism);
            var edits = result.GetValue(edit) ?? [];
            var parsed = edits.Select(ModelEdit.Parse).ToArray();
            if (result.GetValue(compare) && edits.Length == 0)
            {
                throw new ArgumentException("--compare shows a text with and without an edit: say which with --edit.");
            }

            var shown = result.GetValue(image);
            var folder = ModelFolder.Find(result.GetRequiredValue(model));
            if (PretrainedVisionLanguageModel.IsIn(folder) != shown is not null)
            {
                throw new ArgumentException(shown is null ? $"The model in {folder} talks about pictures: give one with --image FILE."
                    : $"The model in {folder} reads texts alone: leave --image out, or name the folder of a vision-language model (heed train captions).");
            }

            var guided = result.GetResult(guidance) is { Implicit: false };
            if (guided && shown is null)
            {
                throw new ArgumentException("--guidance is by a picture: give one with --image FILE.");
            }

            using var seeing = shown is null ? null : PictureModel.Load(folder);
            using var pretrained = shown is null ? PretrainedModel.Load(folder) : null;
            var decoder = seeing?.Model.Language ?? pretrained!.Model;
            var tokenizer = seeing?.Tokenizer ?? pretrained?.Tokenizer ?? throw new InvalidDataException($"The model in {folder} has no tokenizer.json, so text cannot be given to it.");
            using var swapped = swap?.Apply(decoder);
            IDisposable Edited() => seeing is null
                ? ModelEdit.Apply(parsed, new(decoder.Hooks, decoder.Configuration.Layers, decoder.Configuration.Heads)) : PictureModel.Apply(seeing, parsed, materialize: false);

            // What the model lacks is told before anything is written.
            Edited().Dispose();
            var start = result.GetValue(prompt) ?? "";
            start = seeing is not null && start.Length == 0 ? PictureModel.DefaultPrompt : start;
            using var combiner = guided ? PictureModel.Guidance(seeing!, start, result.GetValue(guidance)) : null;
            var options = new GenerationOptions
            {
                MaximumTokens = result.GetValue(tokens),
                Temperature = result.GetValue(temperature),
                TopK = result.GetValue(topK),
                TopP = result.GetValue(topP),
                Seed = result.GetValue(seed),
                Combiner = combiner,
            };
            var forPrograms = result.GetValue(json);
            var begun = forPrograms;

            // The prompt waits for the first token: a picture or a text that is refused leaves nothing written.
            void Tell(string piece)
            {
                if (!begun)
                {
                    terminal.Out.Write(Printable(seeing is null ? start : start + "\n"));
                    begun = true;
                }

                if (!forPrograms)
                {
                    terminal.Out.Write(Printable(piece));
                    terminal.Out.Flush();
                }
            }

            var generator = new TextGenerator(decoder, tokenizer);
            GenerationResult Generate(Action<string> tell)
            {
                using var read = seeing is null ? null : PictureModel.Prompt(seeing, PictureModel.Read(seeing, shown!), start);
                return read is null ? generator.Generate(start, options, tell, cancellation) : generator.Generate(read, options, tell, cancellation);
            }

            GenerationResult generated;
            using (Edited())
            {
                generated = Generate(Tell);
            }

            Tell("");

            var unedited = result.GetValue(compare) ? Generate(_ => { }) : null;
            if (forPrograms)
            {
                terminal.WriteJson(new
                {
                    Model = ModelFolder.NameOf(folder),
                    Attention = mechanism,
                    Image = shown,
                    Edits = edits,
                    Guidance = guided ? result.GetValue(guidance) : (double?)null,
                    Prompt = start,
                    generated.Text,
                    PromptTokens = generated.PromptTokens,
                    Tokens = generated.Ids.Count,
                    StopReason = generated.Reason,
                    PromptSeconds = generated.PromptTime.TotalSeconds,
                    Seconds = generated.DecodingTime.TotalSeconds,
                    generated.TokensPerSecond,
                    generated.CacheBytes,
                    Unedited = unedited is null ? null : new { unedited.Text, Tokens = unedited.Ids.Count, StopReason = unedited.Reason, unedited.TokensPerSecond },
                    options.Temperature,
                    options.TopK,
                    options.TopP,
                    options.Seed,
                });
                return ExitCode.Success;
            }

            terminal.Out.WriteLine();
            if (unedited is not null)
            {
                terminal.Out.WriteLine("\nWithout the edit:");
                terminal.Out.WriteLine(Printable((seeing is null ? start : start + "\n") + unedited.Text));
            }

            terminal.Notice(string.Create(
                CultureInfo.InvariantCulture,
                $"\n{generated.Ids.Count} tokens at {generated.TokensPerSecond:F0} per second after {generated.PromptTime.TotalMilliseconds:F0} ms for {generated.PromptTokens} of prompt; cache {generated.CacheBytes / MegaByte:F1} MB; {(mechanism is null ? "" : $"attention {mechanism}; ")}{(edits.Length == 0 ? "" : $"edited by {string.Join(" ", edits)}; ")}{Why(generated.Reason)}."));
            return ExitCode.Success;
        });
    }

    private static string Why(StopReason reason) => reason switch
    {
        StopReason.StopToken => "the model ended the text",
        StopReason.ContextLength => "the model's context is full",
        _ => "stopped at --tokens",
    };

    /// <summary>A model may write anything; what a terminal would take for a command is shown as a replacement character.</summary>
    private static string Printable(string text) =>
        Console.IsOutputRedirected ? text : string.Concat(text.Select(letter => char.IsControl(letter) && letter is not ('\n' or '\t') ? '\uFFFD' : letter));
}
