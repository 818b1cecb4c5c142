namespace Heed.Kernels;

/// <summary>Which keys a query may see by its position.</summary>
public enum Causality
{
    /// <summary>Every query sees every key.</summary>
    None,

    /// <summary>Query i sees keys 0 ... i + (Nk - Nq): the last query is aligned with the last key, as in decoding with a cache.</summary>
    AlignedToEnd,

    /// <summary>Query i sees keys 0 ... i: the first query is aligned with the first key.</summary>
    AlignedToStart,
}

/// <summary>What turns a row of scores into weights.</summary>
public enum Normalizer
{
    /// <summary>exp(s - log-sum-exp); with <see cref="AttentionArguments.Sinks"/> the head's sink logit joins the sum and takes no value.</summary>
    Softmax,

    /// <summary>max(s, 0) / (i + 1), where i + 1 is the number of keys up to the query's aligned position (arXiv 2410.13835): 1 + i + (Nk - Nq)
    /// when aligned to the end, 1 + i when aligned to the start, and the number of keys (of the sequence) when not causal.</summary>
    ReluOverPosition,

    /// <summary>1 / (1 + exp(-s)), element by element.</summary>
    Sigmoid,
}

/// <summary>A bias that broadcasts to <c>[batch, heads, Nq, Nk]</c>; strides in elements, zero where it repeats.</summary>
/// <param name="Data">The first element, float32; zero stands for "not given". A value of minus infinity masks the pair.</param>
/// <param name="BatchStride">Elements from one batch item to the next.</param>
/// <param name="HeadStride">Elements from one head to the next.</param>
/// <param name="QueryStride">Elements from one query to the next.</param>
/// <param name="KeyStride">Elements from one key to the next: 1 (or 0, where all keys share a value).</param>
public readonly record struct BiasView(nint Data, long BatchStride, long HeadStride, long QueryStride, long KeyStride)
{
    /// <summary>Whether there is a bias.</summary>
    public bool IsGiven => Data != 0;
}

/// <summary>
/// One attention problem: what <see cref="FusedAttention"/> reads and where it writes. With H query heads and Hkv key/value heads, query head h
/// reads key/value head h / (H / Hkv).
/// </summary>
/// <remarks>
/// <para>The score of query i and key j of a head is, in this order: s = scale * (q_i . k_j) + lowRankQuery_i . lowRankKey_j, then, with a softcap c,
/// s = c * tanh(s / c), then + dense bias + per-key bias - slope * |p_i - j| (p_i: the query's aligned position, see <see cref="Alignment"/>) + the bias of
/// the listed block, then the score modifier. Pairs outside the causal range, the window, the lengths, the block mask or the
/// mask predicate have no weight.</para>
/// <para>A row with no pair gives zeros and a log-sum-exp of minus infinity. NaN and infinity in query, key or value spread as in the plain formula to the rows that read them
/// and to no other row; a pair outside the mask is never read into a result (masked means absent, not multiplied by zero).</para>
/// <para>All pointers must stay valid during the call. Offsets are 64-bit throughout.</para>
/// </remarks>
public unsafe struct AttentionArguments
{
    /// <summary>Initializes a problem with a scale of 1 / sqrt(D), no mask and every processor.</summary>
    public AttentionArguments(TensorView query, TensorView key, TensorView value, TensorView output)
    {
        Query = query;
        Key = key;
        Value = value;
        Output = output;
        Scale = query.Width > 0 ? 1f / MathF.Sqrt(query.Width) : 1f;
        Alignment = Causality.AlignedToEnd;
        WindowBefore = -1;
        WindowAfter = -1;
    }

    /// <summary>Queries <c>[B, H, Nq, D]</c>, float32.</summary>
    public TensorView Query;

    /// <summary>Keys <c>[B, Hkv, Nk, D]</c>, any element type.</summary>
    public TensorView Key;

    /// <summary>Values <c>[B, Hkv, Nk, Dv]</c>, any element type.</summary>
    public TensorView Value;

    /// <summary>Receives the output <c>[B, H, Nq, Dv]</c>, float32.</summary>
    public TensorView Output;

    /// <summary>Receives the log-sum-exp of every row, <c>[B, H, Nq]</c> contiguous (sink included); null where not wanted. Softmax only. Backward reads it.</summary>
    public float* LogSumExp;

    /// <summary>Factor of the query-key product. Default 1 / sqrt(D).</summary>
    public float Scale;

    /// <summary>Softcap c: s becomes c * tanh(s / c). Zero: none.</summary>
    public float Softcap;

    /// <summary>What turns scores into weights.</summary>
    public Normalizer Normalizer;

    /// <summary>Which keys a query may see by its position.</summary>
    public Causality Causal;

    /// <summary>Where a query stands among the keys for window, ALiBi, distances and (when not causal) predicates' use: AlignedToEnd (default) puts query i at key position
    /// i + Nk - Nq, AlignedToStart at i. A <see cref="Causal"/> other than None decides instead.</summary>
    public Causality Alignment;

    /// <summary>How many keys before its own position a query sees; -1: all.</summary>
    public long WindowBefore;

    /// <summary>How many keys after its own position a query sees; -1: all (up to what <see cref="Causal"/> allows).</summary>
    public long WindowAfter;

    /// <summary>One sink logit per query head, <c>[H]</c>; null: none. Softmax only.</summary>
    public float* Sinks;

    /// <summary>Number of queries of each batch item, <c>[B]</c>; rows past it give zeros. Null: all. Positions are aligned within the lengths.</summary>
    public long* QueryLengths;

    /// <summary>Number of keys of each batch item, <c>[B]</c>. Null: all.</summary>
    public long* KeyLengths;

    /// <summary>Packed sequences: first query row of each of <see cref="Sequences"/> sequences, and the end, <c>[S + 1]</c>, non-decreasing. Needs a batch of 1. Null: not packed.</summary>
    public long* QueryOffsets;

    /// <summary>Packed sequences: first key row of each sequence, and the end, <c>[S + 1]</c>.</summary>
    public long* KeyOffsets;

    /// <summary>Number of packed sequences. Each attends within itself only.</summary>
    public int Sequences;

    /// <summary>Where each query stands among the keys of its sequence, <c>[B, Nq]</c> (packed: <c>[Nq]</c>), from 0 to Nk and not decreasing within a sequence: for queries that were picked out of a longer row.
    /// Null: side by side, as <see cref="Alignment"/> says. Not together with ALiBi or the mean distance.</summary>
    public long* QueryPositions;

    /// <summary>Dense bias that broadcasts to <c>[B, H, Nq, Nk]</c>. With packed sequences it is indexed by packed rows and keys.</summary>
    public BiasView Bias;

    /// <summary>Bias per key, <c>[B or 1, H or 1, Nk]</c>: the query stride is zero.</summary>
    public BiasView KeyBias;

    /// <summary>ALiBi slope of each query head, <c>[H]</c>, positive for the usual penalty; null: none.</summary>
    public float* AlibiSlopes;

    /// <summary>Query factors of a low-rank bias, <c>[B, H, Nq, R]</c> (strides of zero broadcast).</summary>
    public TensorView LowRankQuery;

    /// <summary>Key factors of a low-rank bias, <c>[B, H, Nk, R]</c>, indexed by query head (strides of zero broadcast).</summary>
    public TensorView LowRankKey;

    /// <summary>Which blocks of pairs are computed; null: all.</summary>
    public BlockMask? BlockMask;

    /// <summary>Which pairs are computed, as runs of keys; null: all. Not together with <see cref="BlockMask"/>.</summary>
    public KeyRuns? KeyRuns;

    /// <summary>Row statistics to compute in the same pass.</summary>
    public RowStatistics Statistics;

    /// <summary>Number of threads; 0: every processor. The results are the same bits for any number.</summary>
    public int Threads;
}

/// <summary>Where the statistics of the rows go; null members are not computed. Each is <c>[B, H, Nq]</c> contiguous unless it says otherwise.
/// A row with no pair gives zeros and a place of -1. Softmax only.</summary>
public unsafe struct RowStatistics
{
    /// <summary>Entropy of the row's weights, in nats; a sink counts as one more element.</summary>
    public float* Entropy;

    /// <summary>The largest weight.</summary>
    public float* Maximum;

    /// <summary>The key of the largest weight (the first of equals).</summary>
    public int* MaximumKey;

    /// <summary>Mean distance |p_i - j| between the query's aligned position and its keys, weighted, in tokens.</summary>
    public float* MeanDistance;

    /// <summary>Mass on the keys of <see cref="KeySet"/>.</summary>
    public float* SetMass;

    /// <summary>The set: one byte per key, non-zero for members, <c>[B, Nk]</c> with batch stride <see cref="KeySetBatchStride"/>.</summary>
    public byte* KeySet;

    /// <summary>Bytes from one batch item's set to the next; 0: one set for all.</summary>
    public long KeySetBatchStride;

    /// <summary>How many of the largest weights of each row are wanted, at most 64; 0: none.</summary>
    public int TopCount;

    /// <summary>The largest weights in descending order, <c>[B, H, Nq, TopCount]</c>, padded with zeros.</summary>
    public float* TopWeights;

    /// <summary>Their keys, padded with -1. Equal weights stand in the order of their keys.</summary>
    public int* TopKeys;

    /// <summary>Whether anything is wanted.</summary>
    public readonly bool Any => Entropy != null || Maximum != null || MaximumKey != null || MeanDistance != null || SetMass != null || TopCount > 0;
}

/// <summary>Where the gradients go. Null or not-given members are not computed. Gradients are written, not added.</summary>
public unsafe struct AttentionGradients
{
    /// <summary>Gradient of the loss with respect to the output, <c>[B, H, Nq, Dv]</c>.</summary>
    public TensorView Output;

    /// <summary>Gradient of the loss with respect to the log-sum-exp, <c>[B, H, Nq]</c> contiguous; null: zero.</summary>
    public float* LogSumExp;

    /// <summary>Receives <c>[B, H, Nq, D]</c>.</summary>
    public TensorView Query;

    /// <summary>Receives <c>[B, Hkv, Nk, D]</c>.</summary>
    public TensorView Key;

    /// <summary>Receives <c>[B, Hkv, Nk, Dv]</c>.</summary>
    public TensorView Value;

    /// <summary>Receives the dense bias's gradient, summed over the dimensions whose stride is zero in <see cref="AttentionArguments.Bias"/>; same strides.</summary>
    public BiasView Bias;

    /// <summary>Receives the per-key bias's gradient; same strides as <see cref="AttentionArguments.KeyBias"/>.</summary>
    public BiasView KeyBias;

    /// <summary>Receives the sink logits' gradient, <c>[H]</c>.</summary>
    public float* Sinks;

    /// <summary>Receives the ALiBi slopes' gradient, <c>[H]</c>.</summary>
    public float* AlibiSlopes;

    /// <summary>Receives the low-rank query factors' gradient, <c>[B, H, Nq, R]</c> (no broadcast: the caller sums).</summary>
    public TensorView LowRankQuery;

    /// <summary>Receives the low-rank key factors' gradient, <c>[B, H, Nk, R]</c> (no broadcast: the caller sums).</summary>
    public TensorView LowRankKey;
}
