using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Agent attention (arXiv 2312.08874) with 49 agents beside dense attention, over lengths: time, growth, where it becomes the faster, peak memory.</summary>
internal static class AgentBenchmarks
{
    private const int Agents = 49;
    private const int Heads = 4;
    private const int Width = 32;
    private const double ShareOfTime = 0.35;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var length in context.Quick ? [256L, 1024] : new long[] { 256, 512, 1024, 2048, 4096, 8192, 16384 })
        {
            var rows = Rows(context, length);
            times.Add((length, rows[0].Milliseconds));
            foreach (var row in rows)
            {
                yield return row;
            }
        }

        if (SelectorBenchmarks.Growth(context, "agent", times, 1024, 1.1) is { } growth)
        {
            yield return growth;
        }
    }

    private static List<BenchmarkResult> Rows(BenchmarkContext context, long length)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        using var inputs = new Inputs(Heads, length, length, Width);
        using var generator = new Generator(2);
        Tensor Make(params long[] shape) => randn(shape, generator: generator);
        var (agents, looks, reads) = (Make(1, Heads, Agents, Width), Make(1, Heads, Agents, length), Make(1, Heads, length, Agents));
        var shape = $"{DenseBenchmarks.Shape(Heads, length, Width, causal: false)} n{Agents}";

        // Four products of n x N x D.
        var operations = 8.0 * Heads * Agents * length * Width / 1e9;
        void Bare() => AgentAttention.Compute(inputs.Query, agents, inputs.Key, inputs.Value).Dispose();
        void Biased() => AgentAttention.Compute(inputs.Query, agents, inputs.Key, inputs.Value, looks, reads).Dispose();
        void Written()
        {
            using var inner = NewDisposeScope();
            var summaries = nn.functional.scaled_dot_product_attention(agents, inputs.Key, inputs.Value, looks);
            nn.functional.scaled_dot_product_attention(inputs.Query, agents, summaries, reads);
        }

        List<BenchmarkResult> rows =
        [
            context.Row("agent/attention", shape, Bare, "Heed dense", inputs.Heed(AttentionOptions.Default), gigaflop: operations, share: ShareOfTime),
            context.Row("agent/attention", shape, Bare, "libtorch softmax attention", inputs.LibTorch(), length >= 4096 ? new(1) : null, gigaflop: operations, share: ShareOfTime),
            context.Row("agent/with biases", shape, Biased, "the same two steps by libtorch", Written, gigaflop: operations, share: ShareOfTime),
        ];
        return rows;
    }
}
