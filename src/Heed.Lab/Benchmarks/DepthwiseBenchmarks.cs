using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Depth-wise convolutions of the sizes that vision models use, and the causal one of sequence models, beside libtorch's.</summary>
internal static class DepthwiseBenchmarks
{
    private const double ShareOfTime = 0.3;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        (long Batch, long Channels, long Side)[] maps = context.Quick ? [(2, 32, 14)] : [(8, 96, 56), (8, 192, 28), (8, 384, 14), (32, 64, 7)];
        foreach (var (batch, channels, side) in maps)
        {
            foreach (var kernel in context.Quick ? [7] : new[] { 3, 5, 7, 9, 13, 17 })
            {
                foreach (var channelsLast in new[] { false, true })
                {
                    foreach (var row in Maps(context, batch, channels, side, kernel, channelsLast))
                    {
                        yield return row;
                    }
                }
            }
        }

        foreach (var channelsLast in new[] { false, true })
        {
            foreach (var row in Sequences(context, 4, context.Quick ? 32 : 256, context.Quick ? 128 : 2048, channelsLast))
            {
                yield return row;
            }
        }
    }

    private static IEnumerable<BenchmarkResult> Maps(BenchmarkContext context, long batch, long channels, long side, int kernel, bool channelsLast)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make() => channelsLast ? randn([batch, side, side, channels], generator: generator).permute(0, 3, 1, 2) : randn([batch, channels, side, side], generator: generator);
        var weight = randn([channels, 1, kernel, kernel], generator: generator);
        var shape = $"B{batch} C{channels} {side}x{side} k{kernel}{(channelsLast ? " channels-last" : "")}";
        var operations = 2.0 * batch * channels * side * side * kernel * kernel / 1e9;
        foreach (var row in Rows(
            context, "depthwise", shape, Make(), weight, Make(), kernel >= 7 ? 1.5 : 1, operations, (maps, filters) => DepthwiseConvolution.Apply(maps, filters),
            (maps, filters) => nn.functional.conv2d(maps, filters, padding: [kernel / 2, kernel / 2], groups: channels)))
        {
            yield return row;
        }
    }

    private static IEnumerable<BenchmarkResult> Sequences(BenchmarkContext context, long batch, long channels, long length, bool channelsLast)
    {
        const int kernel = 4;
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        Tensor Make() => channelsLast ? randn([batch, length, channels], generator: generator).transpose(1, 2) : randn([batch, channels, length], generator: generator);
        var shape = $"B{batch} C{channels} T{length} k{kernel}{(channelsLast ? " channels-last" : "")}";
        foreach (var row in Rows(
            context, "depthwise/causal", shape, Make(), randn([channels, 1, kernel], generator: generator), Make(), 1, 2.0 * batch * channels * length * kernel / 1e9,
            (sequences, filters) => DepthwiseConvolution.ApplyCausal(sequences, filters),
            (sequences, filters) => nn.functional.conv1d(nn.functional.pad(sequences, [kernel - 1, 0]), filters, groups: channels)))
        {
            yield return row;
        }
    }

    private static IEnumerable<BenchmarkResult> Rows(
        BenchmarkContext context, string name, string shape, Tensor input, Tensor weight, Tensor gradient, double aim, double gigaflop, Func<Tensor, Tensor, Tensor> ours, Func<Tensor, Tensor, Tensor> theirs)
    {
        Action Forward(Func<Tensor, Tensor, Tensor> work) => () =>
        {
            using var quiet = no_grad();
            using var inner = NewDisposeScope();
            work(input, weight);
        };
        Action Both(Func<Tensor, Tensor, Tensor> work) => () =>
        {
            using var inner = NewDisposeScope();
            autograd.grad([work(input, weight)], [input, weight], [gradient]);
        };
        yield return context.Row($"{name}/forward", shape, Forward(ours), "libtorch", Forward(theirs), new(aim), gigaflop, share: ShareOfTime);
        input.requires_grad_();
        weight.requires_grad_();
        yield return context.Row($"{name}/with gradients", shape, Both(ours), "libtorch", Both(theirs), new(aim), 3 * gigaflop, share: ShareOfTime);
    }
}
