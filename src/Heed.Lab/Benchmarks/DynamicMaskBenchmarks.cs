using Heed.Heads;
using Heed.Lab.Mechanisms;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Dynamic masks (arXiv 2508.02124): choosing the keys and attending to them apart, over lengths; decoding from the ranked slots.</summary>
internal static class DynamicMaskBenchmarks
{
    private const int Window = 256;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var selectors = AttentionMechanism.Selectors($"dma:w={Window}");
        foreach (var row in SelectorBenchmarks.Rows(context, new("dma", _ => selectors(new(0, AttentionKind.Self, "bench"))!, [1024, 2048, 4096, 8192, 16384, 32768, 65536])))
        {
            yield return row;
        }

        yield return Decoding(context);
    }

    private static BenchmarkResult Decoding(BenchmarkContext context)
    {
        const int Heads = 4, Width = 64, Slots = 1024;
        long keys = context.Quick ? 2048 : 65536;
        using var scope = NewDisposeScope();
        using var still = no_grad();
        using var inputs = new Inputs(Heads, 1, keys, Width);
        using var ranked = new KeyValueCache(1, ScalarType.Float32, null, _ => null, _ => Slots);
        using var importance = randn([1, Heads, keys]);
        ranked.AppendRanked(0, inputs.Key, inputs.Value, importance);
        var (key, value) = (inputs.Key.narrow(2, 0, 1), inputs.Value.narrow(2, 0, 1));
        var at = 0L;
        return context.Row(
            "dma/decoding", $"H{Heads} Nk{keys} D{Width} w{Slots}",
            () =>
            {
                using var inner = NewDisposeScope();
                var (k, v, kept) = ranked.AppendRanked(0, key, value, importance.narrow(2, at++ % keys, 1));
                DynamicMaskAttention.Compute(inputs.Query, k, v, kept, Slots);
            },
            "Heed dense over the whole cache", inputs.Heed(AttentionOptions.CausalSelf));
    }
}
