using System.Numerics.Tensors;

namespace Heed.Kernels;

/// <summary>
/// Attention over managed memory: spans, or the strided tensor spans of System.Numerics.Tensors. Safe code only is needed to call it, and no tensor library. Float32.
/// </summary>
/// <remarks>Everything that <see cref="FusedAttention"/> can do beyond these options (packed sequences, biases, statistics, score modifiers, half-precision caches) is reached there,
/// by pointers.</remarks>
/// <example>
/// Causal attention of 2 heads over 128 tokens of width 64:
/// <code>
/// var shape = new AttentionShape(Batch: 1, Heads: 2, Queries: 128, Keys: 128, Width: 64);
/// float[] query = new float[1 * 2 * 128 * 64], key = new float[1 * 2 * 128 * 64], value = new float[1 * 2 * 128 * 64];
/// float[] output = new float[1 * 2 * 128 * 64];
/// AttentionSpans.Forward(query, key, value, shape, output, new AttentionSpanOptions { Causal = Causality.AlignedToEnd });
/// </code>
/// The same with heads inside the tokens, <c>[B, N, H, D]</c> in memory, as tensor spans <c>[B, H, N, D]</c>:
/// <code>
/// nint[] lengths = [1, 2, 128, 64], strides = [2 * 128 * 64, 64, 2 * 64, 1];
/// AttentionSpans.Forward(
///     new ReadOnlyTensorSpan&lt;float&gt;(query, lengths, strides), new ReadOnlyTensorSpan&lt;float&gt;(key, lengths, strides),
///     new ReadOnlyTensorSpan&lt;float&gt;(value, lengths, strides), new TensorSpan&lt;float&gt;(output, lengths, strides));
/// </code>
/// </example>
public static unsafe class AttentionSpans
{
    /// <summary>Computes attention over dense row-major spans.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value">Values <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="shape">The sizes.</param>
    /// <param name="output">Receives the output <c>[B, H, Nq, Dv]</c>; must not overlap the inputs.</param>
    /// <param name="options">What is computed; null: <see cref="AttentionSpanOptions.Default"/>.</param>
    /// <param name="logSumExp">Receives the log-sum-exp of every row <c>[B, H, Nq]</c>, which the backward pass needs; empty: not wanted. Softmax only.</param>
    /// <exception cref="ArgumentException">A span has another length than the shape says, overlaps the output, or the options do not fit together.</exception>
    public static void Forward(
        ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, AttentionShape shape,
        Span<float> output, AttentionSpanOptions? options = null, Span<float> logSumExp = default)
    {
        CheckInputs(query, key, value, shape);
        CheckLength(output.Length, nameof(output), shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth);
        CheckApart(output, nameof(output), query, key, value);
        fixed (float* q = query, k = key, v = value, o = output)
        {
            Forward(
                Dense(q, shape.Batch, shape.Heads, shape.Queries, shape.Width), Dense(k, shape.Batch, shape.KeyHeads, shape.Keys, shape.Width),
                Dense(v, shape.Batch, shape.KeyHeads, shape.Keys, shape.ValueWidth), Dense(o, shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth),
                options ?? AttentionSpanOptions.Default, logSumExp);
        }
    }

    /// <summary>Computes attention over tensor spans of four dimensions with any strides, the last dimension contiguous.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value">Values <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="output">Receives the output <c>[B, H, Nq, Dv]</c>; must share no element with the inputs.</param>
    /// <param name="options">What is computed; null: <see cref="AttentionSpanOptions.Default"/>.</param>
    /// <param name="logSumExp">Receives the log-sum-exp of every row <c>[B, H, Nq]</c>, contiguous; empty: not wanted. Softmax only.</param>
    /// <exception cref="ArgumentException">Shapes, strides or options do not fit together.</exception>
    public static void Forward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value,
        in TensorSpan<float> output, AttentionSpanOptions? options = null, Span<float> logSumExp = default)
    {
        fixed (float* q = query, k = key, v = value, o = output)
        {
            Forward(
                Strided(q, query.Lengths, query.Strides, nameof(query)), Strided(k, key.Lengths, key.Strides, nameof(key)),
                Strided(v, value.Lengths, value.Strides, nameof(value)), Strided(o, output.Lengths, output.Strides, nameof(output)),
                options ?? AttentionSpanOptions.Default, logSumExp);
        }
    }

    /// <summary>Computes gradients over dense row-major spans. An empty gradient span is not computed.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value">Values <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="output">The output of the forward pass <c>[B, H, Nq, Dv]</c>.</param>
    /// <param name="logSumExp">Its log-sum-exp <c>[B, H, Nq]</c>; empty for the normalisers other than softmax.</param>
    /// <param name="outputGradient">Gradient of the loss with respect to the output <c>[B, H, Nq, Dv]</c>.</param>
    /// <param name="shape">The sizes.</param>
    /// <param name="queryGradient">Receives <c>[B, H, Nq, D]</c>.</param>
    /// <param name="keyGradient">Receives <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="valueGradient">Receives <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="options">The options of the forward pass.</param>
    /// <param name="sinkGradient">Receives the sink logits' gradient <c>[H]</c>; only with sinks.</param>
    /// <param name="slopeGradient">Receives the ALiBi slopes' gradient <c>[H]</c>; only with slopes.</param>
    /// <exception cref="ArgumentException">A span has another length than the shape says, a gradient overlaps what is read, or the options do not fit together.</exception>
    public static void Backward(
        ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<float> output, ReadOnlySpan<float> logSumExp,
        ReadOnlySpan<float> outputGradient, AttentionShape shape, Span<float> queryGradient, Span<float> keyGradient, Span<float> valueGradient,
        AttentionSpanOptions? options = null, Span<float> sinkGradient = default, Span<float> slopeGradient = default)
    {
        CheckInputs(query, key, value, shape);
        CheckLength(output.Length, nameof(output), shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth);
        CheckLength(outputGradient.Length, nameof(outputGradient), shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth);
        CheckGradient(queryGradient, nameof(queryGradient), query, query, key, value, output, outputGradient);
        CheckGradient(keyGradient, nameof(keyGradient), key, query, key, value, output, outputGradient);
        CheckGradient(valueGradient, nameof(valueGradient), value, query, key, value, output, outputGradient);
        fixed (float* q = query, k = key, v = value, o = output, g = outputGradient, gq = queryGradient, gk = keyGradient, gv = valueGradient)
        {
            Backward(
                Dense(q, shape.Batch, shape.Heads, shape.Queries, shape.Width), Dense(k, shape.Batch, shape.KeyHeads, shape.Keys, shape.Width),
                Dense(v, shape.Batch, shape.KeyHeads, shape.Keys, shape.ValueWidth), Dense(o, shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth), logSumExp,
                new AttentionGradients
                {
                    Output = Dense(g, shape.Batch, shape.Heads, shape.Queries, shape.ValueWidth),
                    Query = gq == null ? default : Dense(gq, shape.Batch, shape.Heads, shape.Queries, shape.Width),
                    Key = gk == null ? default : Dense(gk, shape.Batch, shape.KeyHeads, shape.Keys, shape.Width),
                    Value = gv == null ? default : Dense(gv, shape.Batch, shape.KeyHeads, shape.Keys, shape.ValueWidth),
                },
                options ?? AttentionSpanOptions.Default, sinkGradient, slopeGradient);
        }
    }

    /// <summary>Computes gradients over tensor spans of four dimensions with any strides, the last dimension contiguous. An empty gradient is not computed.</summary>
    /// <param name="query">Queries <c>[B, H, Nq, D]</c>.</param>
    /// <param name="key">Keys <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="value">Values <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="output">The output of the forward pass <c>[B, H, Nq, Dv]</c>.</param>
    /// <param name="logSumExp">Its log-sum-exp <c>[B, H, Nq]</c>, contiguous; empty for the normalisers other than softmax.</param>
    /// <param name="outputGradient">Gradient of the loss with respect to the output <c>[B, H, Nq, Dv]</c>.</param>
    /// <param name="queryGradient">Receives <c>[B, H, Nq, D]</c>.</param>
    /// <param name="keyGradient">Receives <c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="valueGradient">Receives <c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="options">The options of the forward pass.</param>
    /// <param name="sinkGradient">Receives the sink logits' gradient <c>[H]</c>; only with sinks.</param>
    /// <param name="slopeGradient">Receives the ALiBi slopes' gradient <c>[H]</c>; only with slopes.</param>
    /// <exception cref="ArgumentException">Shapes, strides or options do not fit together.</exception>
    public static void Backward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, in ReadOnlyTensorSpan<float> output,
        ReadOnlySpan<float> logSumExp, in ReadOnlyTensorSpan<float> outputGradient,
        in TensorSpan<float> queryGradient, in TensorSpan<float> keyGradient, in TensorSpan<float> valueGradient,
        AttentionSpanOptions? options = null, Span<float> sinkGradient = default, Span<float> slopeGradient = default)
    {
        fixed (float* q = query, k = key, v = value, o = output, g = outputGradient, gq = queryGradient, gk = keyGradient, gv = valueGradient)
        {
            Backward(
                Strided(q, query.Lengths, query.Strides, nameof(query)), Strided(k, key.Lengths, key.Strides, nameof(key)),
                Strided(v, value.Lengths, value.Strides, nameof(value)), Strided(o, output.Lengths, output.Strides, nameof(output)), logSumExp,
                new AttentionGradients
                {
                    Output = Strided(g, outputGradient.Lengths, outputGradient.Strides, nameof(outputGradient)),
                    Query = queryGradient.IsEmpty ? default : Strided(gq, queryGradient.Lengths, queryGradient.Strides, nameof(queryGradient)),
                    Key = keyGradient.IsEmpty ? default : Strided(gk, keyGradient.Lengths, keyGradient.Strides, nameof(keyGradient)),
                    Value = valueGradient.IsEmpty ? default : Strided(gv, valueGradient.Lengths, valueGradient.Strides, nameof(valueGradient)),
                },
                options ?? AttentionSpanOptions.Default, sinkGradient, slopeGradient);
        }
    }

    private static void Forward(TensorView query, TensorView key, TensorView value, TensorView output, AttentionSpanOptions options, Span<float> logSumExp)
    {
        CheckRows(logSumExp, query);
        fixed (float* lse = logSumExp, sinks = options.Sinks.Span, slopes = options.AlibiSlopes.Span)
        {
            FusedAttention.Forward(Arguments(query, key, value, output, options, lse, sinks, slopes));
        }
    }

    private static void Backward(
        TensorView query, TensorView key, TensorView value, TensorView output, ReadOnlySpan<float> logSumExp, AttentionGradients gradients,
        AttentionSpanOptions options, Span<float> sinkGradient, Span<float> slopeGradient)
    {
        CheckRows(logSumExp, query);
        CheckPerHead(sinkGradient, options.Sinks, nameof(sinkGradient), "sinks");
        CheckPerHead(slopeGradient, options.AlibiSlopes, nameof(slopeGradient), "ALiBi slopes");
        fixed (float* lse = logSumExp, sinks = options.Sinks.Span, slopes = options.AlibiSlopes.Span, gs = sinkGradient, ga = slopeGradient)
        {
            gradients.Sinks = gs;
            gradients.AlibiSlopes = ga;
            FusedAttention.Backward(Arguments(query, key, value, output, options, lse, sinks, slopes), gradients);
        }
    }

    private static AttentionArguments Arguments(
        TensorView query, TensorView key, TensorView value, TensorView output, AttentionSpanOptions options, float* logSumExp, float* sinks, float* slopes)
    {
        CheckHeads(options, options.Sinks.Length, query.Heads, "sinks");
        CheckHeads(options, options.AlibiSlopes.Length, query.Heads, "ALiBi slopes");
        if (options.WindowBefore < 0 || options.WindowAfter < 0)
        {
            throw new ArgumentException(
                $"A window counts keys and cannot be negative (null: all keys); {options.WindowBefore} before and {options.WindowAfter} after were given.", nameof(options));
        }

        var arguments = new AttentionArguments(query, key, value, output)
        {
            LogSumExp = logSumExp,
            Causal = options.Causal,
            WindowBefore = options.WindowBefore ?? -1,
            WindowAfter = options.WindowAfter ?? -1,
            Softcap = options.Softcap,
            Normalizer = options.Normalizer,
            Sinks = sinks,
            AlibiSlopes = slopes,
            BlockMask = options.BlockMask,
            KeyRuns = options.KeyRuns,
            Threads = options.Threads,
        };
        arguments.Scale = options.Scale ?? arguments.Scale;
        return arguments;
    }

    private static TensorView Dense(float* data, int batch, int heads, int length, int width) => new(data, batch, heads, length, width);

    private static TensorView Strided(float* data, ReadOnlySpan<nint> lengths, ReadOnlySpan<nint> strides, string name)
    {
        if (lengths.Length != 4)
        {
            throw new ArgumentException($"The {name} must have four dimensions [batch, heads, length, width] but has {lengths.Length}.", name);
        }

        return lengths[3] <= 1 || strides[3] == 1
            ? new TensorView((nint)data, lengths[0], lengths[1], lengths[2], lengths[3], strides[0], strides[1], strides[2])
            : throw new ArgumentException($"The last dimension of the {name} must be contiguous (stride 1) but has a stride of {strides[3]}: copy it into a dense tensor first.", name);
    }

    private static void CheckInputs(ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, AttentionShape shape)
    {
        if (shape.Batch < 0 || shape.Heads < 0 || shape.KeyHeads < 0 || shape.Queries < 0 || shape.Keys < 0 || shape.Width < 0 || shape.ValueWidth < 0)
        {
            throw new ArgumentException($"The sizes of an attention problem cannot be negative: {shape}.", nameof(shape));
        }

        CheckLength(query.Length, nameof(query), shape.Batch, shape.Heads, shape.Queries, shape.Width);
        CheckLength(key.Length, nameof(key), shape.Batch, shape.KeyHeads, shape.Keys, shape.Width);
        CheckLength(value.Length, nameof(value), shape.Batch, shape.KeyHeads, shape.Keys, shape.ValueWidth);
    }

    private static void CheckLength(int length, string name, long batch, long heads, long rows, long width)
    {
        if ((Int128)batch * heads * rows * width != length)
        {
            throw new ArgumentException($"The {name} must hold {(Int128)batch * heads * rows * width} numbers, [{batch}, {heads}, {rows}, {width}], but holds {length}.", name);
        }
    }

    private static void CheckApart(
        ReadOnlySpan<float> written, string name, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value)
    {
        if (written.Overlaps(query) || written.Overlaps(key) || written.Overlaps(value))
        {
            throw new ArgumentException($"The {name} shares memory with the query, key or value, which are still read while it is written: give it memory of its own.", name);
        }
    }

    private static void CheckGradient(
        ReadOnlySpan<float> gradient, string name, ReadOnlySpan<float> of,
        ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<float> output, ReadOnlySpan<float> outputGradient)
    {
        if (!gradient.IsEmpty && gradient.Length != of.Length)
        {
            throw new ArgumentException($"The {name} must hold {of.Length} numbers, or none where it is not wanted, but holds {gradient.Length}.", name);
        }

        CheckApart(gradient, name, query, key, value);
        if (gradient.Overlaps(output) || gradient.Overlaps(outputGradient))
        {
            throw new ArgumentException($"The {name} shares memory with the output or its gradient, which are still read while it is written: give it memory of its own.", name);
        }
    }

    private static void CheckRows(ReadOnlySpan<float> logSumExp, TensorView query)
    {
        if (!logSumExp.IsEmpty && logSumExp.Length != query.Batch * query.Heads * query.Length)
        {
            throw new ArgumentException(
                $"The log-sum-exp must hold one number per row, {query.Batch * query.Heads * query.Length}, or none, but holds {logSumExp.Length}.", nameof(logSumExp));
        }
    }

    private static void CheckHeads(AttentionSpanOptions options, int count, long heads, string what)
    {
        if (count != 0 && count != heads)
        {
            throw new ArgumentException($"The {what} must hold one number per query head, {heads}, or none, but hold {count}.", nameof(options));
        }
    }

    private static void CheckPerHead(ReadOnlySpan<float> gradient, ReadOnlyMemory<float> of, string name, string what)
    {
        if (!gradient.IsEmpty && gradient.Length != of.Length)
        {
            throw new ArgumentException($"The gradient of the {what} must hold as many numbers as there are {what}, {of.Length}, or none, but holds {gradient.Length}.", name);
        }
    }
}
