using Heed.Biases;
using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed;

/// <summary>
/// Attention written out in libtorch operations with the map materialised: any device, any dtype, differentiable twice. It is the meaning
/// of every option, the oracle that the fused path is tested against (in float64), and the path of the calls whose hooks need the map.
/// </summary>
internal static class PlainAttention
{
    // TorchSharp lets the collector free a scalar while the native call that it was given to still reads it, if another thread starts a
    // collection just then: these are kept alive for good, the computed ones by `using`.
    private static readonly Scalar s_zero = 0, s_one = 1, s_negativeInfinity = double.NegativeInfinity, s_notANumber = double.NaN;

    /// <summary>The output of a call (gate included), with the hooks of the stages scores, weights and statistics.</summary>
    public static Tensor Compute(AttentionCall call, AttentionHooks? hooks = null, IReadOnlyList<ObserverStages.StatisticsPass>? passes = null)
    {
        using var scope = NewDisposeScope();
        var installed = hooks?.Installed ?? [];
        var map = Scores(call.Query, call.Key, call.Options);
        foreach (var hook in installed)
        {
            if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Scores))
            {
                map.Scores = hook.OnScores(call, map.Scores);
            }
        }

        var weights = Normalize(map, call.Query, call.Key, call.Options);
        foreach (var hook in installed)
        {
            if (hook.StagesAt(call.Site).HasFlag(AttentionStages.Weights))
            {
                weights = hook.OnWeights(call, weights);
            }
        }

        if (hooks is not null)
        {
            call.Map = weights;
            ObserverStages.ShowMap(call, hooks);
            foreach (var pass in passes ?? [])
            {
                ObserverStages.Deliver(call, Statistics(map, weights, call.Options, pass.Request), pass);
            }

            if (hooks.StagesAt(call.Site).HasFlag(AttentionStages.Output))
            {
                // Edits of the output go by the weights as they are here, whoever changed them.
                call.Map = weights.alias().MoveToOuterDisposeScope();
            }
            else
            {
                call.Map = null;
            }
        }

        var output = Mix(weights, call.Value.to(weights.dtype), map.Allowed);
        if (call.Options.Gate is { } gate)
        {
            output = output * gate.to(output.dtype);
        }

        return output.MoveToOuterDisposeScope();
    }

    /// <summary>The weights of chosen heads and rows, <c>[B, heads, rows, Nk]</c>.</summary>
    public static Tensor Weights(Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        using var scope = NewDisposeScope();
        return Normalize(Scores(query, key, options, heads, rows), query, key, options, heads, rows).MoveToOuterDisposeScope();
    }

    /// <summary>The scores of chosen columns, minus infinity where there is no pair, in float32 or wider, <c>[B, heads, rows, columns]</c>.</summary>
    public static Tensor ColumnScores(Tensor query, Tensor key, AttentionOptions options, Tensor columns, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        using var scope = NewDisposeScope();
        var wide = query.dtype is ScalarType.Float16 or ScalarType.BFloat16 ? query.to(float32) : query;
        return Scores(wide, key, options, heads, rows, columns).Scores.MoveToOuterDisposeScope();
    }

    /// <summary>Log-sum-exp of every row including the sink, <c>[B, H, Nq]</c>; minus infinity where there is no pair.</summary>
    public static Tensor LogSumExp(Tensor query, Tensor key, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        return LogSumExp(Scores(query, key, options), options).MoveToOuterDisposeScope();
    }

    /// <summary>Rows and heads of a map <c>[B, H, Nq, Nk]</c>; dimensions of size one stand for all.</summary>
    public static Tensor Choose(Tensor map, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        if (heads is not null && map.shape[1] != 1)
        {
            map = map.index_select(1, tensor(heads.Select(head => (long)head).ToArray(), device: map.device));
        }

        return rows is null || map.shape[2] == 1 ? map : map.index_select(2, tensor(rows.ToArray(), device: map.device));
    }

    /// <summary>The scores of chosen heads and rows, <c>[B, heads, rows, Nk]</c>, minus infinity where there is no pair.</summary>
    public static Tensor ScoresOf(Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        using var scope = NewDisposeScope();
        return Scores(query, key, options, heads, rows).Scores.MoveToOuterDisposeScope();
    }

    /// <summary>The pairs that exist by the options' causality, window, masks and lengths, boolean, broadcastable to <c>[B, H, Nq, Nk]</c>.</summary>
    public static Tensor Allowed(Tensor query, Tensor key, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        return Scores(query, key, options).Allowed.MoveToOuterDisposeScope();
    }

    /// <summary>Scores with minus infinity where no pair exists, the pairs, and where queries and keys stand (all broadcast to the
    /// scores).</summary>
    private static ScoreMap Scores(
        Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null, Tensor? columns = null)
    {
        var (headCount, width) = (query.shape[1], query.shape[3]);
        var scale = options.Scale ?? (width > 0 ? 1 / Math.Sqrt(width) : 1);
        var chosenKeys = Choose(RepeatHeads(Pick(key, 2, columns).to(query.dtype), headCount), heads, null);
        using Scalar factor = scale;
        var scores = matmul(Choose(query, heads, rows), chosenKeys.transpose(-1, -2)).mul(factor);
        foreach (var bias in options.Biases.OfType<LowRankBias>())
        {
            scores = scores + matmul(Choose(AsFour(bias.QueryFactors), heads, rows), Choose(Pick(AsFour(bias.KeyFactors), 2, columns), heads, null).transpose(-1, -2)).to(scores.dtype);
        }

        if (options.Softcap is { } cap)
        {
            using Scalar limit = cap;
            scores = tanh(scores.div(limit)).mul(limit);
        }

        var (position, keyIndex, exists) = Positions(query, key, options, rows, columns);
        foreach (var bias in options.Biases)
        {
            scores = bias switch
            {
                DenseBias dense => scores + Pick(Choose(AsFour(dense.Values), heads, rows), 3, columns).to(scores.dtype),
                KeyBias perKey => scores + Pick(Choose(Broadcast(perKey.Values, 3).unsqueeze(-2), heads, null), 3, columns).to(scores.dtype),
                AlibiBias alibi => scores - (Choose(alibi.Slopes.to(scores.dtype).view(1, -1, 1, 1), heads, null) * (position - keyIndex).abs().to(scores.dtype)),
                _ => scores,
            };
        }

        var allowed = exists;
        if (options.Causal != Causality.None)
        {
            allowed = allowed.logical_and(keyIndex <= position);
        }

        if (options.WindowBefore is { } before)
        {
            using Scalar reach = before;
            allowed = allowed.logical_and(keyIndex >= position.sub(reach));
        }

        if (options.WindowAfter is { } after)
        {
            using Scalar reach = after;
            allowed = allowed.logical_and(keyIndex <= position.add(reach));
        }

        if (options.Mask is { } mask)
        {
            allowed = allowed.logical_and(Pick(Choose(AsFour(mask), heads, rows), 3, columns));
        }

        if (options.BlockMask is { } blocks)
        {
            var (listed, bias) = Expand(blocks, heads, rows);
            allowed = allowed.logical_and(Pick(listed.to(query.device), 3, columns));
            scores = bias is null ? scores : scores + Pick(bias.to(scores.dtype).to(query.device), 3, columns);
        }

        if (options.KeyRuns is { } runs)
        {
            allowed = allowed.logical_and(Pick(Expand(runs, (int)headCount, heads, rows).to(query.device), 3, columns));
        }

        allowed = allowed.expand(scores.shape);
        return new(scores.masked_fill(allowed.logical_not(), s_negativeInfinity), allowed, position, keyIndex, heads);
    }

    private static Tensor Normalize(
        ScoreMap map, Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        var forbidden = map.Allowed.logical_not();
        switch (options.Normalizer)
        {
            case Normalizer.ReluOverPosition:
                Tensor count;
                if (options.Causal == Causality.None)
                {
                    var (_, _, exists) = Positions(query, key, options, rows);
                    count = exists.expand(exists.shape[0], 1, exists.shape[2], key.shape[2]).sum(-1, keepdim: true);
                }
                else
                {
                    count = map.Position.add(s_one);
                }

                return map.Scores.masked_fill(forbidden, s_zero).relu() / count.clamp(min: s_one).to(map.Scores.dtype);

            case Normalizer.Sigmoid:
                return sigmoid(map.Scores.masked_fill(forbidden, s_zero)).masked_fill(forbidden, s_zero);

            default:
                var sunk = WithSink(map.Scores, options.Sinks, heads);
                var some = RowsWithPairs(map);
                var weights = softmax(where(some, sunk, zeros_like(sunk)), -1).narrow(-1, 0, map.Scores.shape[^1]);
                return weights.masked_fill(map.Allowed.logical_and(some).logical_not(), s_zero);
        }
    }

    /// <summary>Rows with a score above minus infinity, <c>[B, H, Nq, 1]</c>.</summary>
    private static Tensor RowsWithPairs(ScoreMap map) =>
        map.Scores.shape[^1] == 0
            ? zeros([.. map.Scores.shape[..^1], 1], dtype: @bool, device: map.Scores.device)
            : map.Scores.amax([-1L], keepdim: true).eq(s_negativeInfinity).logical_not();

    private static Tensor LogSumExp(ScoreMap map, AttentionOptions options)
    {
        var rows = RowsWithPairs(map).squeeze(-1);
        var sunk = WithSink(map.Scores, options.Sinks, map.Heads);
        return sunk.shape[^1] == 0 ? full_like(rows, s_negativeInfinity, sunk.dtype) : sunk.logsumexp(-1).masked_fill(rows.logical_not(), s_negativeInfinity);
    }

    private static AttentionStatistics Statistics(ScoreMap map, Tensor weights, AttentionOptions options, AttentionStatisticsRequest request)
    {
        using var still = no_grad();
        using var scope = NewDisposeScope();
        var keys = weights.shape[^1];
        using Scalar minusOne = -1, end = keys;
        var some = RowsWithPairs(map).squeeze(-1);
        var logSumExp = LogSumExp(map, options);
        Tensor Keep(Tensor statistic, ScalarType type = ScalarType.Float32) => statistic.to(type).alias().MoveToOuterDisposeScope();
        Tensor? entropy = null, maximum = null, maximumKey = null, distance = null, setMass = null, topWeights = null, topKeys = null, received = null, keyEntropy = null;
        if (request.Entropy)
        {
            var sum = xlogy(weights, weights).sum(-1).neg();
            if (options.Sinks is { } sinks)
            {
                var sink = exp(Choose(sinks.to(logSumExp.dtype).view(1, -1, 1, 1), map.Heads, null).squeeze(-1) - logSumExp);
                sum = (sum - xlogy(sink, sink)).masked_fill(some.logical_not(), s_zero);
            }

            entropy = Keep(sum);
        }

        var index = arange(end, dtype: int64, device: weights.device);
        if (request.Maximum)
        {
            var largest = keys == 0 ? zeros(weights.shape[..^1], weights.dtype) : weights.amax([-1L]);
            var places = keys == 0 ? zeros_like(largest) : where(weights.eq(largest.unsqueeze(-1)), index, full_like(index, end)).amin([-1L]);
            maximum = Keep(largest);
            maximumKey = Keep(places.masked_fill(some.logical_not(), minusOne), ScalarType.Int32);
        }

        if (request.MeanDistance)
        {
            distance = Keep((weights * (map.Position - map.KeyIndex).abs().to(weights.dtype)).sum(-1));
        }

        if (request.KeySet is { } set)
        {
            var members = set.to(weights.device).to(weights.dtype).view(-1, 1, 1, set.shape[^1]);
            setMass = Keep((weights.narrow(-1, 0, set.shape[^1]) * members).sum(-1));
        }

        if (request.TopCount > 0)
        {
            var count = Math.Min(request.TopCount, keys);
            var (sorted, places) = sort(weights, -1, descending: true, stable: true);
            sorted = sorted.narrow(-1, 0, count);
            places = places.narrow(-1, 0, count).masked_fill(sorted.eq(s_zero), minusOne);
            topWeights = Keep(nn.functional.pad(sorted, [0, request.TopCount - count]));
            topKeys = Keep(nn.functional.pad(places, [0, request.TopCount - count], value: -1), ScalarType.Int32);
        }

        if (request.MassPerKey || request.KeyEntropy)
        {
            var mass = weights.sum(-2);
            received = Keep(mass);
            if (request.KeyEntropy)
            {
                var shares = weights / mass.masked_fill(mass.eq(s_zero), s_one).unsqueeze(-2);
                keyEntropy = Keep(xlogy(shares, shares).sum(-2).neg());
            }
        }

        return new()
        {
            LogSumExp = Keep(logSumExp),
            Entropy = entropy,
            Maximum = maximum,
            MaximumKey = maximumKey,
            MeanDistance = distance,
            SetMass = setMass,
            TopWeights = topWeights,
            TopKeys = topKeys,
            MassPerKey = received,
            KeyEntropy = keyEntropy,
        };
    }

    private static Tensor Mix(Tensor weights, Tensor value, Tensor allowed)
    {
        var expanded = RepeatHeads(value, weights.shape[1]);
        using var finite = value.isfinite();
        if (finite.all().item<bool>())
        {
            return matmul(weights, expanded);
        }

        // Zero times NaN is NaN: a value that no pair reaches must not spread, so what is not finite is taken out and put back where it is
        // read.
        var broken = RepeatHeads(finite.logical_not(), weights.shape[1]).to(weights.dtype);
        var spread = matmul(allowed.to(weights.dtype), broken).gt(s_zero);
        return matmul(weights, expanded.nan_to_num(0, 0, 0)).masked_fill(spread, s_notANumber);
    }

    private static Tensor WithSink(Tensor scores, Tensor? sinks, IReadOnlyList<int>? heads)
    {
        if (sinks is null)
        {
            return scores;
        }

        var column = Choose(sinks.to(scores.dtype).view(1, -1, 1, 1), heads, null);
        return cat([scores, column.expand(scores.shape[0], scores.shape[1], scores.shape[2], 1)], -1);
    }

    /// <summary>Aligned positions of the queries <c>[B, 1, Nq, 1]</c>, indices of the keys <c>[B, 1, 1, Nk]</c> within their sequence, and
    /// which pairs lie within a sequence <c>[B, 1, Nq, Nk]</c>; all broadcast.</summary>
    private static (Tensor Position, Tensor KeyIndex, Tensor Exists) Positions(Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<long>? rows, Tensor? columns = null)
    {
        var device = query.device;
        var (queries, keys) = (query.shape[2], key.shape[2]);
        using Scalar queryCount = queries, keyCount = keys;
        var row = (rows is null ? arange(queryCount, dtype: int64, device: device) : tensor(rows.ToArray(), device: device)).view(1, 1, -1, 1);
        var column = (columns ?? arange(keyCount, dtype: int64, device: device)).view(1, 1, 1, -1);
        var toStart = options.Causal == Causality.AlignedToStart;
        if (options.QueryOffsets is { } queryOffsets)
        {
            var starts = queryOffsets.to(device);
            var keyStarts = (options.KeyOffsets ?? queryOffsets).to(device);
            var sequence = bucketize(row, starts, right: true).sub(s_one);
            var keySequence = bucketize(column, keyStarts, right: true).sub(s_one);
            using Scalar last = starts.shape[0] - 2;
            var inside = (row >= starts[0]).logical_and(row < starts[-1]).logical_and(column >= keyStarts[0]).logical_and(column < keyStarts[-1]);
            var at = sequence.clamp(s_zero, last);
            var keyAt = keySequence.clamp(s_zero, last);
            var within = row - starts[at];
            var shift = toStart ? zeros_like(at) : keyStarts[at.add(s_one)] - keyStarts[at] - (starts[at.add(s_one)] - starts[at]);
            return (Given(options, rows) ?? (within + shift), column - keyStarts[keyAt], inside.logical_and(sequence == keySequence));
        }

        var queryLengths = options.QueryLengths?.to(device).view(-1, 1, 1, 1) ?? tensor(queries, device: device).view(1, 1, 1, 1);
        var keyLengths = options.KeyLengths?.to(device).view(-1, 1, 1, 1) ?? tensor(keys, device: device).view(1, 1, 1, 1);
        var position = Given(options, rows) ?? (toStart ? row : row + keyLengths - queryLengths);
        return (position, column, (row < queryLengths).logical_and(column < keyLengths));
    }

    private static Tensor? Given(AttentionOptions options, IReadOnlyList<long>? rows)
    {
        var positions = options.QueryPositions?.unsqueeze(1).unsqueeze(-1);
        return rows is null ? positions : positions?.index_select(2, tensor(rows.ToArray()));
    }

    /// <summary>The pairs of a block mask, and its biases if it has any, for chosen heads and rows: <c>[mask batches, heads, rows,
    /// Nk]</c>.</summary>
    private static (Tensor Listed, Tensor? Bias) Expand(BlockMask mask, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        var headCount = mask.Heads == 1 ? 1 : heads?.Count ?? mask.Heads;
        var rowCount = rows?.Count ?? (int)mask.QueryLength;
        var keys = mask.KeyLength;
        var listed = new bool[mask.Batches * headCount * rowCount * keys];
        var bias = new float[listed.LongLength];
        var biased = false;
        long at = 0;
        for (var b = 0; b < mask.Batches; b++)
        {
            for (var h = 0; h < headCount; h++)
            {
                var head = mask.Heads == 1 ? 0 : heads?[h] ?? h;
                for (var r = 0; r < rowCount; r++)
                {
                    var row = rows?[r] ?? r;
                    var (start, end) = mask.Row(b, head, (int)(row / mask.QueryBlock));
                    for (var entry = start; entry < end; entry++)
                    {
                        var first = (long)mask.KeyBlockAt(entry) * mask.KeyBlock;
                        biased |= mask.BiasAt(entry) != 0;
                        for (var j = first; j < Math.Min(first + mask.KeyBlock, keys); j++)
                        {
                            listed[at + j] = mask.Allows(b, head, row, j);
                            bias[at + j] = mask.BiasAt(entry);
                        }
                    }

                    at += keys;
                }
            }
        }

        long[] shape = [mask.Batches, headCount, rowCount, keys];
        return (tensor(listed).view(shape), biased ? tensor(bias).view(shape) : null);
    }

    /// <summary>The pairs of key runs for chosen heads and rows: <c>[batches of the runs, heads or 1, rows, Nk]</c>.</summary>
    private static Tensor Expand(KeyRuns runs, int headCount, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        var listedHeads = runs.Heads == 1 ? 1 : heads?.Count ?? headCount;
        var (rowCount, keys) = (rows?.Count ?? (int)runs.QueryLength, runs.KeyLength);
        var pairs = new bool[runs.Batches * listedHeads * rowCount * keys];
        long at = 0;
        for (var b = 0; b < runs.Batches; b++)
        {
            for (var h = 0; h < listedHeads; h++)
            {
                var head = runs.Heads == 1 ? 0 : (heads?[h] ?? h) / (headCount / runs.Heads);
                for (var r = 0; r < rowCount; r++, at += keys)
                {
                    var row = rows?[r] ?? r;
                    var (start, end) = runs.Row(b, head, (int)(row / runs.QueryBlock));
                    var place = row % runs.QueryBlock;
                    for (; start < end; start++)
                    {
                        var run = runs.Run(start);
                        if (place >= run.FirstRow && place < run.FirstRow + run.RowCount)
                        {
                            Array.Fill(pairs, true, checked((int)(at + run.FirstKey)), run.KeyCount);
                        }
                    }
                }
            }
        }

        return tensor(pairs).view(runs.Batches, listedHeads, rowCount, keys);
    }

    /// <summary>Keys or values, repeated for the query heads that share them.</summary>
    public static Tensor RepeatHeads(Tensor keyOrValue, long heads) =>
        keyOrValue.shape[1] == heads ? keyOrValue : keyOrValue.repeat_interleave(heads / keyOrValue.shape[1], dim: 1);

    /// <summary>Chosen columns along a dimension; one of size one stands for all.</summary>
    private static Tensor Pick(Tensor map, int dimension, Tensor? columns) => columns is null || map.shape[dimension] == 1 ? map : map.index_select(dimension, columns);

    private static Tensor AsFour(Tensor map) => Broadcast(map, 4);

    private static Tensor Broadcast(Tensor map, int dimensions)
    {
        while (map.dim() < dimensions)
        {
            map = map.unsqueeze(0);
        }

        return map;
    }

    private record struct ScoreMap(Tensor Scores, Tensor Allowed, Tensor Position, Tensor KeyIndex, IReadOnlyList<int>? Heads);
}
