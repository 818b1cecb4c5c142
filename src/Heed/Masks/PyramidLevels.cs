using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Masks;

/// <summary>A level of the pyramid and the blocks that get it.</summary>
/// <param name="Level">Tokens that one pooled token stands for: 1 (in full), 2, 4 or 8; 0: the block is left out.</param>
/// <param name="Lower">Where the level's range begins: a share of the blocks (top-k) or of the importance (cumulative), 0 to 1.</param>
/// <param name="Upper">Where it ends.</param>
public readonly record struct PyramidLevel(int Level, double Lower, double Upper);

/// <summary>What the ranges of the levels are shares of.</summary>
public enum PyramidRanking
{
    /// <summary>Of the blocks, from the most important on.</summary>
    TopK,

    /// <summary>Of the importance, added up from the most important block on.</summary>
    Cumulative,
}

/// <summary>
/// Which key blocks a query block reads at which resolution (PSA, arXiv 2512.04025): level maps <c>[B, H, M, N]</c> of 0 (left out), 1 (in full), 2, 4 and 8 (pooled), from importances.
/// </summary>
public static class PyramidLevels
{
    // What rounding may take from a cumulative share.
    private const double Tiny = 1e-6;

    /// <summary>The level map for generation: every row of blocks is ranked by importance, and runs of ranks get the levels.</summary>
    /// <param name="importance">Importance of key blocks for query blocks, <c>[B, H, M, N]</c>, not negative.</param>
    /// <param name="levels">The levels with their ranges, from 0 to 1 without gaps; top-k takes them in this order, cumulative by their upper ends.</param>
    /// <param name="ranking">What the ranges are shares of. Cumulative: the block that crosses a range's end belongs to it.</param>
    /// <param name="keyBlock">Keys of a block.</param>
    /// <param name="tile">Keys that the authors' kernel computes at once, a divisor of the key block: runs of pooled blocks are rounded so that they fill tiles.</param>
    /// <param name="textLength">Text tokens at the end of the sequence: their blocks are read in full.</param>
    /// <param name="minFullRatio">Cumulative only: level 1 gets at least <c>int(N * minFullRatio) + 1</c> blocks.</param>
    /// <returns>int32 <c>[B, H, M, N]</c>.</returns>
    /// <exception cref="ArgumentException">The levels do not cover 0 to 1, or a size does not fit.</exception>
    public static Tensor FromImportance(
        Tensor importance, IReadOnlyList<PyramidLevel> levels, PyramidRanking ranking, int keyBlock, int tile = 32, long textLength = 0, double minFullRatio = 0.06)
    {
        CheckImportance(importance);
        levels = Ordered(levels, ranking);
        CheckLevels(levels);
        CheckText(textLength);
        if (keyBlock < 1 || tile < 1 || keyBlock % tile != 0)
        {
            throw new ArgumentException($"The tile divides the key block; a tile of {tile} and a block of {keyBlock} were given.", nameof(tile));
        }

        if (!(minFullRatio >= 0 && minFullRatio <= 1))
        {
            throw new ArgumentException($"The least share of blocks that are read in full lies between 0 and 1, not {minFullRatio}.", nameof(minFullRatio));
        }

        var perTile = keyBlock / tile;
        var runs = levels.Select(level => (Range: level, Align: (level.Level + perTile - 1) / perTile)).ToArray();
        var text = (textLength + keyBlock - 1) / keyBlock;
        return Map(importance, (row, target) =>
        {
            var order = BudgetRanking.Descending(row);
            if (ranking == PyramidRanking.TopK)
            {
                TopK(runs, order, target);
            }
            else
            {
                Cumulative(runs, order, Shares(row, order, Total(row, order)), minFullRatio, target);
            }

            target[(int)Math.Max(0, target.Length - text)..].Fill(1);
        });
    }

    /// <summary>The level map for understanding: ranks or shares of importance without rounding to tiles, then text blocks in full for all and by all, nothing of the future, the diagonal and the first key block in full.</summary>
    /// <param name="importance">Importance of key blocks for query blocks, <c>[B, H, N, N]</c>, not negative.</param>
    /// <param name="levels">The levels with their ranges, from 0 to 1 without gaps, taken in this order.</param>
    /// <param name="ranking">What the ranges are shares of. Top-k: of the blocks up to the row's own, where causal. Cumulative: the block that crosses a range's end belongs to the next.</param>
    /// <param name="block">Tokens of a block.</param>
    /// <param name="textLength">Text tokens at the end of the sequence.</param>
    /// <param name="isCausal">Whether blocks after the row's own are left out.</param>
    /// <returns>int32 <c>[B, H, N, N]</c>.</returns>
    /// <exception cref="ArgumentException">The levels do not cover 0 to 1, the map is not square, or a size does not fit.</exception>
    public static Tensor Causal(
        Tensor importance, IReadOnlyList<PyramidLevel> levels, PyramidRanking ranking, int block, long textLength = 0, bool isCausal = true)
    {
        CheckImportance(importance);
        CheckLevels(levels);
        CheckText(textLength);
        BlockSummaries.CheckBlock(block, nameof(block));
        var count = (int)importance.size(3);
        if (importance.size(2) != count)
        {
            throw new ArgumentException($"A causal level map has as many query blocks as key blocks; {AttentionShape.Text(importance)} was given.", nameof(importance));
        }

        var text = (int)Math.Min((textLength + block - 1) / block, count);
        return MapRows(importance, (row, at, target) =>
        {
            var order = BudgetRanking.Descending(row);
            if (ranking == PyramidRanking.TopK)
            {
                // In float32, as the authors count: the rounding decides where a share of the blocks is a whole number.
                float valid = isCausal ? at + 1 : count;
                foreach (var level in levels)
                {
                    for (var rank = (int)(valid * (float)level.Lower); rank < Math.Min((int)(valid * (float)level.Upper), order.Length); rank++)
                    {
                        target[order[rank]] = level.Level;
                    }
                }
            }
            else
            {
                var shares = Shares(row, order, Math.Max(Total(row, order), 1e-10));
                var previous = 0.0;
                foreach (var level in levels)
                {
                    var lower = Math.Max(level.Lower, previous);
                    previous = level.Upper;
                    for (var rank = 0; rank < order.Length; rank++)
                    {
                        if (shares[rank] > lower && shares[rank] <= level.Upper)
                        {
                            target[order[rank]] = level.Level;
                        }
                    }
                }
            }

            target[(count - text)..].Fill(1);
            if (at >= count - text)
            {
                target.Fill(1);
            }

            if (isCausal)
            {
                target[(at + 1)..].Clear();
            }

            (target[at], target[0]) = (1, 1);
        });
    }

    /// <summary>The coarsest level that a key block bears: the largest of 1, and of 2, 4 and 8 where tokens at that distance are similar enough (mean cosine of the first and the last of each pair, four or eight). Each
    /// test stands alone.</summary>
    /// <param name="key"><c>[B, Hkv, N, D]</c>; the last block is filled up by its last token.</param>
    /// <param name="keyBlock">Keys of a block, a multiple of 8.</param>
    /// <param name="threshold2">What the mean cosine must exceed for level 2.</param>
    /// <param name="threshold4">For level 4.</param>
    /// <param name="threshold8">For level 8; -1 lets every block be pooled.</param>
    /// <returns>int32 <c>[B, Hkv, ceil(N / keyBlock)]</c> of 1, 2, 4 and 8.</returns>
    /// <exception cref="ArgumentException">The key block is not a multiple of 8, or there are no keys.</exception>
    public static Tensor SimilarityCap(Tensor key, int keyBlock, double threshold2, double threshold4, double threshold8)
    {
        ArgumentNullException.ThrowIfNull(key);
        if (keyBlock < 8 || keyBlock % 8 != 0 || key.dim() != 4 || key.size(2) < 1)
        {
            throw new ArgumentException(
                $"The similarity of keys [B, Hkv, N, D] is measured in blocks of a multiple of 8; blocks of {keyBlock} and keys {AttentionShape.Text(key)} were given.", nameof(keyBlock));
        }

        using var still = no_grad();
        using var scope = NewDisposeScope();
        var tokens = BlockSummaries.FillBlocks(BlockSummaries.Wide(key), keyBlock);
        var cap = ones(key.size(0), key.size(1), tokens.size(2) / keyBlock, ScalarType.Int32);
        foreach (var (level, threshold) in new[] { (2, threshold2), (4, threshold4), (8, threshold8) })
        {
            var groups = tokens.unflatten(2, [-1L, keyBlock / level, level]);
            using Scalar least = threshold, value = level;
            var similarity = nn.functional.cosine_similarity(groups.select(4, 0), groups.select(4, level - 1), 4, 1e-8).mean([-1L]);
            cap = cap.masked_fill(similarity.gt(least), value);
        }

        return cap.MoveToOuterDisposeScope();
    }

    /// <summary>Lowers every level to what its key block bears; blocks that are left out stay so.</summary>
    /// <param name="level">Level map <c>[B, H, M, N]</c>.</param>
    /// <param name="cap">What <see cref="SimilarityCap"/> gave, <c>[B, Hkv, N]</c>, Hkv a divisor of H.</param>
    public static Tensor Capped(Tensor level, Tensor cap)
    {
        ArgumentNullException.ThrowIfNull(level);
        ArgumentNullException.ThrowIfNull(cap);
        using var scope = NewDisposeScope();
        var perHead = cap.size(1) == level.size(1) ? cap : cap.repeat_interleave(level.size(1) / cap.size(1), 1);
        return minimum(level, perHead.unsqueeze(2)).MoveToOuterDisposeScope();
    }

    /// <summary>The share of the work of full attention that a level map takes: the mean of 1 / r over its blocks, 0 for those left out.</summary>
    /// <param name="level">Level map <c>[B, H, M, N]</c>.</param>
    /// <param name="isCausal">Whether the mean is one over the blocks up to the diagonal.</param>
    /// <returns>The density of each head, over all batch items, <c>[H]</c> in float64.</returns>
    /// <exception cref="ArgumentException">The map has other than four dimensions, or other levels.</exception>
    public static Tensor DensityOfHeads(Tensor level, bool isCausal = false)
    {
        var values = Read(level);
        var (batches, heads, rows, columns) = ((int)level.size(0), (int)level.size(1), (int)level.size(2), (int)level.size(3));
        var density = new double[heads];
        for (var head = 0; head < heads; head++)
        {
            var (sum, count) = (0.0, 0L);
            for (var batch = 0; batch < batches; batch++)
            {
                for (var row = 0; row < rows; row++)
                {
                    var end = isCausal ? Math.Min(row + 1, columns) : columns;
                    count += end;
                    foreach (var r in values.AsSpan(((((batch * heads) + head) * rows) + row) * columns, end))
                    {
                        sum += r > 0 ? 1.0 / r : 0;
                    }
                }
            }

            density[head] = count == 0 ? 0 : sum / count;
        }

        return tensor(density);
    }

    /// <summary>The share of the work of full attention that a level map takes, over all heads.</summary>
    /// <param name="level">Level map <c>[B, H, M, N]</c>.</param>
    /// <param name="isCausal">Whether the mean is one over the blocks up to the diagonal.</param>
    /// <exception cref="ArgumentException">The map has other than four dimensions, or other levels.</exception>
    public static double Density(Tensor level, bool isCausal = false)
    {
        using var perHead = DensityOfHeads(level, isCausal);
        return perHead.numel() == 0 ? 0 : perHead.data<double>().Average();
    }

    /// <summary>The levels of a map.</summary>
    internal static int[] Read(Tensor level)
    {
        ArgumentNullException.ThrowIfNull(level);
        if (level.dim() != 4 || level.dtype is not (ScalarType.Int32 or ScalarType.Int64))
        {
            throw new ArgumentException($"A level map is int32 or int64 [B, H, query blocks, key blocks]; {level.dtype} {AttentionShape.Text(level)} was given.", nameof(level));
        }

        using var scope = NewDisposeScope();
        int[] values = [.. level.to(ScalarType.Int32).cpu().contiguous().data<int>()];
        return Array.Find(values, value => value is not (0 or 1 or 2 or 4 or 8)) is var wrong && wrong != 0
            ? throw new ArgumentException($"Levels are 0, 1, 2, 4 and 8; the map holds {wrong}.", nameof(level))
            : values;
    }

    /// <summary>The levels in the order in which generation takes them: as they are listed, or by their upper ends where importance is added up.</summary>
    internal static IReadOnlyList<PyramidLevel> Ordered(IReadOnlyList<PyramidLevel> levels, PyramidRanking ranking)
    {
        ArgumentNullException.ThrowIfNull(levels);
        return ranking == PyramidRanking.Cumulative ? [.. levels.OrderBy(level => level.Upper)] : levels;
    }

    internal static void CheckLevels(IReadOnlyList<PyramidLevel> levels)
    {
        ArgumentNullException.ThrowIfNull(levels);
        var reached = 0.0;
        foreach (var (level, lower, upper) in levels)
        {
            if (level is not (0 or 1 or 2 or 4 or 8))
            {
                throw new ArgumentException($"Levels are 0, 1, 2, 4 and 8, not {level}.", nameof(levels));
            }

            if (!(lower >= 0 && lower <= reached + Tiny && upper >= lower && upper >= reached && upper <= 1 + Tiny))
            {
                throw new ArgumentException(
                    $"The ranges of the levels follow each other from 0 to 1; level {level} is given {lower} to {upper} after {reached} was reached.", nameof(levels));
            }

            reached = upper;
        }

        if (reached < 1 - Tiny)
        {
            throw new ArgumentException($"The ranges of the levels cover 0 to 1; they end at {reached}: add (0, {reached}, 1) to leave the rest out.", nameof(levels));
        }
    }

    private delegate void RowRule(ReadOnlySpan<double> row, Span<int> target);

    private delegate void NumberedRowRule(ReadOnlySpan<double> row, int at, Span<int> target);

    private static void TopK((PyramidLevel Range, int Align)[] runs, int[] order, Span<int> target)
    {
        var (start, count) = (0, target.Length);
        foreach (var (range, align) in runs)
        {
            var end = Math.Min(count, (int)(count * range.Upper));
            if (align > 1 && end > start)
            {
                end = start + Aligned(end - start, align, count - start);
            }

            for (var rank = start; rank < Math.Min(end, order.Length); rank++)
            {
                target[order[rank]] = range.Level;
            }

            start = Math.Max(start, end);
        }
    }

    private static void Cumulative((PyramidLevel Range, int Align)[] runs, int[] order, double[] shares, double minFullRatio, Span<int> target)
    {
        var (start, count) = (0, target.Length);
        foreach (var (range, align) in runs)
        {
            var within = 0;
            foreach (var share in shares)
            {
                within += share <= range.Upper + Tiny ? 1 : 0;
            }

            var end = within > 0 ? within + 1 : start;
            if (align > 1)
            {
                end = start + Aligned(Math.Max(end - start, 0), align, count - start);
            }
            else
            {
                end = Math.Max(Math.Clamp(end, 0, count), start);
                end = range.Level == 1 ? Math.Max(end, Math.Min(count, (int)(count * minFullRatio) + 1)) : end;
            }

            for (var rank = start; rank < Math.Min(end, order.Length); rank++)
            {
                target[order[rank]] = range.Level;
            }

            start = end;
        }
    }

    /// <summary>A run in whole multiples: rounded up, or down where that goes to the end of the row.</summary>
    private static int Aligned(int run, int align, int room)
    {
        var up = Math.Min((run + align - 1) / align * align, room);
        return up == room ? room / align * align : up;
    }

    private static double Total(ReadOnlySpan<double> row, int[] order)
    {
        var total = 0.0;
        foreach (var place in order)
        {
            total += row[place];
        }

        return total;
    }

    /// <summary>The share of the row that is reached with each rank.</summary>
    private static double[] Shares(ReadOnlySpan<double> row, int[] order, double total)
    {
        var shares = new double[order.Length];
        var sum = 0.0;
        for (var rank = 0; rank < order.Length; rank++)
        {
            sum += row[order[rank]];
            shares[rank] = sum / total;
        }

        return shares;
    }

    private static Tensor Map(Tensor importance, RowRule rule) => MapRows(importance, (row, _, target) => rule(row, target));

    private static Tensor MapRows(Tensor importance, NumberedRowRule rule)
    {
        using var scope = NewDisposeScope();
        double[] values = [.. importance.detach().to(ScalarType.Float64).cpu().contiguous().data<double>()];
        var (blocks, columns) = ((int)importance.size(2), (int)importance.size(3));
        var levels = new int[values.Length];
        Parallel.For(0, columns == 0 ? 0 : values.Length / columns, new ParallelOptions { MaxDegreeOfParallelism = get_num_threads() }, row =>
            rule(values.AsSpan(row * columns, columns), row % blocks, levels.AsSpan(row * columns, columns)));
        return tensor(levels).view(importance.shape).MoveToOuterDisposeScope();
    }

    private static void CheckImportance(Tensor importance)
    {
        ArgumentNullException.ThrowIfNull(importance);
        if (importance.dim() != 4 || !is_floating_point(importance))
        {
            throw new ArgumentException($"Importances are floating-point [B, H, query blocks, key blocks]; {importance.dtype} {AttentionShape.Text(importance)} was given.", nameof(importance));
        }
    }

    private static void CheckText(long textLength)
    {
        if (textLength < 0)
        {
            throw new ArgumentException($"The number of text tokens is not negative; {textLength} was given.", nameof(textLength));
        }
    }
}
