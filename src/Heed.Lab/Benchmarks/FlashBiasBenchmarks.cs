using Heed.Biases;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Biases as factors (arXiv 2505.12044): beside no bias, beside the same bias dense, and beside what libtorch makes of it.</summary>
internal static class FlashBiasBenchmarks
{
    private const int Width = 64;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        foreach (var (length, heads) in context.Quick ? [(256L, 2L)] : new[] { (1024L, 8L), (4096L, 4L), (8192L, 2L), (32768L, 1L) })
        {
            using var inputs = new Inputs(heads, length, length, Width);
            using var scope = NewDisposeScope();
            var shape = DenseBenchmarks.Shape(heads, length, Width, causal: false);
            var points = rand(1, length, 3);
            foreach (var (name, bias) in new (string, LowRankBias)[]
            {
                ("ALiBi, rank 2", LowRankBiases.Alibi(LowRankBiases.AlibiSlopes((int)heads), length, length)), ("distance, rank 5", LowRankBiases.SquaredDistance(points, points)),
            })
            {
                var ours = inputs.Heed(AttentionOptions.Default with { Biases = [bias] });
                yield return context.Row($"flashbias/{name}", shape, ours, "Heed without bias", inputs.Heed(AttentionOptions.Default), Aim.AtMost(1.1));
                if (length > 8192)
                {
                    continue;
                }

                using var dense = LowRankBiases.Dense(bias).expand(1, heads, length, length).contiguous();
                yield return context.Row($"flashbias/{name}", shape, ours, "libtorch with the dense bias", inputs.LibTorch(mask: dense), new(2));
                yield return context.Row($"flashbias/{name}", shape, ours, "Heed with the dense bias", inputs.Heed(AttentionOptions.Default with { Biases = [new DenseBias(dense)] }));
            }
        }

        foreach (var row in Ranks(context))
        {
            yield return row;
        }
    }

    // Where factors stop paying: the rule of FactoredBiasCost comes from these rows.
    private static IEnumerable<BenchmarkResult> Ranks(BenchmarkContext context)
    {
        const int Heads = 4;
        var length = context.Quick ? 256 : 4096;
        using var inputs = new Inputs(Heads, length, length, Width);
        using var scope = NewDisposeScope();
        var dense = inputs.Heed(AttentionOptions.Default with { Biases = [new DenseBias(randn(1, Heads, length, length))] });
        foreach (var rank in context.Quick ? [4] : new[] { 4, 8, 16, 32, 64 })
        {
            var bias = new LowRankBias(randn(1, Heads, length, rank), randn(1, Heads, length, rank));
            yield return context.Row(
                $"flashbias/rank {rank}", DenseBenchmarks.Shape(Heads, length, Width, causal: false), inputs.Heed(AttentionOptions.Default with { Biases = [bias] }), "Heed with a dense bias", dense);
        }
    }
}
