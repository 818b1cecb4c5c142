using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Heed.Models.Decoders;

namespace Heed.Models.VisionLanguage;

/// <summary>The shape of a <see cref="VisionLanguageModel"/>. Reads and writes the <c>config.json</c> of the transformers library's LLaVA models, and reads that of the LLaVA authors.</summary>
public sealed record VisionLanguageConfiguration
{
    /// <summary>The id that stands for the picture in prompts of LLaVA's own checkpoints, where no token does.</summary>
    public const int NoImageToken = -200;

    private const int ClipHeadWidth = 64;

    /// <summary>The encoder of pictures.</summary>
    public required ClipVisionConfiguration Vision { get; init; }

    /// <summary>The decoder.</summary>
    public required DecoderConfiguration Text { get; init; }

    /// <summary>Id of the token in whose place the picture's tokens stand; <see cref="NoImageToken"/> where the vocabulary has none.</summary>
    public int ImageTokenId { get; init; } = NoImageToken;

    /// <summary>The layer of the encoder whose tokens are read, counted as in <see cref="ClipVisionEncoder.Tokens"/>.</summary>
    public int FeatureLayer { get; init; } = -2;

    /// <summary>Whether the class token is read with the patches (<c>full</c>) or dropped (<c>default</c>).</summary>
    public bool KeepClassToken { get; init; }

    /// <summary>Whether the projector is one linear layer (LLaVA 1) instead of two with a GELU between them (LLaVA 1.5).</summary>
    public bool LinearProjector { get; init; }

    /// <summary>Whether the projector has biases.</summary>
    public bool ProjectorBias { get; init; } = true;

    /// <summary>Tokens that a picture becomes.</summary>
    public int ImageTokens => Vision.Patches + (KeepClassToken ? 1 : 0);

    /// <summary>Refuses shapes that make no model.</summary>
    /// <exception cref="ArgumentException">A size is out of range; the message names it.</exception>
    public void Validate()
    {
        Vision.Validate();
        Text.Validate();
        if (FeatureLayer < -Vision.Layers - 1 || FeatureLayer > Vision.Layers)
        {
            throw new ArgumentException($"The feature layer of an encoder of {Vision.Layers} layers is {-Vision.Layers - 1} to {Vision.Layers}, not {FeatureLayer}.");
        }

        if (ImageTokenId >= 0 && ImageTokenId >= Text.VocabularySize)
        {
            throw new ArgumentException($"The image token {ImageTokenId} is not in the vocabulary of {Text.VocabularySize}.");
        }
    }

    /// <summary>Reads a <c>config.json</c> from its text.</summary>
    /// <param name="json">The text.</param>
    /// <param name="shapeOf">The shape of a tensor of the checkpoint by its name, null where there is none: what LLaVA's own <c>config.json</c> leaves out about the encoder is told from its tensors. Null: only the transformers
    /// library's form can be read.</param>
    /// <param name="file">What to call the file in messages.</param>
    /// <exception cref="InvalidDataException">It is not JSON, describes no model of this kind, or asks for something that is not supported; the message says which.</exception>
    public static VisionLanguageConfiguration Parse(string json, Func<string, IReadOnlyList<long>?>? shapeOf = null, string file = "config.json")
    {
        ArgumentNullException.ThrowIfNull(json);
        try
        {
            var root = JsonNode.Parse(json) as JsonObject ?? throw new InvalidDataException($"{file} is not a JSON object.");
            var configuration = root["vision_config"] is JsonObject vision ? ReadTransformers(root, vision, file) : ReadAuthors(root, shapeOf, file);
            configuration.Validate();
            return configuration;
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{file} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
        catch (Exception error) when (error is ArgumentException or InvalidOperationException or FormatException)
        {
            throw new InvalidDataException($"{file} describes no vision-language model: {error.Message}", error);
        }
    }

    /// <summary>Whether a <c>config.json</c> is that of a vision-language model; false where it is none or no JSON.</summary>
    /// <param name="json">The file's bytes.</param>
    public static bool Describes(byte[] json)
    {
        ArgumentNullException.ThrowIfNull(json);
        try
        {
            using var document = JsonDocument.Parse(json);
            var root = document.RootElement;
            return root.ValueKind == JsonValueKind.Object && (root.TryGetProperty("vision_config", out _) || root.TryGetProperty("mm_vision_tower", out _) || root.TryGetProperty("mm_hidden_size", out _));
        }
        catch (JsonException)
        {
            return false;
        }
    }

    /// <summary>The <c>config.json</c> of this configuration, as the transformers library reads it.</summary>
    /// <param name="weightType">Name of the weights' type: float32, bfloat16 or float16.</param>
    /// <exception cref="InvalidOperationException">The library has no word for a part of this configuration.</exception>
    public string ToJson(string weightType = "float32")
    {
        if (LinearProjector)
        {
            throw new InvalidOperationException("The transformers library's config.json knows no linear projector: choose one of two layers.");
        }

        var json = new JsonObject
        {
            ["architectures"] = new JsonArray("LlavaForConditionalGeneration"),
            ["model_type"] = "llava",
            ["torch_dtype"] = weightType,
            ["image_token_index"] = ImageTokenId,
            ["image_seq_length"] = ImageTokens,
            ["projector_hidden_act"] = "gelu",
            ["multimodal_projector_bias"] = ProjectorBias,
            ["vision_feature_layer"] = FeatureLayer,
            ["vision_feature_select_strategy"] = KeepClassToken ? "full" : "default",
            ["tie_word_embeddings"] = Text.TieEmbeddings,
            ["text_config"] = JsonNode.Parse(Text.ToJson(weightType)),
            ["vision_config"] = new JsonObject
            {
                ["model_type"] = "clip_vision_model",
                ["hidden_size"] = Vision.HiddenSize,
                ["intermediate_size"] = Vision.IntermediateSize,
                ["num_hidden_layers"] = Vision.Layers,
                ["num_attention_heads"] = Vision.Heads,
                ["num_channels"] = Vision.Channels,
                ["image_size"] = Vision.ImageSize,
                ["patch_size"] = Vision.PatchSize,
                ["hidden_act"] = Vision.Activation,
                ["layer_norm_eps"] = Vision.NormEpsilon,
            },
        };
        return json.ToJsonString(ConfigurationReader.Indented);
    }

    private static VisionLanguageConfiguration ReadTransformers(JsonObject root, JsonObject vision, string file)
    {
        if (Word(vision, "model_type") is { } type && type != "clip_vision_model")
        {
            throw new InvalidDataException($"{file} has a vision encoder of type '{type}'; supported is clip_vision_model.");
        }

        if (Word(root, "projector_hidden_act") is { } activation && activation != "gelu")
        {
            throw new InvalidDataException($"{file} has the projector activation '{activation}'; supported is gelu.");
        }

        if (root["vision_feature_layer"] is JsonArray)
        {
            throw new InvalidDataException($"{file} reads features of several encoder layers; supported is one.");
        }

        return new()
        {
            Vision = new()
            {
                HiddenSize = Size(vision, "hidden_size") ?? 768, IntermediateSize = Size(vision, "intermediate_size") ?? 3072, Layers = Size(vision, "num_hidden_layers") ?? 12,
                Heads = Size(vision, "num_attention_heads") ?? 12, Channels = Size(vision, "num_channels") ?? 3, ImageSize = Size(vision, "image_size") ?? 224, PatchSize = Size(vision, "patch_size") ?? 32,
                Activation = Word(vision, "hidden_act") ?? "quick_gelu", NormEpsilon = (double?)vision["layer_norm_eps"] ?? 1e-5,
            },
            Text = ReadText(root["text_config"] as JsonObject ?? [], root, file),
            ImageTokenId = Size(root, "image_token_index") ?? Size(root, "image_token_id") ?? 32000,
            FeatureLayer = Size(root, "vision_feature_layer") ?? -2,
            KeepClassToken = Word(root, "vision_feature_select_strategy") is { } strategy && strategy != "default"
                && (strategy == "full" ? true : throw new InvalidDataException($"{file} selects vision features by '{strategy}'; supported are default and full.")),
            ProjectorBias = (bool?)root["multimodal_projector_bias"] ?? true,
        };
    }

    // A text_config holds only what differs from the library's defaults of the family.
    private static DecoderConfiguration ReadText(JsonObject text, JsonObject root, string file)
    {
        var whole = (JsonObject)text.DeepClone();
        whole["model_type"] ??= "llama";
        foreach (var (key, value) in new[] { ("hidden_size", 4096), ("intermediate_size", 11008), ("num_hidden_layers", 32), ("num_attention_heads", 32), ("vocab_size", 32000) })
        {
            whole[key] ??= value;
        }

        if (root["tie_word_embeddings"] is { } tied)
        {
            whole["tie_word_embeddings"] ??= tied.DeepClone();
        }

        return ConfigurationReader.Read(Encoding.UTF8.GetBytes(whole.ToJsonString()), $"{file} (text_config)");
    }

    private static VisionLanguageConfiguration ReadAuthors(JsonObject root, Func<string, IReadOnlyList<long>?>? shapeOf, string file)
    {
        if (root["mm_hidden_size"] is null && root["mm_vision_tower"] is null)
        {
            throw new InvalidDataException($"{file} describes no vision-language model: it has neither vision_config (the transformers library's LLaVA) nor mm_vision_tower (LLaVA's own).");
        }

        if (shapeOf is null)
        {
            throw new InvalidDataException($"{file} is LLaVA's own and says nothing about the encoder: it is told from the tensors, so load the folder.");
        }

        var projector = Word(root, "mm_projector_type") ?? "linear";
        var select = Word(root, "mm_vision_select_feature") ?? "patch";
        if (projector is not ("linear" or "mlp2x_gelu") || select is not ("patch" or "cls_patch"))
        {
            throw new InvalidDataException($"{file} has the projector '{projector}' and the features '{select}'; supported are linear and mlp2x_gelu, patch and cls_patch.");
        }

        const string Encoder = "vision_tower.vision_model.";
        if (shapeOf($"{Encoder}embeddings.patch_embedding.weight") is not [var width, var channels, var patch, _] || shapeOf($"{Encoder}embeddings.position_embedding.weight") is not [var tokens, _])
        {
            throw new InvalidDataException(
                $"The checkpoint of {file} lacks the vision encoder ({Word(root, "mm_vision_tower") ?? "mm_vision_tower"}), which LLaVA's own folders keep elsewhere: give the folder of that CLIP model, too.");
        }

        var text = (JsonObject)root.DeepClone();
        text["model_type"] = Word(root, "model_type") is { } type && type.EndsWith("mistral", StringComparison.Ordinal) ? "mistral" : "llama";
        var layers = 0;
        while (shapeOf($"{Encoder}encoder.layers.{layers}.layer_norm1.weight") is not null)
        {
            layers++;
        }

        return new()
        {
            Vision = new()
            {
                HiddenSize = (int)width, IntermediateSize = (int)(shapeOf($"{Encoder}encoder.layers.0.mlp.fc1.weight")?[0] ?? 0), Layers = layers, Heads = Math.Max(1, (int)width / ClipHeadWidth), Channels = (int)channels,
                PatchSize = (int)patch, ImageSize = (int)(Math.Round(Math.Sqrt(tokens - 1)) * patch),
            },
            Text = ReadText(text, root, file),
            FeatureLayer = Size(root, "mm_vision_select_layer") ?? -2,
            KeepClassToken = select == "cls_patch",
            LinearProjector = projector == "linear",
        };
    }

    private static int? Size(JsonObject json, string key) => (int?)json[key];

    private static string? Word(JsonObject json, string key) => (string?)json[key];
}
