using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Dynamic kernels (arXiv 2502.20087) beside the same written out with unfolded windows, over sizes of the map, and beside dense attention on the same map.</summary>
internal static class ContMixBenchmarks
{
    private const int Groups = 4, Channels = 64, Small = 5, Large = 13;
    private const double ShareOfTime = 0.35;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var side in context.Quick ? [14L] : new long[] { 14, 28, 56, 112 })
        {
            var rows = Rows(context, side);
            times.Add((side * side, rows[0].Milliseconds));
            foreach (var row in rows)
            {
                yield return row;
            }
        }

        if (SelectorBenchmarks.Growth(context, "contmix", times, 784, 1.15) is { } growth)
        {
            yield return growth;
        }
    }

    private static List<BenchmarkResult> Rows(BenchmarkContext context, long side)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make(params long[] shape) => randn(shape, generator: generator).requires_grad_();
        var (logits, small, large) = (Make(1, Groups, side, side, (Small * Small) + (Large * Large)), Make(Groups, (2 * Small) - 1, (2 * Small) - 1), Make(Groups, (2 * Large) - 1, (2 * Large) - 1));
        var value = Make(1, Channels, side, side);
        var arriving = randn([1, Channels, side, side], generator: generator);
        var shape = $"C{Channels} G{Groups} {side}x{side} k{Large} s{Small}";
        Action Forward(Func<Tensor> output) => () =>
        {
            using var quiet = no_grad();
            output().Dispose();
        };
        Action Both(Func<Tensor> output) => () =>
        {
            using var inner = NewDisposeScope();
            autograd.grad([output()], [logits, small, large, value], [arriving]);
        };
        Tensor Ours() => DynamicConvolution.Apply(logits, small, large, value);
        Tensor Unfolded() => UnfoldedWindows.Apply(logits, small, large, value, Small, Large);
        const string Peer = "libtorch, windows unfolded";
        var unfolded = context.Row("contmix/unfolded (its own time and memory)", shape, Forward(Unfolded), "none", null, share: ShareOfTime);
        // Queries, keys and values of two heads: as many channels, every position to every other.
        var (query, key, values) = (randn(1, 2, side * side, Channels / 2), randn(1, 2, side * side, Channels / 2), randn(1, 2, side * side, Channels / 2));
        return
        [
            context.Row("contmix/forward", shape, Forward(Ours), Peer, Forward(Unfolded), new(1), share: ShareOfTime),
            unfolded,
            context.Row("contmix/forward and gradients", shape, Both(Ours), Peer, Both(Unfolded), new(1), share: ShareOfTime),
            context.Row("contmix/dense", shape, Forward(Ours), "Heed dense, 2 heads of 32", Forward(() => Attention.Compute(query, key, values)), share: ShareOfTime),
        ];
    }
}

/// <summary>The authors' own form without a special kernel: bias by index, softmax, unfolded windows, those of border positions repeated from the nearest full one.</summary>
internal static class UnfoldedWindows
{
    public static Tensor Apply(Tensor logits, Tensor smallBias, Tensor largeBias, Tensor value, long small, long large)
    {
        using var scope = NewDisposeScope();
        var halves = value.chunk(2, 1);
        return cat([
            Half(logits.narrow(4, 0, small * small), smallBias, halves[0], small), Half(logits.narrow(4, small * small, large * large), largeBias, halves[1], large),
        ], 1).MoveToOuterDisposeScope();
    }

    private static Tensor Half(Tensor logits, Tensor bias, Tensor value, long side)
    {
        var (batch, groups, height, width) = (logits.shape[0], logits.shape[1], logits.shape[2], logits.shape[3]);
        var (rows, columns) = (Offsets(height, side), Offsets(width, side));
        var table = ((rows.view(height, 1, side, 1) * ((2 * side) - 1)) + columns.view(1, width, 1, side)).flatten();
        var kernels = (logits + bias.flatten(1).index_select(1, table).view(groups, height, width, side * side)).softmax(-1);
        // Full windows only, then the nearest of them for every position.
        var windows = nn.functional.unfold(value, side).view(batch, value.shape[1], side * side, height - side + 1, width - side + 1);
        windows = nn.functional.pad(windows.flatten(0, 1), [side / 2, side / 2, side / 2, side / 2], TorchSharp.PaddingModes.Replicate).view(batch, groups, -1, side * side, height, width);
        return einsum("bgcthw,bghwt->bgchw", windows, kernels).reshape(batch, -1, height, width);
    }

    private static Tensor Offsets(long length, long side)
    {
        var own = arange(length, dtype: int64).unsqueeze(1);
        return (own - (side / 2)).clamp(0, length - side) + arange(side, dtype: int64) - own + (side - 1);
    }
}
