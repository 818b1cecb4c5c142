using Heed.Models.Decoders;
using Xunit;
using static TorchSharp.torch;

namespace Heed.Models.Tests.Decoders;

public sealed class MixtureOfHeadConversionTests
{
    private static readonly DecoderConfiguration Configuration = new()
    {
        VocabularySize = 50, HiddenSize = 32, IntermediateSize = 48, Layers = 2, Heads = 8, KeyValueHeads = 4, NormEpsilon = 1e-6,
    };

    [Fact]
    public void All_heads_active_change_nothing_and_fewer_do()
    {
        using var scope = NewDisposeScope();
        using var decoder = new Decoder(Configuration, seed: 3);
        decoder.eval();
        var ids = randint(50, [2, 12], dtype: int64);
        var before = decoder.forward(ids);
        decoder.ConvertToMoH(0.5, 1);
        Assert.True((decoder.forward(ids) - before).abs().max().item<float>() < 1e-5);
        decoder.ConvertToMoH();
        Assert.Equal((4, 2), (decoder.Layers[1].SelfAttention!.Router!.SharedHeads, decoder.Layers[1].SelfAttention!.Router!.RoutedHeads));
        Assert.True((decoder.forward(ids) - before).abs().max().item<float>() > 1e-5);
        decoder.ConvertToAllHeads();
        Assert.True(decoder.forward(ids).Equals(before));
    }

    [Fact]
    public void Decoding_with_a_cache_gives_what_a_prefill_gives()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var decoder = new Decoder(Configuration, seed: 3);
        decoder.eval();
        decoder.ConvertToMoH();
        var ids = randint(50, [1, 300], dtype: int64);
        var whole = decoder.forward(ids);
        using var cache = decoder.CreateCache();
        decoder.forward(ids.narrow(1, 0, 298), cache);
        decoder.forward(ids.narrow(1, 298, 1), cache);
        var last = decoder.forward(ids.narrow(1, 299, 1), cache);
        Assert.True((last[0, 0] - whole[0, 299]).abs().max().item<float>() < 1e-4);
    }

    [Fact]
    public void Decoders_with_gates_and_impossible_shares_are_refused()
    {
        using var gated = new Decoder(Configuration with { Family = DecoderFamily.Qwen3, OutputGate = OutputGate.Headwise });
        Assert.Contains("plain attention", Assert.Throws<InvalidOperationException>(() => gated.ConvertToMoH()).Message, StringComparison.Ordinal);
        using var plain = new Decoder(Configuration);
        Assert.Contains("must be shared", Assert.Throws<ArgumentException>(() => plain.ConvertToMoH(0.5, 0.5)).Message, StringComparison.Ordinal);
    }
}
