namespace Heed.Lab.Benchmarks;

/// <summary>What a family of benchmarks needs to run.</summary>
/// <param name="Threads">Threads on both sides.</param>
/// <param name="Quick">Small shapes and short measurements, to see that everything runs; the figures say little.</param>
/// <param name="Limits">The machine's limits for this number of threads.</param>
/// <param name="Cancellation">Stops between two runs.</param>
public sealed record BenchmarkContext(int Threads, bool Quick, MachineLimits Limits, CancellationToken Cancellation)
{
    private TimeSpan Budget => TimeSpan.FromSeconds(Quick ? 0.05 : 1.5);

    /// <summary>Measures one row.</summary>
    /// <param name="name">The row's name, <c>family/work</c>.</param>
    /// <param name="shape">The row's shape.</param>
    /// <param name="ours">Our work, disposing what it makes.</param>
    /// <param name="peerName">What it is compared with.</param>
    /// <param name="peer">The peer's work; null: not comparable.</param>
    /// <param name="aim">The aim and how to tell from (ours, peer, fraction) whether it was met; null: none.</param>
    /// <param name="gigaflop">Billion float operations of the work, where arithmetic is its limit.</param>
    /// <param name="gigabytes">Billion bytes that the work must read, where bandwidth is its limit.</param>
    internal BenchmarkResult Row(
        string name, string shape, Action ours, string peerName, Action? peer, Aim? aim = null, double? gigaflop = null, double? gigabytes = null)
    {
        var (time, peerTime, ratio) = PairedTimer.Measure(ours, peer, Budget, Cancellation);
        var growth = PairedTimer.PeakGrowth(ours);
        double? fraction = (gigaflop, gigabytes) switch
        {
            ({ } operations, _) => operations / (time / 1e3) / Limits.FusedMultiplyAddGigaflops,
            (_, { } bytes) => bytes / (time / 1e3) / Limits.ReadGigabytesPerSecond,
            _ => null,
        };
        return new(name, shape, Threads, time, peerName, peerTime, ratio, fraction, growth, aim?.Text, aim?.Met(ratio, fraction));
    }
}

/// <summary>An aim on a row: at least so many times as fast as the peer, and at least such a share of the machine's limit.</summary>
/// <param name="Ratio">Least ratio peer / ours; null: none.</param>
/// <param name="Fraction">Least share of the limit; null: none.</param>
internal sealed record Aim(double? Ratio, double? Fraction = null)
{
    public string Text => string.Join(", ", new[]
    {
        Ratio is { } ratio ? $"ratio >= {ratio:0.###}" : "",
        Fraction is { } fraction ? $">= {fraction:P0} of limit" : "",
    }.Where(part => part.Length > 0));

    /// <summary>At most so many times the peer's time.</summary>
    public static Aim AtMost(double timesPeer) => new(1 / timesPeer);

    public bool Met(double? ratio, double? fraction) => !(ratio < Ratio) && !(fraction < Fraction);
}
