using Heed.Heads;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Attention with a given level map (arXiv 2512.04025).</summary>
internal sealed class PyramidAttentionOperation : GoldenOperation
{
    public override string Name => "psa/PyramidAttention";

    public override void Run(GoldenRun run) => run.Output("output", PyramidAttention.Forward(
        run.Input("query"), run.Input("key"), run.Input("value"), run.Input("level"), run.Case.Integer("query_block", 128), run.Case.Integer("key_block", 128),
        run.Case.Flag("is_causal", false), PyramidCases.Scale(run.Case)));
}

/// <summary>The level map for generation and its density.</summary>
internal sealed class LevelMapOperation : GoldenOperation
{
    public override string Name => "psa/LevelMap";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var level = PyramidLevels.FromImportance(
            golden.Read("in.importance"), PyramidCases.Levels(golden), PyramidCases.Ranking(golden), golden.Integer("key_block", 128), golden.Integer("tile", 32),
            golden.Integer("text_length", 0), golden.Number("min_full_ratio", 0.06));
        PyramidCases.Densities(run, level, isCausal: false);
    }
}

/// <summary>The level map for understanding and its density.</summary>
internal sealed class CausalLevelMapOperation : GoldenOperation
{
    public override string Name => "psa/CausalLevelMap";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var isCausal = golden.Flag("is_causal", true);
        var level = PyramidLevels.Causal(
            golden.Read("in.importance"), PyramidCases.Levels(golden), PyramidCases.Ranking(golden), golden.Integer("block", 128), golden.Integer("text_length", 0), isCausal);
        PyramidCases.Densities(run, level, isCausal);
    }
}

/// <summary>Importance by sampled maxima, with the recorded sample.</summary>
internal sealed class SampledImportanceOperation : GoldenOperation
{
    public override string Name => "psa/SampledImportance";

    public override void Run(GoldenRun run) => run.Output("importance", BlockSummaries.SampledMaximum(
        run.Input("query"), run.Input("key"), run.Case.Integer("query_block", 128), run.Case.Integer("key_block", 128), PyramidCases.Sample(run, "query_sample"), PyramidCases.Sample(run, "key_sample"),
        PyramidCases.Scale(run.Case)));
}

/// <summary>Importance by antidiagonal sums.</summary>
internal sealed class AntidiagonalImportanceOperation : GoldenOperation
{
    public override string Name => "psa/AntidiagonalImportance";

    public override void Run(GoldenRun run) => run.Output("importance", BlockSummaries.AntidiagonalSum(
        run.Input("query"), run.Input("key"), run.Case.Integer("block", 128), run.Case.Integer("stride", 16), run.Case.Integer("chunk", 4096), run.Case.Flag("is_causal", true)));
}

/// <summary>The coarsest level that key blocks bear.</summary>
internal sealed class KeySimilarityLevelOperation : GoldenOperation
{
    public override string Name => "psa/KeySimilarityLevel";

    public override void Run(GoldenRun run) => run.Output("max_level", PyramidLevels.SimilarityCap(
        run.Input("key"), run.Case.Integer("key_block"), run.Case.Number("threshold_2"), run.Case.Number("threshold_4"), run.Case.Number("threshold_8")));
}

/// <summary>The curve through a grid.</summary>
internal sealed class GilbertOrderOperation : GoldenOperation
{
    public override string Name => "psa/GilbertOrder";

    public override void Run(GoldenRun run)
    {
        var order = GilbertCurve.Order(run.Case.Integer("width"), run.Case.Integer("height"), run.Case.Integer("depth"));
        run.Output("order", tensor(order.Order.ToArray()));
        run.Output("inverse", tensor(order.Inverse.Order.ToArray()));
    }
}

/// <summary>The plug-in for generation.</summary>
internal sealed class PyramidSparseAttentionOperation : GoldenOperation
{
    public override string Name => "psa/PyramidSparseAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        using var module = new PyramidSparseAttention(
            new()
            {
                QueryBlock = golden.Integer("query_block", 128), KeyBlock = golden.Integer("key_block", 128), Levels = PyramidCases.Levels(golden), Ranking = PyramidCases.Ranking(golden),
                Tile = golden.Integer("tile", 32), TextLength = golden.Integer("text_length", 0), MinFullRatio = golden.Number("min_full_ratio", 0.06),
                UseSimilarity = golden.Flag("use_similarity", false), SimilarityThresholds = PyramidCases.Thresholds(golden, 0, 0, -1),
            },
            scale: PyramidCases.Scale(golden));
        var (output, level) = module.forward(run.Input("query"), run.Input("key"), run.Input("value"), PyramidCases.Sample(run, "query_sample"), PyramidCases.Sample(run, "key_sample"));
        run.Output("output", output);
        PyramidCases.Densities(run, level, isCausal: false);
    }
}

/// <summary>The causal pipeline for understanding.</summary>
internal sealed class CausalPyramidAttentionOperation : GoldenOperation
{
    public override string Name => "psa/CausalPyramidAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var block = golden.Integer("block", 128);
        using var module = new PyramidSparseAttention(
            new()
            {
                QueryBlock = block, KeyBlock = block, Importance = PyramidImportance.Antidiagonal, Levels = PyramidCases.Levels(golden), Ranking = PyramidCases.Ranking(golden),
                Stride = golden.Integer("stride", 16), Chunk = golden.Integer("chunk", 4096), TextLength = golden.Integer("text_length", 0),
                UseSimilarity = golden.Flag("use_similarity", true), SimilarityThresholds = PyramidCases.Thresholds(golden, 0.75, 0.7, 0.7),
            },
            isCausal: true, scale: PyramidCases.Scale(golden));
        var (output, level) = module.forward(run.Input("query"), run.Input("key"), run.Input("value"), null, null);
        run.Output("output", output);
        PyramidCases.Densities(run, level, isCausal: true);
    }
}

/// <summary>What the cases of PSA have in common.</summary>
internal static class PyramidCases
{
    public static PyramidLevel[] Levels(GoldenCase golden) => [.. golden.NumberRows("levels").Select(row => new PyramidLevel((int)row[0], row[1], row[2]))];

    public static PyramidRanking Ranking(GoldenCase golden) => golden.Choice("mode", "top_k", ("top_k", PyramidRanking.TopK), ("cumulative", PyramidRanking.Cumulative));

    public static double? Scale(GoldenCase golden) => golden.HasOption("scale") ? golden.Number("scale") : null;

    public static (double Two, double Four, double Eight) Thresholds(GoldenCase golden, double two, double four, double eight) =>
        (golden.Number("threshold_2", two), golden.Number("threshold_4", four), golden.Number("threshold_8", eight));

    public static Tensor Sample(GoldenRun run, string name) => run.Input(name).to(int64);

    public static void Densities(GoldenRun run, Tensor level, bool isCausal)
    {
        run.Output("level", level);
        run.Output("density", PyramidLevels.Density(level, isCausal));
        run.Output("head_density", PyramidLevels.DensityOfHeads(level, isCausal));
    }
}
