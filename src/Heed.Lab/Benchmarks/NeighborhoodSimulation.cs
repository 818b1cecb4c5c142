using System.Text.Json.Serialization;
using Heed.Lab.Mechanisms;
using Heed.Masks;

namespace Heed.Lab.Benchmarks;

/// <summary>What the tile simulator says of one problem: <c>heed bench gna --simulate</c>.</summary>
/// <param name="Problem">Grid, window and stride.</param>
/// <param name="QueryTile">The query tile.</param>
/// <param name="KeyTile">The key tile.</param>
/// <param name="SpeedupBound">The paper's bound: the worst query tile.</param>
/// <param name="MeanSpeedup">The bound on the work of all query tiles.</param>
/// <param name="FlopSpeedup">What fewer operations alone would give.</param>
/// <param name="NeedsNoMask">Whether every visited tile is seen whole.</param>
/// <param name="AttentionShare">Share of attention in the model's time; null: not given.</param>
/// <param name="EndToEnd">The bound on the whole model; null without a share.</param>
/// <param name="Published">The paper's simulated figure for the whole model, or for the operation where no share is given; null: none.</param>
public sealed record SimulatedProblem(
    string Problem, [property: JsonPropertyName("query_tile")] string QueryTile, [property: JsonPropertyName("key_tile")] string KeyTile,
    [property: JsonPropertyName("speedup_bound")] double SpeedupBound, [property: JsonPropertyName("mean_speedup")] double MeanSpeedup, [property: JsonPropertyName("flop_speedup")] double FlopSpeedup,
    [property: JsonPropertyName("needs_no_mask")] bool NeedsNoMask, [property: JsonPropertyName("attention_share")] double? AttentionShare,
    [property: JsonPropertyName("end_to_end")] double? EndToEnd, double? Published);

/// <summary>The tile simulator of neighborhood attention (arXiv 2504.16922) on problems of the paper or of one's own.</summary>
public static class NeighborhoodSimulation
{
    /// <summary>How a problem is written.</summary>
    public const string Usage = "30x48x80:w=18x24x24,stride=16x8x8,q=4x8x8,k=2x8x8,share=0.607";

    /// <summary>Problems of the paper: tables 2, 3 and 4 (whole models) and figure 3 (the operation), with the published simulated figures. The tiles of table 3 are not published; these match it.</summary>
    public static IReadOnlyList<SimulatedProblem> Paper()
    {
        var flux = new[] { ("1x1", 1.76), ("16x1", 1.84), ("16x16", 1.88) };
        var cosmos = new[] { ("1x1x1", 1.90), ("1x8x1", 1.96), ("1x1x16", 2.05), ("1x8x16", 2.10) };
        var hunyuan = new[] { ("1x1x1", 1.73), ("2x1x1", 1.78), ("1x1x8", 1.99), ("2x1x8", 2.02), ("1x8x8", 2.17), ("2x8x8", 2.20), ("16x8x8", 2.23) };
        var operation = new[] { ("1x1x1", 3.3), ("16x8x8", 11.1) };
        return
        [
            .. flux.Select(row => One($"256x256:w=80x80,stride={row.Item1},q=16x16,k=16x8,share=0.518", row.Item2)),
            .. cosmos.Select(row => One($"16x44x80:w=16x24x16,stride={row.Item1},q=8x4x8,k=4x4x8,share=0.587", row.Item2)),
            .. hunyuan.Select(row => One($"30x48x80:w=18x24x24,stride={row.Item1},q=4x8x8,k=2x8x8,share=0.607", row.Item2)),
            .. operation.Select(row => One($"30x48x80:w=18x24x24,stride={row.Item1},q=4x8x8,k=2x8x8", row.Item2)),
        ];
    }

    /// <summary>Simulates one problem.</summary>
    /// <param name="text">The problem, written as in <see cref="Usage"/>: the grid, then window, stride, causality, tiles (null: those that Heed would compute in) and share.</param>
    /// <param name="published">A figure to set beside it; null: none.</param>
    /// <exception cref="ArgumentException">The problem cannot be read, or does not fit together.</exception>
    public static SimulatedProblem One(string text, double? published = null)
    {
        var specification = Specification.Parse($"gna:grid={text.Replace(':', ',')}");
        var grid = specification.Lengths("grid", 1) ?? throw new ArgumentException($"A problem is written as {Usage}, not '{text}'.");
        var (query, key, share) = (specification.Lengths("q", 1), specification.Lengths("k", 1), specification.Number("share", double.NaN));
        if (specification.Text("w") is null || (query is null) != (key is null) || share is < 0 or > 1)
        {
            throw new ArgumentException($"A problem has a window w, both tiles q and k or neither, and a share from 0 to 1, such as {Usage}; '{text}' was given.");
        }

        var neighborhood = NeighborhoodMechanism.Of(specification, grid, []);
        specification.RefuseUnread();
        var tiles = query is null ? NeighborhoodPlan.Of(neighborhood).Tiles : new(query, key!);
        var report = NeighborhoodTiling.Simulate(neighborhood, tiles.Query, tiles.Key);
        return new(
            $"{string.Join('x', grid)} w {specification.Text("w")} stride {specification.Text("stride") ?? "1"}", string.Join('x', tiles.Query), string.Join('x', tiles.Key), report.SpeedupBound, report.MeanSpeedup,
            report.FlopSpeedup, report.NeedsNoMask, double.IsNaN(share) ? null : share, double.IsNaN(share) ? null : report.EndToEnd(share), published);
    }
}
