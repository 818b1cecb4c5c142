using System.CommandLine;
using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Heed.Lab.Onnx;
using Heed.Models.VisionLanguage;
using TorchSharp;

namespace Heed.Cli.Commands;

/// <summary><c>heed inspect</c>: run a model on something and write a report of what it attended to.</summary>
internal static class InspectCommand
{
    private const long MegaByte = 1 << 20;

    public static Command Create()
    {
        var model = new Option<string>("--model") { Description = "A model folder, or a shipped model's name; for pictures the folder that heed train wrote, or NAME:option=value,... of a vision model.", HelpName = "NAME|FOLDER", DefaultValueFactory = _ => ModelFolder.Default };
        var text = new Option<string?>("--text") { Description = "UTF-8 text to read; - for standard input. Without it, the page that ships with the model.", HelpName = "FILE|-" };
        var output = new Option<string>("--out") { Description = "The report to write.", HelpName = "FILE", DefaultValueFactory = _ => "report.html" };
        var tokens = new Option<int>("--tokens") { Description = $"The most tokens to look at. Default: the model's context, at most {InspectionOptions.DefaultTokens}.", HelpName = "N" }.Between(2, InspectionReport.MaximumTokens);
        var budget = new Option<double>("--map-budget")
        {
            Description = "Megabytes that the attention maps may take in the report; less makes them coarser.",
            HelpName = "MB",
            DefaultValueFactory = _ => InspectionOptions.DefaultMapBudget / (double)MegaByte,
        }.Between(0.1, 1000);
        var image = new Option<string?>("--image") { Description = "Look at a picture with a vision model: a file, or the number of a picture of Fashion-MNIST's test split.", HelpName = "FILE|N" };
        var audio = new Option<string?>("--audio") { Description = "Listen to a sound with a speech model: a WAV file.", HelpName = "FILE" };
        var masks = new Option<int>("--masks") { Description = "With --audio: how often parts of the sound are hidden to find what matters; 0: never.", HelpName = "N" }.AtLeast(0);
        var prompt = new Option<string?>("--prompt") { Description = $"With --image and a vision-language model: what to say to it. Default: {PictureModel.DefaultPrompt}", HelpName = "TEXT" };
        var edit = CommandExtensions.EditOption();
        var weights = new Option<string?>("--weights") { Description = "With --image and a model's name: a checkpoint with its weights (.pth or safetensors).", HelpName = "FILE" };
        var data = new Option<string?>("--data") { Description = "Folder of Fashion-MNIST; the default is where its Debian package puts it.", HelpName = "FOLDER" };
        var file = new Argument<string?>("file") { Description = "An ONNX model (FILE.onnx), with a picture, a text or tensors.", Arity = ArgumentArity.ZeroOrOne, HelpName = "FILE.onnx" };
        file.Validators.Add(result =>
        {
            if (result.Tokens is [{ Value: var given }] && !InspectOnnx.Is(given))
            {
                result.AddError($"'{given}' is neither an option nor an ONNX model (FILE.onnx): name other models with --model.");
            }
        });
        var tensors = new Option<string[]>("--tensor") { Description = "For ONNX models: a tensor as .npy, .safetensors or .json, for the input before the = or the next that has none.", HelpName = "[INPUT=]FILE" };
        var input = new Option<string?>("--input") { Description = "For ONNX models: the input that the picture, text or tensor is for.", HelpName = "NAME" };
        var pixels = new Option<string?>("--pixels") { Description = $"For ONNX models: how pixels become numbers: {OnnxPixels.Names}. Default: half, and half:bgr for lines of text.", HelpName = "NAME[:bgr]" };
        var characters = new Option<string?>("--characters") { Description = "For ONNX models that read lines of text: the list of characters, one a line. Default: a .txt file beside the model that fits.", HelpName = "FILE" };
        var save = new Option<string?>("--save") { Description = "For ONNX models: write the edited model.", HelpName = "FILE.onnx" };
        var attention = CommandExtensions.AttentionOption();
        var threads = CommandExtensions.ThreadsOption();
        var json = CommandExtensions.JsonOption();
        string Name(ParseResult result) => result.GetValue(file) ?? result.GetRequiredValue(model);
        string? Chosen(ParseResult result) => IsGiven(result, model) ? result.GetValue(model) : null;
        string Report(ParseResult result) => result.GetRequiredValue(output);
        bool ForPrograms(ParseResult result) => result.GetValue(json);
        int? Tokens(ParseResult result) => IsGiven(result, tokens) ? result.GetValue(tokens) : null;
        long Budget(ParseResult result) => (long)(result.GetValue(budget) * MegaByte);

        // The first kind that fits is what is meant.
        Kind[] kinds =
        [
            new("ONNX models", "name one, as in heed inspect model.onnx", [text, image, edit, budget, tensors, input, pixels, characters, save], result => InspectOnnx.Is(Name(result)), (result, terminal, cancellation) =>
            {
                var request = new OnnxRequest
                {
                    Image = result.GetValue(image),
                    // A text may be a file, standard input, or the text itself.
                    Text = result.GetValue(text) is not { } words ? null : words == TextSource.StandardInput || File.Exists(words) ? TextSource.Read(words, ".", MegaByte, cancellation) : (words, "the text given"),
                    Tensors = result.GetValue(tensors) ?? [],
                    Input = result.GetValue(input),
                    Pixels = result.GetValue(pixels),
                    Characters = result.GetValue(characters),
                    Edits = result.GetValue(edit) ?? [],
                    MapBudget = Budget(result),
                    Threads = result.GetValue(threads),
                };
                return InspectOnnx.Run(Name(result), request, result.GetValue(save), Report(result), ForPrograms(result), terminal, cancellation);
            }),
            new("sounds", "say which with --audio FILE", [audio, masks, edit], result => result.GetValue(audio) is not null, (result, terminal, cancellation) => InspectAudio.Run(
                new(Chosen(result), result.GetValue(audio)!, IsGiven(result, masks) ? result.GetValue(masks) : null, result.GetValue(edit) ?? [], Report(result), ForPrograms(result)), terminal, cancellation)),
            new("vision-language models", "name the folder of one with --model, and a picture with --image", [image, prompt, edit, tokens],
                result => PretrainedVisionLanguageModel.IsIn(Name(result)), (result, terminal, cancellation) => PictureModel.Inspect(
                    Name(result), result.GetValue(image), result.GetValue(prompt), Tokens(result) ?? PictureModel.DefaultTokens, result.GetValue(edit) ?? [], Report(result), ForPrograms(result), terminal, cancellation)),
            new("pictures", "say which with --image FILE or --image N", [image, weights, data, edit], result => result.GetValue(image) is not null || ImageModelCard.IsIn(Name(result)),
                (result, terminal, cancellation) => InspectImage.Run(
                    new(Chosen(result), result.GetValue(image), result.GetValue(weights), result.GetValue(data), result.GetValue(edit) ?? [], Report(result), ForPrograms(result)), terminal, cancellation)),
            new("texts", "name a model that reads text with --model", [text, tokens, budget, attention, edit], _ => true, (result, terminal, cancellation) => InspectText.Run(
                new(Name(result), result.GetValue(text), Report(result), ForPrograms(result)),
                new() { Tokens = Tokens(result), MapBudget = Budget(result), Attention = result.GetValue(attention), Edits = result.GetValue(edit) ?? [] }, terminal, cancellation)),
        ];
        var command = new Command("inspect", "Run a model on a text, a picture or a sound and write a report (one HTML page) of what it attends to.") { file, model, output, threads, json };
        foreach (var option in kinds.SelectMany(kind => kind.Takes).Distinct())
        {
            command.Add(option);
        }

        return command.Runs((result, terminal, cancellation) =>
        {
            if (result.GetValue(threads) is > 0 and var count)
            {
                torch.set_num_threads(count);
            }

            var kind = kinds.First(kind => kind.Fits(result));
            kind.RefuseForeign(result, kinds);
            return kind.Run(result, terminal, cancellation);
        });
    }

    private static bool IsGiven(ParseResult result, Option option) => result.GetResult(option) is { Implicit: false };

    /// <summary>Something that can be looked at.</summary>
    /// <param name="Things">What it is called.</param>
    /// <param name="How">How to say that it is meant.</param>
    /// <param name="Takes">The options that mean something for it, beside those of every kind.</param>
    /// <param name="Fits">Whether it is meant by a command line.</param>
    /// <param name="Run">Looks at it.</param>
    private sealed record Kind(string Things, string How, Option[] Takes, Func<ParseResult, bool> Fits, Func<ParseResult, Terminal, CancellationToken, int> Run)
    {
        public void RefuseForeign(ParseResult result, Kind[] kinds)
        {
            if (kinds.SelectMany(kind => kind.Takes).Except(Takes).FirstOrDefault(option => IsGiven(result, option)) is { } foreign)
            {
                var takers = kinds.Where(kind => kind.Takes.Contains(foreign)).ToArray();
                throw new ArgumentException($"{foreign.Name} is for {string.Join(" and ", takers.Select(taker => taker.Things))}, not for {Things}: leave it out, or {takers[0].How}.");
            }
        }
    }
}
