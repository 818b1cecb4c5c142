using System.Text;
using System.Text.Json;
using Heed.Heads;
using Heed.Masks;

namespace Heed.Models.Decoders;

/// <summary>The families of decoders that share the Llama block.</summary>
public enum DecoderFamily
{
    /// <summary>Llama 1 to 3.</summary>
    Llama,

    /// <summary>Mistral: a sliding window in every layer.</summary>
    Mistral,

    /// <summary>Qwen2 and Qwen2.5: biases on query, key and value.</summary>
    Qwen2,

    /// <summary>Qwen3: queries and keys normalised per head; with or without gated attention.</summary>
    Qwen3,

    /// <summary>Doge: attention to the most important keys, and residuals with learned weights (arXiv 2508.02124).</summary>
    Doge,
}

/// <summary>The gate of a decoder's attention output (arXiv 2505.06708).</summary>
public enum OutputGate
{
    /// <summary>None.</summary>
    None,

    /// <summary>One score for every query head.</summary>
    Headwise,

    /// <summary>One score for every element of every query head.</summary>
    Elementwise,
}

/// <summary>The shape of a <see cref="Decoder"/>. Reads and writes the <c>config.json</c> of Hugging Face checkpoints.</summary>
public sealed record DecoderConfiguration
{
    /// <summary>Family, which decides how <c>config.json</c> is read and written.</summary>
    public DecoderFamily Family { get; init; }

    /// <summary>Number of token ids.</summary>
    public required int VocabularySize { get; init; }

    /// <summary>Width of the residual stream.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Width of the feed-forward layers.</summary>
    public required int IntermediateSize { get; init; }

    /// <summary>Number of layers.</summary>
    public required int Layers { get; init; }

    /// <summary>Number of query heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Number of key/value heads, a divisor of <see cref="Heads"/>; 0: as many as heads.</summary>
    public int KeyValueHeads { get; init; }

    /// <summary>Head dimension, even; 0: <see cref="HiddenSize"/> / <see cref="Heads"/>.</summary>
    public int HeadWidth { get; init; }

    /// <summary>Context length in tokens that the model is meant for. Not a limit of the code.</summary>
    public int ContextLength { get; init; } = 2048;

    /// <summary>Activation of the feed-forward layers: silu, gelu, gelu_new, gelu_pytorch_tanh or relu.</summary>
    public string Activation { get; init; } = "silu";

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-6;

    /// <summary>Base of the rotary embedding.</summary>
    public double RotaryTheta { get; init; } = 10000;

    /// <summary>Scaling of the rotary embedding; null: none.</summary>
    public RotaryScaling? RotaryScaling { get; init; }

    /// <summary>Whether the output layer shares the token embedding's weight.</summary>
    public bool TieEmbeddings { get; init; }

    /// <summary>Whether query, key and value projections have biases.</summary>
    public bool QueryKeyValueBias { get; init; }

    /// <summary>Whether the attention's output projection has a bias.</summary>
    public bool OutputBias { get; init; }

    /// <summary>Whether the feed-forward layers have biases.</summary>
    public bool FeedForwardBias { get; init; }

    /// <summary>Whether queries and keys are normalised per head.</summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>The gate of the attention output.</summary>
    public OutputGate OutputGate { get; init; }

    /// <summary>Sliding window in tokens, the query's own included; null: none.</summary>
    public int? SlidingWindow { get; init; }

    /// <summary>Which layers slide; null: all, where <see cref="SlidingWindow"/> is given.</summary>
    public IReadOnlyList<bool>? SlidingLayers { get; init; }

    /// <summary>Number of keys that a query of every layer keeps, the most important ones; null: all. Of the family Doge, which has no other.</summary>
    public int? DynamicMaskWindow { get; init; }

    /// <summary>How the importance of keys is computed, where <see cref="DynamicMaskWindow"/> is given.</summary>
    public ImportanceForm DynamicMaskForm { get; init; }

    /// <summary>Id of the token that begins a text; null: none.</summary>
    public int? BeginTokenId { get; init; }

    /// <summary>Ids of the tokens that end a text.</summary>
    public IReadOnlyList<int> EndTokenIds { get; init; } = [];

    /// <summary>Number of key/value heads, resolved.</summary>
    internal int ResolvedKeyValueHeads => KeyValueHeads == 0 ? Heads : KeyValueHeads;

    /// <summary>Head dimension, resolved.</summary>
    internal int ResolvedHeadWidth => HeadWidth == 0 ? HiddenSize / Heads : HeadWidth;

    /// <summary>The sliding window of a layer; null: it sees all.</summary>
    public int? WindowOf(int layer) => SlidingWindow is { } window && (SlidingLayers is null || SlidingLayers[layer]) ? window : null;

    /// <summary>Reads the <c>config.json</c> of a checkpoint, with the defaults that the transformers library has for the family.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="InvalidDataException">It is not JSON, of another family, lacks a size, or asks for something that is not supported; the message says which.</exception>
    public static DecoderConfiguration Load(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"The configuration {path} does not exist.", path);
        }

        return ConfigurationReader.Read(File.ReadAllBytes(path), path);
    }

    /// <summary>Reads a <c>config.json</c> from its text.</summary>
    /// <exception cref="InvalidDataException">As for <see cref="Load"/>.</exception>
    public static DecoderConfiguration Parse(string json) => ConfigurationReader.Read(Encoding.UTF8.GetBytes(json), "config.json");

    /// <summary>The <c>config.json</c> of this configuration, as the transformers library reads it.</summary>
    /// <param name="weightType">Name of the weights' type: float32, bfloat16 or float16.</param>
    /// <exception cref="InvalidOperationException">The family's <c>config.json</c> has no word for a part of this configuration; the message names the part.</exception>
    public string ToJson(string weightType = "float32")
    {
        CheckExpressible();
        var name = Family.ToString().ToLowerInvariant();
        var json = new Dictionary<string, object?>
        {
            ["architectures"] = new[] { $"{Family}ForCausalLM" },
            ["model_type"] = name,
            ["torch_dtype"] = weightType,
            ["vocab_size"] = VocabularySize,
            ["hidden_size"] = HiddenSize,
            ["intermediate_size"] = IntermediateSize,
            ["num_hidden_layers"] = Layers,
            ["num_attention_heads"] = Heads,
            ["num_key_value_heads"] = ResolvedKeyValueHeads,
            ["head_dim"] = ResolvedHeadWidth,
            ["max_position_embeddings"] = ContextLength,
            ["hidden_act"] = Activation,
            ["rms_norm_eps"] = NormEpsilon,
            ["rope_theta"] = RotaryTheta,
            ["tie_word_embeddings"] = TieEmbeddings,
            ["sliding_window"] = SlidingWindow,
        };
        if (Family is DecoderFamily.Llama or DecoderFamily.Qwen3 or DecoderFamily.Doge)
        {
            json["attention_bias"] = QueryKeyValueBias || OutputBias;
        }

        if (Family is DecoderFamily.Llama or DecoderFamily.Doge)
        {
            json["mlp_bias"] = FeedForwardBias;
        }

        if (Family is DecoderFamily.Doge)
        {
            // Each form under the key of the code that computes it: the transformers library exponentiates, the authors' later code does not.
            json[DynamicMaskForm == ImportanceForm.Exponential ? ConfigurationReader.ExponentialWindow : ConfigurationReader.LinearWindow] = DynamicMaskWindow;
        }

        if (Family is DecoderFamily.Qwen2 or DecoderFamily.Qwen3)
        {
            json["use_sliding_window"] = SlidingWindow is not null;
            json["layer_types"] = Enumerable.Range(0, Layers).Select(layer => WindowOf(layer) is null ? "full_attention" : "sliding_attention").ToArray();
        }

        if (Family is DecoderFamily.Qwen3)
        {
            json["use_qk_norm"] = QueryKeyNorm;
            json["qkv_bias"] = QueryKeyValueBias || OutputBias;
            json["headwise_attn_output_gate"] = OutputGate == OutputGate.Headwise;
            json["elementwise_attn_output_gate"] = OutputGate == OutputGate.Elementwise;
        }

        if (RotaryScaling is not null)
        {
            json["rope_scaling"] = ConfigurationReader.Describe(RotaryScaling);
        }

        json["bos_token_id"] = BeginTokenId;
        json["eos_token_id"] = EndTokenIds.Count switch { 0 => null, 1 => EndTokenIds[0], _ => EndTokenIds };
        return JsonSerializer.Serialize(json, ConfigurationReader.Indented);
    }

    /// <summary>Refuses sizes that make no model.</summary>
    /// <exception cref="ArgumentException">A size is out of range; the message names it.</exception>
    public void Validate()
    {
        foreach (var (name, size) in new[]
        {
            (nameof(VocabularySize), VocabularySize), (nameof(HiddenSize), HiddenSize), (nameof(IntermediateSize), IntermediateSize),
            (nameof(Layers), Layers), (nameof(Heads), Heads), (nameof(ContextLength), ContextLength), (nameof(KeyValueHeads), ResolvedKeyValueHeads),
        })
        {
            if (size < 1)
            {
                throw new ArgumentException($"{name} must be at least 1, not {size}.");
            }
        }

        if (HeadWidth == 0 && HiddenSize % Heads != 0)
        {
            throw new ArgumentException($"HiddenSize {HiddenSize} does not divide into {Heads} heads; give HeadWidth.");
        }

        if (ResolvedHeadWidth < 2 || ResolvedHeadWidth % 2 != 0)
        {
            throw new ArgumentException($"HeadWidth must be even and at least 2 for the rotary embedding, not {ResolvedHeadWidth}.");
        }

        if (Heads % ResolvedKeyValueHeads != 0)
        {
            throw new ArgumentException($"KeyValueHeads {ResolvedKeyValueHeads} does not divide Heads {Heads}.");
        }

        if (SlidingWindow < 1)
        {
            throw new ArgumentException($"SlidingWindow must be at least 1 token, not {SlidingWindow}.");
        }

        if ((Family == DecoderFamily.Doge) != (DynamicMaskWindow is not null) || DynamicMaskWindow < 1)
        {
            throw new ArgumentException(
                DynamicMaskWindow < 1 ? $"DynamicMaskWindow must be at least 1 key, not {DynamicMaskWindow}."
                : $"DynamicMaskWindow belongs to the family Doge, and that to it; the family is {Family} and the window {DynamicMaskWindow?.ToString() ?? "missing"}.");
        }

        if (Family == DecoderFamily.Doge && (!QueryKeyNorm || SlidingWindow is not null || OutputGate != OutputGate.None))
        {
            throw new ArgumentException("The family Doge has QueryKeyNorm and neither SlidingWindow nor OutputGate.");
        }

        if (SlidingLayers is not null && SlidingLayers.Count != Layers)
        {
            throw new ArgumentException($"SlidingLayers has {SlidingLayers.Count} entries for {Layers} layers.");
        }

        if (!(NormEpsilon >= 0) || !(RotaryTheta > 0))
        {
            throw new ArgumentException($"NormEpsilon must not be negative and RotaryTheta must be positive, not {NormEpsilon} and {RotaryTheta}.");
        }

        if (!FeedForward.Activations.Contains(Activation))
        {
            throw new ArgumentException($"The activation '{Activation}' is not known; known are {string.Join(", ", FeedForward.Activations)}.");
        }
    }

    private void CheckExpressible()
    {
        var qwen = Family is DecoderFamily.Qwen2 or DecoderFamily.Qwen3;
        var lost = QueryKeyNorm && Family is not (DecoderFamily.Qwen3 or DecoderFamily.Doge) ? nameof(QueryKeyNorm)
            : OutputGate != OutputGate.None && Family != DecoderFamily.Qwen3 ? nameof(OutputGate)
            : SlidingWindow is not null && Family == DecoderFamily.Llama ? nameof(SlidingWindow)
            : SlidingWindow is not null && SlidingLayers is not null && SlidingLayers.Contains(false) && !qwen ? nameof(SlidingLayers)
            : null;
        if (lost is not null)
        {
            throw new InvalidOperationException($"A config.json of the family {Family} cannot express {lost}; choose another Family.");
        }
    }
}
