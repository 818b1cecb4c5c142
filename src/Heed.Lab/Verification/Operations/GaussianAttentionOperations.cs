using Heed.Mixers;
using Heed.Probes;

namespace Heed.Lab.Verification.Operations;

/// <summary>Gaussian attention, form A, one head (arXiv 2401.11143).</summary>
internal sealed class GaussianAdaptiveAttentionOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/GaussianAdaptiveAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new GaussianAdaptiveAttention(golden.Integer("norm_axis"), golden.Integer("num_gaussians"), GaussianCases.Padding(golden), golden.Number("eps", 1e-8));
        run.Load(layer);
        var (output, weights) = layer.forward(run.Input("x"));
        run.Output("output", output);
        run.Output("weights", weights);
    }
}

/// <summary>Form A in several heads.</summary>
internal sealed class MultiHeadGaussianOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/MultiHeadGaussianAdaptiveAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        // The authors' heads never see the eps of the case: it lands in an argument that is ignored.
        var layer = new MultiHeadGaussianAdaptiveAttention(golden.Integer("norm_axis"), golden.Integer("num_heads"), golden.Integer("num_gaussians"), GaussianCases.Padding(golden));
        run.Load(layer);
        var (output, weights) = layer.forward(run.Input("x"));
        run.Output("output", output);
        run.Output("weights", weights);
    }
}

/// <summary>Form A in residual layers.</summary>
internal sealed class GaussianBlockOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/GaussianBlock";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var block = new GaussianBlock(
            GoldenLists.Integers(golden, "norm_axes"), GoldenLists.Integers(golden, "heads_per_layer"), GoldenLists.Integers(golden, "gaussians_per_layer"), GaussianCases.Padding(golden));
        run.Load(block);
        var (output, weights) = block.forward(run.Input("x"));
        run.Output("output", output);
        for (var layer = 0; layer < weights.Count; layer++)
        {
            run.Output($"weights.layer_{layer}", weights[layer]);
        }
    }
}

/// <summary>Form B.</summary>
internal sealed class LayerwiseGaussianOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/LayerwiseGaussianAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new LayerwiseGaussianAttention(
            golden.Integer("num_layers"), golden.Integer("feature_size"), golden.Integer("num_heads", 8), golden.Number("c_init", 2), golden.Number("eps", 1e-5), golden.Number("var_floor", 1e-8));
        run.Load(layer);
        var (output, weights) = layer.forward(run.Input("x"));
        run.Output("output", output);
        run.Output("weights", weights);
    }
}

/// <summary>Form B before attention among the layers.</summary>
internal sealed class GroupedQueryGaussianOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/GroupedQueryGaussianAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new GroupedQueryGaussianAttention(
            golden.Integer("num_layers"), golden.Integer("feature_size"), golden.Integer("num_heads", 8), golden.Integer("embed_dim", 512), golden.Integer("query_heads", 8), golden.Integer("kv_heads", 2),
            golden.Flag("layer_norm", true), golden.Number("layer_norm_eps", 1e-5)) { Hooks = new() };
        run.Load(layer);
        using var probe = new AttentionMapProbe();
        using var installed = layer.Hooks.Install(probe);
        run.Output("output", layer.forward(run.Input("x")));
        run.Output("attention", probe[layer.Site].permute(0, 2, 3, 1));
    }
}

/// <summary>Importance factors of recorded weights.</summary>
internal sealed class ImportanceFactorOperation : GoldenOperation
{
    public override string Name => "gaussian-adaptive-attention/ImportanceFactor";

    public override void Run(GoldenRun run)
    {
        using var importance = ImportanceFactor.From(run.Input("weights").unbind(0));
        run.Output("importance_factor", importance.Map);
        run.Output("layer_contribution", importance.LayerContribution);
    }
}

/// <summary>What the cases of Gaussian attention have in common.</summary>
internal static class GaussianCases
{
    public static double? Padding(GoldenCase golden) => golden.HasOption("padding_value") ? golden.Number("padding_value") : null;
}
