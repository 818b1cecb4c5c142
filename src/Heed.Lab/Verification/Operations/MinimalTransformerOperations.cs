using Heed.Heads;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>Attention with fewer matrices (arXiv 2410.13732).</summary>
internal sealed class ReducedAttentionOperation : GoldenOperation
{
    public override string Name => "minimal-transformer/ReducedAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new ReducedAttention(
            golden.Integer("model_width"), golden.Integer("heads", 1), ReducedCases.QueryKey(golden), ReducedCases.ValueOutput(golden), golden.Flag("causal", false));
        run.Load(module);
        ReducedCases.Run(run, module, module);
    }
}

/// <summary>An encoder layer of them.</summary>
internal sealed class ReducedEncoderOperation : GoldenOperation
{
    public override string Name => "minimal-transformer/ReducedEncoder";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new ReducedEncoder(new()
        {
            Width = golden.Integer("model_width"),
            Heads = golden.Integer("heads", 1),
            QueryKey = ReducedCases.QueryKey(golden),
            ValueOutput = ReducedCases.ValueOutput(golden),
            Causal = golden.Flag("causal", false),
            FeedForward = golden.Flag("mlp", true),
            FeedForwardRatio = golden.Integer("mlp_ratio", 4),
            // Where the norm is not first, the parameters say whether it is anywhere.
            Norm = golden.Flag("pre_norm", true) ? NormPlacement.Pre : golden.Has("param.norm1_gamma") ? NormPlacement.Post : NormPlacement.None,
            Residual = golden.Flag("residual", true),
            NormEpsilon = golden.Number("norm_eps", 1e-6),
        });
        run.Load(module, golden.Names.Where(name => name.StartsWith("param.", StringComparison.Ordinal)).Select(name => name["param.".Length..])
            .Where(name => module.Attention.named_parameters().Any(entry => entry.name == name)).ToDictionary(name => name, name => $"attention.{name}", StringComparer.Ordinal));
        ReducedCases.Run(run, module, module.Attention);
    }
}

/// <summary>The exact collapse of a stack.</summary>
internal sealed class CollapseStackOperation : GoldenOperation
{
    public override string Name => "minimal-transformer/CollapseStack";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var (width, causal) = (golden.Integer("model_width"), golden.Flag("causal", false));
        using var stack = new AttentionStack(Enumerable.Range(0, golden.Integer("layers")).Select(_ =>
            new ReducedAttention(width, golden.Integer("heads", 1), ReducedCases.QueryKey(golden), ReducedCases.ValueOutput(golden), causal)));
        run.Load(stack);
        ReducedCases.CheckCount(golden, "parameters_before", stack);
        using var collapsed = AttentionReduction.CollapseStack(stack.Layers);
        ReducedCases.CheckCount(golden, "parameters_after", collapsed);
        for (var layer = 0; layer < collapsed.QueryKey.Count; layer++)
        {
            run.Output($"w_qk.{layer}", collapsed.QueryKey[layer]);
        }

        run.Output("w_vo", collapsed.ValueOutput);

        // The case's output must come from the layers and from what they collapse to.
        run.Output("y", stack.forward(run.Input("x")));
        run.Output("y", collapsed.forward(run.Input("x")));
    }

    private sealed class AttentionStack : nn.Module<Tensor, Tensor>
    {
        private readonly TorchSharp.Modules.ModuleList<ReducedAttention> layers;

        public AttentionStack(IEnumerable<ReducedAttention> parts)
            : base(nameof(AttentionStack))
        {
            layers = nn.ModuleList([.. parts]);
            RegisterComponents();
        }

        public IReadOnlyList<ReducedAttention> Layers => [.. layers];

        public override Tensor forward(Tensor input) => layers.Aggregate(input, (tokens, layer) => layer.forward(tokens));
    }
}

/// <summary>What the cases of the reduced transformers share.</summary>
internal static class ReducedCases
{
    public static QueryKeyMode QueryKey(GoldenCase golden) => golden.Choice("query_key", "separate", ("separate", QueryKeyMode.Separate), ("collapsed", QueryKeyMode.Collapsed), ("shared", QueryKeyMode.Shared),
        ("symmetric_mirror", QueryKeyMode.SymmetricMirror), ("symmetric_cholesky", QueryKeyMode.SymmetricCholesky));

    public static ValueOutputMode ValueOutput(GoldenCase golden) =>
        golden.Choice("value_output", "separate", ("separate", ValueOutputMode.Separate), ("collapsed", ValueOutputMode.Collapsed), ("none", ValueOutputMode.None));

    public static void CheckCount(GoldenCase golden, string option, nn.Module module)
    {
        var count = module.parameters().Sum(parameter => parameter.numel());
        if (golden.HasOption(option) && golden.Integer(option) != count)
        {
            throw new InvalidDataException($"The module has {count} parameters, and {option} of the case is {golden.Integer(option)}.");
        }
    }

    public static void Run(GoldenRun run, nn.Module<Tensor, Tensor> module, ReducedAttention attention)
    {
        CheckCount(run.Case, "parameter_count", module);
        using var probe = new AttentionMapProbe();
        attention.Hooks = new AttentionHooks();
        using (attention.Hooks.Install(probe))
        {
            run.Output("y", module.forward(run.Input("x")));
        }

        run.Output("attention", probe[probe.Sites[0]]);
    }
}
