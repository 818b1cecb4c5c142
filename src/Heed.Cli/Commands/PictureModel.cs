using System.Globalization;
using Heed.Lab.Images;
using Heed.Lab.Inspection;
using Heed.Lab.Mechanisms;
using Heed.Models;
using Heed.Models.Generation;
using Heed.Models.VisionLanguage;

namespace Heed.Cli.Commands;

/// <summary>What <c>heed inspect</c> and <c>heed generate</c> do with a vision-language model and a picture.</summary>
internal static class PictureModel
{
    /// <summary>The prompt where none is given.</summary>
    public const string DefaultPrompt = "what is here ?";

    /// <summary>The most tokens to generate where nobody says how many.</summary>
    public const int DefaultTokens = 32;

    /// <summary>Loads the model of a folder.</summary>
    /// <exception cref="InvalidDataException">The folder has no tokenizer, or the model cannot be read.</exception>
    public static PretrainedVisionLanguageModel Load(string folder)
    {
        var pretrained = PretrainedVisionLanguageModel.Load(folder);
        if (pretrained.Tokenizer is not null)
        {
            return pretrained;
        }

        pretrained.Dispose();
        throw new InvalidDataException($"The model in {folder} has no tokenizer.json, so text cannot be given to it.");
    }

    /// <summary>Reads a picture as a model reads it.</summary>
    public static InspectedPicture Read(PretrainedVisionLanguageModel pretrained, string path)
    {
        var vision = pretrained.Configuration.Vision;
        return new(Path.GetFileName(path), PictureFile.Read(path, new ImageTask(vision.ImageSize, vision.Channels, 1)));
    }

    /// <summary>A picture and a text for the generator.</summary>
    /// <exception cref="ArgumentException">The text has words that the model's tokenizer does not know.</exception>
    public static EmbeddedPrompt Prompt(PretrainedVisionLanguageModel pretrained, InspectedPicture picture, string prompt)
    {
        Check(pretrained, prompt);
        return pretrained.Prompt(picture.Pixels, prompt);
    }

    /// <summary>Puts edits into a model, one after the other, until the result is disposed.</summary>
    public static IDisposable Apply(PretrainedVisionLanguageModel pretrained, IReadOnlyList<Func<EditTarget, IDisposable>> edits, bool materialize)
    {
        var text = pretrained.Configuration.Text;
        return ModelEdit.Apply(edits, new(pretrained.Model.Hooks, text.Layers, text.Heads) { Pictures = pretrained.Model, Materialize = materialize });
    }

    /// <summary><c>heed inspect --image FILE --model FOLDER</c> of a vision-language model.</summary>
    public static int Inspect(string folder, string? image, string? prompt, int tokens, IReadOnlyList<string> edits, string output, bool json, Terminal terminal, CancellationToken cancellation)
    {
        var parsed = edits.Select(ModelEdit.Parse).ToArray();
        var shown = image ?? throw new ArgumentException($"The model in {folder} talks about pictures: give one with --image FILE.");
        using var pretrained = Load(folder);
        Check(pretrained, prompt ?? DefaultPrompt);
        var inspection = AnswerInspector.Run(
            pretrained, ModelFolder.NameOf(folder), Read(pretrained, shown), prompt ?? DefaultPrompt, new GenerationOptions { Temperature = 0, MaximumTokens = tokens },
            parsed.Length == 0 ? null : (string.Join(" ", edits), () => Apply(pretrained, parsed, materialize: true)), cancellation);
        AtomicFile.Write(output, stream => AnswerInspectionReport.Write(inspection, stream));
        if (json)
        {
            terminal.WriteJson(new
            {
                inspection.Model, inspection.Parameters, inspection.Picture.Source, inspection.Prompt, inspection.Grid, inspection.Layers, inspection.Heads,
                Runs = inspection.Runs.Select(run => new
                {
                    run.Name, run.Text, run.TokensPerSecond,
                    Words = run.Words.Select(word => new { word.Text, ImageMass = word.ImageMass.Chunk(inspection.Heads), LooksAt = Largest(inspection, word) }),
                }),
                inspection.SinkDimensions, inspection.SinkThreshold, inspection.Sinks, inspection.Seconds, Report = output,
            });
            return ExitCode.Success;
        }

        foreach (var run in inspection.Runs)
        {
            terminal.Out.WriteLine(inspection.Runs.Count > 1 ? $"{run.Name}: {run.Text}" : run.Text);
            foreach (var word in run.Words)
            {
                var (row, column) = Math.DivRem(Largest(inspection, word), inspection.Grid);
                terminal.Out.WriteLine(string.Create(
                    CultureInfo.InvariantCulture, $"  {word.Text,-12} {100 * word.ImageMass.Average(),3:F0}% of its attention on the picture, most of it in row {row + 1}, column {column + 1} of {inspection.Grid}"));
            }
        }

        var sinks = inspection.Sinks.Where(layer => layer.Patches.Count > 0).ToArray();
        terminal.Out.WriteLine(sinks.Length == 0 ? "No patch is a sink in any layer." : $"Sinks among the patches: {string.Join("; ", sinks.Select(layer => $"layer {layer.Layer}: {string.Join(", ", layer.Patches)}"))}.");
        terminal.Out.WriteLine($"Report: {output}; open it in a browser.");
        return ExitCode.Success;
    }

    /// <summary>What guides a generation by the picture: the prompt without it.</summary>
    public static GuidedLogits Guidance(PretrainedVisionLanguageModel pretrained, string prompt, double gamma) =>
        new(pretrained.Model.Language, [.. pretrained.Encode(prompt).Where(id => id != pretrained.Configuration.ImageTokenId)], gamma);

    // Read as the token for unknown words, a question would get an answer to another one.
    private static void Check(PretrainedVisionLanguageModel pretrained, string prompt)
    {
        // The picture's mark is no word: some vocabularies lack it.
        var (tokenizer, text) = (pretrained.Tokenizer!, prompt.Replace(PretrainedVisionLanguageModel.ImageMark, " ", StringComparison.Ordinal));
        var strange = tokenizer.Encode(text).Where(token => token.Id == tokenizer.UnknownTokenId).Select(token => $"'{text.Substring(token.Start, token.Length).Trim()}'").Distinct().ToArray();
        if (strange.Length > 0)
        {
            throw new ArgumentException($"The model's tokenizer does not know {string.Join(", ", strange)} in the prompt '{prompt}': use the words that the model was trained on.");
        }
    }

    // The patch that gets most, all heads together.
    private static int Largest(AnswerInspection inspection, AnswerWord word)
    {
        var patches = inspection.Grid * inspection.Grid;
        return Enumerable.Range(0, patches).MaxBy(patch => Enumerable.Range(0, word.ImageMass.Length).Sum(head => word.Weights[(head * patches) + patch]));
    }
}
