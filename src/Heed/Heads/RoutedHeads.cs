using Heed.Interop;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>How attention with routed heads is computed. The results mean the same.</summary>
public enum RoutedComputation
{
    /// <summary>Only the chosen heads where that can be and pays, otherwise all.</summary>
    Auto,

    /// <summary>All heads of all tokens, then the weights: what the authors' code does, and what probes and edits see.</summary>
    AllHeads,

    /// <summary>Only the chosen heads of every token, where that can be.</summary>
    ChosenHeads,
}

/// <summary>Attention of which every token uses its own heads (arXiv 2410.11842): for each head, the queries of the tokens that chose it are gathered and attend to the keys of all tokens; what the other tokens would have got from
/// that head is never computed.</summary>
/// <remarks>All heads are computed where hooks look at the call, where the options have a mask, biases, sinks, lengths or a selector, where the weights of heads that are not chosen want a gradient
/// (<see cref="HeadRouting.NeedsAllHeads"/>), and in float64 or on other devices.</remarks>
public static class RoutedHeads
{
    // Gathering queries and putting outputs back takes more time than is saved where nearly all heads are chosen, or keys are few.
    private const double WorthGathering = 0.94;
    private const long FewKeys = 256;

    /// <summary>The weighed outputs of the heads.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="routing">The heads of every token.</param>
    /// <param name="options">What to do beside plain softmax attention; a gate of its own is not taken. Null: nothing.</param>
    /// <param name="site">Where the call stands in its model.</param>
    /// <param name="hooks">The model's hooks; null: none.</param>
    /// <param name="computation">How it is computed.</param>
    /// <returns><c>[B, H, N, Dv]</c>, zeros for heads that a token does not use.</returns>
    /// <exception cref="ArgumentException">The routing is of other tokens or heads, or the options have a gate.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, HeadRouting routing, AttentionOptions? options = null, AttentionSite site = default, AttentionHooks? hooks = null,
        RoutedComputation computation = RoutedComputation.Auto)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        ArgumentNullException.ThrowIfNull(routing);
        options ??= AttentionOptions.Default;
        if (query.dim() != 4 || !routing.Gates.shape.SequenceEqual([query.shape[0], query.shape[2], query.shape[1]]))
        {
            throw new ArgumentException(
                $"The routing holds a weight for every batch item, token and head; for queries [{string.Join(", ", query.shape)}] it is [{string.Join(", ", routing.Gates.shape)}].", nameof(routing));
        }

        if (options.Gate is not null)
        {
            throw new ArgumentException("The weights of the routing are the gate of this call: leave AttentionOptions.Gate out.", nameof(options));
        }

        using var scope = NewDisposeScope();
        if ((computation == RoutedComputation.ChosenHeads || (computation == RoutedComputation.Auto && key.size(2) >= FewKeys)) && CanGather(query, routing, options, site, hooks))
        {
            // Checks what the gathered call would say in other words.
            AttentionShape.Read(query, key, value).Check(options, query);
            var rows = Rows(routing.Chosen, query, key);
            if (computation == RoutedComputation.ChosenHeads || rows.Share < WorthGathering)
            {
                return Gathered(query, key, value, routing.Gates, rows, options).MoveToOuterDisposeScope();
            }
        }

        return Attention.Compute(query, key, value, options with { Gate = routing.Gates.transpose(1, 2).unsqueeze(-1) }, site, hooks).MoveToOuterDisposeScope();
    }

    private static bool CanGather(Tensor query, HeadRouting routing, AttentionOptions options, AttentionSite site, AttentionHooks? hooks) =>
        FusedPath.Takes(query)
        && (hooks is null || hooks.StagesAt(site) == AttentionStages.None)
        && !(routing.NeedsAllHeads && is_grad_enabled() && routing.Gates.requires_grad)
        && options is
        {
            Sinks: null, Mask: null, BlockMask: null, KeyRuns: null, Selector: null, Biases.Count: 0, QueryLengths: null, KeyLengths: null, QueryOffsets: null, KeyOffsets: null, QueryPositions: null,
        };

    private static Tensor Gathered(Tensor query, Tensor key, Tensor value, Tensor gates, in ChosenRows rows, AttentionOptions options)
    {
        var (batch, heads, tokens, width) = (query.size(0), query.size(1), query.size(2), query.size(3));
        var (groups, slots) = (batch * key.size(1), rows.Slots);
        var picked = new PickedRows(rows.Source, rows.Token, (batch, heads, tokens), query);
        var queries = picked.Pick(TensorMemory.As(ScalarType.Float32, query)).view(groups, 1, slots, width);
        var positioned = options.Causal != Causality.None || options.WindowBefore is not null || options.WindowAfter is not null || options.Normalizer == Normalizer.ReluOverPosition;
        var output = Attention.Compute(queries, PerGroup(key), PerGroup(value), options with
        {
            QueryLengths = tensor(rows.Lengths),
            QueryPositions = positioned ? rows.Positions(options.Causal == Causality.AlignedToStart ? 0 : key.size(2) - tokens).view(groups, slots) : null,
        });
        return TensorMemory.As(query.dtype, picked.PutBack(output.view(groups * slots, -1), TensorMemory.As(ScalarType.Float32, gates)));
    }

    /// <summary>Key/value heads as batch items: a view where the memory allows.</summary>
    private static Tensor PerGroup(Tensor keyOrValue) => keyOrValue.size(0) == 1 ? keyOrValue.transpose(0, 1) : keyOrValue.reshape(-1, 1, keyOrValue.size(2), keyOrValue.size(3));

    /// <summary>The rows of the queries <c>[B N H]</c> that each key/value head's slots hold, token by token.</summary>
    private static ChosenRows Rows(Tensor chosen, Tensor query, Tensor key)
    {
        var (batch, heads, tokens, keyHeads) = (query.size(0), (int)query.size(1), query.size(2), (int)key.size(1));
        var groupOf = Enumerable.Range(0, heads).Select(head => head / (heads / keyHeads)).ToArray();
        using var near = chosen.cpu();
        using var dense = near.contiguous();
        using var flags = dense.data<bool>();
        var used = flags.ToArray();
        var lengths = new long[batch * keyHeads];
        var total = 0L;
        for (long row = 0, item = 0; item < batch; item++)
        {
            for (long token = 0; token < tokens; token++)
            {
                for (var head = 0; head < heads; head++, row++)
                {
                    if (used[row])
                    {
                        lengths[(item * keyHeads) + groupOf[head]]++;
                        total++;
                    }
                }
            }
        }

        var slots = Math.Max(1, lengths.DefaultIfEmpty().Max());
        var (source, tokenOf) = (new long[lengths.LongLength * slots], new long[lengths.LongLength * slots]);
        Array.Fill(source, -1);
        var next = new long[lengths.LongLength];
        for (long row = 0, item = 0; item < batch; item++)
        {
            for (long token = 0; token < tokens; token++)
            {
                for (var head = 0; head < heads; head++, row++)
                {
                    if (used[row])
                    {
                        var place = (item * keyHeads) + groupOf[head];
                        var slot = (place * slots) + next[place]++;
                        (source[slot], tokenOf[slot]) = (row, token);
                    }
                }
            }
        }

        return new(source, tokenOf, lengths, slots, used.LongLength == 0 ? 1 : total / (double)used.LongLength);
    }

    private readonly record struct ChosenRows(long[] Source, long[] Token, long[] Lengths, long Slots, double Share)
    {
        /// <summary>Where the slots' queries stand among the keys.</summary>
        public Tensor Positions(long shift) => tensor(shift == 0 ? Token : Array.ConvertAll(Token, token => token + shift));
    }
}
