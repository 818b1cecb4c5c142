using Heed.Biases;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed;

/// <summary>
/// Attention written out in libtorch operations with the map materialised: any device, any dtype, differentiable twice. It is the meaning of every option,
/// the oracle that the fused path is tested against (in float64), and the path of the calls whose hooks need the map.
/// </summary>
internal static class PlainAttention
{
    /// <summary>The output of a call, with the hooks of the stages from scores on.</summary>
    public static Tensor Compute(AttentionCall call, AttentionHooks? hooks = null)
    {
        using var scope = NewDisposeScope();
        var site = call.Site;
        var active = hooks is null ? [] : hooks.Installed.Where(hook => hook.StagesAt(site) != AttentionStages.None).ToList();
        foreach (var hook in active.Where(hook => hook.StagesAt(site).HasFlag(AttentionStages.Inputs)))
        {
            hook.OnInputs(call);
        }

        var (scores, allowed) = Scores(call.Query, call.Key, call.Options);
        foreach (var hook in active.Where(hook => hook.StagesAt(site).HasFlag(AttentionStages.Scores)))
        {
            scores = hook.OnScores(call, scores);
        }

        var weights = Normalize(scores, allowed, call);
        foreach (var hook in active.Where(hook => hook.StagesAt(site).HasFlag(AttentionStages.Weights)))
        {
            weights = hook.OnWeights(call, weights);
        }

        var output = Mix(weights, call.Value, allowed);
        if (call.Options.Gate is { } gate)
        {
            output = output * gate;
        }

        foreach (var hook in active.Where(hook => hook.StagesAt(site).HasFlag(AttentionStages.Output)))
        {
            output = hook.OnOutput(call, output);
        }

        return output.MoveToOuterDisposeScope();
    }

    /// <summary>The weights of chosen heads and rows, <c>[B, heads, rows, Nk]</c>.</summary>
    public static Tensor Weights(Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int> heads, IReadOnlyList<long>? rows)
    {
        using var scope = NewDisposeScope();
        var call = new AttentionCall(default, query, key, key, options);
        var (scores, allowed) = Scores(query, key, options, heads, rows);
        return Normalize(scores, allowed, call, heads, rows).MoveToOuterDisposeScope();
    }

    /// <summary>Log-sum-exp of every row including the sink, <c>[B, H, Nq]</c>.</summary>
    public static Tensor LogSumExp(Tensor query, Tensor key, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        var (scores, _) = Scores(query, key, options);
        return WithSink(scores, options.Sinks, null).logsumexp(-1).MoveToOuterDisposeScope();
    }

    /// <summary>Scores with minus infinity where no pair exists, and the boolean map of the pairs.</summary>
    private static (Tensor Scores, Tensor Allowed) Scores(
        Tensor query, Tensor key, AttentionOptions options, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        var (batch, headCount, queries, width) = (query.shape[0], query.shape[1], query.shape[2], query.shape[3]);
        var keys = key.shape[2];
        var expandedKey = RepeatHeads(key, headCount);
        var scale = options.Scale ?? (width > 0 ? 1 / Math.Sqrt(width) : 1);
        Tensor Chosen(Tensor map) => Choose(map.expand(batch, headCount, queries, map.shape[^1]), heads, rows);
        Tensor ChosenKeys(Tensor map) => Choose(map.expand(batch, headCount, map.shape[^2], map.shape[^1]), heads, null);

        var scores = matmul(Chosen(query), ChosenKeys(expandedKey).transpose(-1, -2)) * scale;
        foreach (var bias in options.Biases.OfType<LowRankBias>())
        {
            scores = scores + matmul(Chosen(AsFour(bias.QueryFactors)), ChosenKeys(AsFour(bias.KeyFactors)).transpose(-1, -2));
        }

        if (options.Softcap is { } cap)
        {
            scores = tanh(scores / cap) * cap;
        }

        var (position, keyIndex, exists) = Positions(query, key, options);
        foreach (var bias in options.Biases)
        {
            scores = bias switch
            {
                DenseBias dense => scores + Choose(AsFour(dense.Values).expand(batch, headCount, queries, keys), heads, rows),
                KeyBias perKey => scores + Choose(Broadcast(perKey.Values, 3).unsqueeze(-2).expand(batch, headCount, queries, keys), heads, rows),
                AlibiBias alibi => scores - Choose(
                    (alibi.Slopes.view(1, -1, 1, 1) * (position - keyIndex).abs().to(alibi.Slopes.dtype)).expand(batch, headCount, queries, keys), heads, rows).to(scores.dtype),
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
            allowed = allowed.logical_and(keyIndex >= position - before);
        }

        if (options.WindowAfter is { } after)
        {
            allowed = allowed.logical_and(keyIndex <= position + after);
        }

        if (options.Mask is { } mask)
        {
            allowed = allowed.logical_and(AsFour(mask));
        }

        allowed = allowed.expand(batch, headCount, queries, keys);
        if (options.BlockMask is { } blocks)
        {
            var (listed, bias) = Expand(blocks, batch, headCount, queries, keys, scores);
            allowed = allowed.logical_and(listed);
            scores = scores + Choose(bias, heads, rows);
        }

        allowed = Choose(allowed, heads, rows);
        return (scores.masked_fill(allowed.logical_not(), double.NegativeInfinity), allowed);
    }

    private static Tensor Normalize(Tensor scores, Tensor allowed, AttentionCall call, IReadOnlyList<int>? heads = null, IReadOnlyList<long>? rows = null)
    {
        var options = call.Options;
        var lowest = double.NegativeInfinity;
        switch (options.Normalizer)
        {
            case Normalizer.ReluOverPosition:
                var (position, _, _) = Positions(call.Query, call.Key, options);
                Tensor count;
                if (options.Causal == Causality.None)
                {
                    var (_, _, exists) = Positions(call.Query, call.Key, options);
                    count = exists.expand(call.Query.shape[0], 1, call.Query.shape[2], call.Key.shape[2]).sum(-1, keepdim: true);
                }
                else
                {
                    count = position + 1;
                }

                count = Choose(count.expand(call.Query.shape[0], call.Query.shape[1], call.Query.shape[2], 1), heads, rows).clamp(min: 1);
                return scores.masked_fill(allowed.logical_not(), 0).relu() / count.to(scores.dtype);

            case Normalizer.Sigmoid:
                return sigmoid(scores.masked_fill(allowed.logical_not(), 0)).masked_fill(allowed.logical_not(), 0);

            default:
                var sunk = WithSink(scores, options.Sinks, heads);
                var some = sunk.amax([-1L], keepdim: true).eq(lowest).logical_not();
                var weights = softmax(where(some, sunk, zeros_like(sunk)), -1).narrow(-1, 0, scores.shape[^1]);
                return weights.masked_fill(allowed.logical_and(some).logical_not(), 0);
        }
    }

    private static Tensor Mix(Tensor weights, Tensor value, Tensor allowed)
    {
        var expanded = RepeatHeads(value, weights.shape[1]);
        using var finite = value.isfinite();
        if (finite.all().item<bool>())
        {
            return matmul(weights, expanded);
        }

        // Zero times NaN is NaN: a value that no pair reaches must not spread, so what is not finite is taken out and put back where it is read.
        var broken = RepeatHeads(finite.logical_not(), weights.shape[1]).to(weights.dtype);
        var spread = matmul(allowed.to(weights.dtype), broken) > 0;
        return matmul(weights, expanded.nan_to_num(0, 0, 0)).masked_fill(spread, double.NaN);
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

    /// <summary>Aligned positions of the queries <c>[B, 1, Nq, 1]</c>, indices of the keys <c>[B, 1, 1, Nk]</c> within their sequence (packed: <c>[1, 1, Nq, Nk]</c>), and which pairs lie within a sequence.</summary>
    private static (Tensor Position, Tensor KeyIndex, Tensor Exists) Positions(Tensor query, Tensor key, AttentionOptions options)
    {
        var device = query.device;
        var (queries, keys) = (query.shape[2], key.shape[2]);
        var row = arange(queries, dtype: int64, device: device).view(1, 1, -1, 1);
        var column = arange(keys, dtype: int64, device: device).view(1, 1, 1, -1);
        var toStart = options.Causal == Causality.AlignedToStart;
        if (options.QueryOffsets is { } queryOffsets)
        {
            var starts = queryOffsets.to(device);
            var keyStarts = (options.KeyOffsets ?? queryOffsets).to(device);
            var sequence = bucketize(row, starts, right: true) - 1;
            var keySequence = bucketize(column, keyStarts, right: true) - 1;
            var last = starts.shape[0] - 2;
            var inside = (row >= starts[0]).logical_and(row < starts[-1]).logical_and(column >= keyStarts[0]).logical_and(column < keyStarts[-1]);
            var at = sequence.clamp(0, last);
            var keyAt = keySequence.clamp(0, last);
            var within = row - starts[at];
            var shift = toStart ? zeros_like(at) : keyStarts[at + 1] - keyStarts[at] - (starts[at + 1] - starts[at]);
            return (within + shift, column - keyStarts[keyAt], inside.logical_and(sequence == keySequence));
        }

        var queryLengths = options.QueryLengths?.to(device).view(-1, 1, 1, 1) ?? full([1, 1, 1, 1], queries, dtype: int64, device: device);
        var keyLengths = options.KeyLengths?.to(device).view(-1, 1, 1, 1) ?? full([1, 1, 1, 1], keys, dtype: int64, device: device);
        var position = toStart ? row : row + keyLengths - queryLengths;
        return (position, column, (row < queryLengths).logical_and(column < keyLengths));
    }

    private static (Tensor Listed, Tensor Bias) Expand(BlockMask mask, long batch, long heads, long queries, long keys, Tensor like)
    {
        var listed = new bool[mask.Batches * mask.Heads * queries * keys];
        var bias = new float[listed.LongLength];
        long at = 0;
        for (var b = 0; b < mask.Batches; b++)
        {
            for (var h = 0; h < mask.Heads; h++)
            {
                for (long i = 0; i < queries; i++)
                {
                    var (start, end) = mask.Row(b, h, (int)(i / mask.QueryBlock));
                    for (var entry = start; entry < end; entry++)
                    {
                        var first = (long)mask.KeyBlockAt(entry) * mask.KeyBlock;
                        for (var j = first; j < Math.Min(first + mask.KeyBlock, keys); j++)
                        {
                            listed[at + j] = mask.Allows(b, h, i, j);
                            bias[at + j] = mask.BiasAt(entry);
                        }
                    }

                    at += keys;
                }
            }
        }

        Tensor Shape(Tensor flat) => flat.view(mask.Batches, mask.Heads, queries, keys).expand(batch, heads, queries, keys).to(like.device);
        return (Shape(tensor(listed)), Shape(tensor(bias).to(like.dtype)));
    }

    private static Tensor RepeatHeads(Tensor keyOrValue, long heads) =>
        keyOrValue.shape[1] == heads ? keyOrValue : keyOrValue.repeat_interleave(heads / keyOrValue.shape[1], dim: 1);

    private static Tensor AsFour(Tensor map) => Broadcast(map, 4);

    private static Tensor Broadcast(Tensor map, int dimensions)
    {
        while (map.dim() < dimensions)
        {
            map = map.unsqueeze(0);
        }

        return map;
    }

    private static Tensor Choose(Tensor map, IReadOnlyList<int>? heads, IReadOnlyList<long>? rows)
    {
        if (heads is not null)
        {
            map = map.index_select(1, tensor(heads.Select(head => (long)head).ToArray(), device: map.device));
        }

        return rows is null ? map : map.index_select(2, tensor(rows.ToArray(), device: map.device));
    }
}
