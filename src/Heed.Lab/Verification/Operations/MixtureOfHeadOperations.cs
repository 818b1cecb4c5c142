using System.Globalization;
using Heed.Heads;
using Heed.Models.Diffusion;
using Heed.Models.Images;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Verification.Operations;

/// <summary>The attention of MoH-DiT (arXiv 2410.11842).</summary>
internal sealed class MoHAttention : GoldenOperation
{
    public override string Name => "moh/MoHAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var module = new MixtureOfHeadAttention(new()
        {
            Width = golden.Integer("dim"),
            Heads = golden.Integer("num_heads"),
            HeadWidth = golden.Integer("head_dim", 0),
            SharedHeads = golden.Integer("shared_heads", 0),
            RoutedHeads = golden.Integer("routed_heads", 0),
            QueryKeyValueBias = golden.Flag("qkv_bias", true),
            QueryKeyNorm = golden.Flag("qk_norm", false),
            NormEpsilon = golden.Number("qk_norm_eps", 1e-5),
            Attention = new() { Scale = golden.HasOption("scale") ? golden.Number("scale") : null },
        });
        run.Load(module);
        module.train(golden.Flag("training", false));
        var (output, routing) = module.ForwardWithRouting(run.Input("x"));
        MixtureOfHeadCases.Outputs(run, output, routing);
    }
}

/// <summary>The attention of MoH-LLaMA3: the router reads the queries' lengths.</summary>
internal sealed class MoHLlamaAttention : GoldenOperation
{
    public override string Name => "moh/MoHLlamaAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var heads = golden.Integer("num_heads");
        var router = golden.Choice(
            "router", "query_norm", ("query_norm", new QueryNormHeadRouter(heads, golden.Integer("shared_heads", 0), golden.Integer("routed_heads", 0))), ("none", null));
        Tensor? gates = null;
        var module = new GatedAttention(GatedAttentionCases.Shape(golden) with
        {
            QueryKeyValueBias = golden.Flag("attention_bias", false),
            OutputBias = golden.Flag("attention_bias", false),
            Attention = (golden.Flag("causal", true) ? AttentionOptions.CausalSelf : AttentionOptions.Default) with
            {
                Mask = golden.Has("in.allowed") ? run.Input("allowed").to(@bool).unsqueeze(1) : null,
            },
        })
        {
            Router = router,
            Hooks = new AttentionHooks(),
        };
        run.Load(module);
        module.train(golden.Flag("training", false));
        var rotary = new RotaryEmbedding(golden.Integer("head_dim"), golden.Number("rope_theta", 10000));
        using var probe = new AttentionMapProbe();
        if (router is not null)
        {
            router.Observer = routing => gates = routing.Gates.detach().clone().DetachFromDisposeScope();
        }

        using (module.Hooks.Install(probe))
        {
            run.Output("output", module.forward(run.Input("x"), rotary.Tables(run.Input("position_ids"), run.Type)));
        }

        run.Output("attn_weights", probe[probe.Sites[0]]);
        if (gates is not null)
        {
            run.Output("head_gates", gates);
            gates.Dispose();
        }
    }
}

/// <summary>The attention of TransNeXt's last stage, with routed heads.</summary>
internal sealed class TransNeXtAttentionOperation : GoldenOperation
{
    public override string Name => "moh/TransNeXtAttention";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var module = new TransNeXtAttention(MixtureOfHeadCases.Shape(run));
        run.Load(module);
        module.train(run.Case.Flag("training", false));
        var (output, routing) = module.ForwardWithRouting(run.Input("x"));
        MixtureOfHeadCases.Outputs(run, output, routing);
    }
}

/// <summary>Aggregated attention, with routed heads.</summary>
internal sealed class TransNeXtAggregatedAttention : GoldenOperation
{
    public override string Name => "moh/TransNeXtAggregatedAttention";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var module = new AggregatedAttention(MixtureOfHeadCases.Shape(run));
        run.Load(module);
        module.train(run.Case.Flag("training", false));
        var (output, routing) = module.ForwardWithRouting(run.Input("x"));
        MixtureOfHeadCases.Outputs(run, output, routing);
    }
}

/// <summary>A block of TransNeXt.</summary>
internal sealed class TransNeXtBlockOperation : GoldenOperation
{
    public override string Name => "moh/TransNeXtBlock";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        // In a block the config's epsilon is that of the block's norms.
        var module = new TransNeXtBlock(MixtureOfHeadCases.Shape(run) with { PooledNormEpsilon = 1e-5 }, golden.Number("mlp_ratio", 4), golden.Number("norm_eps", 1e-6));
        run.Load(module);
        module.train(golden.Flag("training", false));
        run.Output("output", module.forward(run.Input("x")));
    }
}

/// <summary>A whole MoH-DiT.</summary>
internal sealed class MoHDiT : GoldenOperation
{
    public override string Name => "moh/MoHDiT";

    public override bool NeedsDouble => true;

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var depth = golden.Integer("depth");
        int[] PerBlock(string key)
        {
            var text = golden.Text(key);
            var values = text.Split(',', StringSplitOptions.TrimEntries).Select(part => int.Parse(part, CultureInfo.InvariantCulture)).ToArray();
            return values.Length == depth ? values : values.Length == 1 ? [.. Enumerable.Repeat(values[0], depth)]
                : throw new InvalidDataException($"The case's {key} is '{text}'; a number for each of {depth} blocks was expected.");
        }

        var (heads, shared, routed) = (PerBlock("num_heads"), PerBlock("shared_heads"), PerBlock("routed_heads"));
        var model = new DiT(new()
        {
            InputSize = golden.Integer("input_size"),
            PatchSize = golden.Integer("patch_size"),
            Channels = golden.Integer("in_channels"),
            Width = golden.Integer("dim"),
            HeadWidth = golden.Integer("head_dim"),
            Blocks = [.. Enumerable.Range(0, depth).Select(block => new BlockHeads(heads[block], shared[block], routed[block]))],
            FeedForwardRatio = golden.Number("mlp_ratio", 4),
            Classes = golden.Integer("num_classes"),
            LabelDropout = golden.Number("class_dropout_prob", 0.1),
            LearnVariance = golden.Flag("learn_sigma", true),
            FrequencyWidth = golden.Integer("frequency_embedding_size", 256),
            // The case's gradients are those of its outputs alone.
            BalanceWeight = 0,
        });
        run.Load(model);
        model.train(golden.Flag("training", false));
        run.Output("output", model.forward(run.Input("x"), run.Input("t"), run.Input("y").to(int64)));
    }
}

/// <summary>What these cases share.</summary>
internal static class MixtureOfHeadCases
{
    public static TransNeXtAttentionOptions Shape(GoldenRun run)
    {
        var golden = run.Case;
        return new()
        {
            Width = golden.Integer("dim"),
            Heads = golden.Integer("num_heads"),
            Rows = golden.Integer("height"),
            Columns = golden.Integer("width"),
            SharedHeads = golden.Integer("shared_heads", 0),
            RoutedHeads = golden.Integer("routed_heads", 0),
            QueryKeyValueBias = golden.Flag("qkv_bias", true),
            Reduction = golden.Integer("sr_ratio", 1),
            PooledRows = golden.Integer("pool_height", 0),
            PooledColumns = golden.Integer("pool_width", 0),
            Window = golden.Integer("window_size", 3),
            PooledNormEpsilon = golden.Number("norm_eps", 1e-5),
            Positions = golden.Has("in.relative_coords_table") ? new(run.Input("relative_coords_table"), run.Input("relative_pos_index").to(int64)) : null,
        };
    }

    public static void Outputs(GoldenRun run, Tensor output, HeadRouting? routing)
    {
        run.Output("output", output);
        if (routing is not null)
        {
            run.Output("head_gates", routing.Gates);
            if (routing.LoadBalanceLoss is { } loss)
            {
                run.Output("load_balance_loss", loss);
            }
        }
    }
}
