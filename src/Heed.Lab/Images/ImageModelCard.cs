using System.Text.Json;
using Heed.Models;
using Heed.Models.Checkpoints;
using Heed.Models.Images;
using static TorchSharp.torch;

namespace Heed.Lab.Images;

/// <summary>What lies as <c>model.json</c> beside the weights of a trained vision model, so that it can be made again.</summary>
/// <param name="Model">The model, as <c>NAME:option=value,...</c> (see <see cref="ImageModel"/>).</param>
/// <param name="Recipe">The recipe that trained it.</param>
/// <param name="Task">The pictures it reads.</param>
/// <param name="ClassNames">What its classes are called.</param>
/// <param name="Accuracy">Share of held-out pictures whose class it finds.</param>
/// <param name="Parameters">Number of parameters.</param>
/// <param name="Scale">How pixels become the model's input.</param>
public sealed record ImageModelCard(string Model, string Recipe, ImageTask Task, IReadOnlyList<string> ClassNames, double Accuracy, long Parameters, PixelScale Scale)
{
    private const string CardFile = "model.json";
    private const string WeightsFile = "model.safetensors";

    private static readonly JsonSerializerOptions s_format = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true, RespectNullableAnnotations = true, RespectRequiredConstructorParameters = true };

    /// <summary>Whether a folder holds a trained vision model.</summary>
    public static bool IsIn(string folder) => File.Exists(Path.Combine(folder, CardFile)) && File.Exists(Path.Combine(folder, WeightsFile));

    /// <summary>Reads a trained model.</summary>
    /// <param name="folder">The folder that a recipe wrote.</param>
    /// <returns>The card and the model, in evaluation mode; the caller disposes it.</returns>
    /// <exception cref="IOException">A file is missing or cannot be read.</exception>
    /// <exception cref="InvalidDataException">A file is damaged, or the weights are not those of the model that the card names.</exception>
    public static (ImageModelCard Card, ImageClassifier Model) Load(string folder)
    {
        var path = Path.Combine(folder, CardFile);
        ImageModelCard card;
        try
        {
            card = JsonSerializer.Deserialize<ImageModelCard>(File.ReadAllText(path), s_format) ?? throw new JsonException("it is null");
        }
        catch (JsonException exception)
        {
            throw new InvalidDataException($"'{path}' does not describe a trained vision model: {exception.Message}", exception);
        }

        ImageClassifier model;
        try
        {
            model = ImageModel.Make(card.Model, card.Task);
        }
        catch (ArgumentException exception)
        {
            throw new InvalidDataException($"'{path}' names a model that cannot be made: {exception.Message}", exception);
        }

        try
        {
            ReadWeights(model, Path.Combine(folder, WeightsFile));
            model.eval();
            return (card, model);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <summary>Writes the card beside the weights.</summary>
    /// <returns>The file.</returns>
    public string Write(string folder)
    {
        var path = Path.Combine(folder, CardFile);
        AtomicFile.WriteText(path, JsonSerializer.Serialize(this, s_format) + "\n");
        return path;
    }

    private static void ReadWeights(ImageClassifier model, string path)
    {
        using var reader = new SafetensorsReader(path);
        using var scope = NewDisposeScope();
        var state = model.state_dict();
        if (state.Keys.Where(name => !reader.Entries.ContainsKey(name)).Concat(reader.Entries.Keys.Where(name => !state.ContainsKey(name))).Order(StringComparer.Ordinal).FirstOrDefault() is { } odd)
        {
            throw new InvalidDataException($"'{path}' does not hold the weights of the model beside it: '{odd}' is in one of the two only.");
        }

        if (state.FirstOrDefault(entry => !reader.Entries[entry.Key].Shape.SequenceEqual(entry.Value.shape)) is { Key: { } differs })
        {
            throw new InvalidDataException($"'{path}' does not hold the weights of the model beside it: '{differs}' has another shape.");
        }

        foreach (var (name, tensor) in state)
        {
            reader.ReadInto(name, tensor);
        }
    }
}
