namespace Heed.Lab.Benchmarks;

/// <summary>What a family of benchmarks needs to run.</summary>
/// <param name="Threads">Threads on both sides.</param>
/// <param name="Quick">Small shapes and short measurements, to see that everything runs; the figures say little.</param>
/// <param name="Limits">The machine's limits for this number of threads.</param>
/// <param name="Cancellation">Stops between two runs.</param>
public sealed record BenchmarkContext(int Threads, bool Quick, MachineLimits Limits, CancellationToken Cancellation)
{
    /// <summary>How long a row is measured where nothing else is said.</summary>
    private TimeSpan Budget => TimeSpan.FromSeconds(Quick ? 0.05 : 1.5);

    /// <summary>Whether an aim was met, as a row tells it: on small shapes nothing is judged.</summary>
    internal bool? Judge(bool? met) => Quick ? null : met;

    /// <summary>Measures one row.</summary>
    /// <param name="name">The row's name, <c>family/work</c>.</param>
    /// <param name="shape">The row's shape.</param>
    /// <param name="ours">Our work, disposing what it makes.</param>
    /// <param name="peerName">What it is compared with.</param>
    /// <param name="peer">The peer's work; null: not comparable.</param>
    /// <param name="aim">The aim and how to tell from (ours, peer, fraction) whether it was met; null: none.</param>
    /// <param name="gigaflop">Billion float operations of the work, where arithmetic is its limit.</param>
    /// <param name="gigabytes">Billion bytes that the work must read, where bandwidth is its limit.</param>
    /// <param name="share">Share of the usual time to spend on the row: below 1 where there are many rows of a kind.</param>
    internal BenchmarkResult Row(
        string name, string shape, Action ours, string peerName, Action? peer, Aim? aim = null, double? gigaflop = null, double? gigabytes = null, double share = 1)
    {
        var (time, peerTime, ratio) = PairedTimer.Measure(ours, peer, share * Budget, Cancellation);
        var growth = PairedTimer.PeakGrowth(ours);
        double? fraction = (gigaflop, gigabytes) switch
        {
            ({ } operations, _) => operations / (time / 1e3) / Limits.FusedMultiplyAddGigaflops,
            (_, { } bytes) => bytes / (time / 1e3) / Limits.ReadGigabytesPerSecond,
            _ => null,
        };
        return new(name, shape, Threads, time, peerName, peerTime, ratio, fraction, growth, aim?.Text, Judge(aim?.Met(ratio, fraction)));
    }
}

/// <summary>An aim on a row: at least so many times as fast as the peer, and at least such a share of the machine's limit.</summary>
/// <param name="Ratio">Least ratio peer / ours; null: none.</param>
/// <param name="Fraction">Least share of the limit; null: none.</param>
internal sealed record Aim(double? Ratio, double? Fraction = null)
{
    /// <summary>The aim in words of its own; null: the numbers.</summary>
    public string? Words { get; init; }

    public string Text => Words ?? string.Join(", ", new[]
    {
        Ratio is { } ratio ? $"ratio >= {ratio:0.###}" : "",
        Fraction is { } fraction ? $">= {fraction:P0} of limit" : "",
    }.Where(part => part.Length > 0));

    /// <summary>At most so many times the peer's time.</summary>
    public static Aim AtMost(double timesPeer) => new(1 / timesPeer);

    /// <summary>At most such a share of the peer, which it is a part of.</summary>
    public static Aim ShareOfPeer(double share) => new(1 / share) { Words = $"at most {share:P0}" };

    public bool Met(double? ratio, double? fraction) => !(ratio < Ratio) && !(fraction < Fraction);
}
