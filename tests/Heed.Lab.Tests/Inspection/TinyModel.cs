using Heed.Models;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;

namespace Heed.Lab.Tests.Inspection;

/// <summary>A decoder with random weights, small enough for tests.</summary>
internal static class TinyModel
{
    public const int Layers = 2;
    public const int Heads = 4;

    public static PretrainedModel Create(int context = 128, bool hasBegin = true, int? window = null, bool tokenizer = true, int? keptKeys = null)
    {
        var configuration = new DecoderConfiguration
        {
            Family = keptKeys is not null ? DecoderFamily.Doge : window is null ? DecoderFamily.Llama : DecoderFamily.Mistral,
            VocabularySize = 257,
            HiddenSize = 32,
            IntermediateSize = 48,
            Layers = Layers,
            Heads = Heads,
            KeyValueHeads = 2,
            HeadWidth = 8,
            ContextLength = context,
            TieEmbeddings = true,
            SlidingWindow = window,
            DynamicMaskWindow = keptKeys,
            QueryKeyNorm = keptKeys is not null,
            BeginTokenId = hasBegin ? 256 : null,
        };
        var model = new Decoder(configuration, seed: 7);
        using (TorchSharp.torch.no_grad())
        {
            // Freshly initialised weights attend to everything alike; larger ones give maps worth comparing.
            foreach (var parameter in model.parameters().Where(parameter => parameter.dim() > 1))
            {
                parameter.mul_(12);
            }
        }

        model.eval();
        return new(model, tokenizer ? new ByteTokenizer(hasBegin) : null);
    }
}
