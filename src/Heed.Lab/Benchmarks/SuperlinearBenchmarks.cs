using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Superlinear attention (arXiv 2601.18401): search and the whole over lengths, and decoding up to a cache of a million keys.</summary>
internal static class SuperlinearBenchmarks
{
    private const int Width = 64;
    private const double ShareOfTime = 0.35;
    private const double MostExponent = 1.6;
    private const long LongestDense = 16384;
    private const long LongestMasked = 4096;
    private const long Million = 1048576;

    /// <summary>Balanced powers, a window of 63 keys.</summary>
    private static SuperlinearOptions Options { get; } = new() { SwIndex = 7 };

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var length in context.Quick ? [1024L] : new long[] { 1024, 4096, 8192, 16384, 65536 })
        {
            var rows = Prefill(context, length);
            times.Add((length, rows[0].Milliseconds));
            foreach (var row in rows)
            {
                yield return row;
            }
        }

        if (SelectorBenchmarks.Growth(context, "superlinear", times, 4096, MostExponent) is { } growth)
        {
            yield return growth;
        }

        var steps = new List<(long Length, double Milliseconds)>();
        foreach (var keys in context.Quick ? [4096L] : new[] { 65536, 262144, Million })
        {
            var row = Decoding(context, keys);
            steps.Add((keys, row.Milliseconds));
            yield return row;
        }

        if (SelectorBenchmarks.Growth(context, "superlinear/decoding", steps, 0, null) is { } slower)
        {
            yield return slower;
        }
    }

    private static List<BenchmarkResult> Prefill(BenchmarkContext context, long length)
    {
        const int heads = 2;
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var inputs = new Inputs(heads, length, length, Width);
        using var generator = new Generator(2);
        var search = randn([1, heads, length, Width], generator: generator);
        var positions = Enumerable.Range(0, (int)length).Select(position => (long)position).ToArray();
        var shape = DenseBenchmarks.Shape(heads, length, Width, true);
        void Whole() => SuperlinearAttention.Prefill(search, inputs.Query, inputs.Key, inputs.Value, positions, Options).Dispose();
        var hasDense = length <= LongestDense;
        List<BenchmarkResult> rows =
        [
            context.Row("superlinear/whole", shape, Whole, hasDense ? "Heed dense" : $"none (Heed dense is run up to {LongestDense} tokens)", hasDense ? inputs.Heed(AttentionOptions.CausalSelf) : null, share: ShareOfTime),
            context.Row("superlinear/selection", shape, () => SpanSearch.Select(search, inputs.Key, positions, Options), "the whole call", Whole, share: ShareOfTime),
        ];
        if (length <= LongestMasked)
        {
            // libtorch has no mixture of softmaxes: it is given window and spans as one mask, which is less work than the spans apart.
            using var mask = new SuperlinearSelector(Options).Select(search, inputs.Key, inputs.Value, AttentionOptions.CausalSelf).Pairs();
            rows.Add(context.Row("superlinear/masked", shape, Whole, "libtorch with the same pairs as one boolean mask", inputs.LibTorch(mask: mask), share: ShareOfTime));
        }

        return rows;
    }

    private static BenchmarkResult Decoding(BenchmarkContext context, long keys)
    {
        const int heads = 2;
        using var quiet = no_grad();
        using var inputs = new Inputs(heads, 1, keys, Width);
        using var search = randn(1, heads, 1, Width);
        return context.Row(
            "superlinear/decoding, one step", $"H{heads} Nk{keys} D{Width}", () => SuperlinearAttention.Decode(search, inputs.Query, inputs.Key, inputs.Value, keys - 1, Options).Dispose(),
            "Heed dense", inputs.Heed(AttentionOptions.CausalSelf), share: ShareOfTime);
    }
}
