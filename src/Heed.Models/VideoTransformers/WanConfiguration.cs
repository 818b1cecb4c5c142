using System.Text.Json;

namespace Heed.Models.VideoTransformers;

/// <summary>The shape of a Wan 2.1 video diffusion transformer (arXiv 2503.20314), with the defaults of its text-to-video model of 1.3 billion parameters.</summary>
public sealed record WanConfiguration
{
    private const string Kind = "WanTransformer3DModel";
    private const string QueryKeyNorm = "rms_norm_across_heads";

    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true };

    /// <summary>Frames, rows and columns of latents in a token.</summary>
    public (int Frames, int Height, int Width) PatchSize { get; init; } = (1, 2, 2);

    /// <summary>Heads.</summary>
    public int Heads { get; init; } = 12;

    /// <summary>Width of a head, even.</summary>
    public int HeadWidth { get; init; } = 128;

    /// <summary>Channels of the latents.</summary>
    public int InputChannels { get; init; } = 16;

    /// <summary>Channels of the prediction.</summary>
    public int OutputChannels { get; init; } = 16;

    /// <summary>Width of the text's embeddings.</summary>
    public int TextWidth { get; init; } = 4096;

    /// <summary>Width of the time step's sines.</summary>
    public int FrequencyWidth { get; init; } = 256;

    /// <summary>Inner width of the feed-forward layers.</summary>
    public int FeedForwardWidth { get; init; } = 8960;

    /// <summary>Blocks.</summary>
    public int Layers { get; init; } = 30;

    /// <summary>Added to variances and mean squares.</summary>
    public double Epsilon { get; init; } = 1e-6;

    /// <summary>Width of a token.</summary>
    public int Width => Heads * HeadWidth;

    /// <summary>Reads the <c>config.json</c> of a diffusers model folder.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="InvalidDataException">The file is broken, or the model is of another kind; the message says which.</exception>
    public static WanConfiguration Load(string path)
    {
        JsonElement root;
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(path));
            root = document.RootElement.Clone();
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{path} is not valid JSON ({error.Message.Split(". ")[0].TrimEnd('.')}).", error);
        }

        if (root.ValueKind != JsonValueKind.Object)
        {
            throw new InvalidDataException($"{path} does not hold a JSON object.");
        }

        var known = new WanConfiguration();
        if (Find("_class_name") is { } kind && kind.ToString() != Kind)
        {
            throw new InvalidDataException($"{path} is of a {kind}; a {Kind} was expected.");
        }

        foreach (var unsupported in new[] { "image_dim", "added_kv_proj_dim", "pos_embed_seq_len" })
        {
            if (Find(unsupported) is not null)
            {
                throw new InvalidDataException($"{path} has {unsupported}: models that take images are not supported, text-to-video models are.");
            }
        }

        if (Find("qk_norm") is { } norm && norm.ToString() != QueryKeyNorm)
        {
            throw new InvalidDataException($"{path} asks for the query-key norm '{norm}'; supported is {QueryKeyNorm}.");
        }

        if (Find("cross_attn_norm") is { ValueKind: JsonValueKind.False })
        {
            throw new InvalidDataException($"{path} has no norm before cross-attention; models with one are supported.");
        }

        var patch = known.PatchSize;
        if (Find("patch_size") is { } sizes)
        {
            var values = sizes.ValueKind == JsonValueKind.Array ? sizes.EnumerateArray().Select(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out var size) ? size : 0).ToArray() : [];
            patch = values is [> 0, > 0, > 0] ? (values[0], values[1], values[2]) : throw new InvalidDataException($"{path}: patch_size must be three whole numbers from 1, not {sizes.GetRawText()}.");
        }

        return new WanConfiguration
        {
            PatchSize = patch, Heads = Size("num_attention_heads", known.Heads), HeadWidth = Size("attention_head_dim", known.HeadWidth), InputChannels = Size("in_channels", known.InputChannels),
            OutputChannels = Size("out_channels", known.OutputChannels), TextWidth = Size("text_dim", known.TextWidth), FrequencyWidth = Size("freq_dim", known.FrequencyWidth),
            FeedForwardWidth = Size("ffn_dim", known.FeedForwardWidth), Layers = Size("num_layers", known.Layers),
            Epsilon = Find("eps") is not { } eps ? known.Epsilon : eps.ValueKind == JsonValueKind.Number && eps.GetDouble() > 0 ? eps.GetDouble() : throw Wrong("eps", "a number above 0", eps),
        };

        JsonElement? Find(string key) => root.TryGetProperty(key, out var found) && found.ValueKind != JsonValueKind.Null ? found : null;

        int Size(string key, int absent) => Find(key) is not { } found ? absent
            : found.ValueKind == JsonValueKind.Number && found.TryGetInt32(out var size) && size > 0 ? size : throw Wrong(key, "a whole number from 1", found);

        InvalidDataException Wrong(string key, string expected, JsonElement found) => new($"{path}: {key} must be {expected}, not {found.GetRawText()}.");
    }

    /// <summary>The text of a diffusers <c>config.json</c>.</summary>
    public string ToJson() => JsonSerializer.Serialize(
        new Dictionary<string, object>
        {
            ["_class_name"] = Kind, ["patch_size"] = new[] { PatchSize.Frames, PatchSize.Height, PatchSize.Width }, ["num_attention_heads"] = Heads, ["attention_head_dim"] = HeadWidth,
            ["in_channels"] = InputChannels, ["out_channels"] = OutputChannels, ["text_dim"] = TextWidth, ["freq_dim"] = FrequencyWidth, ["ffn_dim"] = FeedForwardWidth, ["num_layers"] = Layers,
            ["cross_attn_norm"] = true, ["qk_norm"] = QueryKeyNorm, ["eps"] = Epsilon, ["rope_max_seq_len"] = 1024,
        },
        Indented);

    internal void Validate()
    {
        if (Heads < 1 || Layers < 1 || HeadWidth < 6 || HeadWidth % 2 != 0 || FrequencyWidth < 2 || FrequencyWidth % 2 != 0)
        {
            throw new ArgumentException(
                $"A video transformer has at least one head and layer, an even head width from 6 and an even width of the time step's sines; {Heads}, {Layers}, {HeadWidth} and {FrequencyWidth} were given.");
        }
    }
}
