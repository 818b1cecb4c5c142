using Heed.Interop;
using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>What stands for a block of tokens where blocks are scored: its mean, the largest score of a sample of it, or sums along the antidiagonals of its score map.</summary>
public static class BlockSummaries
{
    /// <summary>The mean of every block of consecutive tokens, the last of which may be short. Differentiable.</summary>
    /// <param name="tokens"><c>[..., N, D]</c>.</param>
    /// <param name="blockSize">Tokens of a block, from 1.</param>
    /// <param name="sequenceOffsets">Where packed sequences begin, and the end of the last, ascending from 0 to N: blocks begin afresh with each. Null: one sequence.</param>
    /// <returns><c>[..., C, D]</c> in float32 or wider.</returns>
    /// <exception cref="ArgumentException">The block is smaller than a token, or the offsets do not ascend from 0 to N.</exception>
    public static Tensor Mean(Tensor tokens, long blockSize, IReadOnlyList<long>? sequenceOffsets = null)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        var axis = (int)tokens.dim() - 2;
        var length = tokens.size(axis);
        CheckBlock(blockSize, nameof(blockSize));
        sequenceOffsets ??= [0, length];
        CheckOffsets(sequenceOffsets, length);
        using var scope = NewDisposeScope();
        var wide = Wide(tokens);
        var parts = new List<Tensor>();
        for (var sequence = 0; sequence + 1 < sequenceOffsets.Count; sequence++)
        {
            var (start, end) = (sequenceOffsets[sequence], sequenceOffsets[sequence + 1]);
            var whole = (end - start) / blockSize;
            if (whole > 0)
            {
                parts.Add(wide.narrow(axis, start, whole * blockSize).unflatten(axis, [whole, blockSize]).mean([-2L]));
            }

            if (start + (whole * blockSize) < end)
            {
                parts.Add(wide.narrow(axis, start + (whole * blockSize), end - start - (whole * blockSize)).mean([-2L], keepdim: true));
            }
        }

        return (parts.Count == 1 ? parts[0].alias() : cat(parts, axis)).MoveToOuterDisposeScope();
    }

    /// <summary>The importance of key blocks for query blocks by sampled maxima (arXiv 2512.04025): a few tokens of every block are scored against each other; a block pair counts by its largest score relative to the
    /// largest of the query's row, <c>max_i exp(max_j s_ij - max s_i)</c>, and every row is divided by its sum.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H.</param>
    /// <param name="queryBlock">Queries of a block, from 1. The last block is filled up by its last token.</param>
    /// <param name="keyBlock">Keys of a block, from 1; likewise.</param>
    /// <param name="querySample">Offsets of the sampled queries within a block, int64 <c>[B, H, s]</c>: one sample for all blocks of a head.</param>
    /// <param name="keySample">Offsets of the sampled keys, int64 <c>[B, H, t]</c>.</param>
    /// <param name="scale">Factor of the products; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, ceil(Nq / queryBlock), ceil(Nk / keyBlock)]</c>, rows summing to 1, float32 or wider. No gradient.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, or an offset lies outside its block.</exception>
    public static Tensor SampledMaximum(Tensor query, Tensor key, long queryBlock, long keyBlock, Tensor querySample, Tensor keySample, double? scale = null)
    {
        var (batch, heads) = CheckPair(query, key);
        CheckBlock(queryBlock, nameof(queryBlock));
        CheckBlock(keyBlock, nameof(keyBlock));
        CheckSample(querySample, batch, heads, queryBlock, nameof(querySample));
        CheckSample(keySample, batch, heads, keyBlock, nameof(keySample));
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var group = heads / key.size(1);
        var queries = Sampled(query, queryBlock, querySample, 1);

        // All first sampled keys, all second ones, and so on: the maxima then run over whole vectors of blocks.
        var keys = Sampled(key, keyBlock, keySample, group).unflatten(2, [-1L, keySample.size(2)]).transpose(2, 3).flatten(2, 3);
        var (queryBlocks, keyBlocks) = ((query.size(2) + queryBlock - 1) / queryBlock, (key.size(2) + keyBlock - 1) / keyBlock);
        var (rows, columns) = (querySample.size(2), keySample.size(2));
        using Scalar factor = scale ?? 1 / Math.Sqrt(Math.Max(1, query.size(3)));
        queries = queries.mul(factor);
        var largest = LargestOfBlocks(queries, keys, keyBlocks, columns);
        var relative = (largest - largest.amax([-1L], keepdim: true)).exp_();
        var importance = relative.unflatten(2, [queryBlocks, rows]).amax([3L]);
        return importance.div_(importance.sum([-1L], keepdim: true)).MoveToOuterDisposeScope();
    }

    /// <summary>The importance of key blocks for query blocks by sums along antidiagonals (arXiv 2512.04025, after XAttention): <c>A[x, y]</c> sums the products of the stride's queries, last first, and the stride's keys, first
    /// first, over <c>sqrt(D) * stride</c>; a softmax over y is summed over each pair of blocks. A full row sums to block / stride.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>, Hkv a divisor of H.</param>
    /// <param name="block">Tokens of a block, a multiple of the stride.</param>
    /// <param name="stride">Tokens that one product stands for, from 1.</param>
    /// <param name="chunk">Queries and keys are filled up by zeros to a multiple of this, itself a multiple of the block.</param>
    /// <param name="isCausal">Whether strides of keys after the query's are left out, and the filling with them. If not, the filling takes its share of the softmax. Rows of filling are zero either way.</param>
    /// <returns><c>[B, H, ceil(N / block), ceil(N / block)]</c>, float32 or wider. No gradient.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together, or the block, stride and chunk do not divide each other.</exception>
    public static Tensor AntidiagonalSum(Tensor query, Tensor key, long block, long stride, long chunk, bool isCausal)
    {
        var (batch, heads) = CheckPair(query, key);
        var length = query.size(2);
        CheckBlock(block, nameof(block));
        if (key.size(2) != length)
        {
            throw new ArgumentException($"Antidiagonal sums need as many queries as keys; {length} and {key.size(2)} were given.", nameof(key));
        }

        if (stride < 1 || block % stride != 0 || chunk < 1 || chunk % block != 0)
        {
            throw new ArgumentException($"The stride divides the block, and the block the chunk; the stride {stride}, the block {block} and the chunk {chunk} were given.", nameof(stride));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var padded = (length + chunk - 1) / chunk * chunk;
        var (strides, valid) = (padded / stride, (length + stride - 1) / stride);
        var (cells, perBlock, blocks) = (padded / block, block / stride, (length + block - 1) / block);
        Tensor Rows(Tensor tokens, bool reversed)
        {
            var rows = nn.functional.pad(Wide(tokens), [0, 0, 0, padded - length]).unflatten(2, [strides, stride]);
            return (reversed ? rows.flip([3L]) : rows).flatten(3);
        }

        var keyRows = Rows(key, reversed: false);
        using Scalar factor = 1 / (Math.Sqrt(Math.Max(1, query.size(3))) * stride), nothing = double.NegativeInfinity, zero = 0;
        var queryRows = Rows(query, reversed: true).mul(factor);
        var group = heads / key.size(1);
        var importance = empty(batch, heads, blocks, blocks, queryRows.dtype);
        var column = arange(strides, dtype: int64);
        var step = Math.Max(1, SampledScores / Math.Max(1, strides * perBlock));
        for (long b = 0; b < batch; b++)
        {
            for (long h = 0; h < heads; h++)
            {
                var keysOfHead = keyRows[b, h / group].transpose(0, 1);
                for (long first = 0; first < blocks; first += step)
                {
                    using var inner = NewDisposeScope();
                    var count = Math.Min(step, blocks - first);
                    var (start, rows) = (first * perBlock, count * perBlock);

                    // Causal rows end where they end: nothing after the last stride of the last block is read.
                    var columns = isCausal ? (first + count) * perBlock : strides;
                    var scores = matmul(queryRows[b, h].narrow(0, start, rows), keysOfHead.narrow(1, 0, columns));
                    var row = arange(start, start + rows, dtype: int64).unsqueeze(1);
                    if (isCausal)
                    {
                        using Scalar end = valid;
                        scores = scores.masked_fill_(column.narrow(0, 0, columns).gt(row).logical_or(column.narrow(0, 0, columns).ge(end)), nothing);
                    }

                    var shares = scores.softmax(-1);
                    using Scalar last = valid;
                    shares = shares.masked_fill_(row.ge(last), zero);
                    var sums = shares.view(count, perBlock, columns / perBlock, perBlock).sum([1L, 3L]);
                    var kept = Math.Min(columns / perBlock, blocks);
                    var target = importance[b, h].narrow(0, first, count);
                    target.narrow(1, 0, kept).copy_(sums.narrow(1, 0, kept));
                    if (kept < blocks)
                    {
                        target.narrow(1, kept, blocks - kept).zero_();
                    }
                }
            }
        }

        return importance.MoveToOuterDisposeScope();
    }

    // Scores that are computed before their maxima or sums are taken: about a megabyte.
    private const long SampledScores = 1L << 18;

    internal static void CheckBlock(long size, string name)
    {
        if (size < 1)
        {
            throw new ArgumentException($"A block holds at least 1 token, not {size}.", name);
        }
    }

    internal static void CheckOffsets(IReadOnlyList<long> offsets, long length)
    {
        var ascends = offsets.Count >= 2 && offsets[0] == 0 && offsets[^1] == length;
        for (var i = 1; ascends && i < offsets.Count; i++)
        {
            ascends = offsets[i] > offsets[i - 1];
        }

        if (!ascends)
        {
            throw new ArgumentException(
                $"The offsets of packed sequences ascend from 0 to the number of tokens, {length}; {string.Join(", ", offsets.Take(8))}{(offsets.Count > 8 ? " ..." : "")} were given.",
                nameof(offsets));
        }
    }

    /// <summary>Repeats the last token until the length is a multiple. Differentiable: the copies' gradients go to that token.</summary>
    internal static Tensor FillBlocks(Tensor tokens, long block)
    {
        var missing = (block - (tokens.size(2) % block)) % block;
        return missing == 0 ? tokens : cat([tokens, tokens.narrow(2, tokens.size(2) - 1, 1).expand(-1, -1, missing, -1)], 2);
    }

    internal static Tensor Wide(Tensor tensor) => tensor.dtype is ScalarType.Float64 ? tensor : tensor.to(ScalarType.Float32);

    /// <summary>The sampled tokens of every block, <c>[B, H, blocks * sample, D]</c>.</summary>
    private static Tensor Sampled(Tensor tokens, long block, Tensor sample, long group)
    {
        var (length, blocks) = (tokens.size(2), (tokens.size(2) + block - 1) / block);
        using Scalar last = length - 1, size = block;
        var places = (arange(blocks, dtype: int64).view(1, 1, -1, 1).mul(size) + sample.cpu().unsqueeze(2)).clamp_max_(last).flatten(2);
        var wide = Wide(group == 1 ? tokens : tokens.repeat_interleave(group, 1));
        return wide.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, tokens.size(3)));
    }

    /// <summary>The largest product of each query with the sampled keys of every block, <c>[B, H, Nq, blocks]</c>.</summary>
    private static unsafe Tensor LargestOfBlocks(Tensor queries, Tensor keys, long blocks, long samples)
    {
        if (queries.dtype != ScalarType.Float32 || queries.device_type != TorchSharp.DeviceType.CPU)
        {
            return matmul(queries, keys.transpose(-1, -2)).unflatten(3, [samples, blocks]).amax([3L]);
        }

        var largest = empty(queries.size(0), queries.size(1), queries.size(2), blocks, ScalarType.Float32);
        var (dense, denseKeys) = (queries.contiguous(), keys.contiguous());
        SampledMaxima.Compute(TensorMemory.View(dense), TensorMemory.View(denseKeys), checked((int)blocks), 1, (float*)TensorMemory.Data(largest), get_num_threads());
        GC.KeepAlive((dense, denseKeys, largest));
        return largest;
    }

    private static (long Batch, long Heads) CheckPair(Tensor query, Tensor key)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        return query.dim() == 4 && key.dim() == 4 && query.size(0) == key.size(0) && query.size(3) == key.size(3) && query.size(2) > 0 && key.size(2) > 0
            && key.size(1) > 0 && query.size(1) % key.size(1) == 0
            ? (query.size(0), query.size(1))
            : throw new ArgumentException(
                $"Blocks are scored between queries [B, H, Nq, D] and keys [B, Hkv, Nk, D] of at least one token, Hkv a divisor of H; {AttentionShape.Text(query)} and {AttentionShape.Text(key)} were given.",
                nameof(key));
    }

    private static void CheckSample(Tensor sample, long batch, long heads, long block, string name)
    {
        ArgumentNullException.ThrowIfNull(sample);
        if (sample.dtype != ScalarType.Int64 || sample.dim() != 3 || sample.size(0) != batch || sample.size(1) != heads || sample.size(2) < 1)
        {
            throw new ArgumentException($"A sample is int64 [{batch}, {heads}, n] with at least one offset; {sample.dtype} {AttentionShape.Text(sample)} was given.", name);
        }

        using var scope = NewDisposeScope();
        if (sample.min().item<long>() < 0 || sample.max().item<long>() >= block)
        {
            throw new ArgumentException($"Offsets of a sample lie within a block, 0 to {block - 1}; {sample.min().item<long>()} to {sample.max().item<long>()} were given.", name);
        }
    }
}
