using System.Text.Json.Serialization;

namespace Heed.Lab.Benchmarks;

/// <summary>One measured row: our time beside a peer's, from alternating runs in one process with equal threads.</summary>
/// <param name="Name">The benchmark, <c>family/work</c>.</param>
/// <param name="Shape">What was computed, for example <c>B1 H8 N4096 D64 causal</c>.</param>
/// <param name="Threads">Threads on both sides.</param>
/// <param name="Milliseconds">Median time of ours.</param>
/// <param name="Peer">What it was compared with.</param>
/// <param name="PeerMilliseconds">Median time of the peer; null where the peer cannot do it.</param>
/// <param name="Ratio">Peer / ours: above 1 is faster than the peer. Median of the pairwise ratios.</param>
/// <param name="FractionOfLimit">Share of what the machine can do at most (multiply-adds or read bandwidth measured in the same run); null where neither is the limit.</param>
/// <param name="PeakBytes">Growth of the resident set during one call of ours; null where the system does not tell.</param>
/// <param name="Aim">The project's aim for the row's figure; null where there is none.</param>
/// <param name="Met">Whether the aim was met in this run.</param>
/// <param name="Exponent">For rows about growth: the fitted exponent of time over length.</param>
public sealed record BenchmarkResult(
    string Name,
    string Shape,
    int Threads,
    double Milliseconds,
    string Peer,
    [property: JsonPropertyName("peer_milliseconds")] double? PeerMilliseconds,
    double? Ratio,
    [property: JsonPropertyName("fraction_of_limit")] double? FractionOfLimit,
    [property: JsonPropertyName("peak_bytes")] long? PeakBytes,
    string? Aim = null,
    bool? Met = null,
    double? Exponent = null);
