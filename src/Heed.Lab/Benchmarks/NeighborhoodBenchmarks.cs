using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Neighborhood attention (arXiv 2504.16922) on the paper's problems scaled down, beside dense Heed and what the tile simulator allows.</summary>
internal static class NeighborhoodBenchmarks
{
    // The share of the simulated bound that is aimed at.
    private const double ShareOfBound = 0.85;

    private const int Heads = 2, Width = 64;

    /// <summary>The paper's problems at half their size on each axis (rounded to whole tiles), with strides from 1 to one that needs no mask.</summary>
    public static IReadOnlyList<(string Name, long[] Grid, long[] Window, long[] Stride)> Problems { get; } =
    [
        ("FLUX", [128, 128], [40, 40], [1, 1]), ("FLUX", [128, 128], [40, 40], [8, 1]), ("FLUX", [128, 128], [40, 40], [8, 8]),
        ("Cosmos", [8, 24, 40], [8, 12, 8], [1, 1, 1]), ("Cosmos", [8, 24, 40], [8, 12, 8], [1, 4, 8]),
        ("HunyuanVideo", [16, 24, 40], [8, 12, 12], [1, 1, 1]), ("HunyuanVideo", [16, 24, 40], [8, 12, 12], [1, 4, 4]), ("HunyuanVideo", [16, 24, 40], [8, 12, 12], [8, 4, 4]),
        ("1-D", [16384], [2048], [1]), ("1-D", [16384], [2048], [256]), ("1-D", [16384], [2048], [2048]),
    ];

    /// <summary>Problems of the paper as they are, one head: a dense run takes seconds.</summary>
    public static IReadOnlyList<(string Name, long[] Grid, long[] Window, long[] Stride)> WholeProblems { get; } =
    [
        ("Cosmos whole", [16, 44, 80], [16, 24, 16], [1, 1, 1]), ("Cosmos whole", [16, 44, 80], [16, 24, 16], [1, 8, 16]),
        ("FLUX whole", [256, 256], [80, 80], [1, 1]), ("FLUX whole", [256, 256], [80, 80], [16, 16]),
    ];

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        IEnumerable<(string, long[], long[], long[])> problems = context.Quick ? [("small", [32, 32], [8, 8], [4, 4])] : context.Threads > 1 ? Problems.Concat(WholeProblems) : Problems;
        foreach (var (name, grid, window, stride) in problems)
        {
            var heads = WholeProblems.Any(problem => problem.Name == name) ? 1 : Heads;
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            var neighborhood = Neighborhood.Of(grid, window, stride);
            var tiles = NeighborhoodPlan.Of(neighborhood).Tiles;
            var bound = NeighborhoodTiling.Simulate(neighborhood, tiles.Query, tiles.Key).MeanSpeedup;
            var (query, key, value) = Inputs(grid, heads);
            var shape = $"H{heads} {string.Join('x', grid)} w {string.Join('x', window)} stride {string.Join('x', stride)} D{Width}";
            void Ours() => NeighborhoodAttention.Compute(query, key, value, neighborhood).Dispose();
            var (q, k, v) = (Dense(query), Dense(key), Dense(value));
            yield return context.Row(
                $"gna/{name}", $"{shape} tiles {string.Join('x', tiles.Query)}, {string.Join('x', tiles.Key)}", Ours, $"Heed dense (tile bound {bound:0.00})", () => Attention.Compute(q, k, v).Dispose(),
                new(ShareOfBound * bound));
            if (!context.Quick && name == "FLUX" && stride[1] != 8)
            {
                // The curse of many axes: the same pairs in raster order.
                var raster = AttentionOptions.Default with { BlockMask = neighborhood.ToBlockMask() };
                yield return context.Row("gna/order", shape, Ours, "the same pairs in raster order", () => Attention.Compute(q, k, v, raster).Dispose());
            }
        }

        long side = context.Quick ? 16 : 64;
        foreach (var stride in new long[] { 1, 8 })
        {
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            var neighborhood = Neighborhood.Of([side, side], [side / 4], [Math.Min(stride, side / 4)]);
            var (query, key, value) = Inputs([side, side], Heads);
            var (q, k, v) = (Dense(query), Dense(key), Dense(value));
            var mask = new NeighborhoodSelector(neighborhood).Select(q, k, v).Pairs();
            yield return context.Row(
                "gna/masked", $"H{Heads} {side}x{side} w {side / 4} stride {stride} D{Width}", () => NeighborhoodAttention.Compute(query, key, value, neighborhood).Dispose(),
                "libtorch with the same pairs as a boolean mask", () => nn.functional.scaled_dot_product_attention(q, k, v, mask).Dispose());
        }

        foreach (var row in SelectorBenchmarks.Rows(
            context, new("gna/text", _ => new NeighborhoodSelector(512, 128), context.Quick ? [512] : [1024, 4096, 16384, 65536], Heads: Heads, Width: Width) { Exponent = 1.15, ExponentFrom = 4096 }))
        {
            yield return row;
        }
    }

    private static Tensor Dense(Tensor tensor) => tensor.flatten(1, -3).transpose(1, 2);

    private static (Tensor Query, Tensor Key, Tensor Value) Inputs(long[] grid, long heads)
    {
        using var generator = new Generator(1);
        Tensor Make() => randn([1, .. grid, heads, Width], generator: generator);
        return (Make(), Make(), Make());
    }
}
