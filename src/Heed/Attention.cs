using Heed.Interop;
using TorchSharp;

namespace Heed;

/// <summary>The one door: every attention of every model goes through here.</summary>
/// <remarks>On the CPU, float32, float16 and bfloat16 run in the fused kernels, with gradients and in O(N) memory; everything else
/// (float64, other devices, calls whose hooks change scores or weights) in libtorch operations that materialise the map. The results mean
/// the same.</remarks>
public static class Attention
{
    /// <summary>Attention of <paramref name="query"/> over <paramref name="key"/> and <paramref name="value"/>.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H. The query's dtype, or float16 or bfloat16 (a cache) beside a float32
    /// or float64 query.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>, the key's dtype.</param>
    /// <param name="options">What to do beside plain softmax attention; null: nothing.</param>
    /// <param name="site">Where the call stands in its model; needed where hooks are given.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <returns><c>[B, H, Nq, Dv]</c>, in the query's dtype. Where the query lies in memory with heads inside tokens, so does the
    /// output.</returns>
    /// <exception cref="ArgumentException">Shapes, dtypes, devices or options do not fit together; the message says which and what was
    /// expected.</exception>
    public static torch.Tensor Compute(
        torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions? options = null, AttentionSite site = default, AttentionHooks? hooks = null)
    {
        options ??= AttentionOptions.Default;
        var stages = hooks is null ? AttentionStages.None : hooks.StagesAt(site);
        if (stages != AttentionStages.None)
        {
            return ComputeWithHooks(new(site, query, key, value, options) { Layout = hooks!.Layout, FirstPosition = hooks.FirstPosition }, hooks, stages);
        }

        if (options.Selector is { } selector)
        {
            using var scope = torch.NewDisposeScope();
            var call = selector.Select(query, key, value, options, site);
            return Compute(call.Query, call.Key, call.Value, call.Options, site).MoveToOuterDisposeScope();
        }

        var shape = AttentionShape.Read(query, key, value);
        shape.Check(options, query);
        return FusedPath.Takes(query)
            ? FusedPath.Compute(shape, query, key, value, options)
            : PlainAttention.Compute(new(site, query, key, value, options));
    }

    /// <summary>Attention over a part of the keys, with what <see cref="Merge"/> needs to put it together with another part.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="options">As for <see cref="Compute"/>, with <see cref="Heed.Kernels.Normalizer.Softmax"/>. A sink counts in the
    /// log-sum-exp: give the sinks to one part only, one in which every row that has a key at all has one (a row without any forgets its
    /// sink).</param>
    /// <returns>The output <c>[B, H, Nq, Dv]</c>, and the log-sum-exp of every row <c>[B, H, Nq]</c> in float32 (float64 for float64
    /// inputs), minus infinity where a row has no pair. Gradients flow through both.</returns>
    /// <exception cref="ArgumentException">As for <see cref="Compute"/>, or the normaliser is another.</exception>
    public static (torch.Tensor Output, torch.Tensor LogSumExp) ComputePart(
        torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions? options = null)
    {
        options ??= AttentionOptions.Default;
        if (options.Selector is { } selector)
        {
            using var scope = torch.NewDisposeScope();
            var call = selector.Select(query, key, value, options);
            var (output, logSumExp) = ComputePart(call.Query, call.Key, call.Value, call.Options);
            return (output.MoveToOuterDisposeScope(), logSumExp.MoveToOuterDisposeScope());
        }

        var shape = AttentionShape.Read(query, key, value);
        shape.Check(options, query);
        if (options.Normalizer != Kernels.Normalizer.Softmax)
        {
            throw new ArgumentException(
                $"A log-sum-exp cannot be combined with {nameof(AttentionOptions)}.Normalizer.{options.Normalizer}: only softmax has one.", nameof(options));
        }

        return FusedPath.Takes(query)
            ? FusedPath.ComputePart(shape, query, key, value, options)
            : (PlainAttention.Compute(new(default, query, key, value, options)), PlainAttention.LogSumExp(query, key, options));
    }

    /// <summary>Merges attention over two disjoint sets of keys into attention over both: e^la oa + e^lb ob over e^la + e^lb, row by row.
    /// Differentiable.</summary>
    /// <param name="first">Output <c>[B, H, Nq, Dv]</c> and log-sum-exp <c>[B, H, Nq]</c> of one part, as <see cref="ComputePart"/> gives
    /// them.</param>
    /// <param name="second">Those of the other part.</param>
    /// <returns>Output and log-sum-exp of the whole, to be merged further. A row without a pair in either part gives zeros and minus
    /// infinity.</returns>
    public static (torch.Tensor Output, torch.Tensor LogSumExp) Merge(
        (torch.Tensor Output, torch.Tensor LogSumExp) first, (torch.Tensor Output, torch.Tensor LogSumExp) second)
    {
        using var scope = torch.NewDisposeScope();
        using Scalar zero = 0, unity = 1, nothing = double.NegativeInfinity;
        var largest = torch.maximum(first.LogSumExp, second.LogSumExp).detach();
        largest = largest.masked_fill(largest.isinf(), zero);
        var (one, two) = ((first.LogSumExp - largest).exp(), (second.LogSumExp - largest).exp());
        var sum = one + two;
        var none = sum.eq(zero);
        sum = sum.masked_fill(none, unity);
        var output = (first.Output * (one / sum).unsqueeze(-1)) + (second.Output * (two / sum).unsqueeze(-1));
        var logSumExp = (largest + sum.log()).masked_fill(none, nothing);
        return (output.to(first.Output.dtype).MoveToOuterDisposeScope(), logSumExp.MoveToOuterDisposeScope());
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

        if (call.Options.Selector is { } selector)
        {
            AttentionShape.Read(call.Query, call.Key, call.Value).Check(call.Options, call.Query);
            call.Options = call.Options with { Selector = null };
            if ((stages & ~(AttentionStages.Inputs | AttentionStages.Output)) == 0)
            {
                selector.Apply(call);
            }
            else
            {
                selector.ApplyKeepingKeys(call);
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
