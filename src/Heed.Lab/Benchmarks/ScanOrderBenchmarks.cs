using Heed.Mixers;
using static TorchSharp.torch;

namespace Heed.Lab.Benchmarks;

/// <summary>What scan orders cost: the gather and the merge by themselves, beside the scan between them, and atrous routes beside those of a cross-scan.</summary>
internal static class ScanOrderBenchmarks
{

    public static IEnumerable<BenchmarkResult> Run(BenchmarkContext context)
    {
        foreach (var side in context.Quick ? [16] : new[] { 14, 56 })
        {
            foreach (var order in new[] { ScanOrder.Cross(side, side), ScanOrder.Continuous(side, side), ScanOrder.LocalCross(side, side, 7), ScanOrder.Atrous(side, side) })
            {
                using var map = new RoutedMap(order);
                yield return context.Row($"scan-orders/{order.Name}, gather and merge", map.Shape, map.Move, "the scan between them", map.Scan, share: 0.5);
            }
        }

        var large = context.Quick ? 16 : 56;
        using var atrous = new RoutedMap(ScanOrder.Atrous(large, large));
        using var cross = new RoutedMap(ScanOrder.Cross(large, large));
        yield return context.Row("scan-orders/atrous, whole", atrous.Shape, atrous.Whole, "cross2d, whole", cross.Whole, Aim.ShareOfPeer(0.3), share: 0.5);
    }
}

/// <summary>A random map, its scan along the routes of an order, and the parts of that work. Freed together.</summary>
internal sealed class RoutedMap : IDisposable
{
    private readonly int _channels;
    private readonly int _states;
    private readonly ScanOrder _order;
    private readonly Tensor _map;
    private readonly Tensor _sequences;
    private readonly Tensor _a;
    private readonly Tensor _b;
    private readonly Tensor _c;

    public RoutedMap(ScanOrder order, int channels = 96, int states = 16)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(1);
        (_order, _channels, _states) = (order, channels, states);
        Tensor Maps() => randn([1, order.Count, states, order.Length], generator: generator).DetachFromDisposeScope();
        _map = randn([1, channels, order.Tokens], generator: generator).DetachFromDisposeScope();
        _sequences = order.Gather(_map).reshape(1, -1, order.Length).DetachFromDisposeScope();
        _a = rand([order.Count * channels, states], generator: generator).neg_().DetachFromDisposeScope();
        (_b, _c) = (Maps(), Maps());
    }

    public string Shape => $"{_order.Height} x {_order.Width}, E{_channels} N{_states}, {_order.Count} routes of {_order.Length}";

    /// <summary>Gathers and merges.</summary>
    public void Move()
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        _order.ScatterAdd(_order.Gather(_map));
    }

    /// <summary>Scans what is gathered already.</summary>
    public void Scan()
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        Respond(_sequences);
    }

    /// <summary>Gathers, scans and merges.</summary>
    public void Whole()
    {
        using var quiet = no_grad();
        using var scope = NewDisposeScope();
        _order.ScatterAdd(Respond(_order.Gather(_map).reshape(1, -1, _order.Length)).view(1, _order.Count, _channels, _order.Length));
    }

    public void Dispose()
    {
        foreach (var tensor in new[] { _map, _sequences, _a, _b, _c })
        {
            tensor.Dispose();
        }
    }

    private Tensor Respond(Tensor sequences) => SelectiveScan.Apply(sequences, sequences, _a, _b, _c, deltaSoftplus: true).Output;
}
