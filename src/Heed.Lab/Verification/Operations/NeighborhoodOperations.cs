using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Attention on a grid (arXiv 2504.16922).</summary>
internal sealed class NeighborhoodAttentionOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/NeighborhoodAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        Tensor? Additional(string name) => golden.Has($"in.{name}") ? run.Input(name) : null;
        var (output, logSumExp) = NeighborhoodAttention.ComputePart(
            run.Input("query"), run.Input("key"), run.Input("value"), NeighborhoodCases.Neighborhood(golden, golden.Integers("token_layout")), NeighborhoodCases.Scale(golden),
            Additional("additional_keys"), Additional("additional_values"));
        run.Output("output", output);
        run.Output("logsumexp", logSumExp);
    }
}

/// <summary>The layer with its projections.</summary>
internal sealed class NeighborhoodAttentionModuleOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/NeighborhoodAttentionModule";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (width, heads, bias, scale) = (golden.Integer("embed_dim"), golden.Integer("num_heads"), golden.Flag("qkv_bias", true), NeighborhoodCases.Scale(golden));
        var (window, stride, dilation, causal) = NeighborhoodCases.Knobs(golden);
        NeighborhoodAttentionModule module = run.Input("x").dim() switch
        {
            3 => new NeighborhoodAttention1d(width, heads, window[0], stride[0], dilation[0], causal[0], bias, scale),
            4 => new NeighborhoodAttention2d(width, heads, window, stride, dilation, causal, bias, scale),
            _ => new NeighborhoodAttention3d(width, heads, window, stride, dilation, causal, bias, scale),
        };
        run.Load(module);
        run.Output("output", module.forward(run.Input("x")));
    }
}

/// <summary>Window bounds of single axes.</summary>
internal sealed class WindowBoundsOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/WindowBounds";

    public override void Run(GoldenRun run)
    {
        var rows = NeighborhoodCases.Rows(run.Input("axis"));
        var longest = run.Case.Read("out.group").shape[1];
        var bounds = full([3, rows.Length, longest], run.Case.Integer("pad_value", -1), dtype: int64);
        for (var row = 0; row < rows.Length; row++)
        {
            var axis = new NeighborhoodAxis(rows[row][0], rows[row][1], rows[row][2], rows[row][3], rows[row][4] != 0);
            // The neighborhood checks the axis.
            foreach (var query in Enumerable.Range(0, (int)new Neighborhood(axis).Tokens))
            {
                var (group, start, end) = axis.Bounds(query);
                (bounds[0, row, query], bounds[1, row, query], bounds[2, row, query]) = (group, start, end);
            }
        }

        run.Output("group", bounds[0]);
        run.Output("window_start", bounds[1]);
        run.Output("window_end", bounds[2]);
    }
}

/// <summary>Tokens re-ordered tile by tile, and back.</summary>
internal sealed class TokenPermuteOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/TokenPermute";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (tile, dilation, tensor) = (golden.Integers("tile_shape"), golden.Integers("dilation"), run.Input("tensor"));
        var grid = tensor.shape[1..^2];
        var order = TokenOrder.Tiles(grid, tile, dilation, golden.Flag("flip_tiled_dims", false));
        var groups = dilation.Aggregate(1L, (product, step) => product * step);
        var permuted = order.Apply(tensor.flatten(1, -3), 1).reshape([tensor.shape[0] * groups, order.Places / groups, .. tensor.shape[^2..]]);
        run.Output("permuted", permuted);
        run.Output("unpermuted", order.Restore(permuted.reshape([tensor.shape[0], order.Places, .. tensor.shape[^2..]]), 1).reshape(tensor.shape));
    }
}

/// <summary>The analytical bound on the speed-up.</summary>
internal sealed class SpeedupBoundOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/SpeedupBound";

    public override void Run(GoldenRun run)
    {
        var tiling = run.Case.Choice("kv_tiling", "static", ("static", KeyTiling.Static), ("dynamic", KeyTiling.Dynamic));
        var reports = NeighborhoodCases.Rows(run.Input("problems")).Select(problem =>
        {
            var neighborhood = Neighborhood.Of(problem[..3], problem[3..6], problem[6..9], null, [.. problem[15..18].Select(flag => flag != 0)]);
            return NeighborhoodTiling.Simulate(neighborhood, problem[9..12], problem[12..15], tiling);
        }).ToArray();
        Whole("q_tiles", report => report.QueryTiles);
        Whole("kv_tiles", report => report.KeyTiles);
        Whole("visited_max", report => report.VisitedMax);
        Whole("visited_total", report => report.VisitedTotal);
        Whole("window_tokens", report => report.WindowTokens);
        Whole("tokens", report => report.Tokens);
        Whole("needs_no_mask", report => report.NeedsNoMask ? 1 : 0);
        run.Output("speedup_bound", tensor(reports.Select(report => report.SpeedupBound).ToArray()));
        run.Output("mean_speedup", tensor(reports.Select(report => report.MeanSpeedup).ToArray()));
        run.Output("flop_speedup", tensor(reports.Select(report => report.FlopSpeedup).ToArray()));

        void Whole(string name, Func<TilingReport, long> figure) => run.Output(name, tensor(reports.Select(figure).ToArray()));
    }
}

/// <summary>Parts of one attention put together.</summary>
internal sealed class MergeAttentionsOperation : GoldenOperation
{
    public override string Name => "generalized-neighborhood-attention/MergeAttentions";

    public override void Run(GoldenRun run)
    {
        var parts = Enumerable.Range(0, run.Case.Integer("num_parts")).ToList();
        var (output, logSumExp) = AttentionMerge.Merge([.. parts.Select(part => run.Input($"output_{part}"))], [.. parts.Select(part => run.Input($"logsumexp_{part}"))]);
        run.Output("output", output);
        run.Output("logsumexp", logSumExp);
    }
}

/// <summary>What the cases of the paper share.</summary>
internal static class NeighborhoodCases
{
    public static double? Scale(GoldenCase golden) => golden.HasOption("scale") ? golden.Number("scale") : null;

    public static Neighborhood Neighborhood(GoldenCase golden, long[] grid)
    {
        var (window, stride, dilation, causal) = Knobs(golden);
        return Masks.Neighborhood.Of(grid, window, stride, dilation, causal);
    }

    public static (long[] Window, long[] Stride, long[] Dilation, bool[] Causal) Knobs(GoldenCase golden) =>
        (golden.Integers("kernel_size"), golden.Integers("stride", 1), golden.Integers("dilation", 1), golden.Flags("is_causal", false));

    public static long[][] Rows(Tensor table)
    {
        using var dense = table.to(int64).contiguous();
        return [.. dense.data<long>().ToArray().Chunk((int)table.shape[1])];
    }
}
