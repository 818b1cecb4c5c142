using Heed.Heads;

namespace Heed.Lab;

/// <summary>How a transformer is reduced (arXiv 2410.13732), as the options <c>qk</c>, <c>vo</c>, <c>mlp</c> and <c>heads</c> say it.</summary>
internal sealed record Reduction(QueryKeyMode QueryKey, ValueOutputMode ValueOutput, bool HasPerceptron, int Heads)
{
    public static Reduction Read(Specification specification)
    {
        var queryKey = specification.Choice("qk", QueryKeyMode.Shared, ("separate", QueryKeyMode.Separate), ("shared", QueryKeyMode.Shared), ("collapsed", QueryKeyMode.Collapsed),
            ("mirror", QueryKeyMode.SymmetricMirror), ("cholesky", QueryKeyMode.SymmetricCholesky));
        var valueOutput = specification.Choice("vo", ValueOutputMode.Separate, ("separate", ValueOutputMode.Separate), ("collapsed", ValueOutputMode.Collapsed), ("none", ValueOutputMode.None));

        // Modes that have one head get it without being told.
        var several = queryKey is QueryKeyMode.Separate or QueryKeyMode.Shared && valueOutput == ValueOutputMode.Separate;
        return new(queryKey, valueOutput, specification.Choice("mlp", false, ("on", true), ("off", false)), specification.Integer("heads", several ? 4 : 1, 1));
    }

    public ReducedAttention Make(int width, bool causal, AttentionSite site, AttentionHooks hooks) => new(width, Heads, QueryKey, ValueOutput, causal, site) { Hooks = hooks };
}
