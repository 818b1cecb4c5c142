using Heed.Biases;
using Heed.Kernels;
using Heed.Masks;
using TorchSharp;

namespace Heed;

/// <summary>What an attention call does beside softmax(Q K^T / sqrt(D)) V. Everything composes; a combination that cannot be computed is
/// an <see cref="ArgumentException"/> that names the two options. Immutable: use <c>with</c>.</summary>
public sealed record AttentionOptions
{
    /// <summary>Plain softmax attention.</summary>
    public static AttentionOptions Default { get; } = new();

    /// <summary>Causal attention, the last query aligned with the last key.</summary>
    public static AttentionOptions CausalSelf { get; } = new() { Causal = Causality.AlignedToEnd };

    /// <summary>Factor of the query-key product; null: 1 / sqrt(D).</summary>
    public double? Scale { get; init; }

    /// <summary>Which keys a query may see by its position.</summary>
    public Causality Causal { get; init; }

    /// <summary>How many keys before its own position a query sees, its own not counted; null: all. A sliding window of w tokens is <c>w -
    /// 1</c>.</summary>
    public long? WindowBefore { get; init; }

    /// <summary>How many keys after its own position a query sees; null: all that <see cref="Causal"/> allows.</summary>
    public long? WindowAfter { get; init; }

    /// <summary>Softcap c: scores become c * tanh(s / c). Null: none.</summary>
    public double? Softcap { get; init; }

    /// <summary>What turns scores into weights.</summary>
    public Normalizer Normalizer { get; init; }

    /// <summary>Sink logit of each query head, <c>[H]</c> (gradient supported); null: none.</summary>
    public torch.Tensor? Sinks { get; init; }

    /// <summary>Pairs that exist, boolean, broadcastable to <c>[B, H, Nq, Nk]</c>, true where the query may attend; null: all. Becomes a
    /// block mask: empty blocks cost nothing.</summary>
    public torch.Tensor? Mask { get; init; }

    /// <summary>Which blocks of pairs are computed; null: all.</summary>
    public BlockMask? BlockMask { get; init; }

    /// <summary>Which pairs are computed, as runs of keys read by ranges of queries: for selections of single tokens; null: all. Not together with <see cref="BlockMask"/>.</summary>
    public KeyRuns? KeyRuns { get; init; }

    /// <summary>Chooses the pairs from the call's queries and keys; null: nobody does. Applied first; everything else holds for what it chose.</summary>
    public AttentionSelector? Selector { get; init; }

    /// <summary>What is added to the scores; empty: nothing. At most one of each kind.</summary>
    public IReadOnlyList<AttentionBias> Biases { get; init; } = [];

    /// <summary>Number of queries of each batch item, int64 <c>[B]</c>; rows past it give zeros. Null: all.</summary>
    public torch.Tensor? QueryLengths { get; init; }

    /// <summary>Number of keys of each batch item, int64 <c>[B]</c>. Null: all.</summary>
    public torch.Tensor? KeyLengths { get; init; }

    /// <summary>Packed sequences in a batch of one: row offsets of the queries, int64 <c>[S + 1]</c>. Null: not packed.</summary>
    public torch.Tensor? QueryOffsets { get; init; }

    /// <summary>Packed sequences: row offsets of the keys, int64 <c>[S + 1]</c>; null with <see cref="QueryOffsets"/> given: the
    /// same.</summary>
    public torch.Tensor? KeyOffsets { get; init; }

    /// <summary>Where each query stands among the keys of its sequence, int64 <c>[B, Nq]</c>, from 0 to Nk and not decreasing within a sequence: for queries that were picked out of a longer row. Causality and windows go by
    /// it. Null: queries stand side by side. Not together with <see cref="AlibiBias"/>.</summary>
    public torch.Tensor? QueryPositions { get; init; }

    /// <summary>Gate scores that multiply the output (already activated), broadcastable to <c>[B, H, Nq, Dv]</c> (gradient supported);
    /// null: none.</summary>
    public torch.Tensor? Gate { get; init; }

    /// <summary>Number of threads; 0: <see cref="torch.get_num_threads"/>.</summary>
    public int Threads { get; init; }
}
