using System.Text.Json;
using System.Text.Json.Nodes;
using Heed.Models.Decoders;
using static TorchSharp.torch;

namespace Heed.Models.VisionLanguage;

/// <summary>How the pixels of a colour picture become a model's input: per channel, on the scale from 0 to 1, less a mean, divided by a deviation. Reads and writes the <c>preprocessor_config.json</c> of checkpoints.</summary>
/// <param name="Mean">One for each channel.</param>
/// <param name="Deviation">One for each channel, above 0.</param>
public sealed record PixelNormalization(IReadOnlyList<double> Mean, IReadOnlyList<double> Deviation)
{
    /// <summary>The file that checkpoints keep it in.</summary>
    public const string FileName = "preprocessor_config.json";

    /// <summary>CLIP's.</summary>
    public static PixelNormalization Clip { get; } = new([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);

    /// <summary>Makes a model's input.</summary>
    /// <param name="pixels">0 to 255, <c>[..., channels, height, width]</c>.</param>
    /// <returns>float32 of that shape.</returns>
    /// <exception cref="ArgumentException">There are other channels.</exception>
    public Tensor Apply(Tensor pixels)
    {
        ArgumentNullException.ThrowIfNull(pixels);
        if (pixels.dim() < 3 || pixels.shape[^3] != Mean.Count || Deviation.Count != Mean.Count)
        {
            throw new ArgumentException($"The pixels must have {Mean.Count} channels as the means, not [{string.Join(", ", pixels.shape)}].", nameof(pixels));
        }

        using var scope = NewDisposeScope();
        var mean = tensor(Mean.Select(value => (float)(255 * value)).ToArray()).view(-1, 1, 1);
        var deviation = tensor(Deviation.Select(value => (float)(255 * value)).ToArray()).view(-1, 1, 1);
        return pixels.to(float32).sub(mean).div(deviation).MoveToOuterDisposeScope();
    }

    /// <summary>Reads a <c>preprocessor_config.json</c>; where it does not say, CLIP's numbers hold.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="InvalidDataException">It is not JSON, or does not have as many deviations above 0 as means.</exception>
    public static PixelNormalization Load(string path)
    {
        try
        {
            var root = JsonNode.Parse(File.ReadAllText(path)) as JsonObject ?? throw new JsonException("it is no object");
            double[] Numbers(string key, IReadOnlyList<double> absent) => root[key] is JsonArray list ? [.. list.Select(item => (double)item!)] : [.. absent];
            var read = new PixelNormalization(Numbers("image_mean", Clip.Mean), Numbers("image_std", Clip.Deviation));
            return read.Mean.Count == read.Deviation.Count && read.Deviation.All(value => value > 0) ? read : throw new JsonException("image_mean and image_std are not as many numbers, the latter above 0");
        }
        catch (Exception error) when (error is JsonException or InvalidOperationException or FormatException)
        {
            throw new InvalidDataException($"{path} does not say how pixels are scaled: {error.Message}", error);
        }
    }

    /// <summary>The text of a <c>preprocessor_config.json</c>.</summary>
    /// <param name="side">Side of the pictures in pixels.</param>
    internal string ToJson(int side) => new JsonObject
    {
        ["image_processor_type"] = "CLIPImageProcessor",
        ["crop_size"] = new JsonObject { ["height"] = side, ["width"] = side },
        ["size"] = new JsonObject { ["shortest_edge"] = side },
        ["do_center_crop"] = true,
        ["do_normalize"] = true,
        ["do_rescale"] = true,
        ["do_resize"] = true,
        ["image_mean"] = new JsonArray([.. Mean.Select(value => JsonValue.Create(value))]),
        ["image_std"] = new JsonArray([.. Deviation.Select(value => JsonValue.Create(value))]),
    }.ToJsonString(ConfigurationReader.Indented);
}
