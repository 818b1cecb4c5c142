using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Selections of single tokens and short runs as <see cref="KeyRuns"/>, of the kinds that the sparse mechanisms make: drawn at random, so that only the kernels are measured.</summary>
internal static class GatherBenchmarks
{
    private const int Width = 64;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        foreach (var row in context.Quick ? RunningSets(context, 1024, 64) : RunningSets(context, 16384, 256).Concat(RunningSets(context, 16384, 1024)))
        {
            yield return row;
        }

        foreach (var length in context.Quick ? [1024] : new[] { 4096, 16384 })
        {
            using var inputs = new Inputs(2, length, length, Width);
            yield return Beside(context, "gather/spans of one query", inputs, Spans(length), "2 spans of sqrt(N) keys", null);
        }

        var prefill = context.Quick ? 2048 : 65536;
        using (var inputs = new Inputs(1, prefill, prefill, Width))
        {
            yield return Beside(context, "gather/runs of 2", inputs, ShortRuns(prefill, 64, 256, 2), "256 runs of 2 keys for 64 queries", 1.5);
        }

        foreach (var row in Decoding(context, context.Quick ? 4096 : 131072))
        {
            yield return row;
        }
    }

    /// <summary>Neighbouring queries read the same keys but for one now and then; beside dense attention and libtorch, and with gradients.</summary>
    private static IEnumerable<BenchmarkResult> RunningSets(BenchmarkContext context, int length, int keys)
    {
        var runs = RunningSet(length, keys);
        var what = $"running sets of {keys} keys";
        using (var inputs = new Inputs(2, length, length, Width))
        {
            yield return Beside(context, "gather/running sets", inputs, runs, what, 1.5);
            using var mask = Mask(runs);
            yield return context.Row(
                "gather/running sets beside libtorch", $"{DenseBenchmarks.Shape(2, length, Width, false)} {what}", inputs.Heed(AttentionOptions.Default with { KeyRuns = runs }),
                "libtorch with a boolean mask", inputs.LibTorch(mask: mask));
        }

        using var trained = new Inputs(2, length, length, Width, gradients: true);
        using var sparse = Attention.Compute(trained.Query, trained.Key, trained.Value, AttentionOptions.Default with { KeyRuns = runs });
        using var dense = Attention.Compute(trained.Query, trained.Key, trained.Value);
        using var gradient = randn_like(sparse);
        yield return context.Row(
            "gather/gradients", $"{DenseBenchmarks.Shape(2, length, Width, false)} {what}, {runs.Density:P2} of the pairs", Gradients(trained, sparse, gradient), "Heed dense",
            Gradients(trained, dense, gradient));
    }

    /// <summary>One query over a long cache: short runs, the first keys and a window of the last.</summary>
    private static IEnumerable<BenchmarkResult> Decoding(BenchmarkContext context, int length)
    {
        const int Window = 512, First = 64;
        var runs = new SortedDictionary<int, int> { [0] = First, [length - Window] = Window };
        var random = new Random(3);
        while (runs.Count < 258)
        {
            runs[random.Next(First / 2, (length - Window) / 2) * 2] = 2;
        }

        var selected = new KeyRuns(1, 1, 1, length, 1, [0, runs.Count], [.. runs.Keys], [.. runs.Values]);
        foreach (var type in new[] { ScalarType.Float32, ScalarType.BFloat16 })
        {
            using var inputs = new Inputs(8, 1, length, Width);
            using var key = inputs.Key.to(type);
            using var value = inputs.Value.to(type);
            Action Decode(AttentionOptions options) => () =>
            {
                using var quiet = no_grad();
                Attention.Compute(inputs.Query, key, value, options).Dispose();
            };
            yield return context.Row(
                "gather/one query", $"H8 Nk{length} D{Width} {type.ToString().ToLowerInvariant()}, {selected.Pairs} keys", Decode(AttentionOptions.Default with { KeyRuns = selected }),
                "Heed dense", Decode(AttentionOptions.Default), new(5));
        }
    }

    private static BenchmarkResult Beside(BenchmarkContext context, string name, Inputs inputs, KeyRuns runs, string what, double? timesDensity) => context.Row(
        name, $"{DenseBenchmarks.Shape(inputs.Query.shape[1], runs.QueryLength, Width, false)} {what}, {runs.Density:P2} of the pairs",
        inputs.Heed(AttentionOptions.Default with { KeyRuns = runs }), "Heed dense", inputs.Heed(AttentionOptions.Default),
        timesDensity is { } times ? new(1 / (runs.Density * times)) : null);

    private static Action Gradients(Inputs inputs, Tensor output, Tensor gradient) => () =>
    {
        using var scope = NewDisposeScope();
        autograd.grad([output], [inputs.Query, inputs.Key, inputs.Value], [gradient], retain_graph: true);
    };

    /// <summary>A set of so many keys per query: while it fills, every query adds its own key; later a key is exchanged ever more rarely, as in a running top-w of random scores.</summary>
    private static KeyRuns RunningSet(int length, int keys)
    {
        const int Block = 64;
        var random = new Random(1);
        var lists = Enumerable.Range(0, (length + Block - 1) / Block).Select(_ => new List<(int Key, int Row, int Rows)>()).ToArray();
        var members = new List<(int Key, int Since)>();
        for (var query = 0; query < length; query++)
        {
            if (members.Count < keys)
            {
                members.Add((query, query));
            }
            else if (random.Next(query + 1) < keys)
            {
                var leaving = random.Next(keys);
                End(members[leaving], query);
                members[leaving] = (query, query);
            }
        }

        members.ForEach(member => End(member, length));
        var all = lists.SelectMany(list => list.OrderBy(run => run.Key)).ToArray();
        var offsets = new int[lists.Length + 1];
        for (var i = 0; i < lists.Length; i++)
        {
            offsets[i + 1] = offsets[i] + lists[i].Count;
        }

        return new(1, 1, length, length, Block, offsets, [.. all.Select(run => run.Key)], [.. all.Select(_ => 1)], [.. all.Select(run => run.Row)], [.. all.Select(run => run.Rows)]);

        void End((int Key, int Since) member, int end)
        {
            for (var start = member.Since; start < end; start = (start / Block * Block) + Block)
            {
                lists[start / Block].Add((member.Key, start % Block, Math.Min(end, (start / Block * Block) + Block) - start));
            }
        }
    }

    /// <summary>Two spans of the square root of the length for every query, one in either half of the keys before it.</summary>
    private static KeyRuns Spans(int length)
    {
        var random = new Random(2);
        var span = (int)Math.Sqrt(length);
        var (offsets, first, counts) = (new int[length + 1], new List<int>(), new List<int>());
        for (var query = 0; query < length; query++)
        {
            foreach (var (from, to) in new[] { (0, (query + 1) / 2), ((query + 1) / 2, query + 1) })
            {
                if (to > from)
                {
                    var keys = Math.Min(span, to - from);
                    first.Add(from + random.Next(to - from - keys + 1));
                    counts.Add(keys);
                }
            }

            offsets[query + 1] = first.Count;
        }

        return new(1, 1, length, length, 1, offsets, [.. first], [.. counts]);
    }

    private static KeyRuns ShortRuns(int length, int block, int runs, int keys)
    {
        var random = new Random(4);
        var blocks = length / block;
        var first = Enumerable.Range(0, blocks).SelectMany(_ =>
        {
            var chosen = new SortedSet<int>();
            while (chosen.Count < runs)
            {
                chosen.Add(random.Next(length / keys) * keys);
            }

            return chosen;
        }).ToArray();
        var counts = new int[first.Length];
        Array.Fill(counts, keys);
        return new(1, 1, length, length, block, [.. Enumerable.Range(0, blocks + 1).Select(i => i * runs)], first, counts);
    }

    private static Tensor Mask(KeyRuns runs)
    {
        var pairs = new bool[runs.QueryLength * runs.KeyLength];
        for (var block = 0; block < runs.QueryBlocks; block++)
        {
            var (start, end) = runs.Row(0, 0, block);
            for (; start < end; start++)
            {
                var run = runs.Run(start);
                for (var row = run.FirstRow; row < run.FirstRow + run.RowCount; row++)
                {
                    Array.Fill(pairs, true, checked((int)((((block * (long)runs.QueryBlock) + row) * runs.KeyLength) + run.FirstKey)), run.KeyCount);
                }
            }
        }

        return tensor(pairs).view(runs.QueryLength, runs.KeyLength);
    }
}
