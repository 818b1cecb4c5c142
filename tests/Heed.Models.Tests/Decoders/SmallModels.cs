using Heed.Masks;
using Heed.Models.Decoders;

namespace Heed.Models.Tests.Decoders;

/// <summary>Configurations small enough to run in milliseconds, one for every way the families differ.</summary>
internal static class SmallModels
{
    public static DecoderConfiguration Llama { get; } = new()
    {
        VocabularySize = 41, HiddenSize = 24, IntermediateSize = 32, Layers = 2, Heads = 4, KeyValueHeads = 2, ContextLength = 64, EndTokenIds = [2], BeginTokenId = 1,
    };

    public static IReadOnlyDictionary<string, DecoderConfiguration> All { get; } = new Dictionary<string, DecoderConfiguration>
    {
        ["llama"] = Llama,
        ["llama, biases, tied"] = Llama with { QueryKeyValueBias = true, OutputBias = true, FeedForwardBias = true, TieEmbeddings = true },
        ["mistral"] = Llama with { Family = DecoderFamily.Mistral, SlidingWindow = 5, HeadWidth = 8 },
        ["qwen2"] = Llama with
        {
            Family = DecoderFamily.Qwen2, QueryKeyValueBias = true, SlidingWindow = 4, SlidingLayers = [false, true], BeginTokenId = null, EndTokenIds = [],
        },
        ["qwen3"] = Llama with { Family = DecoderFamily.Qwen3, QueryKeyNorm = true, HeadWidth = 10, EndTokenIds = [3, 4] },
        ["qwen3, headwise gate"] = Llama with { Family = DecoderFamily.Qwen3, QueryKeyNorm = true, OutputGate = OutputGate.Headwise },
        ["qwen3, elementwise gate"] = Llama with { Family = DecoderFamily.Qwen3, OutputGate = OutputGate.Elementwise, QueryKeyValueBias = true, OutputBias = true },
        ["doge"] = Llama with { Family = DecoderFamily.Doge, QueryKeyNorm = true, DynamicMaskWindow = 4, BeginTokenId = null, EndTokenIds = [] },
        ["doge, exponential, biases"] = Llama with
        {
            Family = DecoderFamily.Doge, QueryKeyNorm = true, DynamicMaskWindow = 5, DynamicMaskForm = ImportanceForm.Exponential, QueryKeyValueBias = true, OutputBias = true,
        },
    };
}
