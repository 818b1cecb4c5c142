using Heed.Biases;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed;

/// <summary>The sizes of an attention call, and the one place where its inputs and options are checked.</summary>
internal readonly record struct AttentionShape(long Batch, long Heads, long KeyHeads, long Queries, long Keys, long Width, long ValueWidth)
{
    /// <summary>Reads and checks query, key and value.</summary>
    public static AttentionShape Read(Tensor query, Tensor key, Tensor value)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        if (query.dim() != 4 || key.dim() != 4 || value.dim() != 4)
        {
            throw new ArgumentException(
                $"Attention takes query [B, H, Nq, D], key [B, Hkv, Nk, D] and value [B, Hkv, Nk, Dv]; {Text(query)}, {Text(key)} and {Text(value)} were given.", nameof(query));
        }

        var shape = new AttentionShape(query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3), value.size(3));
        if (key.size(0) != shape.Batch || value.size(0) != shape.Batch)
        {
            throw new ArgumentException(
                $"Query, key and value share one batch size; {shape.Batch}, {key.size(0)} and {value.size(0)} were given.", nameof(key));
        }

        if (key.size(3) != shape.Width)
        {
            throw new ArgumentException($"Query and key have one width; {shape.Width} and {key.size(3)} were given.", nameof(key));
        }

        if (value.size(1) != shape.KeyHeads || value.size(2) != shape.Keys)
        {
            throw new ArgumentException(
                $"Key and value have the same heads and length; {Text(key)} and {Text(value)} were given.", nameof(value));
        }

        if (shape.KeyHeads == 0 ? shape.Heads != 0 : shape.Heads % shape.KeyHeads != 0)
        {
            throw new ArgumentException(
                $"The number of key heads divides the number of query heads; {shape.KeyHeads} does not divide {shape.Heads}.", nameof(key));
        }

        var (type, device) = (query.dtype, query.device_type);
        if (!IsFloating(type))
        {
            throw new ArgumentException(
                $"Attention computes in float64, float32, bfloat16 or float16; the query is {type}.", nameof(query));
        }

        var keyType = key.dtype;
        var isHalf = keyType is ScalarType.Float16 or ScalarType.BFloat16;
        if (value.dtype != keyType || (keyType != type && !(isHalf && type is ScalarType.Float32 or ScalarType.Float64)))
        {
            throw new ArgumentException(
                $"Query, key and value have one dtype (or key and value are both float16 or bfloat16 beside a float32 or float64 query); {type}, {keyType} and {value.dtype} were given.",
                nameof(key));
        }

        if (key.device_type != device || value.device_type != device)
        {
            throw new ArgumentException(
                $"Query, key and value are on one device; {query.device}, {key.device} and {value.device} were given.", nameof(key));
        }

        return shape;
    }

    /// <summary>Checks the options against the sizes and against each other.</summary>
    public void Check(AttentionOptions options, Tensor query)
    {
        if (ReferenceEquals(options, AttentionOptions.Default) || ReferenceEquals(options, AttentionOptions.CausalSelf))
        {
            return;
        }

        if (options.Scale is { } scale && !double.IsFinite(scale))
        {
            throw Wrong(nameof(options.Scale), $"is a finite number, not {scale}");
        }

        if (options.Softcap is { } cap && !(cap > 0 && double.IsFinite(cap)))
        {
            throw Wrong(nameof(options.Softcap), $"is a positive number, not {cap}; leave it null for none");
        }

        if (options.WindowBefore < 0 || options.WindowAfter < 0)
        {
            throw Wrong(
                options.WindowBefore < 0 ? nameof(options.WindowBefore) : nameof(options.WindowAfter), "counts tokens from 0 on; leave it null for no window");
        }

        if (options.Threads < 0)
        {
            throw Wrong(nameof(options.Threads), $"is 0 (as many as torch uses) or a number of threads, not {options.Threads}");
        }

        CheckSinks(options);
        CheckBiases(options.Biases, query);
        CheckSequences(options);
        CheckMasks(options, query);
        if (options.Gate is { } gate)
        {
            CheckTensor(gate, nameof(options.Gate), query);
            CheckBroadcast(gate, nameof(options.Gate), "[B, H, Nq, Dv]", Batch, Heads, Queries, ValueWidth);
        }
    }

    /// <summary>Checks what a hook asks for.</summary>
    public void Check(AttentionStatisticsRequest request, AttentionOptions options)
    {
        if (options.Normalizer != Normalizer.Softmax)
        {
            throw new ArgumentException(
                $"Attention statistics cannot be combined with Normalizer.{options.Normalizer}: they are defined for weights that sum to one; read {nameof(AttentionCall)}.{nameof(AttentionCall.Weights)} instead.");
        }

        if (request.TopCount is < 0 or > 64)
        {
            throw new ArgumentException($"The largest 0 to 64 weights of a row can be asked for, not {request.TopCount}.");
        }

        if (request.KeySet is { } set
            && (set.dtype != ScalarType.Bool || set.dim() is < 1 or > 2 || set.shape[^1] > Keys || (set.dim() == 2 && set.size(0) != 1 && set.size(0) != Batch)))
        {
            throw new ArgumentException(
                $"A key set is boolean [n] or [B, n] with at most {Keys} keys and a batch of {Batch}; {set.dtype} {Text(set)} was given.");
        }
    }

    /// <summary>A shape in a message, for example <c>[2, 8, 16, 64]</c>.</summary>
    public static string Text(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";

    private static bool IsFloating(ScalarType type) => type is ScalarType.Float32 or ScalarType.Float64 or ScalarType.BFloat16 or ScalarType.Float16;

    private static ArgumentException Wrong(string option, string sentence) => new($"{nameof(AttentionOptions)}.{option} {sentence}.");

    private static ArgumentException Clash(string first, string second, string why) =>
        new($"{nameof(AttentionOptions)}.{first} cannot be combined with {second}: {why}.");

    private static void CheckTensor(Tensor tensor, string name, Tensor query)
    {
        if (!IsFloating(tensor.dtype))
        {
            throw Wrong(name, $"is a floating-point tensor, not {tensor.dtype}");
        }

        if (tensor.device_type != query.device_type)
        {
            throw Wrong(name, $"is on the query's device, {query.device}, not on {tensor.device}");
        }
    }

    private static void CheckBroadcast(Tensor tensor, string name, string letters, params ReadOnlySpan<long> target)
    {
        var dimensions = (int)tensor.dim();
        var fits = dimensions <= target.Length;
        for (var i = 1; fits && i <= dimensions; i++)
        {
            var size = tensor.size(dimensions - i);
            fits = size == 1 || size == target[^i];
        }

        if (!fits)
        {
            throw Wrong(name, $"broadcasts to {letters} = [{string.Join(", ", target.ToArray())}]; {Text(tensor)} does not");
        }
    }

    private void CheckSinks(AttentionOptions options)
    {
        if (options.Sinks is not { } sinks)
        {
            return;
        }

        if (options.Normalizer != Normalizer.Softmax)
        {
            throw Clash(nameof(options.Sinks), $"Normalizer.{options.Normalizer}", "a sink takes its share of a sum to one, which only softmax has");
        }

        if (!IsFloating(sinks.dtype) || sinks.dim() != 1 || sinks.size(0) != Heads)
        {
            throw Wrong(nameof(options.Sinks), $"holds one floating-point logit per query head, [{Heads}]; {sinks.dtype} {Text(sinks)} was given");
        }
    }

    private void CheckBiases(IReadOnlyList<AttentionBias> biases, Tensor query)
    {
        for (var i = 0; i < biases.Count; i++)
        {
            for (var j = 0; j < i; j++)
            {
                if (biases[i].GetType() == biases[j].GetType())
                {
                    throw Clash(nameof(AttentionOptions.Biases), $"a second {biases[i].GetType().Name}", "there is at most one bias of each kind; add them up first");
                }
            }

            switch (biases[i])
            {
                case DenseBias dense:
                    CheckTensor(dense.Values, nameof(DenseBias), query);
                    CheckBroadcast(dense.Values, nameof(DenseBias), "[B, H, Nq, Nk]", Batch, Heads, Queries, Keys);
                    break;
                case KeyBias perKey:
                    CheckTensor(perKey.Values, nameof(KeyBias), query);
                    CheckBroadcast(perKey.Values, nameof(KeyBias), "[B, H, Nk]", Batch, Heads, Keys);
                    break;
                case AlibiBias alibi:
                    CheckTensor(alibi.Slopes, nameof(AlibiBias), query);
                    if (alibi.Slopes.dim() != 1 || alibi.Slopes.size(0) != Heads)
                    {
                        throw Wrong(nameof(AlibiBias), $"holds one slope per query head, [{Heads}]; {Text(alibi.Slopes)} was given");
                    }

                    break;
                case LowRankBias lowRank:
                    var rank = lowRank.QueryFactors.dim() > 0 ? lowRank.QueryFactors.shape[^1] : 1;
                    CheckTensor(lowRank.QueryFactors, nameof(LowRankBias), query);
                    CheckTensor(lowRank.KeyFactors, nameof(LowRankBias), query);
                    CheckBroadcast(lowRank.QueryFactors, nameof(LowRankBias), "query factors [B, H, Nq, R]", Batch, Heads, Queries, rank);
                    if ((lowRank.KeyFactors.dim() > 0 ? lowRank.KeyFactors.shape[^1] : 1) != rank)
                    {
                        throw Wrong(nameof(LowRankBias), $"has query and key factors of one rank; {Text(lowRank.QueryFactors)} and {Text(lowRank.KeyFactors)} were given");
                    }

                    CheckBroadcast(lowRank.KeyFactors, nameof(LowRankBias), "key factors [B, H, Nk, R]", Batch, Heads, Keys, rank);
                    break;
                default:
                    throw Wrong(nameof(AttentionOptions.Biases), $"knows no bias of the type {biases[i]?.GetType().Name ?? "null"}");
            }
        }
    }

    private void CheckSequences(AttentionOptions options)
    {
        if (options.QueryOffsets is null)
        {
            if (options.KeyOffsets is not null)
            {
                throw Clash(nameof(options.KeyOffsets), "missing QueryOffsets", "packed sequences need the offsets of the queries");
            }

            CheckLengths(options.QueryLengths, nameof(options.QueryLengths), Queries);
            CheckLengths(options.KeyLengths, nameof(options.KeyLengths), Keys);
            CheckPositions(options);
            return;
        }

        if (Batch != 1)
        {
            throw Clash(nameof(options.QueryOffsets), $"a batch of {Batch}", "packed sequences lie one after another in a batch of one");
        }

        if (options.QueryLengths is not null || options.KeyLengths is not null)
        {
            throw Clash(
                nameof(options.QueryOffsets), options.QueryLengths is null ? nameof(options.KeyLengths) : nameof(options.QueryLengths), "the offsets already say how long each packed sequence is");
        }

        var queries = CheckOffsets(options.QueryOffsets, nameof(options.QueryOffsets), Queries);
        var keys = options.KeyOffsets is null
            ? CheckOffsets(options.QueryOffsets, $"{nameof(options.QueryOffsets)} (also used for the keys)", Keys)
            : CheckOffsets(options.KeyOffsets, nameof(options.KeyOffsets), Keys);
        if (queries != keys)
        {
            throw Clash(nameof(options.QueryOffsets), $"{nameof(options.KeyOffsets)} of another length", $"{queries} and {keys} sequences cannot be paired");
        }

        CheckPositions(options);
    }

    private void CheckPositions(AttentionOptions options)
    {
        if (options.QueryPositions is not { } positions)
        {
            return;
        }

        if (positions.dtype != ScalarType.Int64 || positions.dim() != 2 || positions.size(0) != Batch || positions.size(1) != Queries)
        {
            throw Wrong(nameof(options.QueryPositions), $"holds one int64 position per query, [{Batch}, {Queries}]; {positions.dtype} {Text(positions)} was given");
        }

        if (options.Biases.OfType<AlibiBias>().Any())
        {
            throw Clash(nameof(options.QueryPositions), nameof(AlibiBias), "its distances are computed for queries side by side");
        }

        var offsets = options.QueryOffsets is { } packed ? SmallIntegers.Read(packed) : null;
        var lengths = options.QueryLengths is { } given ? SmallIntegers.Read(given) : null;
        var values = SmallIntegers.Read(positions);
        for (var sequence = 0; sequence < (offsets is null ? Batch : offsets.Length - 1); sequence++)
        {
            var start = offsets is null ? sequence * Queries : offsets[sequence];
            var end = offsets is null ? start + (lengths is null ? Queries : lengths[sequence]) : offsets[sequence + 1];
            for (var last = 0L; start < end; start++)
            {
                if (values[start] < last || values[start] > Keys)
                {
                    throw Wrong(nameof(options.QueryPositions), $"lies from 0 to {Keys} and does not decrease within a sequence; {values[start]} comes after {last}");
                }

                last = values[start];
            }
        }
    }

    private void CheckLengths(Tensor? lengths, string name, long most)
    {
        if (lengths is null)
        {
            return;
        }

        if (lengths.dtype != ScalarType.Int64 || lengths.dim() != 1 || lengths.size(0) != Batch)
        {
            throw Wrong(name, $"holds one int64 length per batch item, [{Batch}]; {lengths.dtype} {Text(lengths)} was given");
        }

        foreach (var length in SmallIntegers.Read(lengths))
        {
            if (length < 0 || length > most)
            {
                throw Wrong(name, $"holds lengths from 0 to {most}, not {length}");
            }
        }
    }

    private static long CheckOffsets(Tensor offsets, string name, long most)
    {
        if (offsets.dtype != ScalarType.Int64 || offsets.dim() != 1 || offsets.size(0) < 2)
        {
            throw Wrong(name, $"holds the int64 row offsets of at least one sequence and the end, [S + 1]; {offsets.dtype} {Text(offsets)} was given");
        }

        long last = 0;
        foreach (var offset in SmallIntegers.Read(offsets))
        {
            if (offset < last || offset > most)
            {
                throw Wrong(name, $"does not decrease and lies between 0 and {most}; {offset} comes after {last}");
            }

            last = offset;
        }

        return offsets.size(0) - 1;
    }

    private void CheckMasks(AttentionOptions options, Tensor query)
    {
        if (options.Mask is { } mask)
        {
            if (mask.dtype != ScalarType.Bool)
            {
                throw Wrong(nameof(options.Mask), $"is boolean, true where a query may attend; it is {mask.dtype} (add a {nameof(DenseBias)} for an additive mask)");
            }

            if (mask.device_type != query.device_type)
            {
                throw Wrong(nameof(options.Mask), $"is on the query's device, {query.device}, not on {mask.device}");
            }

            CheckBroadcast(mask, nameof(options.Mask), "[B, H, Nq, Nk]", Batch, Heads, Queries, Keys);
        }

        if (options.BlockMask is { } blocks)
        {
            if (blocks.QueryLength != Queries || blocks.KeyLength != Keys)
            {
                throw Wrong(nameof(options.BlockMask), $"covers {blocks.QueryLength} queries and {blocks.KeyLength} keys; the call has {Queries} and {Keys}");
            }

            if ((blocks.Batches != 1 && blocks.Batches != Batch) || (blocks.Heads != 1 && blocks.Heads != Heads))
            {
                throw Wrong(
                    nameof(options.BlockMask), $"has lists for 1 or {Batch} batch items and 1 or {Heads} heads, not for {blocks.Batches} and {blocks.Heads}");
            }
        }

        if (options.KeyRuns is { } runs)
        {
            if (options.BlockMask is not null)
            {
                throw Clash(nameof(options.KeyRuns), nameof(options.BlockMask), "both say which pairs are computed; give one of them");
            }

            if (runs.QueryLength != Queries || runs.KeyLength != Keys)
            {
                throw Wrong(nameof(options.KeyRuns), $"covers {runs.QueryLength} queries and {runs.KeyLength} keys; the call has {Queries} and {Keys}");
            }

            if ((runs.Batches != 1 && runs.Batches != Batch) || Heads % runs.Heads != 0)
            {
                throw Wrong(
                    nameof(options.KeyRuns), $"has lists for 1 or {Batch} batch items and for a divisor of {Heads} heads, not for {runs.Batches} and {runs.Heads}");
            }
        }
    }
}
