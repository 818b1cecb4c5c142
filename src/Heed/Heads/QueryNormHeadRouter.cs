using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The router without parameters that turns a trained model into a mixture of heads (arXiv 2410.11842, section 3.3): the first heads are shared, and of the others a token uses the K whose queries are longest. Every
/// head that is used has the weight one.</summary>
/// <remarks>For training, the paper quantises the scores with a straight-through estimator. Its code is not public; here the weight of a routed head passes its gradient on to the softmax of the normalised lengths, and the
/// load-balance loss is that of <see cref="HeadRouter.LoadBalance"/> over the same softmax.</remarks>
public sealed class QueryNormHeadRouter
{
    /// <summary>Makes a router.</summary>
    /// <param name="heads">Number H of query heads.</param>
    /// <param name="sharedHeads">How many heads, the first ones, every token uses.</param>
    /// <param name="routedHeads">How many of the other heads a token uses.</param>
    /// <exception cref="ArgumentException">The counts do not fit together.</exception>
    public QueryNormHeadRouter(int heads, int sharedHeads, int routedHeads)
    {
        HeadRouter.Check(heads, sharedHeads, routedHeads);
        (Heads, SharedHeads, RoutedHeads) = (heads, sharedHeads, routedHeads);
    }

    /// <summary>Number of query heads.</summary>
    public int Heads { get; }

    /// <summary>How many heads every token uses.</summary>
    public int SharedHeads { get; }

    /// <summary>How many of the other heads a token uses.</summary>
    public int RoutedHeads { get; }

    /// <summary>Times which the load-balance loss is attached to the weights in training, see <see cref="HeadRouter.Route"/>.</summary>
    public double BalanceWeight { get; init; }

    /// <summary>Receives every routing, for statistics; null: nobody does.</summary>
    public Action<HeadRouting>? Observer { get; set; }

    /// <summary>Receives the queries <c>[B, N, H, D]</c> of every routing, for statistics; null: nobody does.</summary>
    public Action<Tensor>? QueryObserver { get; set; }

    /// <summary>A router that uses shares of the heads: a half shared and three quarters active is what the paper converts Llama 3 with.</summary>
    /// <param name="heads">Number H of query heads.</param>
    /// <param name="sharedFraction">Share of the heads that are shared, 0 to 1; rounded to whole heads.</param>
    /// <param name="activeFraction">Share of the heads that a token uses, at least the shared ones, above 0 to 1; rounded to whole heads.</param>
    /// <param name="balanceWeight">See <see cref="BalanceWeight"/>.</param>
    /// <exception cref="ArgumentException">A share is out of range.</exception>
    public static QueryNormHeadRouter OfFractions(int heads, double sharedFraction = 0.5, double activeFraction = 0.75, double balanceWeight = 0)
    {
        if (!(sharedFraction is >= 0 and <= 1) || !(activeFraction is > 0 and <= 1) || activeFraction < sharedFraction)
        {
            throw new ArgumentException(
                $"The shares of shared and active heads lie between 0 and 1, and the shared heads are among the active ones; {sharedFraction} and {activeFraction} were given.", nameof(activeFraction));
        }

        var active = Math.Max(1, (int)Math.Round(heads * activeFraction));
        var shared = Math.Min(active, (int)Math.Round(heads * sharedFraction));
        return new(heads, shared, active - shared) { BalanceWeight = balanceWeight };
    }

    /// <summary>Routes tokens.</summary>
    /// <param name="query">The queries <c>[B, N, H, D]</c>, before or after a rotation by position.</param>
    /// <param name="training">Whether weights get a gradient by the straight-through estimator and the load-balance loss is computed; otherwise they are constants.</param>
    /// <param name="counted">Boolean <c>[B, N]</c>: the tokens that count in the loss; null: all.</param>
    /// <exception cref="ArgumentException">The queries are not <c>[B, N, H, D]</c>.</exception>
    public HeadRouting Route(Tensor query, bool training = false, Tensor? counted = null)
    {
        ArgumentNullException.ThrowIfNull(query);
        if (query.dim() != 4 || query.shape[2] != Heads)
        {
            throw new ArgumentException($"This router reads queries [batch, tokens, {Heads}, width], not [{string.Join(", ", query.shape)}].", nameof(query));
        }

        QueryObserver?.Invoke(query);
        using var scope = NewDisposeScope();
        var routing = Routed(query, training && is_grad_enabled() && query.requires_grad, counted);
        Observer?.Invoke(routing);
        return routing.MoveToOuterDisposeScope();
    }

    private HeadRouting Routed(Tensor query, bool training, Tensor? counted)
    {
        var shared = ones([query.shape[0], query.shape[1], SharedHeads], dtype: @bool, device: query.device);
        if (RoutedHeads == 0)
        {
            return new(shared.to(query.dtype), shared, null);
        }

        var candidates = training ? query : query.detach();
        var lengths = candidates.narrow(2, SharedHeads, Heads - SharedHeads).norm(-1, false, 2);
        var chosen = HeadRouter.Largest(lengths, RoutedHeads);
        var used = cat([shared, chosen], -1);
        var gates = used.to(query.dtype);
        if (!training)
        {
            return new(gates, used, null);
        }

        // The deviation of a single head is not defined, that of equal lengths zero; it would not change a ranking anyway.
        using Scalar least = 1e-6;
        var likelihood = nn.functional.softmax(Heads - SharedHeads > 1 ? lengths / lengths.std(-1, unbiased: true, keepdim: true).clamp_min(least) : lengths, -1);
        var loss = HeadRouter.LoadBalance(likelihood, chosen, counted);
        gates = gates + cat([zeros(shared.shape, dtype: query.dtype, device: query.device), likelihood - likelihood.detach()], -1);
        if (BalanceWeight != 0)
        {
            using Scalar weight = BalanceWeight;
            gates = Interop.AttachedLossFunction.Attach(gates, loss * weight);
        }

        return new(gates, used, loss) { NeedsAllHeads = true };
    }
}
