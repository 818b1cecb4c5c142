using System.Text.Json;
using Heed.Heads;
using Heed.Masks;

namespace Heed.Models.Decoders;

/// <summary>Reads Hugging Face <c>config.json</c> files; where a key is absent, the transformers library's default of the family holds.</summary>
internal static class ConfigurationReader
{
    public static readonly JsonSerializerOptions Indented = new() { WriteIndented = true };

    /// <summary>The window of dynamic masks in the authors' later code, whose importance is linear.</summary>
    public const string LinearWindow = "window_size";

    /// <summary>The window of dynamic masks in the transformers library, whose importance is exponential.</summary>
    public const string ExponentialWindow = "keep_window_size";

    // Far above any model, and far below what would exhaust memory before the weights are looked at.
    private const int MostLayers = 10_000;

    private static readonly (string Name, DecoderFamily Family)[] Families =
    [
        ("llama", DecoderFamily.Llama), ("mistral", DecoderFamily.Mistral), ("qwen2", DecoderFamily.Qwen2), ("qwen3", DecoderFamily.Qwen3),
        ("doge", DecoderFamily.Doge),
    ];

    public static DecoderConfiguration Read(byte[] json, string file)
    {
        try
        {
            using var document = JsonDocument.Parse(json);
            if (document.RootElement.ValueKind != JsonValueKind.Object)
            {
                throw new InvalidDataException($"{file} is not a JSON object.");
            }

            var configuration = Read(new Fields(document.RootElement, file));
            configuration.Validate();
            return configuration;
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{file} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
        catch (ArgumentException error)
        {
            throw new InvalidDataException($"{file} describes no model: {error.Message}", error);
        }
    }

    /// <summary>The <c>rope_scaling</c> entry that <see cref="Read(byte[], string)"/> reads back as the same scaling.</summary>
    public static Dictionary<string, object?> Describe(RotaryScaling scaling) => scaling switch
    {
        LinearRotaryScaling linear => new() { ["rope_type"] = "linear", ["factor"] = linear.Factor },
        Llama3RotaryScaling llama => new()
        {
            ["rope_type"] = "llama3", ["factor"] = llama.Factor, ["low_freq_factor"] = llama.LowFrequencyFactor,
            ["high_freq_factor"] = llama.HighFrequencyFactor, ["original_max_position_embeddings"] = llama.OriginalLength,
        },
        YarnRotaryScaling yarn => new()
        {
            ["rope_type"] = "yarn", ["factor"] = yarn.Factor, ["original_max_position_embeddings"] = yarn.OriginalLength, ["beta_fast"] = yarn.BetaFast,
            ["beta_slow"] = yarn.BetaSlow, ["attention_factor"] = yarn.AttentionFactor, ["truncate"] = yarn.Truncate,
        },
        _ => throw new ArgumentException($"A {scaling.GetType().Name} has no name in config.json."),
    };

    private static DecoderConfiguration Read(Fields fields)
    {
        var type = fields.Text("model_type") ?? throw new InvalidDataException($"{fields.File} has no model_type.");
        var found = Array.FindIndex(Families, entry => entry.Name == type);
        if (found < 0)
        {
            throw new InvalidDataException($"{fields.File} describes a model of type '{type}'; supported are {string.Join(", ", Families.Select(entry => entry.Name))}.");
        }

        var family = Families[found].Family;
        var noTokens = family is DecoderFamily.Qwen2 or DecoderFamily.Qwen3 or DecoderFamily.Doge;
        if (family == DecoderFamily.Doge && fields.Flag("is_moe"))
        {
            throw new InvalidDataException($"{fields.File} describes a Doge model with experts (is_moe), which is not supported.");
        }

        var heads = fields.Size("num_attention_heads");
        var layers = fields.Size("num_hidden_layers");
        if (layers > MostLayers)
        {
            throw new InvalidDataException($"{fields.File} asks for {layers} layers; at most {MostLayers} are supported.");
        }

        var contextLength = (int)fields.Number("max_position_embeddings", family switch { DecoderFamily.Llama or DecoderFamily.Doge => 2048, DecoderFamily.Mistral => 131072, _ => 32768 });
        var gate = fields.Flag("headwise_attn_output_gate") ? OutputGate.Headwise
            : fields.Flag("elementwise_attn_output_gate") ? OutputGate.Elementwise : OutputGate.None;

        // The gated model's own code reads qkv_bias, for the output projection too, and never attention_bias.
        var bothBiases = family switch
        {
            DecoderFamily.Llama or DecoderFamily.Doge => fields.Flag("attention_bias"),
            DecoderFamily.Qwen3 => fields.Has("qkv_bias") ? fields.Flag("qkv_bias") : fields.Flag("attention_bias"),
            _ => false,
        };
        var (window, slidingLayers) = Window(fields, family, layers);
        return new DecoderConfiguration
        {
            Family = family,
            VocabularySize = fields.Size("vocab_size"),
            HiddenSize = fields.Size("hidden_size"),
            IntermediateSize = fields.Size("intermediate_size"),
            Layers = layers,
            Heads = heads,
            KeyValueHeads = fields.OptionalSize("num_key_value_heads")
                ?? (fields.Has("num_key_value_heads") ? heads : Math.Min(heads, family switch { DecoderFamily.Llama or DecoderFamily.Doge => heads, DecoderFamily.Mistral => 8, _ => 32 })),
            HeadWidth = fields.OptionalSize("head_dim") ?? (family == DecoderFamily.Qwen3 ? 128 : 0),
            ContextLength = contextLength,
            Activation = fields.Text("hidden_act") ?? "silu",
            NormEpsilon = fields.Number("rms_norm_eps", 1e-6),
            RotaryTheta = fields.Nested("rope_parameters")?.OptionalNumber("rope_theta") ?? fields.Number("rope_theta", 10000),
            RotaryScaling = Scaling(fields, contextLength),
            TieEmbeddings = fields.Flag("tie_word_embeddings"),
            QueryKeyValueBias = family == DecoderFamily.Qwen2 || bothBiases,
            OutputBias = bothBiases,
            FeedForwardBias = family is DecoderFamily.Llama or DecoderFamily.Doge && fields.Flag("mlp_bias"),
            QueryKeyNorm = family == DecoderFamily.Doge || (family == DecoderFamily.Qwen3 && (!fields.Has("use_qk_norm") || fields.Flag("use_qk_norm"))),
            OutputGate = family == DecoderFamily.Qwen3 ? gate : OutputGate.None,
            SlidingWindow = window,
            SlidingLayers = slidingLayers,
            DynamicMaskWindow = family != DecoderFamily.Doge ? null : fields.OptionalSize(LinearWindow) ?? fields.OptionalSize(ExponentialWindow) ?? 2048,
            DynamicMaskForm = family == DecoderFamily.Doge && !fields.Has(LinearWindow) ? ImportanceForm.Exponential : ImportanceForm.Linear,
            BeginTokenId = fields.Ids("bos_token_id") is [var begin, ..] ? begin : noTokens || fields.Has("bos_token_id") ? null : 1,
            EndTokenIds = fields.Has("eos_token_id") ? fields.Ids("eos_token_id") : noTokens ? [] : [2],
        };
    }

    private static (int? Window, bool[]? Layers) Window(Fields fields, DecoderFamily family, int layers)
    {
        switch (family)
        {
            case DecoderFamily.Llama:
                return (null, null);
            case DecoderFamily.Doge:
                return (fields.OptionalSize("sliding_window"), null);
            case DecoderFamily.Mistral:
                return (fields.Has("sliding_window") ? fields.OptionalSize("sliding_window") : 4096, null);
            default:
                if (!fields.Flag("use_sliding_window"))
                {
                    return (null, null);
                }

                var window = fields.Has("sliding_window") ? fields.OptionalSize("sliding_window") : 4096;
                if (window is null)
                {
                    return (null, null);
                }

                var named = fields.Texts("layer_types");
                if (named is not null)
                {
                    var unknown = named.FirstOrDefault(name => name is not ("full_attention" or "sliding_attention"));
                    return unknown is null
                        ? (window, [.. named.Select(name => name == "sliding_attention")])
                        : throw new InvalidDataException($"{fields.File} has the layer type '{unknown}'; supported are full_attention and sliding_attention.");
                }

                var firstSliding = fields.Number("max_window_layers", 28);
                return (window, [.. Enumerable.Range(0, layers).Select(layer => layer >= firstSliding)]);
        }
    }

    private static RotaryScaling? Scaling(Fields fields, int contextLength)
    {
        if ((fields.Nested("rope_scaling") ?? fields.Nested("rope_parameters")) is not { } scaling)
        {
            return null;
        }

        var type = scaling.Text("rope_type") ?? scaling.Text("type") ?? "default";
        double Factor() => scaling.OptionalNumber("factor") is { } factor and >= 1 ? factor : throw new InvalidDataException($"{fields.File}: the rope scaling '{type}' needs a factor of at least 1.");
        double Required(string key) => scaling.OptionalNumber(key) is { } number and > 0 ? number : throw new InvalidDataException($"{fields.File}: the rope scaling '{type}' needs {key}.");
        switch (type)
        {
            case "default":
                return null;
            case "linear":
                return new LinearRotaryScaling(Factor());
            case "llama3":
                return new Llama3RotaryScaling(Factor(), Required("low_freq_factor"), Required("high_freq_factor"), Required("original_max_position_embeddings"));
            case "yarn" when scaling.Has("mscale") || scaling.Has("mscale_all_dim"):
                throw new InvalidDataException($"{fields.File} asks for the rope scaling 'yarn' with mscale, which is not supported.");
            case "yarn":
                return new YarnRotaryScaling(
                    Factor(), scaling.OptionalNumber("original_max_position_embeddings") ?? contextLength, scaling.OptionalNumber("beta_fast") ?? 32,
                    scaling.OptionalNumber("beta_slow") ?? 1, scaling.OptionalNumber("attention_factor"), !scaling.Has("truncate") || scaling.Flag("truncate"));
            default:
                throw new InvalidDataException($"{fields.File} asks for the rope scaling '{type}'; supported are default, linear, llama3 and yarn.");
        }
    }

    /// <summary>The members of a JSON object, with errors that name the file and the key. A null member counts as given and has no value.</summary>
    private sealed class Fields(JsonElement element, string file)
    {
        public string File => file;

        public bool Has(string key) => element.TryGetProperty(key, out _);

        public int Size(string key) => OptionalSize(key) ?? throw new InvalidDataException($"{file} has no {key}.");

        public int? OptionalSize(string key) => Find(key) is not { } found ? null
            : found.ValueKind == JsonValueKind.Number && found.TryGetInt32(out var size) && size > 0 ? size
            : throw Wrong(key, "a whole number from 1", found);

        public double? OptionalNumber(string key) => Find(key) is not { } found ? null
            : found.ValueKind == JsonValueKind.Number && found.TryGetDouble(out var number) && double.IsFinite(number) ? number : throw Wrong(key, "a number", found);

        public double Number(string key, double absent) => OptionalNumber(key) ?? absent;

        public bool Flag(string key) => Find(key) is { } found
            && (found.ValueKind is JsonValueKind.True or JsonValueKind.False ? found.GetBoolean() : throw Wrong(key, "true or false", found));

        public string? Text(string key) => Find(key) is not { } found ? null
            : found.ValueKind == JsonValueKind.String ? found.GetString() : throw Wrong(key, "a text", found);

        public List<string>? Texts(string key) => Find(key) is not { } found ? null
            : found.ValueKind == JsonValueKind.Array && found.EnumerateArray().All(item => item.ValueKind == JsonValueKind.String)
                ? [.. found.EnumerateArray().Select(item => item.GetString()!)] : throw Wrong(key, "a list of texts", found);

        public List<int> Ids(string key)
        {
            if (Find(key) is not { } found)
            {
                return [];
            }

            var items = found.ValueKind == JsonValueKind.Array ? found.EnumerateArray().ToList() : [found];
            return items.All(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out var id) && id >= 0)
                ? [.. items.Select(item => item.GetInt32())] : throw Wrong(key, "a token id or a list of them", found);
        }

        public Fields? Nested(string key) => Find(key) is not { } found ? null
            : found.ValueKind == JsonValueKind.Object ? new Fields(found, file) : throw Wrong(key, "an object", found);

        private JsonElement? Find(string key) => element.TryGetProperty(key, out var found) && found.ValueKind != JsonValueKind.Null ? found : null;

        private InvalidDataException Wrong(string key, string expected, JsonElement found) => new($"{file}: {key} must be {expected}, not {found.GetRawText()}.");
    }
}
