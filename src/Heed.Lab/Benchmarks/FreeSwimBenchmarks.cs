using Heed.Models.VideoTransformers;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>FreeSwim (arXiv 2511.14712) with and without a cache on the model of the golden cases scaled up.</summary>
internal static class FreeSwimBenchmarks
{
    private const int CacheInterval = 5;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (frames, height, width) = context.Quick ? (1, 8, 12) : (2, 32, 48);
        using var model = new WanTransformer(new()
        {
            Heads = 2, HeadWidth = 64, InputChannels = 4, OutputChannels = 4, TextWidth = 64, FrequencyWidth = 64, FeedForwardWidth = 512, Layers = 2,
        });
        var latents = randn([1, 4, frames, 2 * height, 2 * width]);
        var (prompt, negative, time) = (randn(1, 16, 64), randn(1, 16, 64), full([1], 500, dtype: float32));
        // Half the training grid on either side, the training grid being half as long as the sampled one.
        var uncached = new FreeSwimOptions { HalfHeight = height / 4, HalfWidth = width / 4 };
        var shape = $"2 layers H2 D64 {frames}x{height}x{width} w {(2 * uncached.HalfHeight) + 1}x{(2 * uncached.HalfWidth) + 1}, {CacheInterval} steps";
        Action Steps(FreeSwimOptions options) => () =>
        {
            using var session = FreeSwimEdit.Apply(model, options);
            for (var step = 0; step < CacheInterval; step++)
            {
                using var inner = NewDisposeScope();
                session.Step(latents, time, prompt, negative);
            }
        };

        yield return context.Row("freeswim/cached", $"{shape}, full branch every {CacheInterval}", Steps(uncached with { CacheInterval = CacheInterval }), "no cache", Steps(uncached), new(2));
        yield return context.Row("freeswim/cached", $"{shape}, full branch every 2", Steps(uncached with { CacheInterval = 2 }), "no cache", Steps(uncached));
        yield return context.Row("freeswim/window", shape, Steps(uncached with { CacheInterval = CacheInterval }), "the trained model, full attention, with guidance", () =>
        {
            for (var step = 0; step < CacheInterval; step++)
            {
                using var inner = NewDisposeScope();
                model.forward(latents, time, prompt);
                model.forward(latents, time, negative);
            }
        });
    }
}
