using Heed.Biases;
using Heed.Kernels;
using static TorchSharp.torch;
using static TorchSharp.torch.nn.functional;

namespace Heed.Lab.Benchmarks;

/// <summary>A named group of benchmark rows.</summary>
/// <param name="Name">What the user types.</param>
/// <param name="Title">One line of what it shows.</param>
/// <param name="Run">Measures the rows one by one.</param>
public sealed record BenchmarkFamily(string Name, string Title, Func<BenchmarkContext, IEnumerable<BenchmarkResult>> Run)
{
    /// <summary>Every family, in the order of the report.</summary>
    public static IReadOnlyList<BenchmarkFamily> All { get; } =
    [
        new("dense", "Dense attention forward beside libtorch's fused, masked and plain forms", DenseBenchmarks.Forward),
        new("backward", "Gradients of query, key and value beside libtorch's", DenseBenchmarks.Backward),
        new("bias", "What a bias costs, beside no bias and beside libtorch with a dense one", BiasBenchmarks.Run),
        new("window", "A causal window of 512 tokens beside libtorch with a boolean mask, and its growth with length", MaskBenchmarks.Window),
        new("blocks", "Random block masks beside dense attention times their density", MaskBenchmarks.Blocks),
        new("gather", "Selections of single tokens and short runs beside dense attention, libtorch with a mask, and dense decoding", GatherBenchmarks.Run),
        new("decoding", "One query over a long cache beside libtorch, in three element types", DecodingBenchmarks.Run),
        new("gna", "Neighborhood attention on the paper's problems scaled down, beside dense Heed and the tile simulator's bound", NeighborhoodBenchmarks.Run),
        new("freeswim", "A step of FreeSwim with the full branch's cross-attention remembered, beside one without", FreeSwimBenchmarks.Run),
        new("statistics", "Statistics of all heads with the forward pass, beside the forward pass and the materialised map", StatisticsBenchmarks.Run),
        new("hip", "HiP: selection and attention over lengths, and decoding over a long cache, beside dense attention", HipBenchmarks.Run),
        new("superlinear", "Superlinear attention: search and the whole over lengths, and a decoding step over up to a million keys", SuperlinearBenchmarks.Run),
        new("vmoba", "VMoBA's blocks along time and space beside dense attention, forward and with gradients", VMoBABenchmarks.Run),
        new("dma", "Dynamic masks: the choice of keys and the attention to them, beside dense attention and libtorch with a mask", DynamicMaskBenchmarks.Run),
        new("flashbias", "Biases as factors, beside no bias, the dense bias and libtorch with it", FlashBiasBenchmarks.Run),
        new("psa", "PSA at a density of 0.15 on video-like inputs beside dense attention", PyramidBenchmarks.Run),
        new("gates", "Gates on attention: within the call and as modules, beside the same without", GateBenchmarks.Run),
        new("moh", "Mixture of heads: time against the share of heads that a token uses, beside dense attention and libtorch", MixtureOfHeadBenchmarks.Run),
        new("agent", "Agent attention with 49 agents over lengths, beside dense attention and the same steps by libtorch", AgentBenchmarks.Run),
        new("scan", "The selective scan beside the recurrence in libtorch operations, the limit of memory bandwidth, and attention", ScanBenchmarks.Run),
        new("scan-orders", "Gathering and merging tokens along scan routes beside the scan, and atrous routes beside the four of a cross-scan", ScanOrderBenchmarks.Run),
        new("depthwise", "Depth-wise convolution of 3 x 3 to 17 x 17 in both memory orders, and the causal one, beside libtorch's", DepthwiseBenchmarks.Run),
        new("contmix", "ContMix's dynamic kernels beside unfolded windows in libtorch and dense attention, and their growth with the map", ContMixBenchmarks.Run),
        new("focal", "Focal modulation over the size of the map, beside multi-head attention and beside libtorch's operations", FocalBenchmarks.Run),
        new("probes", "Probes and edits beside the same model without them, and the memory of traces", context => ProbeBenchmarks.Run(context).Concat(EditBenchmarks.Run(context))),
    ];
}

/// <summary>Random inputs of one attention problem, freed together.</summary>
internal sealed class Inputs : IDisposable
{
    public Inputs(long heads, long queries, long keys, long width, bool gradients = false, ScalarType type = ScalarType.Float32)
    {
        using var generator = new Generator(1);
        Tensor Make(long length) => randn([1, heads, length, width], generator: generator).to(type).requires_grad_(gradients).DetachFromDisposeScope();
        (Query, Key, Value) = (Make(queries), Make(keys), Make(keys));
    }

    public Tensor Query { get; }

    public Tensor Key { get; }

    public Tensor Value { get; }

    /// <summary>A run of the door that leaves nothing behind.</summary>
    public Action Heed(AttentionOptions options, AttentionHooks? hooks = null) => () =>
    {
        using var quiet = no_grad();
        Attention.Compute(Query, Key, Value, options, default, hooks).Dispose();
    };

    /// <summary>A run of libtorch's attention function that leaves nothing behind.</summary>
    public Action LibTorch(bool causal = false, Tensor? mask = null) => () =>
    {
        using var quiet = no_grad();
        scaled_dot_product_attention(Query, Key, Value, mask, 0, causal).Dispose();
    };

    public void Dispose()
    {
        Query.Dispose();
        Key.Dispose();
        Value.Dispose();
    }
}

internal static class DenseBenchmarks
{
    public static IEnumerable<BenchmarkResult> Forward(BenchmarkContext context)
    {
        foreach (var (length, width, causal) in Shapes(context, [512, 1024, 4096, 16384]))
        {
            var heads = Heads(length);
            using var inputs = new Inputs(heads, length, length, width);
            var options = causal ? AttentionOptions.CausalSelf : AttentionOptions.Default;
            var shape = Shape(heads, length, width, causal);
            var operations = Operations(heads, length, width, causal, products: 2);
            yield return context.Row(
                "dense/forward", shape, inputs.Heed(options), "libtorch fused", inputs.LibTorch(causal), new(length >= 4096 ? 1.5 : 1.2, 0.8), operations);
            if (length is 1024 or 4096)
            {
                using var mask = causal ? ones(length, length, dtype: ScalarType.Bool).tril() : ones(length, length, dtype: ScalarType.Bool);
                yield return context.Row("dense/masked", shape, inputs.Heed(options), "libtorch with a boolean mask", inputs.LibTorch(mask: mask));
                yield return context.Row("dense/plain", shape, inputs.Heed(options), "libtorch, written out", WrittenOut(inputs, causal ? mask : null));
            }
        }
    }

    public static IEnumerable<BenchmarkResult> Backward(BenchmarkContext context)
    {
        foreach (var (length, width, causal) in Shapes(context, [512, 1024, 4096, 8192]))
        {
            var heads = Heads(length);
            using var inputs = new Inputs(heads, length, length, width, gradients: true);
            using var ours = Attention.Compute(inputs.Query, inputs.Key, inputs.Value, causal ? AttentionOptions.CausalSelf : AttentionOptions.Default);
            using var theirs = scaled_dot_product_attention(inputs.Query, inputs.Key, inputs.Value, null, 0, causal);
            using var gradient = randn_like(ours);
            yield return context.Row(
                "backward/gradients", Shape(heads, length, width, causal), Gradients(inputs, ours, gradient), "libtorch fused", Gradients(inputs, theirs, gradient),
                new(1.5), Operations(heads, length, width, causal, products: 5));
        }
    }

    /// <summary>Billions of operations of so many query-key-sized matrix products; half of them where causality halves the pairs.</summary>
    public static double Operations(long heads, long length, long width, bool causal, int products) =>
        2.0 * products * heads * width * length * (causal ? (length + 1) / 2.0 : length) / 1e9;

    public static string Shape(long heads, long length, long width, bool causal) => $"H{heads} N{length} D{width}{(causal ? " causal" : "")}";

    private static long Heads(long length) => length > 4096 ? 2 : 8;

    private static IEnumerable<(long Length, long Width, bool Causal)> Shapes(BenchmarkContext context, long[] lengths) =>
        from length in context.Quick ? [256] : lengths
        from width in context.Quick ? [64L] : new long[] { 64, 128 }
        from causal in new[] { false, true }
        select (length, width, causal);

    private static Action WrittenOut(Inputs inputs, Tensor? mask) => () =>
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var scores = matmul(inputs.Query, inputs.Key.transpose(-1, -2)) / Math.Sqrt(inputs.Query.shape[^1]);
        if (mask is not null)
        {
            scores = scores.masked_fill(mask.logical_not(), double.NegativeInfinity);
        }

        matmul(softmax(scores, -1), inputs.Value);
    };

    private static Action Gradients(Inputs inputs, Tensor output, Tensor gradient) => () =>
    {
        using var scope = NewDisposeScope();
        autograd.grad([output], [inputs.Query, inputs.Key, inputs.Value], [gradient], retain_graph: true);
    };
}

internal static class BiasBenchmarks
{
    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        const int Heads = 8, Width = 64, Rank = 8;
        long length = context.Quick ? 256 : 4096;
        using var inputs = new Inputs(Heads, length, length, Width);
        using var scope = NewDisposeScope();
        var dense = randn(1, Heads, length, length);
        var perKey = randn(1, Heads, length);
        var slopes = pow(2, -arange(1, Heads + 1, dtype: ScalarType.Float32));
        var (queryFactors, keyFactors) = (randn(1, Heads, length, Rank), randn(1, Heads, length, Rank));
        var shape = DenseBenchmarks.Shape(Heads, length, Width, causal: false);
        var plain = inputs.Heed(AttentionOptions.Default);
        (string Name, AttentionBias Bias, double AtMost)[] biases =
        [
            ("dense", new DenseBias(dense), 1.25), ("per key", new KeyBias(perKey), 1.1), ("ALiBi", new AlibiBias(slopes), 1.1),
            ($"low rank {Rank}", new LowRankBias(queryFactors, keyFactors), 1.1),
        ];
        foreach (var (name, bias, atMost) in biases)
        {
            var ours = inputs.Heed(AttentionOptions.Default with { Biases = [bias] });
            yield return context.Row($"bias/{name}", shape, ours, "Heed without bias", plain, Aim.AtMost(atMost));
            yield return context.Row($"bias/{name}", shape, ours, "libtorch with a dense bias", inputs.LibTorch(mask: dense));
        }
    }
}

internal static class MaskBenchmarks
{
    private const long WindowTokens = 512;

    public static IEnumerable<BenchmarkResult> Window(BenchmarkContext context)
    {
        const int Heads = 2, Width = 64;
        var options = AttentionOptions.CausalSelf with { WindowBefore = WindowTokens - 1 };
        long compared = context.Quick ? 1024 : 16384;
        using (var inputs = new Inputs(Heads, compared, compared, Width))
        using (var full = ones(compared, compared, dtype: ScalarType.Bool).tril_())
        using (var mask = full.triu(-(WindowTokens - 1)))
        {
            yield return context.Row(
                "window/512", DenseBenchmarks.Shape(Heads, compared, Width, true), inputs.Heed(options), "libtorch with a boolean mask", inputs.LibTorch(mask: mask), new(15));
        }

        var times = new List<(long Length, double Milliseconds)>();
        foreach (var length in context.Quick ? [1024, 2048] : new long[] { 4096, 16384, 65536, 262144 })
        {
            using var inputs = new Inputs(Heads, length, length, Width);
            var row = context.Row(
                "window/length", DenseBenchmarks.Shape(Heads, length, Width, true), inputs.Heed(options), "none", null,
                gigaflop: 4.0 * Heads * Width * length * Math.Min(WindowTokens, length) / 1e9);
            times.Add((length, row.Milliseconds));
            yield return row;
        }

        yield return SelectorBenchmarks.Growth(context, "window", times, from: 0, most: 1.1)!;
    }

    public static IEnumerable<BenchmarkResult> Blocks(BenchmarkContext context)
    {
        const int Heads = 8, Width = 64, Block = 128;
        var length = context.Quick ? 1024 : 8192;
        using var inputs = new Inputs(Heads, length, length, Width);
        var dense = inputs.Heed(AttentionOptions.Default);
        foreach (var inverse in context.Quick ? [4] : new[] { 2, 4, 8, 16 })
        {
            var options = AttentionOptions.Default with { BlockMask = RandomBlocks(Heads, length, Block, inverse) };
            yield return context.Row(
                $"blocks/1 in {inverse}", $"{DenseBenchmarks.Shape(Heads, length, Width, false)} blocks {Block}", inputs.Heed(options), "Heed dense", dense,
                new(inverse / 1.15));
        }

        foreach (var keyBlock in context.Quick ? [16] : new[] { 64, 16, 8 })
        {
            var options = AttentionOptions.Default with { BlockMask = RandomBlocks(Heads, length, 64, 8, keyBlock) };
            yield return context.Row(
                "blocks/1 in 8", $"{DenseBenchmarks.Shape(Heads, length, Width, false)} blocks 64 x {keyBlock}", inputs.Heed(options), "Heed dense", dense, new(8 / 1.15));
        }
    }

    /// <summary>Exactly one in so many key blocks of every query block, drawn for each head.</summary>
    private static BlockMask RandomBlocks(int heads, int length, int block, int inverse, int? keysOfBlock = null)
    {
        var random = new Random(1);
        var blocks = length / block;
        var keyBlock = keysOfBlock ?? block;
        var keyBlocks = length / keyBlock;
        var kept = keyBlocks / inverse;
        var listed = Enumerable.Range(0, heads * blocks).SelectMany(_ =>
        {
            var all = Enumerable.Range(0, keyBlocks).ToArray();
            random.Shuffle(all);
            return all.Take(kept).Order();
        }).ToArray();
        var offsets = Enumerable.Range(0, (heads * blocks) + 1).Select(row => row * kept).ToArray();
        return new(1, heads, length, length, block, keyBlock, offsets, listed);
    }
}

internal static class DecodingBenchmarks
{
    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        const int Heads = 8;
        long keys = context.Quick ? 2048 : 65536;
        foreach (var type in new[] { ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16 })
        {
            foreach (var width in new long[] { 64, 128 })
            {
                using var inputs = new Inputs(Heads, 1, keys, width);
                using var key = inputs.Key.to(type);
                using var value = inputs.Value.to(type);
                using var peerQuery = inputs.Query.to(type);
                var bytes = Heads * keys * width * 2.0 * key.element_size() / 1e9;
                yield return context.Row(
                    "decoding/one query", $"H{Heads} Nk{keys} D{width} {type.ToString().ToLowerInvariant()}",
                    () =>
                    {
                        using var quiet = no_grad();
                        Attention.Compute(inputs.Query, key, value).Dispose();
                    },
                    "libtorch fused",
                    () =>
                    {
                        using var quiet = no_grad();
                        scaled_dot_product_attention(peerQuery, key, value).Dispose();
                    },
                    type == ScalarType.Float32 ? new(3, 0.75) : null,
                    gigabytes: bytes);
            }
        }
    }
}

internal static class StatisticsBenchmarks
{
    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        const int Heads = 8, Width = 64;
        long length = context.Quick ? 256 : 4096;
        using var inputs = new Inputs(Heads, length, length, Width);
        using var first = zeros(length, dtype: ScalarType.Bool);
        first[0] = true;
        var rows = new AttentionStatisticsRequest { Entropy = true, Maximum = true, MeanDistance = true, KeySet = first };
        var options = AttentionOptions.CausalSelf;
        var shape = DenseBenchmarks.Shape(Heads, length, Width, true);
        using var rowProbe = new Requesting(rows);
        using var allProbe = new Requesting(rows with { MassPerKey = true });
        var plain = inputs.Heed(options);
        yield return context.Row("statistics/rows", shape, inputs.Heed(options, rowProbe.Hooks), "Heed forward", plain, Aim.AtMost(1.2));
        yield return context.Row("statistics/rows and keys", shape, inputs.Heed(options, allProbe.Hooks), "Heed forward", plain, Aim.AtMost(1.65));
        using var mask = ones(length, length, dtype: ScalarType.Bool).triu(1);
        using var distance = (arange(length).view(-1, 1) - arange(length)).abs().to(ScalarType.Float32);
        yield return context.Row(
            "statistics/rows and keys", shape, inputs.Heed(options, allProbe.Hooks), "libtorch, map materialised", Materialised(inputs, mask, distance), new(3));
        long far = context.Quick ? 1024 : 65536;
        using var long1 = new Inputs(1, far, far, Width);
        using var farFirst = zeros(far, dtype: ScalarType.Bool);
        farFirst[0] = true;
        using var farProbe = new Requesting(rows with { KeySet = farFirst, MassPerKey = true });
        yield return context.Row(
            "statistics/rows and keys", DenseBenchmarks.Shape(1, far, Width, true), long1.Heed(options, farProbe.Hooks), "none (the map would take 17 GB)", null);
    }

    private static Action Materialised(Inputs inputs, Tensor mask, Tensor distance) => () =>
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        var weights = softmax(matmul(inputs.Query, inputs.Key.transpose(-1, -2)).mul_(1 / Math.Sqrt(inputs.Query.shape[^1])).masked_fill_(mask, double.NegativeInfinity), -1);
        matmul(weights, inputs.Value);
        special.entr(weights).sum(-1);
        weights.max(-1);
        (weights * distance).sum(-1);
        weights.narrow(-1, 0, 1).sum(-1);
        weights.sum(-2);
    };

    /// <summary>A hook that asks for statistics and looks at none.</summary>
    private sealed class Requesting : AttentionHook, IDisposable
    {
        private readonly AttentionStatisticsRequest _request;
        private readonly IDisposable _installed;

        public Requesting(AttentionStatisticsRequest request)
        {
            _request = request;
            _installed = Hooks.Install(this);
        }

        public AttentionHooks Hooks { get; } = new();

        public override AttentionStages StagesAt(AttentionSite site) => AttentionStages.Statistics;

        public override AttentionStatisticsRequest StatisticsAt(AttentionSite site) => _request;

        public void Dispose() => _installed.Dispose();
    }
}
