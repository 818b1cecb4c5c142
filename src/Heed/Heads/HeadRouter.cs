using Heed.Interop;
using Heed.Layers;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Which heads every token uses, and with what weight.</summary>
/// <param name="Gates">Weights <c>[B, N, H]</c>, zero for heads that a token does not use.</param>
/// <param name="Chosen">Boolean <c>[B, N, H]</c>: the heads that a token uses. A weight can be zero although its head is chosen, by rounding.</param>
/// <param name="LoadBalanceLoss">How unevenly the routed heads are used, a scalar with gradient: K where all are used alike. Null: not asked for, or no head is routed.</param>
public sealed record HeadRouting(Tensor Gates, Tensor Chosen, Tensor? LoadBalanceLoss)
{
    /// <summary>Whether weights of heads that are not chosen have a gradient, too (a straight-through estimator), so that all heads must be computed where gradients are wanted.</summary>
    public bool NeedsAllHeads { get; init; }

    internal HeadRouting MoveToOuterDisposeScope()
    {
        Gates.MoveToOuterDisposeScope();
        Chosen.MoveToOuterDisposeScope();
        LoadBalanceLoss?.MoveToOuterDisposeScope();
        return this;
    }
}

/// <summary>The two-stage router of mixture-of-head attention (arXiv 2410.11842, equations 5 to 8): the first heads are shared by all tokens, of the others each token has its own K.</summary>
/// <remarks>
/// <para>As in the authors' code, which differs from the paper's text: the weights of the chosen heads are normalised to sum to K, those of the shared heads sum to their number, and the two parts are weighed by twice a
/// softmax of two logits. A router that prefers nothing gives every head it uses the weight one. Without routed heads (K = 0) all heads are shared; without shared heads there is one softmax only; a single shared head has
/// the weight one before the two parts are weighed.</para>
/// <para>The three maps have no biases. Parameter names: <c>wg</c> (routed), <c>wg_0</c> (the two parts), <c>wg_1</c> (shared).</para>
/// </remarks>
public sealed class HeadRouter : nn.Module
{
    private readonly Projection? wg;
    private readonly Projection? wg_0;
    private readonly Projection? wg_1;

    /// <summary>Makes a router.</summary>
    /// <param name="width">Width C of a token.</param>
    /// <param name="heads">Number H of heads.</param>
    /// <param name="sharedHeads">How many heads, the first ones, every token uses.</param>
    /// <param name="routedHeads">How many of the other heads a token uses: K, not the number of candidates.</param>
    /// <exception cref="ArgumentException">The counts do not fit together.</exception>
    public HeadRouter(int width, int heads, int sharedHeads, int routedHeads)
        : base(nameof(HeadRouter))
    {
        Check(heads, sharedHeads, routedHeads);
        (Heads, SharedHeads, RoutedHeads) = (heads, sharedHeads, routedHeads);
        wg = routedHeads > 0 ? new(width, heads - sharedHeads, false) : null;
        wg_0 = routedHeads > 0 && sharedHeads > 0 ? new(width, 2, false) : null;
        wg_1 = sharedHeads > 1 ? new(width, sharedHeads, false) : null;
        RegisterComponents();
    }

    /// <summary>Number of heads.</summary>
    public int Heads { get; }

    /// <summary>How many heads every token uses.</summary>
    public int SharedHeads { get; }

    /// <summary>How many of the other heads a token uses.</summary>
    public int RoutedHeads { get; }

    /// <summary>Share of the heads that a token uses.</summary>
    public double ActiveShare => (SharedHeads + RoutedHeads) / (double)Heads;

    /// <summary>The map to the routed heads, <c>wg</c>; null where none is routed.</summary>
    public Projection? ToRouted => wg;

    /// <summary>The map to the two parts, <c>wg_0</c>; null where there is only one.</summary>
    public Projection? ToParts => wg_0;

    /// <summary>The map to the shared heads, <c>wg_1</c>; null where there are fewer than two.</summary>
    public Projection? ToShared => wg_1;

    /// <summary>Routes tokens.</summary>
    /// <param name="tokens">What the attention reads, <c>[B, N, C]</c>.</param>
    /// <param name="balance">Whether the load-balance loss is wanted.</param>
    /// <param name="counted">Boolean <c>[B, N]</c>: the tokens that count in the loss; null: all. Leave padding out.</param>
    /// <param name="balanceWeight">Times which the loss is attached to the weights: a backward pass through them then includes it, without a training loop that knows of it. Zero: not attached.</param>
    /// <exception cref="ArgumentException">The tokens are not <c>[B, N, C]</c>, or the mask is not boolean <c>[B, N]</c>.</exception>
    public HeadRouting Route(Tensor tokens, bool balance = false, Tensor? counted = null, double balanceWeight = 0)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 3)
        {
            throw new ArgumentException($"A router reads tokens [batch, tokens, width], not [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        var shared = Shared(tokens);
        if (wg is null)
        {
            return new HeadRouting(shared!, ones(shared!.shape, dtype: @bool, device: tokens.device), null).MoveToOuterDisposeScope();
        }

        var likelihood = nn.functional.softmax(wg.forward(tokens), -1);
        var chosen = Largest(likelihood, RoutedHeads);
        var kept = likelihood * chosen.to(likelihood.dtype);
        using Scalar least = likelihood.dtype == float64 ? Math.BitIncrement(1.0) - 1 : MathF.BitIncrement(1) - 1, count = (double)RoutedHeads, two = 2;
        var routed = kept / kept.sum(-1, keepdim: true).clamp_min(least) * count;
        var gates = routed;
        if (shared is not null)
        {
            var parts = nn.functional.softmax(wg_0!.forward(tokens), -1) * two;
            gates = cat([shared * parts.narrow(-1, 0, 1), routed * parts.narrow(-1, 1, 1)], -1);
        }

        var loss = balance ? LoadBalance(likelihood, chosen, counted) : null;
        if (loss is not null && balanceWeight != 0)
        {
            using Scalar weight = balanceWeight;
            gates = AttachedLossFunction.Attach(gates, loss * weight);
        }

        var used = shared is null ? chosen : cat([ones(shared.shape, dtype: @bool, device: tokens.device), chosen], -1);
        return new HeadRouting(gates, used, loss).MoveToOuterDisposeScope();
    }

    /// <summary>How unevenly routed heads are used: <c>E sum_j P_j f_j</c> with P the mean likelihood of a head and f the share of tokens that chose it, over the tokens of the whole batch. K where all are alike; the gradient
    /// flows through P only. (The paper writes it without the factor E.)</summary>
    /// <param name="likelihood"><c>[B, N, E]</c>, rows sum to one.</param>
    /// <param name="chosen">Boolean <c>[B, N, E]</c>.</param>
    /// <param name="counted">Boolean <c>[B, N]</c>: the tokens that count; null: all.</param>
    /// <exception cref="ArgumentException">The mask is not boolean <c>[B, N]</c>.</exception>
    public static Tensor LoadBalance(Tensor likelihood, Tensor chosen, Tensor? counted = null)
    {
        ArgumentNullException.ThrowIfNull(likelihood);
        ArgumentNullException.ThrowIfNull(chosen);
        using var scope = NewDisposeScope();
        using Scalar experts = (double)likelihood.shape[^1], one = 1;
        var picked = chosen.to(likelihood.dtype);
        if (counted is null)
        {
            return ((likelihood.mean([0L, 1L]) * picked.mean([0L, 1L])).sum() * experts).MoveToOuterDisposeScope();
        }

        if (counted.dtype != ScalarType.Bool || !counted.shape.AsSpan().SequenceEqual(likelihood.shape.AsSpan(0, 2)))
        {
            throw new ArgumentException(
                $"The mask of the tokens that count is boolean [{likelihood.shape[0]}, {likelihood.shape[1]}], not {counted.dtype} [{string.Join(", ", counted.shape)}].", nameof(counted));
        }

        var weight = counted.to(likelihood.dtype).unsqueeze(-1);
        var total = weight.sum().clamp_min(one);
        return (((likelihood * weight).sum([0L, 1L]) / total * ((picked * weight).sum([0L, 1L]) / total)).sum() * experts).MoveToOuterDisposeScope();
    }

    internal static void Check(int heads, int sharedHeads, int routedHeads)
    {
        if (heads < 1 || sharedHeads < 0 || routedHeads < 0)
        {
            throw new ArgumentException($"There must be at least one head, and shared and routed heads cannot be negative; {heads}, {sharedHeads} and {routedHeads} were given.");
        }

        if (sharedHeads + routedHeads > heads)
        {
            throw new ArgumentException($"{sharedHeads} shared and {routedHeads} routed heads are more than the {heads} there are: routed heads are those chosen for a token, from the heads that are not shared.");
        }

        if (routedHeads == 0 && sharedHeads != heads)
        {
            throw new ArgumentException($"Without routed heads all {heads} heads must be shared, not {sharedHeads}: the others would never be used.");
        }
    }

    /// <summary>Marks the largest of the last dimension; of equals, the first.</summary>
    internal static Tensor Largest(Tensor scores, int count)
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (_, order) = sort(scores.detach(), -1, descending: true, stable: true);
        var first = order.narrow(-1, 0, count);
        return zeros(scores.shape, dtype: @bool, device: scores.device).scatter_(-1, first, ones(first.shape, dtype: @bool, device: scores.device)).MoveToOuterDisposeScope();
    }

    private Tensor? Shared(Tensor tokens)
    {
        if (SharedHeads == 0)
        {
            return null;
        }

        if (wg_1 is null)
        {
            return ones([.. tokens.shape[..2], 1], dtype: tokens.dtype, device: tokens.device);
        }

        using Scalar count = (double)SharedHeads;
        return nn.functional.softmax(wg_1.forward(tokens), -1) * count;
    }
}
