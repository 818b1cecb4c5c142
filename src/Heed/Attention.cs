using TorchSharp;

namespace Heed;

/// <summary>The one door: every attention of every model goes through here.</summary>
public static class Attention
{
    /// <summary>Attention of <paramref name="query"/> over <paramref name="key"/> and <paramref name="value"/>.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="options">What to do beside plain softmax attention; null: nothing.</param>
    /// <param name="site">Where the call stands in its model; needed where hooks are given.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, H, Nq, Dv]</c>.</returns>
    public static torch.Tensor Compute(
        torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions? options = null, AttentionSite site = default, AttentionHooks? hooks = null)
    {
        var call = new AttentionCall(site, query, key, value, options ?? AttentionOptions.Default);
        var stages = hooks is null ? AttentionStages.None : hooks.StagesAt(site);
        return stages == AttentionStages.None ? PlainAttention.Compute(call) : ComputeWithHooks(call, hooks!, stages);
    }

    private static torch.Tensor ComputeWithHooks(AttentionCall call, AttentionHooks hooks, AttentionStages stages)
    {
        using var scope = torch.NewDisposeScope();
        if (stages.HasFlag(AttentionStages.Inputs))
        {
            foreach (var hook in hooks.Installed)
            {
                if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Inputs))
                {
                    hook.OnInputs(call);
                }
            }
        }

        var output = PlainAttention.Compute(call, hooks);
        if (stages.HasFlag(AttentionStages.Output))
        {
            foreach (var hook in hooks.Installed)
            {
                if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Output))
                {
                    output = hook.OnOutput(call, output);
                }
            }
        }

        return output.MoveToOuterDisposeScope();
    }
}
