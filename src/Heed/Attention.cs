using Heed.Interop;
using TorchSharp;

namespace Heed;

/// <summary>The one door: every attention of every model goes through here.</summary>
/// <remarks>float32 on the CPU runs in the fused kernels, with gradients; float16 and bfloat16 on the CPU in libtorch's fused attention where the options allow it and otherwise in the
/// fused kernels; everything else (float64, other devices, calls whose hooks change scores or weights) in libtorch operations that materialise the map. The results mean the same.</remarks>
public static class Attention
{
    /// <summary>Attention of <paramref name="query"/> over <paramref name="key"/> and <paramref name="value"/>.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H. The query's dtype, or float16 or bfloat16 (a cache) beside a float32 or float64 query.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>, the key's dtype.</param>
    /// <param name="options">What to do beside plain softmax attention; null: nothing.</param>
    /// <param name="site">Where the call stands in its model; needed where hooks are given.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, H, Nq, Dv]</c>, in the query's dtype. Where the query lies in memory with heads inside tokens, so does the output.</returns>
    /// <exception cref="ArgumentException">Shapes, dtypes, devices or options do not fit together; the message says which and what was expected.</exception>
    public static torch.Tensor Compute(
        torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions? options = null, AttentionSite site = default, AttentionHooks? hooks = null)
    {
        options ??= AttentionOptions.Default;
        var stages = hooks is null ? AttentionStages.None : hooks.StagesAt(site);
        if (stages != AttentionStages.None)
        {
            return ComputeWithHooks(new(site, query, key, value, options), hooks!, stages);
        }

        var shape = AttentionShape.Read(query, key, value);
        shape.Check(options, query);
        return FusedPath.Takes(query)
            ? FusedPath.Compute(shape, query, key, value, options)
            : PlainAttention.Compute(new(site, query, key, value, options));
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

        var shape = AttentionShape.Read(call.Query, call.Key, call.Value);
        shape.Check(call.Options, call.Query);
        var passes = ObserverStages.Requests(call.Site, hooks);
        foreach (var pass in passes)
        {
            shape.Check(pass.Request, call.Options);
        }

        var output = (stages & (AttentionStages.Scores | AttentionStages.Weights)) == 0 && FusedPath.Takes(call.Query)
            ? FusedPath.Compute(shape, call, hooks, passes)
            : PlainAttention.Compute(call, hooks, passes);
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
