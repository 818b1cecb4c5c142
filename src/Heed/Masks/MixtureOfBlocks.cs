using System.Numerics;
using System.Numerics.Tensors;
using static TorchSharp.torch;
using Tensor = TorchSharp.torch.Tensor;

namespace Heed.Masks;

/// <summary>How many (query, block) pairs a mixture of blocks selects.</summary>
public enum BlockSelectionMode
{
    /// <summary>As many as reach a share of the pool's similarity.</summary>
    Threshold,

    /// <summary>A fixed number of blocks per query, on average over the pool.</summary>
    TopK,
}

/// <summary>Which (query, block) pairs compete with each other.</summary>
public enum BlockSelectionScope
{
    /// <summary>All pairs of a head (VMoBA): heads and queries that need more take more.</summary>
    HeadGlobal,

    /// <summary>All blocks for one query of a head (MoBA).</summary>
    QueryHead,

    /// <summary>All queries of all heads for one block. Threshold only.</summary>
    Block,

    /// <summary>All pairs of all heads.</summary>
    Overall,
}

/// <summary>What is computed where nothing but own blocks was selected.</summary>
public enum EmptyBlockSelection
{
    /// <summary>Full attention within each sequence, as the authors' code does.</summary>
    FullAttention,

    /// <summary>The own blocks alone.</summary>
    OwnBlockOnly,
}

/// <summary>How a mixture of blocks selects.</summary>
public sealed record MixtureOfBlocksOptions
{
    /// <summary>Keys of a block, from 1.</summary>
    public required long BlockSize { get; init; }

    /// <summary>How many pairs are selected.</summary>
    public BlockSelectionMode Mode { get; init; } = BlockSelectionMode.Threshold;

    /// <summary>Which pairs compete.</summary>
    public BlockSelectionScope Scope { get; init; } = BlockSelectionScope.HeadGlobal;

    /// <summary>The share of similarity to reach, above 0 and at most 1. A share of 1 takes every pair.</summary>
    public double Threshold { get; init; } = 0.25;

    /// <summary>Blocks per query, the own block among them, from 1.</summary>
    public int TopK { get; init; } = 3;

    /// <summary>What is computed where nothing but own blocks was selected.</summary>
    public EmptyBlockSelection EmptySelection { get; init; } = EmptyBlockSelection.FullAttention;

    /// <summary>Refuses values that cannot select.</summary>
    /// <exception cref="ArgumentException">A value is out of its range, or the scope <see cref="BlockSelectionScope.Block"/> is combined with top-k.</exception>
    public void Validate()
    {
        BlockSummaries.CheckBlock(BlockSize, nameof(BlockSize));
        if (!(Threshold > 0 && Threshold <= 1))
        {
            throw new ArgumentException($"The threshold of a mixture of blocks is above 0 and at most 1, not {Threshold}.", nameof(Threshold));
        }

        if (TopK < 1)
        {
            throw new ArgumentException($"Top-k counts the own block, so k is at least 1, not {TopK}.", nameof(TopK));
        }

        if (Mode == BlockSelectionMode.TopK && Scope == BlockSelectionScope.Block)
        {
            throw new ArgumentException($"{nameof(BlockSelectionScope)}.{nameof(BlockSelectionScope.Block)} cannot be combined with top-k: k counts blocks of a query. Use a threshold or another scope.", nameof(Scope));
        }
    }
}

/// <summary>
/// Selects key blocks for queries by the product of the query and the mean of the block's keys (MoBA; VMoBA, arXiv 2506.23858): the own block always, others from one pool by a share of
/// similarity or by count.
/// </summary>
/// <remarks>The similarity is unscaled. A threshold normalises it over the valid pairs of the pool to 0 ... 1; own blocks cost nothing but count towards the share; at least one other pair of every pool is taken.</remarks>
public static class MixtureOfBlocks
{
    // What the authors' code adds to sums, and the range below which a pool counts as flat.
    private const double Tiny = 1e-6;

    /// <summary>Selects blocks. No gradient.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>. Every batch item selects on its own.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>, Hkv a divisor of H.</param>
    /// <param name="options">How.</param>
    /// <param name="sequenceOffsets">Where packed sequences begin, and the end of the last, ascending from 0 to N: blocks never cross sequences. Null: one sequence.</param>
    /// <exception cref="ArgumentException">Shapes, options or offsets do not fit together.</exception>
    public static BlockSelection Select(Tensor query, Tensor key, MixtureOfBlocksOptions options, IReadOnlyList<long>? sequenceOffsets = null) =>
        Select(query, key, options, sequenceOffsets, isCausal: false);

    /// <summary>Selects among the past: a query sees its own block and complete blocks before it. Queries are aligned with the last keys.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c> of at least as many tokens.</param>
    /// <param name="options">How: top-k per query, since every other pool would let later queries decide about earlier ones.</param>
    /// <exception cref="ArgumentException">Shapes do not fit together, or the options are others.</exception>
    public static BlockSelection SelectCausal(Tensor query, Tensor key, MixtureOfBlocksOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.Mode != BlockSelectionMode.TopK || options.Scope != BlockSelectionScope.QueryHead)
        {
            throw new ArgumentException(
                $"A causal mixture of blocks selects top-k per query; {options.Mode} over {options.Scope} would let later tokens decide about earlier ones.", nameof(options));
        }

        return Select(query, key, options with { EmptySelection = EmptyBlockSelection.OwnBlockOnly }, null, isCausal: true);
    }

    private static BlockSelection Select(Tensor query, Tensor key, MixtureOfBlocksOptions options, IReadOnlyList<long>? sequenceOffsets, bool isCausal)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        if (query.dim() != 4 || key.dim() != 4 || query.size(0) != key.size(0) || query.size(3) != key.size(3) || key.size(1) < 1 || query.size(1) % key.size(1) != 0
            || query.size(2) < 1 || (isCausal ? query.size(2) > key.size(2) : query.size(2) != key.size(2)))
        {
            throw new ArgumentException(
                $"A mixture of blocks selects between queries [B, H, N, D] and keys [B, Hkv, N, D] of the same tokens{(isCausal ? ", the last of them" : "")}; "
                + $"{AttentionShape.Text(query)} and {AttentionShape.Text(key)} were given.", nameof(key));
        }

        using var still = no_grad();
        using var scope = NewDisposeScope();
        var offsets = sequenceOffsets ?? [0, key.size(2)];
        var means = BlockSummaries.Mean(key, options.BlockSize, offsets);
        means = means.size(1) == query.size(1) ? means : means.repeat_interleave(query.size(1) / means.size(1), 1);
        var similarity = matmul(means, BlockSummaries.Wide(query).to(means.dtype).transpose(-1, -2));
        var selection = new BlockSelection(
            similarity.cpu().contiguous().DetachFromDisposeScope(), BlocksOf(offsets, options.BlockSize), key.size(2), isCausal, options.EmptySelection == EmptyBlockSelection.FullAttention);
        try
        {
            Choose(selection, options);
        }
        catch
        {
            selection.Dispose();
            throw;
        }

        return selection;
    }

    private static (long Start, long End, int Sequence)[] BlocksOf(IReadOnlyList<long> offsets, long blockSize)
    {
        var blocks = new List<(long, long, int)>();
        for (var sequence = 0; sequence + 1 < offsets.Count; sequence++)
        {
            for (var start = offsets[sequence]; start < offsets[sequence + 1]; start += blockSize)
            {
                blocks.Add((start, Math.Min(start + blockSize, offsets[sequence + 1]), sequence));
            }
        }

        return [.. blocks];
    }

    private static void Choose(BlockSelection selection, MixtureOfBlocksOptions options)
    {
        if (selection.Similarity.dtype == ScalarType.Float64)
        {
            Choose<double>(selection, options);
        }
        else
        {
            Choose<float>(selection, options);
        }
    }

    private static void Choose<T>(BlockSelection selection, MixtureOfBlocksOptions options)
        where T : unmanaged, IFloatingPointIeee754<T>
    {
        var pools = options.Scope switch
        {
            BlockSelectionScope.HeadGlobal => selection.Heads,
            BlockSelectionScope.QueryHead => selection.Heads,
            BlockSelectionScope.Block => selection.Blocks,
            _ => 1,
        };
        var stride = (long)selection.Queries;
        Parallel.For(0, selection.Batches * pools, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() }, index =>
        {
            var (batch, pool) = Math.DivRem(index, pools);
            switch (options.Scope)
            {
                case BlockSelectionScope.HeadGlobal:
                    new Pool<T>(selection, selection.Blocks, selection.Queries, stride).Choose(selection.Offset(batch, pool, 0, 0), options);
                    break;
                case BlockSelectionScope.QueryHead:
                    var blocksOfQuery = new Pool<T>(selection, selection.Blocks, 1, stride);
                    for (var query = 0; query < selection.Queries; query++)
                    {
                        blocksOfQuery.Choose(selection.Offset(batch, pool, 0, query), options);
                    }

                    break;
                case BlockSelectionScope.Block:
                    new Pool<T>(selection, selection.Heads, selection.Queries, selection.Blocks * stride).Choose(selection.Offset(batch, 0, pool, 0), options);
                    break;
                default:
                    new Pool<T>(selection, selection.Heads * selection.Blocks, selection.Queries, stride).Choose(selection.Offset(batch, 0, 0, 0), options);
                    break;
            }
        });
        GC.KeepAlive(selection);
    }

    /// <summary>Pairs that compete: some runs of queries at equal distances of the similarity, a block each.</summary>
    private readonly struct Pool<T>(BlockSelection selection, int runs, int length, long stride)
        where T : unmanaged, IFloatingPointIeee754<T>
    {
        // So many numbers are added in their own precision before the sum goes on in double precision.
        private const int Addends = 1024;

        private readonly T[] _scores = new T[checked(runs * length)];
        private readonly bool[] _chosen = new bool[runs * length];

        public void Choose(long first, MixtureOfBlocksOptions options)
        {
            var (least, most, total, own, queries) = Read(first);
            Array.Clear(_chosen);
            if (options.Mode == BlockSelectionMode.TopK)
            {
                // The own block is one of the k.
                BudgetRanking.ChooseLargest<T>(_scores, (Math.Min(options.TopK, selection.Blocks) - 1L) * queries, _chosen);
            }
            else if (options.Threshold >= 1)
            {
                BudgetRanking.ChooseLargest<T>(_scores, long.MaxValue, _chosen);
            }
            else
            {
                var range = most - least <= Tiny ? 1 : most - least;
                var need = Math.Max(options.Threshold - (own / range / ((total / range) + Tiny)), 0);
                BudgetRanking.ChooseUpTo<T>(_scores, need * ((total / range) + Tiny) * range, _chosen, least: 1, origin: least);
            }

            for (var run = 0; run < runs; run++)
            {
                var (block, query) = RunAt(first, run);
                var target = selection.Chosen.AsSpan((int)(first + (run * stride)), length);
                _chosen.AsSpan(run * length, length).CopyTo(target);
                var (start, end) = Within(selection.OwnQueries(block), query);
                target[start..end].Fill(true);
            }
        }

        /// <summary>Reads the similarities of the valid pairs and takes the own ones out of the competition: what remains are the scores. Tells the range of the valid ones, what they and the own ones exceed the least by in
        /// sum, and the number of queries (of all heads).</summary>
        private (double Least, double Most, double Total, double Own, long Queries) Read(long first)
        {
            var (least, most, total, own) = (double.PositiveInfinity, double.NegativeInfinity, 0.0, 0.0);
            var (valid, owners) = (0L, 0L);
            for (var run = 0; run < runs; run++)
            {
                var (block, query) = RunAt(first, run);
                var scores = _scores.AsSpan(run * length, length);
                selection.Similarities<T>(first + (run * stride), length).CopyTo(scores);
                var (start, end) = Within(selection.ValidQueries(block), query);
                var (ownStart, ownEnd) = Within(selection.OwnQueries(block), query);
                scores[..start].Fill(T.NaN);
                scores[end..].Fill(T.NaN);
                if (start < end)
                {
                    least = Math.Min(least, double.CreateTruncating(TensorPrimitives.Min<T>(scores[start..end])));
                    most = Math.Max(most, double.CreateTruncating(TensorPrimitives.Max<T>(scores[start..end])));
                    total += Sum(scores[start..end]);
                    own += Sum(scores[ownStart..ownEnd]);
                    valid += end - start;
                    owners += ownEnd - ownStart;
                    scores[ownStart..ownEnd].Fill(T.NaN);
                }
            }

            return (least, most, total - (valid * least), own - (owners * least), owners);
        }

        private static double Sum(ReadOnlySpan<T> values)
        {
            var sum = 0.0;
            for (; values.Length > Addends; values = values[Addends..])
            {
                sum += double.CreateTruncating(TensorPrimitives.Sum(values[..Addends]));
            }

            return sum + double.CreateTruncating(TensorPrimitives.Sum(values));
        }

        /// <summary>A range of queries as one of places in a run that begins with a query.</summary>
        private (int Start, int End) Within((long Start, long End) queries, int query)
        {
            var (start, end) = (Math.Clamp(queries.Start - query, 0, length), Math.Clamp(queries.End - query, 0, length));
            return ((int)start, (int)Math.Max(start, end));
        }

        private (int Block, int Query) RunAt(long first, int run)
        {
            var (row, query) = Math.DivRem(first + (run * stride), selection.Queries);
            return ((int)(row % selection.Blocks), (int)query);
        }
    }
}
