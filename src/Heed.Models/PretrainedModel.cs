using Heed.Models.Checkpoints;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models;

/// <summary>A decoder with its configuration and tokenizer, as a Hugging Face model folder holds them: <c>config.json</c>, <c>model.safetensors</c> (or an index and
/// shards) and, optionally, <c>tokenizer.json</c>.</summary>
public sealed class PretrainedModel : IDisposable
{
    private const string ConfigurationFile = "config.json";
    private const string TokenizerFile = "tokenizer.json";
    private const string TiedWeight = "lm_head.weight";

    /// <summary>Puts a decoder and its tokenizer together.</summary>
    /// <param name="model">The decoder; disposed with this.</param>
    /// <param name="tokenizer">Its tokenizer; null: none.</param>
    public PretrainedModel(Decoder model, TextTokenizer? tokenizer = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        Model = model;
        Tokenizer = tokenizer;
    }

    /// <summary>The decoder.</summary>
    public Decoder Model { get; }

    /// <summary>Its shape.</summary>
    public DecoderConfiguration Configuration => Model.Configuration;

    /// <summary>Its tokenizer; null where the folder has none.</summary>
    public TextTokenizer? Tokenizer { get; }

    /// <summary>Loads a model folder.</summary>
    /// <param name="folder">The folder.</param>
    /// <param name="type">The type to compute in, whatever the weights are stored as: float32 or float64 for exact work.</param>
    /// <returns>The model in evaluation mode.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="FileNotFoundException">The folder has no configuration or no weights.</exception>
    /// <exception cref="InvalidDataException">A file is broken, the model is of an unsupported kind, or a tensor is missing, superfluous or of another shape; the message names it.</exception>
    public static PretrainedModel Load(string folder, ScalarType type = ScalarType.Float32)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (!Directory.Exists(folder))
        {
            throw new DirectoryNotFoundException($"The model folder {folder} does not exist.");
        }

        var configurationPath = Path.Combine(folder, ConfigurationFile);
        if (!File.Exists(configurationPath))
        {
            throw new FileNotFoundException($"{folder} is not a model folder: it has no {ConfigurationFile}.", configurationPath);
        }

        var configuration = DecoderConfiguration.Load(configurationPath);
        using var checkpoint = new ShardedCheckpoint(folder);
        configuration = WithBiasesOf(checkpoint.Contains, configuration);
        var tokenizerPath = Path.Combine(folder, TokenizerFile);
        var tokenizer = File.Exists(tokenizerPath) ? TokenizerJson.Load(tokenizerPath) : null;
        CheckTensors(checkpoint, configuration, folder);
        var model = new Decoder(configuration, seed: 0, initialize: false);
        try
        {
            if (type != ScalarType.Float32)
            {
                model.to(type);
            }

            foreach (var (name, parameter) in model.named_parameters())
            {
                checkpoint.ReadInto(name, parameter);
            }

            model.eval();
            return new PretrainedModel(model, tokenizer);
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

    /// <summary>Saves the model as a folder that <see cref="Load"/> and the transformers library read. Every file appears whole or not at all.</summary>
    /// <param name="folder">The folder; made if it does not exist. Its files of the same names are replaced.</param>
    /// <param name="weightType">The type to store weights as: float32, bfloat16, float16 or float64.</param>
    /// <param name="metadata">Free-form strings for the weights file; null: none.</param>
    /// <exception cref="ArgumentException">The type is no floating-point type.</exception>
    /// <exception cref="IOException">The disk is full or the folder cannot be written.</exception>
    public void Save(string folder, ScalarType weightType = ScalarType.Float32, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        var typeName = weightType switch
        {
            ScalarType.Float64 => "float64",
            ScalarType.Float32 => "float32",
            ScalarType.BFloat16 => "bfloat16",
            ScalarType.Float16 => "float16",
            _ => throw new ArgumentException($"Weights are stored as float64, float32, bfloat16 or float16, not {weightType}.", nameof(weightType)),
        };
        Directory.CreateDirectory(folder);
        var tensors = Model.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter, StringComparer.Ordinal);
        var described = new Dictionary<string, string>(metadata ?? new Dictionary<string, string>(), StringComparer.Ordinal) { ["format"] = "pt" };
        SafetensorsWriter.Write(Path.Combine(folder, ShardedCheckpoint.SingleFile), tensors, described, weightType);
        if (Tokenizer?.Source is { } tokenizer)
        {
            AtomicFile.Write(Path.Combine(folder, TokenizerFile), stream => stream.Write(tokenizer));
        }

        var json = System.Text.Encoding.UTF8.GetBytes(Configuration.ToJson(typeName) + "\n");
        AtomicFile.Write(Path.Combine(folder, ConfigurationFile), stream => stream.Write(json));
    }

    /// <inheritdoc/>
    public void Dispose() => Model.Dispose();

    // config.json says too little about biases (one flag for four projections, read differently by each family), so the tensors of the first layer decide.
    internal static DecoderConfiguration WithBiasesOf(Func<string, bool> contains, DecoderConfiguration configuration)
    {
        const string First = "model.layers.0.";
        return configuration with
        {
            QueryKeyValueBias = contains($"{First}self_attn.q_proj.bias"),
            OutputBias = contains($"{First}self_attn.o_proj.bias"),
            FeedForwardBias = contains($"{First}mlp.gate_proj.bias"),
        };
    }

    // Before the model is allocated: a configuration of another model must not cost its memory.
    private static void CheckTensors(ShardedCheckpoint checkpoint, DecoderConfiguration configuration, string folder)
    {
        // One by one: a configuration of a billion layers stops at the first that the checkpoint lacks.
        var expected = new HashSet<string>(StringComparer.Ordinal);
        foreach (var (name, shape) in DecoderTensors.Of(configuration))
        {
            expected.Add(name);
            if (!checkpoint.Contains(name))
            {
                throw new InvalidDataException($"The checkpoint in {folder} lacks the tensor '{name}'.");
            }

            var entry = checkpoint.Entry(name);
            if (!entry.Shape.SequenceEqual(shape))
            {
                throw new InvalidDataException(
                    $"The tensor '{name}' in {folder} has the shape [{string.Join(", ", entry.Shape)}], and {ConfigurationFile} asks for [{string.Join(", ", shape)}].");
            }

            if (entry.Type is not (ScalarType.Float64 or ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
            {
                throw new InvalidDataException($"The tensor '{name}' in {folder} is of type {entry.Type}, and weights must be floating-point numbers.");
            }
        }

        // Old checkpoints carry the rotary frequencies as a buffer, and tied ones may repeat the embedding as the output layer.
        var extra = checkpoint.Names.FirstOrDefault(name =>
            !expected.Contains(name) && !name.EndsWith(".rotary_emb.inv_freq", StringComparison.Ordinal) && !(configuration.TieEmbeddings && name == TiedWeight));
        if (extra is not null)
        {
            throw new InvalidDataException($"The checkpoint in {folder} has the tensor '{extra}', for which the model described by {ConfigurationFile} has no place.");
        }
    }
}
