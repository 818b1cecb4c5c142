using System.Text.Json;
using Heed.Models.Checkpoints;
using Heed.Models.Tokenizers;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>A speech model with its features and its words, as a folder holds them: <c>config.json</c>, <c>model.safetensors</c> (or index and shards), optionally <c>preprocessor_config.json</c>, and either <c>words.json</c> (a
/// list with the text of every token) or <c>tokenizer.json</c> (Whisper).</summary>
public sealed class PretrainedSpeech : IDisposable
{
    private const string ConfigurationFile = "config.json";
    private const string FeatureFile = "preprocessor_config.json";
    private const string WordsFile = "words.json";
    private const string TokenizerFile = "tokenizer.json";

    // Whisper's output layer, which is its embedding.
    private const string TiedWeight = "proj_out.weight";

    private static readonly JsonSerializerOptions s_format = new() { WriteIndented = true, PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };

    /// <summary>Puts a model, its features and its words together.</summary>
    /// <param name="model">The model; disposed with this.</param>
    /// <param name="features">How its features are made.</param>
    /// <param name="words">The text of every token; null where there is a tokenizer, or none.</param>
    /// <param name="tokenizer">Its tokenizer; null: none.</param>
    /// <exception cref="ArgumentException">Features or words do not fit the model.</exception>
    public PretrainedSpeech(SpeechTransformer model, LogMelOptions features, IReadOnlyList<string>? words = null, TextTokenizer? tokenizer = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(features);
        if (features.Bins != model.Configuration.Bins || (words is not null && words.Count != model.Configuration.Vocabulary))
        {
            throw new ArgumentException($"The model reads {model.Configuration.Bins} bins and has {model.Configuration.Vocabulary} tokens; features of {features.Bins} bins and {words?.Count} words were given.", nameof(features));
        }

        (Model, Features, Words, Tokenizer) = (model, new(features), words, tokenizer);
    }

    /// <summary>The model.</summary>
    public SpeechTransformer Model { get; }

    /// <summary>Its features.</summary>
    public LogMel Features { get; }

    /// <summary>The text of every token; null where there is a tokenizer, or none.</summary>
    public IReadOnlyList<string>? Words { get; }

    /// <summary>Its tokenizer; null: none.</summary>
    public TextTokenizer? Tokenizer { get; }

    /// <summary>Seconds that a frame of the encoder stands for.</summary>
    public double SecondsPerState => (double)Features.Options.Hop * Model.Configuration.FramesPerState / Features.Options.Rate;

    /// <summary>Whether a folder holds a speech model, by its <c>config.json</c>.</summary>
    public static bool IsIn(string folder)
    {
        var path = Path.Combine(folder, ConfigurationFile);
        if (!File.Exists(path))
        {
            return false;
        }

        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            return document.RootElement.ValueKind == JsonValueKind.Object && document.RootElement.TryGetProperty("model_type", out var type) && type.ToString() is "whisper" or "heed-speech";
        }
        catch (JsonException)
        {
            return false;
        }
    }

    /// <summary>Loads a model folder.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>The model in evaluation mode.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="FileNotFoundException">The folder has no configuration or no weights.</exception>
    /// <exception cref="InvalidDataException">A file is broken, or a tensor is missing, superfluous or of another shape; the message names it.</exception>
    public static PretrainedSpeech Load(string folder)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (!Directory.Exists(folder))
        {
            throw new DirectoryNotFoundException($"The model folder {folder} does not exist.");
        }

        var path = Path.Combine(folder, ConfigurationFile);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"{folder} is not a model folder: it has no {ConfigurationFile}.", path);
        }

        var configuration = SpeechConfiguration.Load(path);
        var features = ReadFeatures(Path.Combine(folder, FeatureFile), configuration);
        var words = ReadWords(Path.Combine(folder, WordsFile));
        var tokenizer = Path.Combine(folder, TokenizerFile) is var file && File.Exists(file) ? TokenizerJson.Load(file) : null;
        using var checkpoint = new ShardedCheckpoint(folder);
        var model = new SpeechTransformer(configuration);
        try
        {
            Fill(model, checkpoint, folder);
            model.eval();
            return new(model, features, words, tokenizer);
        }
        catch (ArgumentException error)
        {
            model.Dispose();
            throw new InvalidDataException($"{folder} is not a usable model folder: {error.Message}", error);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <summary>Saves the model as a folder that <see cref="Load"/> reads, and with a first stride of 1 the transformers library, too. Every file appears whole or not at all.</summary>
    /// <param name="folder">The folder; made if it does not exist.</param>
    /// <param name="metadata">Free-form strings for the weights file; null: none.</param>
    public void Save(string folder, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        Directory.CreateDirectory(folder);
        var tensors = Model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        SafetensorsWriter.Write(
            Path.Combine(folder, ShardedCheckpoint.SingleFile), tensors, new Dictionary<string, string>(metadata ?? new Dictionary<string, string>(), StringComparer.Ordinal) { ["format"] = "pt" });
        var options = Features.Options;
        AtomicFile.WriteText(Path.Combine(folder, FeatureFile), JsonSerializer.Serialize(
            new StoredFeatures(options.Bins, options.Rate, options.Window, options.Hop, options.Seconds, options.Normalization == FeatureNormalization.Whisper ? "WhisperFeatureExtractor" : "per_bin"), s_format) + "\n");
        if (Words is not null)
        {
            AtomicFile.WriteText(Path.Combine(folder, WordsFile), JsonSerializer.Serialize(Words, s_format) + "\n");
        }

        if (Tokenizer?.Source is { } tokenizer)
        {
            AtomicFile.Write(Path.Combine(folder, TokenizerFile), stream => stream.Write(tokenizer));
        }

        AtomicFile.WriteText(Path.Combine(folder, ConfigurationFile), Model.Configuration.ToJson() + "\n");
    }

    /// <summary>The text of a token, with the space before it where a word begins.</summary>
    /// <param name="token">The token.</param>
    public string TextOf(long token) =>
        Words is not null ? $" {Words[checked((int)token)]}" : Tokenizer?.Decode([checked((int)token)], skipSpecial: false) ?? $" <{token}>";

    /// <inheritdoc/>
    public void Dispose()
    {
        Model.Dispose();
        Features.Dispose();
    }

    private static void Fill(SpeechTransformer model, ShardedCheckpoint checkpoint, string folder)
    {
        var parameters = model.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter, StringComparer.Ordinal);
        if (checkpoint.Names.FirstOrDefault(name => !parameters.ContainsKey(name) && name != TiedWeight) is { } extra)
        {
            throw new InvalidDataException($"The checkpoint in {folder} has the tensor '{extra}', for which the model described by {ConfigurationFile} has no place.");
        }

        foreach (var (name, parameter) in parameters)
        {
            if (!checkpoint.Contains(name))
            {
                throw new InvalidDataException($"The checkpoint in {folder} lacks the tensor '{name}'.");
            }

            if (!checkpoint.Entry(name).Shape.SequenceEqual(parameter.shape))
            {
                throw new InvalidDataException(
                    $"The tensor '{name}' in {folder} has the shape [{string.Join(", ", checkpoint.Entry(name).Shape)}], and {ConfigurationFile} asks for [{string.Join(", ", parameter.shape)}].");
            }
        }

        foreach (var (name, parameter) in parameters)
        {
            checkpoint.ReadInto(name, parameter);
        }
    }

    private static LogMelOptions ReadFeatures(string path, SpeechConfiguration configuration)
    {
        var options = new LogMelOptions { Bins = configuration.Bins };
        if (!File.Exists(path))
        {
            return options;
        }

        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            var root = document.RootElement;
            double? Number(string key) => root.TryGetProperty(key, out var value) && value.ValueKind == JsonValueKind.Number ? value.GetDouble() : null;
            var isOwn = root.TryGetProperty("feature_extractor_type", out var type) && type.ToString() == "per_bin";
            return options with
            {
                Bins = (int)(Number("feature_size") ?? options.Bins), Rate = (int)(Number("sampling_rate") ?? options.Rate), Window = (int)(Number("n_fft") ?? options.Window), Hop = (int)(Number("hop_length") ?? options.Hop),
                Seconds = Number("chunk_length") ?? (isOwn ? null : options.Seconds), Normalization = isOwn ? FeatureNormalization.PerBin : FeatureNormalization.Whisper,
            };
        }
        catch (Exception error) when (error is JsonException or InvalidOperationException)
        {
            throw new InvalidDataException($"{path} is not the JSON object that describes features ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
    }

    private static string[]? ReadWords(string path)
    {
        if (!File.Exists(path))
        {
            return null;
        }

        try
        {
            return JsonSerializer.Deserialize<string[]>(File.ReadAllText(path)) is { } words && words.All(word => word is not null) ? words : throw new JsonException("it holds null");
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{path} is not a JSON list of words ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
    }

    // The keys of transformers' feature extractors.
    private sealed record StoredFeatures(
        int FeatureSize, int SamplingRate, [property: System.Text.Json.Serialization.JsonPropertyName("n_fft")] int Window, [property: System.Text.Json.Serialization.JsonPropertyName("hop_length")] int Hop, double? ChunkLength,
        string FeatureExtractorType);
}
