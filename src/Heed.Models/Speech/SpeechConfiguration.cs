using System.Text.Json;
using System.Text.Json.Nodes;

namespace Heed.Models.Speech;

/// <summary>The shape of a <see cref="SpeechTransformer"/>, with the keys of Whisper's <c>config.json</c>.</summary>
public sealed record SpeechConfiguration
{
    private const string WhisperType = "whisper";
    private const string OwnType = "heed-speech";
    private static readonly JsonSerializerOptions s_format = new() { WriteIndented = true };

    // Far above any model, and far below what would exhaust memory before the weights are looked at.
    private const int MostLayers = 1000;

    /// <summary>Width D of a token (<c>d_model</c>).</summary>
    public required int Width { get; init; }

    /// <summary>Layers of the encoder.</summary>
    public required int EncoderLayers { get; init; }

    /// <summary>Layers of the decoder.</summary>
    public required int DecoderLayers { get; init; }

    /// <summary>Heads of the encoder's attention.</summary>
    public required int EncoderHeads { get; init; }

    /// <summary>Heads of the decoder's attention.</summary>
    public required int DecoderHeads { get; init; }

    /// <summary>Hidden width of the encoder's feed-forward parts; 0: four times the width.</summary>
    public int EncoderInner { get; init; }

    /// <summary>Hidden width of the decoder's feed-forward parts; 0: four times the width.</summary>
    public int DecoderInner { get; init; }

    /// <summary>Mel bins F of a frame.</summary>
    public required int Bins { get; init; }

    /// <summary>Number V of tokens.</summary>
    public required int Vocabulary { get; init; }

    /// <summary>Most frames T' that the encoder makes.</summary>
    public int SourceLength { get; init; } = 1500;

    /// <summary>Most tokens that the decoder reads.</summary>
    public int TargetLength { get; init; } = 448;

    /// <summary>Stride of the first convolution (<c>conv1_stride</c>, 1 in Whisper); the second's is 2.</summary>
    public int FirstStride { get; init; } = 1;

    /// <summary>The token that begins a text (<c>decoder_start_token_id</c>).</summary>
    public required int StartToken { get; init; }

    /// <summary>The token that ends a text.</summary>
    public required int EndToken { get; init; }

    /// <summary>The token that fills up texts of a batch.</summary>
    public required int PadToken { get; init; }

    /// <summary>Frames of the input that one frame of the encoder stands for.</summary>
    public int FramesPerState => 2 * FirstStride;

    /// <summary>Reads a <c>config.json</c>.</summary>
    /// <exception cref="InvalidDataException">It is not JSON, describes no speech model, or lacks a key; the message names it.</exception>
    public static SpeechConfiguration Load(string path)
    {
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            var root = document.RootElement;
            var type = root.ValueKind == JsonValueKind.Object && root.TryGetProperty("model_type", out var found) ? found.ToString() : null;
            if (type is not (WhisperType or OwnType))
            {
                throw new InvalidDataException($"{path} describes a model of the type '{type}', and speech models here are '{WhisperType}' or '{OwnType}'.");
            }

            int Whole(string key, int? absent = null) => root.TryGetProperty(key, out var value) && value.ValueKind != JsonValueKind.Null
                ? value.TryGetInt32Safely(out var number) ? number : throw new InvalidDataException($"{key} of {path} is {value}, and a whole number was expected.")
                : absent ?? throw new InvalidDataException($"{path} lacks {key}.");
            if (root.TryGetProperty("activation_function", out var activation) && activation.ToString() != "gelu")
            {
                throw new InvalidDataException($"{path} asks for the activation '{activation}', and only 'gelu' is built.");
            }

            if (root.TryGetProperty("scale_embedding", out var scale) && scale.ValueKind == JsonValueKind.True)
            {
                throw new InvalidDataException($"{path} asks for scaled embeddings, which are not built.");
            }

            var width = Whole("d_model");
            var configuration = new SpeechConfiguration
            {
                Width = width, EncoderLayers = Whole("encoder_layers"), DecoderLayers = Whole("decoder_layers"), EncoderHeads = Whole("encoder_attention_heads"), DecoderHeads = Whole("decoder_attention_heads"),
                EncoderInner = Whole("encoder_ffn_dim", 4 * width), DecoderInner = Whole("decoder_ffn_dim", 4 * width), Bins = Whole("num_mel_bins", 80), Vocabulary = Whole("vocab_size"),
                SourceLength = Whole("max_source_positions", 1500), TargetLength = Whole("max_target_positions", 448), FirstStride = Whole("conv1_stride", 1),
                StartToken = Whole("decoder_start_token_id"), EndToken = Whole("eos_token_id"), PadToken = Whole("pad_token_id", Whole("eos_token_id")),
            };
            configuration.Validate();
            return configuration;
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{path} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }
        catch (ArgumentException error)
        {
            throw new InvalidDataException($"{path} describes no model: {error.Message}", error);
        }
    }

    /// <summary>The <c>config.json</c>: of the type <c>whisper</c> where the first convolution's stride is 1.</summary>
    public string ToJson() => new JsonObject
    {
        ["model_type"] = FirstStride == 1 ? WhisperType : OwnType,
        ["architectures"] = new JsonArray(FirstStride == 1 ? "WhisperForConditionalGeneration" : nameof(SpeechTransformer)),
        ["d_model"] = Width, ["encoder_layers"] = EncoderLayers, ["decoder_layers"] = DecoderLayers, ["encoder_attention_heads"] = EncoderHeads, ["decoder_attention_heads"] = DecoderHeads,
        ["encoder_ffn_dim"] = ResolvedEncoderInner, ["decoder_ffn_dim"] = ResolvedDecoderInner, ["num_mel_bins"] = Bins, ["vocab_size"] = Vocabulary,
        ["max_source_positions"] = SourceLength, ["max_target_positions"] = TargetLength, ["conv1_stride"] = FirstStride, ["activation_function"] = "gelu", ["scale_embedding"] = false,
        ["decoder_start_token_id"] = StartToken, ["eos_token_id"] = EndToken, ["pad_token_id"] = PadToken, ["is_encoder_decoder"] = true,
    }.ToJsonString(s_format);

    internal int ResolvedEncoderInner => EncoderInner == 0 ? 4 * Width : EncoderInner;

    internal int ResolvedDecoderInner => DecoderInner == 0 ? 4 * Width : DecoderInner;

    /// <summary>Refuses what makes no model.</summary>
    /// <exception cref="ArgumentException">A number is out of range, or heads do not divide the width.</exception>
    public void Validate()
    {
        if (Width < 2 || Width % 2 != 0 || EncoderHeads < 1 || DecoderHeads < 1 || Width % EncoderHeads != 0 || Width % DecoderHeads != 0)
        {
            throw new ArgumentException($"The width is an even number that {EncoderHeads} heads of the encoder and {DecoderHeads} of the decoder divide, not {Width}.");
        }

        if (EncoderLayers is < 1 or > MostLayers || DecoderLayers is < 1 or > MostLayers || EncoderInner < 0 || DecoderInner < 0 || Bins < 1 || SourceLength < 1 || TargetLength < 1 || FirstStride is not (1 or 2))
        {
            throw new ArgumentException(
                $"Layers (at most {MostLayers}), mel bins and lengths must be positive and the first stride 1 or 2, not {EncoderLayers} and {DecoderLayers}, {Bins}, {SourceLength} and {TargetLength}, {FirstStride}.");
        }

        foreach (var (name, token) in new[] { ("start", StartToken), ("end", EndToken), ("padding", PadToken) })
        {
            if (token < 0 || token >= Vocabulary)
            {
                throw new ArgumentException($"The {name} token {token} is not in the vocabulary of {Vocabulary}.");
            }
        }
    }
}

/// <summary>Reading numbers of JSON.</summary>
internal static class JsonNumbers
{
    public static bool TryGetInt32Safely(this JsonElement element, out int number)
    {
        number = 0;
        return element.ValueKind == JsonValueKind.Number && element.TryGetInt32(out number);
    }
}
