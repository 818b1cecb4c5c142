using Heed.Heads;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>Focal modulation (arXiv 2203.11926) over the size of the map, beside multi-head attention of the same width and beside the same sums in libtorch's operations.</summary>
internal static class FocalBenchmarks
{
    private const int Width = 64;
    private const int Heads = 4;
    private const double ShareOfTime = 0.35;
    private const double MostExponent = 1.15;

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        using var modulation = new FocalModulation(Width, new() { Levels = 3 });
        using var attention = new MultiHeadAttention(new() { Width = Width, Heads = Heads });
        var times = new List<(long Length, double Milliseconds)>();
        foreach (var side in context.Quick ? [14L] : new long[] { 14, 28, 56, 80, 112 })
        {
            using var map = randn(1, side, side, Width);
            using var tokens = map.view(1, side * side, Width);
            void Ours() => Forward(() => modulation.forward(map));
            var shape = $"{side}x{side} C{Width} L3";
            var row = context.Row("focal/forward", shape, Ours, $"Heed's attention, {Heads} heads", () => Forward(() => attention.forward(tokens)), share: ShareOfTime);
            times.Add((side * side, row.Milliseconds));
            yield return row;
            yield return context.Row("focal/forward", shape, Ours, "the same in libtorch's operations", () => Forward(() => Written(modulation, map)), new(1), share: ShareOfTime);
            yield return context.Row(
                "focal/with gradients", shape, () => Gradients(modulation, () => modulation.forward(map)), "the same in libtorch's operations", () => Gradients(modulation, () => Written(modulation, map)), new(1),
                share: ShareOfTime);
        }

        if (SelectorBenchmarks.Growth(context, "focal", times, 56 * 56, MostExponent) is { } growth)
        {
            yield return growth;
        }
    }

    /// <summary>The module as the authors write it: maps channels-first, <c>conv2d</c> with groups.</summary>
    private static Tensor Written(FocalModulation module, Tensor map)
    {
        var parts = module.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
        var all = nn.functional.linear(map, parts["f.weight"], parts["f.bias"]).permute(0, 3, 1, 2).contiguous();
        var (query, level, gates) = (all.narrow(1, 0, Width), all.narrow(1, Width, Width), all.narrow(1, 2 * Width, module.Options.Levels + 1));
        var sum = zeros(1);
        for (var index = 0; index < module.Options.Levels; index++)
        {
            var side = module.Options.Kernel(index);
            level = nn.functional.gelu(nn.functional.conv2d(level, parts[$"focal_layers.{index}.0.weight"], padding: [side / 2, side / 2], groups: Width));
            sum = sum + (level * gates.narrow(1, index, 1));
        }

        sum = sum + (nn.functional.gelu(level.mean([2L, 3L], keepdim: true)) * gates.narrow(1, module.Options.Levels, 1));
        var modulated = query * nn.functional.conv2d(sum, parts["h.weight"], parts["h.bias"]);
        return nn.functional.linear(modulated.permute(0, 2, 3, 1).contiguous(), parts["proj.weight"], parts["proj.bias"]);
    }

    private static void Forward(Func<Tensor> work)
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        work();
    }

    private static void Gradients(nn.Module module, Func<Tensor> work)
    {
        using var scope = NewDisposeScope();
        Parameter[] parameters = [.. module.parameters()];
        autograd.grad([work().sum()], parameters);
    }
}
