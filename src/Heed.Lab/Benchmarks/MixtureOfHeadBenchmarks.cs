using Heed.Heads;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Attention with routed heads against the share of heads that a token uses: attention given queries, keys and values, with gradients, causal, the whole layer, and decoding with a cache.</summary>
internal static class MixtureOfHeadBenchmarks
{
    private const int Heads = 8;
    private const int Width = 64;
    private static readonly int[] s_routed = [0, 2, 4, 6];

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        foreach (var tokens in context.Quick ? [128] : new[] { 512, 2048, 4096 })
        {
            using var inputs = new Inputs(Heads, tokens, tokens, Width, gradients: true);
            foreach (var (causal, routed) in s_routed.Select(routed => (false, routed)).Append((true, 2)))
            {
                using var scope = NewDisposeScope();
                var routing = Routing(tokens, routed);
                var share = (2 + routed) / (double)Heads;
                var options = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default;
                var shape = $"{DenseBenchmarks.Shape(Heads, tokens, Width, causal)}, {share:P0} of the heads";
                void Attend()
                {
                    using var quiet = no_grad();
                    RoutedHeads.Compute(inputs.Query, inputs.Key, inputs.Value, routing, options).Dispose();
                }

                // The paper's saving, and what gathering may cost: for all heads there is nothing to gather.
                var bound = routed == 6 ? null : Aim.ShareOfPeer((1.15 * share) + 0.1);
                yield return context.Row("moh/forward", shape, Attend, "Heed dense", inputs.Heed(options), bound);
                yield return context.Row("moh/libtorch", shape, Attend, "libtorch fused, all heads", inputs.LibTorch(causal), share: 0.5);
                if (!causal && tokens <= 2048)
                {
                    yield return context.Row(
                        "moh/training", shape, () => Train(inputs, () => RoutedHeads.Compute(inputs.Query, inputs.Key, inputs.Value, routing)), "Heed dense",
                        () => Train(inputs, () => Attention.Compute(inputs.Query, inputs.Key, inputs.Value)), bound);
                }
            }

            foreach (var routed in s_routed[..3])
            {
                using var scope = NewDisposeScope();
                using var mixture = new MixtureOfHeadAttention(new() { Width = Heads * Width, Heads = Heads, SharedHeads = 2, RoutedHeads = routed == 0 ? 1 : routed });
                using var dense = new MultiHeadAttention(new() { Width = Heads * Width, Heads = Heads });
                var tokensIn = randn(1, tokens, Heads * Width);
                yield return context.Row(
                    "moh/layer", $"C{Heads * Width} N{tokens}, {(2 + (routed == 0 ? 1 : routed)) / (double)Heads:P0} of the heads", () => Quietly(() => mixture.forward(tokensIn)), "Heed dense layer",
                    () => Quietly(() => dense.forward(tokensIn)), share: 0.5);
            }
        }

        foreach (var keys in context.Quick ? [512] : new[] { 4096, 32768 })
        {
            using var inputs = new Inputs(32, 1, keys, 128);
            foreach (var active in new[] { 8, 16, 24 })
            {
                using var scope = NewDisposeScope();
                var chosen = zeros(1, 1, 32, dtype: @bool);
                chosen.narrow(2, 0, active).fill_(true);
                var routing = new HeadRouting(chosen.to(float32), chosen, null);
                yield return context.Row(
                    "moh/decoding", $"H32 Nq1 Nk{keys} D128, {active / 32.0:P0} of the heads", () => Quietly(() => RoutedHeads.Compute(inputs.Query, inputs.Key, inputs.Value, routing, AttentionOptions.CausalSelf)),
                    "Heed dense", inputs.Heed(AttentionOptions.CausalSelf), Aim.ShareOfPeer((1.15 * active / 32.0) + 0.1));
            }
        }
    }

    /// <summary>Two shared heads, and as many routed ones as asked for, drawn at random.</summary>
    private static HeadRouting Routing(long tokens, int routed)
    {
        using var generator = new Generator(3);
        var likelihood = rand([1, tokens, Heads - 2], generator: generator);
        var chosen = zeros(1, tokens, Heads, dtype: @bool);
        chosen.narrow(2, 0, 2).fill_(true);
        if (routed > 0)
        {
            var (_, order) = likelihood.topk(routed, -1);
            chosen.narrow(2, 2, Heads - 2).scatter_(2, order, ones(order.shape, dtype: @bool));
        }

        return new(chosen.to(float32), chosen, null);
    }

    private static void Quietly(Func<Tensor> work)
    {
        using var quiet = no_grad();
        work().Dispose();
    }

    private static void Train(Inputs inputs, Func<Tensor> attend)
    {
        using var scope = NewDisposeScope();
        attend().sum().backward();
        foreach (var leaf in new[] { inputs.Query, inputs.Key, inputs.Value })
        {
            leaf.grad?.Dispose();
            leaf.grad = null;
        }
    }
}
