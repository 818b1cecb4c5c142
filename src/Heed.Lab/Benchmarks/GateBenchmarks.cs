using Heed.Heads;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>What a gate costs (arXiv 2505.06708: under 2 % of the time): the gate within the attention call, and the gated module beside the same one without.</summary>
internal static class GateBenchmarks
{
    // The paper's claim is of a whole model; here the perceptron, which has no gate, is left out.
    private const double MostWithinCall = 1.02;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        const int heads = 8, width = 64;
        foreach (var tokens in context.Quick ? [256L] : new long[] { 1024, 4096 })
        {
            using var scope = NewDisposeScope();
            using var quiet = no_grad();
            using var inputs = new Inputs(heads, tokens, tokens, width);
            using var generator = new Generator(2);
            var plain = inputs.Heed(AttentionOptions.CausalSelf);
            foreach (var (name, last) in new[] { ("headwise", 1L), ("elementwise", width) })
            {
                var gate = rand([1, heads, tokens, last], generator: generator);
                yield return context.Row(
                    $"gates/within the call, {name}", DenseBenchmarks.Shape(heads, tokens, width, true), inputs.Heed(AttentionOptions.CausalSelf with { Gate = gate }), "Heed without gate", plain, Aim.AtMost(MostWithinCall));
            }

            var input = randn([1, tokens, heads * width], generator: generator);
            using var bare = Module(GateOptions.None);
            void Without() => bare.forward(input).Dispose();
            foreach (var (name, options) in new (string, GateOptions)[]
            {
                ("G1 headwise", new() { Granularity = GateGranularity.Headwise }), ("G1 elementwise", new()), ("G2 elementwise", new() { Position = GatePosition.Value }), ("G5", new() { Position = GatePosition.DenseOutput }),
            })
            {
                using var gated = Module(options);
                yield return context.Row($"gates/module, {name}", $"N{tokens} C{heads * width} H{heads}", () => gated.forward(input).Dispose(), "the module without gate", Without, share: 0.7);
            }
        }

        static GatedAttention Module(GateOptions gate) => new(new() { Width = heads * width, Heads = heads, Gate = gate });
    }
}
