using Heed.Heads;
using Heed.Lab.Videos;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>VMoBA on video-like inputs: selection and attention apart, beside dense Heed and beside libtorch with the same pairs as a mask, forward and with gradients.</summary>
internal static class VMoBABenchmarks
{
    private const int Heads = 4;
    private const int Width = 64;

    // The paper's latents of 24 x 36 x 64 (55K tokens) in 8, 48 and 72 blocks, scaled down along all axes; a threshold of 0.25.
    private static readonly (int Frames, int Rows, int Columns, double Temporal, (long, long) Spatial, (long, long, long) Both)[] s_grids =
    [
        (8, 12, 16, 1, (2, 2), (2, 4, 2)),
        (8, 16, 32, 1, (2, 4), (2, 4, 4)),
        (16, 24, 32, 2, (4, 4), (4, 4, 8)),
        (16, 36, 64, 2, (6, 8), (4, 6, 16)),
    ];

    // Dense attention with gradients takes minutes beyond.
    private const long LongestTrained = 16384;
    private const long LongestDense = 16384;
    private const long LongestMasked = 8192;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var grids = context.Quick ? s_grids[..1] : s_grids;
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var grid in grids)
        {
            using var scope = NewDisposeScope();
            long tokens = (long)grid.Frames * grid.Rows * grid.Columns;
            var layer = new VMoBALayerOptions
            {
                Width = Heads * Width, Heads = Heads, Resolution = [grid.Frames, grid.Rows, grid.Columns], TemporalBlock = grid.Temporal, SpatialBlock = grid.Spatial,
                SpatioTemporalBlock = grid.Both,
            };
            var (query, key, value) = BlobFeatures.Make(grid.Frames, grid.Rows, grid.Columns, Heads, Width, seed: 1);
            var isLongest = tokens == Math.Min(grids.Max(other => (long)other.Frames * other.Rows * other.Columns), 12288);
            for (var index = 0; index < 3; index++)
            {
                using var inner = NewDisposeScope();
                var partition = VMoBALayer.PartitionOf(index, layer);
                var options = new MixtureOfBlocksOptions { BlockSize = partition.BlockSize };
                using var selection = MixtureOfBlocks.Select(partition.Apply(query, 2), partition.Apply(key, 2), options);
                var kind = index switch { 0 => "temporal", 1 => "spatial", _ => "spatio-temporal" };
                var shape = $"{DenseBenchmarks.Shape(Heads, tokens, Width, causal: false)}, {partition.Blocks} {kind} blocks, {selection.KeptShare:P0} kept";
                void Whole()
                {
                    using var quiet = no_grad();
                    VMoBALayer.Attend(query, key, value, partition, options).Dispose();
                }

                void Dense()
                {
                    using var quiet = no_grad();
                    Attention.Compute(query, key, value).Dispose();
                }

                var whole = context.Row(
                    "vmoba/whole", shape, Whole, "Heed dense", tokens <= LongestDense ? Dense : null, isLongest ? new Aim(1.48) : null);
                yield return whole;
                if (index == 0)
                {
                    times.Add((tokens, whole.Milliseconds));
                }

                yield return context.Row("vmoba/selection", shape, () =>
                {
                    using var quiet = NewDisposeScope();
                    MixtureOfBlocks.Select(partition.Apply(query, 2), partition.Apply(key, 2), options).Dispose();
                }, "the whole call", Whole);
                if (tokens <= LongestTrained)
                {
                    var (q, k, v) = (Leaf(query), Leaf(key), Leaf(value));
                    yield return context.Row(
                        "vmoba/training", shape, () => Train(q, k, v, () => VMoBALayer.Attend(q, k, v, partition, options)), "Heed dense",
                        () => Train(q, k, v, () => Attention.Compute(q, k, v)), isLongest ? new Aim(1.48) : null);
                }

                if (tokens <= LongestMasked)
                {
                    var (q, k, v) = (partition.Apply(query, 2), partition.Apply(key, 2), partition.Apply(value, 2));
                    using var mask = PairsOf(selection, partition);
                    yield return context.Row(
                        "vmoba/masked", shape, Whole, "libtorch with the same pairs as a boolean mask",
                        () => nn.functional.scaled_dot_product_attention(q, k, v, mask).Dispose());
                }
            }
        }

        if (times.Count > 1)
        {
            yield return new(
                "vmoba/growth", $"N {times[0].Length} to {times[^1].Length}, temporal blocks", context.Threads, times[^1].Milliseconds, "none", null, null, null, null,
                Exponent: Math.Round(SelectorBenchmarks.Slope(times), 3));
        }
    }

    private static Tensor Leaf(Tensor tensor) => tensor.detach().clone().requires_grad_();

    private static void Train(Tensor query, Tensor key, Tensor value, Func<Tensor> attend)
    {
        using var scope = NewDisposeScope();
        attend().sum().backward();
        foreach (var leaf in new[] { query, key, value })
        {
            leaf.grad?.Dispose();
            leaf.grad = null;
        }
    }

    private static Tensor PairsOf(BlockSelection selection, VideoBlockPartition partition)
    {
        using var scope = NewDisposeScope();
        var perBlock = selection.ToTensor().transpose(2, 3);
        return perBlock.repeat_interleave(partition.BlockSize, 3).narrow(3, 0, partition.Tokens).contiguous().MoveToOuterDisposeScope();
    }
}
