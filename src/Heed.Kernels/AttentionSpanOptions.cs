namespace Heed.Kernels;

/// <summary>What a call of <see cref="AttentionSpans"/> does beside softmax(Q K^T / sqrt(D)) V. The default changes nothing. Immutable: use <c>with</c>.</summary>
public sealed record AttentionSpanOptions
{
    /// <summary>Softmax over every key, scaled by 1 / sqrt(D), on every processor.</summary>
    public static AttentionSpanOptions Default { get; } = new();

    /// <summary>Factor of the query-key product; null: 1 / sqrt(D).</summary>
    public float? Scale { get; init; }

    /// <summary>Which keys a query may see by its position.</summary>
    public Causality Causal { get; init; }

    /// <summary>How many keys before its own position a query sees, its own not counted; null: all.</summary>
    public long? WindowBefore { get; init; }

    /// <summary>How many keys after its own position a query sees; null: all that <see cref="Causal"/> allows.</summary>
    public long? WindowAfter { get; init; }

    /// <summary>Softcap c: scores become c * tanh(s / c). Zero: none.</summary>
    public float Softcap { get; init; }

    /// <summary>What turns scores into weights.</summary>
    public Normalizer Normalizer { get; init; }

    /// <summary>Sink logit of each query head, <c>[H]</c>; empty: none. Softmax only.</summary>
    public ReadOnlyMemory<float> Sinks { get; init; }

    /// <summary>ALiBi slope of each query head, <c>[H]</c>, in score per token of distance; empty: none.</summary>
    public ReadOnlyMemory<float> AlibiSlopes { get; init; }

    /// <summary>Which blocks of pairs are computed; null: all.</summary>
    public BlockMask? BlockMask { get; init; }

    /// <summary>Which pairs are computed, as runs of keys; null: all. Not together with <see cref="BlockMask"/>.</summary>
    public KeyRuns? KeyRuns { get; init; }

    /// <summary>Number of threads; 0: every processor. The results are the same bits for any number.</summary>
    public int Threads { get; init; }
}

/// <summary>Sizes of an attention problem whose tensors lie in spans, dense and row-major.</summary>
/// <param name="Batch">Batch items.</param>
/// <param name="Heads">Query heads.</param>
/// <param name="Queries">Queries of each batch item.</param>
/// <param name="Keys">Keys of each batch item.</param>
/// <param name="Width">Elements of a query or key, D.</param>
public readonly record struct AttentionShape(int Batch, int Heads, int Queries, int Keys, int Width)
{
    /// <summary>Key and value heads; divides <see cref="Heads"/>. By default the same number.</summary>
    public int KeyHeads { get; init; } = Heads;

    /// <summary>Elements of a value, Dv. By default <see cref="Width"/>.</summary>
    public int ValueWidth { get; init; } = Width;
}
