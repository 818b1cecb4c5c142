using Heed.Models.Tests.Decoders;
using Heed.Models.VisionLanguage;
using static TorchSharp.torch;

namespace Heed.Models.Tests.VisionLanguage;

/// <summary>A vision-language model that runs in milliseconds: nine patches of four pixels a side.</summary>
internal static class TinyVisionLanguage
{
    public const int ImageToken = 40;

    public static VisionLanguageConfiguration Configuration { get; } = new()
    {
        Vision = new() { HiddenSize = 16, IntermediateSize = 24, Layers = 3, Heads = 2, ImageSize = 12, PatchSize = 4 }, Text = SmallModels.Llama, ImageTokenId = ImageToken,
    };

    public static VisionLanguageModel Make(VisionLanguageConfiguration? configuration = null, int seed = 3)
    {
        manual_seed(seed);
        var model = new VisionLanguageModel(configuration ?? Configuration, seed);
        using var quiet = no_grad();
        using var generator = new Generator((ulong)seed);
        foreach (var parameter in model.parameters())
        {
            // Weights of ordinary size, norms that are not all one, biases that are not all zero.
            parameter.normal_(0.05, 0.3, generator);
        }

        return model;
    }

    public static Tensor Images(int count = 2, int seed = 4)
    {
        using var generator = new Generator((ulong)seed);
        return randn([count, 3, 12, 12], generator: generator);
    }

    public static Tensor Ids(params long[][] rows) => tensor(rows.SelectMany(row => row).ToArray(), dtype: int64).view(rows.Length, -1);

    public static bool Same(Tensor left, Tensor right) => left.shape.SequenceEqual(right.shape) && left.eq(right).all().item<bool>();
}
