using Heed.Lab.Videos;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>PSA on video-like inputs at a density of 0.15: selection and attention apart, beside dense Heed.</summary>
internal static class PyramidBenchmarks
{
    private const int Heads = 4;
    private const int Width = 64;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        // The plug-in's levels (shares 0.1, 0.15, 0.15 and 0.35 of the blocks) with blocks of 128, as the paper's kernel has them.
        var options = new PyramidOptions { KeyBlock = 128 };
        return SelectorBenchmarks.Rows(context, new("psa", _ => new PyramidSelector(options), [1024, 4096, 8192, 16384, 65536], Heads, Width, Causal: false, Inputs: Inputs)
        {
            WholeAim = new Aim(4), ExponentFrom = 4096,
        });
    }

    /// <summary>A video of so many tokens, along the curve that keeps blocks compact.</summary>
    private static (Tensor Query, Tensor Key, Tensor Value) Inputs(long length)
    {
        var (frames, rows, columns) = length switch { 1024 => (4, 16, 16), 4096 => (8, 16, 32), 8192 => (8, 32, 32), 16384 => (16, 32, 32), _ => (16, 64, 64) };
        var order = GilbertCurve.Order(columns, rows, frames);
        var (query, key, value) = BlobFeatures.Make(frames, rows, columns, Heads, Width, seed: 1);
        return (order.Apply(query, 2), order.Apply(key, 2), order.Apply(value, 2));
    }
}
