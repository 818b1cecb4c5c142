namespace Heed.Biases;

/// <summary>Whether a bias of low rank is cheaper as factors or multiplied out.</summary>
/// <remarks>The paper's rule is about reading main memory: factors while R is below sqrt(S), S the numbers that fast memory holds (arXiv 2505.12044, section 3.2). On a processor the
/// bias is seldom what waits: the tiles' arithmetic is, of which a rank R adds R / (C + Cv), and reading a dense bias adds about a tenth to the time of none (docs/biases/flashbias.md has
/// what was measured). So factors win while R is below that tenth of the widths; and wherever the dense bias does not fit, at any rank that takes less memory.</remarks>
public static class FactoredBiasCost
{
    /// <summary>What a dense bias adds to the time of attention without one, measured with the kernels of this library.</summary>
    public const double DenseOverhead = 0.1;

    /// <summary>The rank up to which factors take less time than the dense bias.</summary>
    /// <param name="width">Width C of queries and keys.</param>
    /// <param name="valueWidth">Width Cv of values.</param>
    /// <exception cref="ArgumentException">A width is less than 1.</exception>
    public static int LargestFasterRank(int width, int valueWidth)
    {
        if (width < 1 || valueWidth < 1)
        {
            throw new ArgumentException($"Heads are at least 1 wide, not {width} and {valueWidth}.", width < 1 ? nameof(width) : nameof(valueWidth));
        }

        return (int)(DenseOverhead * (width + valueWidth));
    }

    /// <summary>The rank up to which factors read less main memory than the dense bias: the paper's rule.</summary>
    /// <param name="fastMemory">Numbers that the fast memory of a core holds, from 1.</param>
    /// <exception cref="ArgumentException">There is no fast memory.</exception>
    public static int LargestLighterRank(long fastMemory) =>
        fastMemory >= 1 ? (int)Math.Sqrt(fastMemory) : throw new ArgumentException($"The fast memory holds at least one number, not {fastMemory}.", nameof(fastMemory));

    /// <summary>The form to use for a bias whose rank is known.</summary>
    /// <param name="rank">Rank R.</param>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="width">Width C of queries and keys.</param>
    /// <param name="valueWidth">Width Cv of values.</param>
    /// <param name="denseNumbers">Numbers of a dense bias per head that memory has room for.</param>
    /// <returns>Whether factors are to be used: they are faster, or the dense bias does not fit and they are smaller.</returns>
    /// <exception cref="ArgumentException">A number is less than 1.</exception>
    public static bool UseFactors(int rank, long queries, long keys, int width, int valueWidth, long denseNumbers = 1L << 28)
    {
        if (rank < 1 || queries < 1 || keys < 1)
        {
            throw new ArgumentException($"Rank and lengths are at least 1, not {rank}, {queries} and {keys}.", nameof(rank));
        }

        return rank <= LargestFasterRank(width, valueWidth) || (queries * keys > denseNumbers && rank * (queries + keys) < queries * keys);
    }
}
