using Heed.Mixers;
using Heed.Models.Diffusion;
using Heed.Models.Images;
using Heed.Probes;

namespace Heed.Lab.Verification.Operations;

/// <summary>A layer of agent attention in the four forms of its authors (arXiv 2312.08874).</summary>
internal sealed class AgentAttentionOperation : GoldenOperation
{
    public override string Name => "agent-attention/AgentAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var site = new AttentionSite(0, AttentionKind.Self, "attn");
        var hooks = new AttentionHooks();
        var layer = Make(golden, site, hooks);
        run.Load(layer);
        using var probe = new AttentionMapProbe();
        using var installed = hooks.Install(probe);
        run.Output("output", layer.forward(run.Input(layer is StripedAgentAttention ? "qkv" : "x")));
        run.Output("agent_attn", probe[AgentAttention.AggregateSite(site)]);
        run.Output("query_attn", probe[AgentAttention.BroadcastSite(site)]);
    }

    private static AgentAttentionModule Make(GoldenCase golden, AttentionSite site, AttentionHooks hooks)
    {
        var (dim, heads, agents, grid) = (golden.Integer("dim"), golden.Integer("num_heads"), golden.Integer("agent_num", 49), golden.Integer("bias_grid", 7));
        var size = (golden.Integer("height"), golden.Integer("width"));
        var variant = golden.Choice("variant", "swin", ("swin", "swin"), ("deit", "deit"), ("pvt", "pvt"), ("cswin", "cswin"));
        if (variant == "cswin")
        {
            var split = golden.Integer("split_size", 7);
            var stripe = golden.Integer("stripe") switch
            {
                -1 => size,
                0 => (size.Item1, split),
                1 => (split, size.Item2),
                var other => throw new InvalidDataException($"The case's stripe is {other}; -1, 0 and 1 are known."),
            };
            return new StripedAgentAttention(dim, heads, size, stripe, agents, grid) { Site = site, Hooks = hooks };
        }

        return new AgentAttention2d(new()
        {
            Width = dim, Heads = heads, Grid = size, Agents = agents, BiasGrid = grid, ClassToken = golden.Flag("class_token", variant == "deit"), Reduction = golden.Integer("sr_ratio", 1),
            SeparateQuery = variant == "pvt", ProjectionBias = golden.Flag("qkv_bias", true),
        }) { Site = site, Hooks = hooks };
    }
}

/// <summary>Merging of tokens, agents by further merging, and the way back.</summary>
internal sealed class TokenMergeOperation : GoldenOperation
{
    public override string Name => "agent-attention/TokenMerge";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var content = run.Input("x");
        var choices = golden.Has("in.dst_choice") ? run.Input("dst_choice") : null;
        using var merge = TokenMerge.Plan(
            content, golden.Integer("height"), golden.Integer("width"), golden.Integer("stride_x"), golden.Integer("stride_y"), golden.Integer("merge_count"), golden.Integer("agent_merge_count", 0), choices);
        var agents = merge.MergeAgents(content);
        if (golden.HasOption("has_agents") && golden.Flag("has_agents") != agents is not null)
        {
            throw new InvalidDataException($"The plan makes {merge.Agents} agents, and the case says that it makes {(agents is null ? "some" : "none")}.");
        }

        run.Output("merged", merge.Merge(content));
        if (agents is not null)
        {
            run.Output("agents", agents);
        }

        run.Output("unmerged", merge.Unmerge(run.Input("y")));
    }
}

/// <summary>Attention of Stable Diffusion through agents, and its fall back.</summary>
internal sealed class AgentSdAttentionOperation : GoldenOperation
{
    public override string Name => "agent-attention/AgentSdAttention";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var layer = new CrossAttention(golden.Integer("dim"), golden.Integer("num_heads"), golden.Integer("head_dim"), scale: golden.HasOption("scale") ? golden.Number("scale") : null);
        run.Load(layer);
        run.Output("output", layer.forward(run.Input("x"), null, golden.Has("in.agent") ? run.Input("agent") : null, new(golden.Number("k_scale2", 0.3), golden.Number("k_shortcut", 0.075))));
        if (golden.HasOption("uses_agents") && golden.Flag("uses_agents") != layer.UsedAgents)
        {
            throw new InvalidDataException($"Attention ran {(layer.UsedAgents ? "through" : "without")} agents, and the case expects the opposite.");
        }
    }
}

/// <summary>A whole Agent-DeiT.</summary>
internal sealed class AgentDeiTOperation : GoldenOperation
{
    public override string Name => "agent-attention/AgentDeiT";

    public override void Run(GoldenRun run)
    {
        var golden = run.Case;
        var images = run.Input("x");
        var model = AgentDeiT.Make(
            new()
            {
                ImageSize = golden.Integer("img_size"), PatchSize = golden.Integer("patch_size"), Channels = (int)images.shape[1], Classes = golden.Integer("num_classes"), Width = golden.Integer("dim"),
                Depth = golden.Integer("depth"), FeedForwardRatio = golden.Number("mlp_ratio", 4), ClassToken = true, NormEpsilon = golden.Number("norm_eps", 1e-6),
            },
            golden.Integer("num_heads"), GoldenLists.Integers(golden, "agent_num"), Math.Max(0, golden.Integer("agent_layers", 0)), golden.Flag("qkv_bias", true), golden.Integer("bias_grid", 7));
        run.Load(model);
        run.Output("logits", model.forward(images));
    }
}
