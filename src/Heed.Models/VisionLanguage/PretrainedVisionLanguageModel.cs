using System.Text;
using Heed.Models.Checkpoints;
using Heed.Models.Generation;
using Heed.Models.Tokenizers;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.VisionLanguage;

/// <summary>A vision-language model with its configuration, tokenizer and pixel scale, as a model folder holds them: <c>config.json</c>, <c>model.safetensors</c> (or an index and shards), <c>tokenizer.json</c> and
/// <c>preprocessor_config.json</c>, the last two optional. Reads LLaVA folders of the transformers library (names before and since version 4.52) and of LLaVA's authors.</summary>
public sealed class PretrainedVisionLanguageModel : IDisposable
{
    /// <summary>What stands for the picture in a prompt.</summary>
    public const string ImageMark = "<image>";

    private const string ConfigurationFile = "config.json";
    private const string TokenizerFile = "tokenizer.json";
    private const string TiedWeight = "language_model.lm_head.weight";

    /// <summary>Puts a model and what belongs to it together.</summary>
    /// <param name="model">The model; disposed with this.</param>
    /// <param name="tokenizer">Its tokenizer; null: none.</param>
    /// <param name="normalization">How pixels become its input; null: CLIP's way.</param>
    public PretrainedVisionLanguageModel(VisionLanguageModel model, TextTokenizer? tokenizer = null, PixelNormalization? normalization = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        (Model, Tokenizer, Normalization) = (model, tokenizer, normalization ?? PixelNormalization.Clip);
    }

    /// <summary>The model.</summary>
    public VisionLanguageModel Model { get; }

    /// <summary>Its shape.</summary>
    public VisionLanguageConfiguration Configuration => Model.Configuration;

    /// <summary>Its tokenizer; null where the folder has none.</summary>
    public TextTokenizer? Tokenizer { get; }

    /// <summary>How pixels become its input.</summary>
    public PixelNormalization Normalization { get; }

    /// <summary>Whether a folder holds a vision-language model.</summary>
    /// <param name="folder">The folder; it need not exist.</param>
    public static bool IsIn(string folder)
    {
        var path = Path.Combine(folder, ConfigurationFile);
        return File.Exists(path) && VisionLanguageConfiguration.Describes(File.ReadAllBytes(path));
    }

    /// <summary>Loads a model folder.</summary>
    /// <param name="folder">The folder.</param>
    /// <param name="type">The type to compute in, whatever the weights are stored as.</param>
    /// <param name="visionFolder">The folder of the CLIP model whose encoder LLaVA's own folder leaves out; null: the folder has it.</param>
    /// <returns>The model in evaluation mode.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="FileNotFoundException">A folder has no configuration or no weights.</exception>
    /// <exception cref="InvalidDataException">A file is broken, the model is of an unsupported kind, or a tensor is missing, superfluous or of another shape; the message names it.</exception>
    public static PretrainedVisionLanguageModel Load(string folder, ScalarType type = ScalarType.Float32, string? visionFolder = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        foreach (var wanted in new[] { folder, visionFolder ?? folder })
        {
            if (!Directory.Exists(wanted))
            {
                throw new DirectoryNotFoundException($"The model folder {wanted} does not exist.");
            }
        }

        var path = Path.Combine(folder, ConfigurationFile);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"{folder} is not a model folder: it has no {ConfigurationFile}.", path);
        }

        using var checkpoint = new ShardedCheckpoint(folder);
        using var encoder = visionFolder is null ? null : new ShardedCheckpoint(visionFolder);
        var sources = Sources(checkpoint, encoder);
        var configuration = VisionLanguageConfiguration.Parse(File.ReadAllText(path), name => sources.TryGetValue(name, out var source) ? source.Checkpoint.Entry(source.Name).Shape : null, path);
        configuration = configuration with { Text = PretrainedModel.WithBiasesOf(name => sources.ContainsKey($"language_model.{name}"), configuration.Text) };
        CheckTensors(sources, configuration, folder);
        var (tokenizerPath, pixelPath) = (Path.Combine(folder, TokenizerFile), Path.Combine(folder, PixelNormalization.FileName));
        var tokenizer = File.Exists(tokenizerPath) ? TokenizerJson.Load(tokenizerPath) : null;
        var normalization = File.Exists(pixelPath) ? PixelNormalization.Load(pixelPath) : null;
        var model = new VisionLanguageModel(configuration, seed: 0, initialize: false);
        try
        {
            if (type != ScalarType.Float32)
            {
                model.to(type);
            }

            foreach (var (name, parameter) in model.named_parameters())
            {
                var (from, theirs) = sources[name];
                from.ReadInto(theirs, parameter);
            }

            model.eval();
            return new(model, tokenizer, normalization);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    /// <summary>Saves the model as a folder that <see cref="Load"/> and the transformers library read. Every file appears whole or not at all.</summary>
    /// <param name="folder">The folder; made if it does not exist. Its files of the same names are replaced.</param>
    /// <param name="weightType">The type to store weights as: float32, bfloat16, float16 or float64.</param>
    /// <exception cref="ArgumentException">The type is no floating-point type.</exception>
    /// <exception cref="InvalidOperationException">The model has a linear projector, which that library does not know.</exception>
    /// <exception cref="IOException">The disk is full or the folder cannot be written.</exception>
    public void Save(string folder, ScalarType weightType = ScalarType.Float32)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (weightType is not (ScalarType.Float64 or ScalarType.Float32 or ScalarType.BFloat16 or ScalarType.Float16))
        {
            throw new ArgumentException($"Weights are stored as float64, float32, bfloat16 or float16, not {weightType}.", nameof(weightType));
        }

        Directory.CreateDirectory(folder);
        var tensors = Model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        WriteCard(folder, weightType.ToString().ToLowerInvariant());
        SafetensorsWriter.Write(Path.Combine(folder, ShardedCheckpoint.SingleFile), tensors, new Dictionary<string, string> { ["format"] = "pt" }, weightType);
    }

    /// <summary>Writes everything but the weights: configuration, pixel scale, tokenizer.</summary>
    /// <param name="folder">The folder, which exists.</param>
    /// <param name="weightType">Name of the weights' type.</param>
    /// <returns>The files written.</returns>
    public IReadOnlyList<string> WriteCard(string folder, string weightType = "float32")
    {
        var files = new List<string>();
        void Write(string name, byte[] content)
        {
            files.Add(Path.Combine(folder, name));
            AtomicFile.Write(files[^1], stream => stream.Write(content));
        }

        Write(ConfigurationFile, Encoding.UTF8.GetBytes(Configuration.ToJson(weightType) + "\n"));
        Write(PixelNormalization.FileName, Encoding.UTF8.GetBytes(Normalization.ToJson(Configuration.Vision.ImageSize) + "\n"));
        if (Tokenizer?.Source is { } source)
        {
            Write(TokenizerFile, source);
        }

        return files;
    }

    /// <summary>The token ids of a prompt. The picture stands where it says <see cref="ImageMark"/>, or before it where it does not.</summary>
    /// <param name="prompt">The prompt.</param>
    /// <exception cref="InvalidOperationException">There is no tokenizer.</exception>
    public IReadOnlyList<long> Encode(string prompt)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        var tokenizer = Tokenizer ?? throw new InvalidOperationException("The model has no tokenizer, so it takes token ids and not text.");
        var whole = prompt.Contains(ImageMark, StringComparison.Ordinal) ? prompt : $"{ImageMark} {prompt}";

        // LLaVA's own vocabulary has no image token: the texts around the mark are encoded apart.
        return Configuration.ImageTokenId >= 0
            ? tokenizer.EncodeIds(whole)
            : [.. whole.Split(ImageMark).SelectMany((part, index) => (IEnumerable<long>)(index == 0 ? tokenizer.EncodeIds(part) : [Configuration.ImageTokenId, .. tokenizer.EncodeIds(part, addBegin: false)]))];
    }

    /// <summary>A prompt for the generator.</summary>
    /// <param name="pixels">The picture, <c>[channels, side, side]</c>, 0 to 255.</param>
    /// <param name="prompt">The text (see <see cref="Encode"/>).</param>
    /// <returns>The prompt; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">The picture has another size, or the prompt holds several image marks.</exception>
    public EmbeddedPrompt Prompt(ReadOnlySpan<byte> pixels, string prompt)
    {
        using var scope = NewDisposeScope();
        return Model.Prompt(Picture(pixels), Encode(prompt));
    }

    /// <summary>A picture as the model reads it.</summary>
    /// <param name="pixels"><c>[channels, side, side]</c>, 0 to 255.</param>
    /// <returns><c>[1, channels, side, side]</c>.</returns>
    /// <exception cref="ArgumentException">The picture has another size.</exception>
    public Tensor Picture(ReadOnlySpan<byte> pixels)
    {
        var (channels, side) = (Configuration.Vision.Channels, Configuration.Vision.ImageSize);
        if (pixels.Length != channels * side * side)
        {
            throw new ArgumentException($"The picture has {pixels.Length:N0} values, and the model reads {channels} x {side} x {side}.", nameof(pixels));
        }

        using var scope = NewDisposeScope();
        return Normalization.Apply(tensor(pixels.ToArray()).view(1, channels, side, side)).to(Model.parameters().First().dtype).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose() => Model.Dispose();

    // The model's names of all tensors, and where each lies. The encoder's own checkpoint wins: LLaVA's copy, where there is one, may be a part.
    private static Dictionary<string, (ShardedCheckpoint Checkpoint, string Name)> Sources(ShardedCheckpoint checkpoint, ShardedCheckpoint? encoder)
    {
        var sources = new Dictionary<string, (ShardedCheckpoint, string)>(StringComparer.Ordinal);
        foreach (var name in checkpoint.Names)
        {
            if (LlavaTensors.NameOf(name) is { } ours && !sources.TryAdd(ours, (checkpoint, name)))
            {
                throw new InvalidDataException($"The checkpoint has two tensors for '{ours}': '{sources[ours].Item2}' and '{name}'.");
            }
        }

        foreach (var name in encoder?.Names ?? [])
        {
            if (LlavaTensors.NameOf(name) is { } ours && ours.StartsWith("vision_tower.", StringComparison.Ordinal))
            {
                sources[ours] = (encoder!, name);
            }
        }

        return sources;
    }

    // Before the model is allocated: a configuration of another model must not cost its memory.
    private static void CheckTensors(Dictionary<string, (ShardedCheckpoint Checkpoint, string Name)> sources, VisionLanguageConfiguration configuration, string folder)
    {
        var expected = new HashSet<string>(StringComparer.Ordinal);
        foreach (var (name, shape) in LlavaTensors.Of(configuration))
        {
            expected.Add(name);
            if (!sources.TryGetValue(name, out var source))
            {
                throw new InvalidDataException($"The checkpoint in {folder} lacks the tensor '{name}' (by the transformers library's names).");
            }

            var entry = source.Checkpoint.Entry(source.Name);
            if (!entry.Shape.SequenceEqual(shape))
            {
                throw new InvalidDataException(
                    $"The tensor '{source.Name}' in {folder} has the shape [{string.Join(", ", entry.Shape)}], and {ConfigurationFile} asks for [{string.Join(", ", shape)}].");
            }

            if (entry.Type is not (ScalarType.Float64 or ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
            {
                throw new InvalidDataException($"The tensor '{source.Name}' in {folder} is of type {entry.Type}, and weights must be floating-point numbers.");
            }
        }

        var extra = sources.Keys.FirstOrDefault(name => !expected.Contains(name) && !(configuration.Text.TieEmbeddings && name == TiedWeight));
        if (extra is not null)
        {
            throw new InvalidDataException($"The checkpoint in {folder} has the tensor '{sources[extra].Name}', for which the model described by {ConfigurationFile} has no place.");
        }
    }
}
