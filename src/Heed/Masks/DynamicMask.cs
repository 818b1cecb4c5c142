using Heed.Biases;
using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>How a key's importance follows from its values (arXiv 2508.02124).</summary>
public enum ImportanceForm
{
    /// <summary>A * softplus(dt): the authors' later code, for numerical stability.</summary>
    Linear,

    /// <summary>exp(A * softplus(dt)): the paper's formula, and the released Doge models' in the transformers library. Grows fast: an A of 3 adds e^15 to a score where softplus is 5.</summary>
    Exponential,
}

/// <summary>Dynamic masks (arXiv 2508.02124): each key/value head learns an importance of every key from the values; a query keeps the w most important keys among those it may see.</summary>
/// <remarks>
/// <para>Importance has no query index. Under a causal mask the kept set is therefore a running top w: a new query brings one key in and at most one out, and what is out never returns.
/// <see cref="Running"/> finds all sets in one pass of O(n log w), and a cache of w slots (<see cref="KeyValueCache.AppendRanked"/>) holds all that decoding needs.</para>
/// <para>Equal importances are decided for the later key, so that a layer whose A is zero is a sliding window of w keys. The query's own key is not always kept.</para>
/// <para>The authors' code, given a bias without a query axis and no mask, takes one top w over all keys, future ones included. That is not offered.</para>
/// </remarks>
public static class DynamicMask
{
    /// <summary>The importance of every key, differentiable.</summary>
    /// <param name="value"><c>[B, Hkv, n, D]</c>.</param>
    /// <param name="weight"><c>dt_proj.weight</c>, <c>[Hkv, Hkv * D]</c>: a head's importance reads the values of all heads.</param>
    /// <param name="bias"><c>dt_proj.bias</c>, <c>[Hkv]</c>; null: none.</param>
    /// <param name="amplitude"><c>A</c>, <c>[Hkv]</c>.</param>
    /// <param name="form">Linear or exponential.</param>
    /// <returns><c>[B, Hkv, n]</c>.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit each other.</exception>
    public static Tensor Importance(Tensor value, Tensor weight, Tensor? bias, Tensor amplitude, ImportanceForm form)
    {
        ArgumentNullException.ThrowIfNull(value);
        ArgumentNullException.ThrowIfNull(weight);
        ArgumentNullException.ThrowIfNull(amplitude);
        if (value.dim() != 4)
        {
            throw new ArgumentException($"Values are [B, Hkv, n, D]; {AttentionShape.Text(value)} was given.", nameof(value));
        }

        var (heads, width) = (value.shape[1], value.shape[3]);
        if (!weight.shape.SequenceEqual([heads, heads * width]) || !amplitude.shape.SequenceEqual([heads]) || (bias is not null && !bias.shape.SequenceEqual([heads])))
        {
            throw new ArgumentException(
                $"For {heads} key/value heads of {width}, dt_proj is [{heads}, {heads * width}] (its bias [{heads}]) and A [{heads}]; {AttentionShape.Text(weight)} and {AttentionShape.Text(amplitude)} were given.",
                nameof(weight));
        }

        using var scope = NewDisposeScope();
        var steps = nn.functional.softplus(nn.functional.linear(value.transpose(1, 2).flatten(2), weight, bias!), 1, 20);
        var importance = steps * amplitude;
        return (form == ImportanceForm.Exponential ? importance.exp() : importance).transpose(1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>The library's mask of the w largest biases of every row among those allowed.</summary>
    /// <param name="bias"><c>[B or 1, H or 1, T or 1, n]</c>; taken without its gradient.</param>
    /// <param name="allowed">Boolean, broadcastable to the bias's rows: <c>[B, H or 1, T or 1, n]</c>, or <c>[B, n]</c> for all rows (a shorter one counts from the end: what lies before
    /// is allowed). Null: everything.</param>
    /// <param name="windowSize">w, from 1.</param>
    /// <param name="blockSize">Keys of a block that is rounded to all or nothing (see <see cref="Smooth"/>); 0 or 1: none.</param>
    /// <returns>Boolean <c>[B, H, T, n]</c>, as far as the inputs have these sizes.</returns>
    /// <exception cref="ArgumentException">A size is out of range, a shape does not broadcast, or an importance is not a number.</exception>
    public static Tensor TopK(Tensor bias, Tensor? allowed, int windowSize, int blockSize = 0)
    {
        CheckWindow(windowSize);
        using var scope = NewDisposeScope();
        var (values, possible) = Masked(bias, allowed);
        var keys = values.shape[^1];
        // Stable and from the end: of equal values the later keys come first.
        var order = sort(values.flip(-1), -1, descending: true, stable: true).indices.narrow(-1, 0, Math.Min(windowSize, keys));
        using Scalar last = keys - 1;
        var kept = zeros_like(possible).scatter_(-1, order.neg().add(last), ones_like(order).to(ScalarType.Bool)).logical_and(possible);
        return Smooth(kept, blockSize).MoveToOuterDisposeScope();
    }

    /// <summary>The library's mask of the allowed keys with a positive bias.</summary>
    /// <param name="bias">As for <see cref="TopK"/>.</param>
    /// <param name="allowed">As for <see cref="TopK"/>.</param>
    /// <param name="blockSize">As for <see cref="TopK"/>.</param>
    /// <returns>Boolean <c>[B, H, T, n]</c>, as far as the inputs have these sizes.</returns>
    /// <exception cref="ArgumentException">A shape does not broadcast, the block size is negative, or an importance is not a number.</exception>
    public static Tensor Relu(Tensor bias, Tensor? allowed, int blockSize = 0)
    {
        using var scope = NewDisposeScope();
        using Scalar zero = 0;
        var (values, possible) = Masked(bias, allowed);
        return Smooth(values.gt(zero).logical_and(possible), blockSize).MoveToOuterDisposeScope();
    }

    /// <summary>Rounds blocks of keys: a block of which more than half is true becomes all true, any other all false; a shorter last block counts its own length. The number of keys
    /// changes, and keys that were not allowed may become true: apply a causal mask again afterwards.</summary>
    /// <param name="mask">Boolean <c>[..., n]</c>.</param>
    /// <param name="blockSize">Keys of a block; 0 or 1: the mask stays as it is.</param>
    /// <exception cref="ArgumentException">The block size is negative.</exception>
    public static Tensor Smooth(Tensor mask, int blockSize)
    {
        ArgumentNullException.ThrowIfNull(mask);
        if (blockSize < 0)
        {
            throw new ArgumentException($"A block holds at least one key (0 or 1: no smoothing), not {blockSize}.", nameof(blockSize));
        }

        if (blockSize <= 1)
        {
            return mask.alias();
        }

        using var scope = NewDisposeScope();
        var keys = mask.shape[^1];
        var blocks = (keys + blockSize - 1) / blockSize;
        using Scalar size = blockSize, two = 2;
        var counted = nn.functional.pad(mask.to(ScalarType.Int64), [0, (blocks * blockSize) - keys]).view([.. mask.shape[..^1], blocks, blockSize]).sum(-1);
        var lengths = full([blocks], size, ScalarType.Int64, mask.device);
        using (var tail = lengths.narrow(0, blocks - 1, 1))
        using (Scalar rest = keys - ((blocks - 1) * blockSize))
        {
            tail.fill_(rest);
        }

        return counted.mul(two).gt(lengths).repeat_interleave(blockSize, -1).narrow(-1, 0, keys).contiguous().MoveToOuterDisposeScope();
    }

    /// <summary>The kept keys of every query of a causal call, query and key sequences aligned to the end: a running top w in O(n log w).</summary>
    /// <param name="importance"><c>[B, Hkv, n]</c>; taken without its gradient.</param>
    /// <param name="queries">Number of queries, 1 to n.</param>
    /// <param name="windowSize">w, from 1.</param>
    /// <param name="usable">Keys that exist (padding is false), boolean <c>[B, n]</c>; null: all.</param>
    /// <param name="queryBlock">Queries of a block; neighbouring queries share almost all keys.</param>
    /// <returns>Exactly the kept pairs, with lists for every batch item and key/value head.</returns>
    /// <exception cref="ArgumentException">A size is out of range, or an importance is not a number.</exception>
    public static KeyRuns Running(Tensor importance, long queries, int windowSize, Tensor? usable = null, int queryBlock = BlockMasks.DefaultBlock)
    {
        CheckWindow(windowSize);
        ArgumentNullException.ThrowIfNull(importance);
        if (importance.dim() != 3 || queries < 1 || queries > importance.shape[2])
        {
            throw new ArgumentException(
                $"A running top w needs importances [B, Hkv, n] and 1 to n queries; {AttentionShape.Text(importance)} and {queries} were given.", nameof(importance));
        }

        return RunningTop.Of(importance, queries, windowSize, usable, queryBlock, causal: true);
    }

    /// <summary>The options of a call narrowed to the most important keys: their importance is added to the scores, and of the keys that causality, window, masks and lengths of the call
    /// allow a query, only the w most important are computed. Where there are no more than w keys, none is dropped.</summary>
    /// <param name="options">The call's options.</param>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="importance"><c>[B, Hkv, Nk]</c>; the gradient flows through the score, the choice has none.</param>
    /// <param name="windowSize">w, from 1.</param>
    /// <returns>Options for the same queries, keys and values. Causal and unmasked calls, and those masked per key, are chosen in O(Nk log w); others through a boolean mask of all
    /// pairs.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit, w is less than 1, or an importance is not a number.</exception>
    public static AttentionOptions Restrict(AttentionOptions options, Tensor query, Tensor key, Tensor importance, int windowSize)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(importance);
        CheckWindow(windowSize);
        var (batch, heads, keyHeads, queries, keys) = (query.shape[0], query.shape[1], key.shape[1], query.shape[2], key.shape[2]);
        if (!importance.shape.SequenceEqual([batch, keyHeads, keys]))
        {
            throw new ArgumentException($"The importance of keys {AttentionShape.Text(key)} is [{batch}, {keyHeads}, {keys}]; {AttentionShape.Text(importance)} was given.", nameof(importance));
        }

        var perHead = keyHeads == heads ? importance : importance.repeat_interleave(heads / keyHeads, 1);
        var before = options.Biases.OfType<KeyBias>().FirstOrDefault();
        var result = options with { Biases = [.. options.Biases.Where(bias => bias is not KeyBias), new KeyBias(before is null ? perHead : perHead + before.Values)] };
        if (keys <= windowSize)
        {
            return result;
        }

        if (RunsSuit(options, batch, queries, keys, out var usable))
        {
            var runs = RunningTop.Of(importance, queries, windowSize, usable, BlockMasks.DefaultBlock, options.Causal != Causality.None);
            return result with { KeyRuns = runs, Mask = null };
        }

        using var scope = NewDisposeScope();
        var mask = TopK(perHead.unsqueeze(-2), PlainAttention.Allowed(query, key, options), windowSize);
        return result with { Mask = mask.MoveToOuterDisposeScope() };
    }

    internal static ArgumentException NotANumber() => new("An importance is not a number: check the values and dt_proj, and with the exponential form how large A has become.", "importance");

    private static bool RunsSuit(AttentionOptions options, long batch, long queries, long keys, out Tensor? usable)
    {
        usable = null;
        if (options.WindowBefore is not null || options.WindowAfter is not null || options.BlockMask is not null || options.KeyRuns is not null || options.QueryOffsets is not null
            || options.QueryLengths is not null || options.KeyLengths is not null || queries < 1 || queries > keys
            || (options.Causal == Causality.AlignedToStart && queries != keys))
        {
            return false;
        }

        if (options.Mask is { } mask)
        {
            // A mask per key, the same for all heads and queries: padding.
            var shape = mask.shape;
            if (shape.Length != 4 || shape[1] != 1 || shape[2] != 1 || shape[3] != keys)
            {
                return false;
            }

            usable = mask.view(shape[0], keys).expand(batch, keys);
        }

        return true;
    }

    private static (Tensor Values, Tensor Possible) Masked(Tensor bias, Tensor? allowed)
    {
        ArgumentNullException.ThrowIfNull(bias);
        if (bias.dim() != 4 || bias.shape[^1] < 1)
        {
            throw new ArgumentException($"A dynamic mask is made from a bias [B, H, T, n]; {AttentionShape.Text(bias)} was given.", nameof(bias));
        }

        var values = bias.detach();
        using Scalar smallest = finfo(bias.dtype).min;
        using (var broken = values.isnan())
        {
            if (broken.any().item<bool>())
            {
                throw NotANumber();
            }
        }

        if (allowed is not null)
        {
            if (allowed.dtype != ScalarType.Bool)
            {
                throw new ArgumentException($"The mask of allowed keys is boolean, not {allowed.dtype}.", nameof(allowed));
            }

            allowed = allowed.dim() == 2 ? PerKey(allowed, bias.shape[^1]) : allowed;
            if (allowed.dim() != 4 || Enumerable.Range(0, 4).Any(i => allowed.shape[i] != bias.shape[i] && allowed.shape[i] != 1 && bias.shape[i] != 1))
            {
                throw new ArgumentException($"The mask of allowed keys {AttentionShape.Text(allowed)} does not broadcast against the bias {AttentionShape.Text(bias)}.", nameof(allowed));
            }

            values = values.masked_fill(allowed.logical_not(), smallest);
        }

        return (values, values.ne(smallest));
    }

    private static Tensor PerKey(Tensor allowed, long keys)
    {
        var missing = keys - allowed.shape[1];
        return missing < 0
            ? throw new ArgumentException($"The mask of allowed keys covers {allowed.shape[1]} keys; there are {keys}.", nameof(allowed))
            : (missing == 0 ? allowed : cat([ones(allowed.shape[0], missing, ScalarType.Bool, allowed.device), allowed], 1)).unsqueeze(1).unsqueeze(1);
    }

    private static void CheckWindow(int windowSize)
    {
        if (windowSize < 1)
        {
            throw new ArgumentException($"A dynamic mask keeps at least one key, not {windowSize}.", nameof(windowSize));
        }
    }
}
