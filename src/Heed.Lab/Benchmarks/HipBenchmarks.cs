using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>HiP (arXiv 2406.09827): selection and attention over lengths, the authors' settings and one with fewer votes, and decoding over a long cache.</summary>
internal static class HipBenchmarks
{
    private const int Heads = 2;
    private const int Width = 64;

    /// <summary>A cheaper search than the authors': 4 of the 64 queries of a block vote, on one of the 8 keys of a block. With their 32 voters on every key the search takes more products than the attention over what it finds.</summary>
    public static HipOptions FewVotes { get; } = new() { BlockStrideQ = 16, BlockSizeK = 8, BlockStrideK = 8 };

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var problem = new SelectorProblem("hip", _ => new HipSelector(FewVotes), [1024, 4096, 8192, 16384, 65536, 131072], Heads, Width, Inputs: Smooth)
        {
            SelectionShare = 0.3, SelectionShareAt = 65536, Exponent = 1.15, WholeAim = new(1),
        };
        foreach (var row in SelectorBenchmarks.Rows(context, problem))
        {
            yield return row;
        }

        var voting = problem with { Family = "hip/authors' votes", Selector = _ => new HipSelector(), Lengths = context.Quick ? [1024] : [65536], SelectionShare = null, WholeAim = null, Exponent = null };
        foreach (var row in SelectorBenchmarks.Rows(context, voting))
        {
            yield return row;
        }

        foreach (var keys in context.Quick ? [2048] : new long[] { 16384, 131072 })
        {
            yield return Decoding(context, keys, 1, keys == 131072 ? new Aim(5) : null);
            yield return Decoding(context, keys, 8, keys == 131072 ? new Aim(5) : null);
        }
    }

    /// <summary>Keys that change slowly and queries that look for one of them: what the search is made for.</summary>
    internal static (Tensor Query, Tensor Key, Tensor Value) Smooth(long length) => Smooth(Heads, length, length, Width);

    private static (Tensor Query, Tensor Key, Tensor Value) Smooth(long heads, long queries, long keys, long width)
    {
        using var generator = new Generator(1);
        using var scope = NewDisposeScope();
        var key = AutoregressiveKeys.Make([1, heads], keys, width, 0.98, generator);
        var sought = randint(0, keys, [queries], generator: generator);
        var query = key.index_select(2, sought) + randn([1, heads, queries, width], generator: generator);
        return (query.MoveToOuterDisposeScope(), key.MoveToOuterDisposeScope(), randn([1, heads, keys, width], generator: generator).MoveToOuterDisposeScope());
    }

    private static BenchmarkResult Decoding(BenchmarkContext context, long keys, int interval, Aim? aim)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (query, key, value) = Smooth(8, 1, keys + interval, Width);
        var selector = new HipSelector(new() { RefreshInterval = interval });
        var step = 0;
        return context.Row(
            $"hip/decoding, a search every {(interval == 1 ? "step" : $"{interval} steps")}", $"H8 Nk{keys} D{Width}", () => Steps(new AttentionOptions { Causal = Kernels.Causality.AlignedToEnd, Selector = selector }),
            "Heed dense", () => Steps(AttentionOptions.CausalSelf), aim);

        // As many steps as one search serves.
        void Steps(AttentionOptions options)
        {
            for (step = 1; step <= interval; step++)
            {
                using var inner = NewDisposeScope();
                Attention.Compute(query, key.narrow(2, 0, keys + step), value.narrow(2, 0, keys + step), options);
            }
        }
    }
}
