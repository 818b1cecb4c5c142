using static TorchSharp.torch;

namespace Heed.Biases;

/// <summary>A bias of low rank that multiplies the query-key product instead of being added to it: softmax(scale * (q . k) * b) v (arXiv 2505.12044, appendix J). It becomes plain
/// attention over queries and keys of R times the width, so it needs no map and no kernel of its own.</summary>
public static class MultiplicativeBias
{
    /// <summary>Queries and keys whose product is (q . k) times the bias.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>.</param>
    /// <param name="bias">The bias; its query factors broadcast to <c>[B, H, Nq, R]</c>, its key factors to <c>[B, Hkv, Nk, R]</c>.</param>
    /// <returns><c>[B, H, Nq, R D]</c> and <c>[B, Hkv, Nk, R D]</c>. Attend with the scale of the narrow heads, 1 / sqrt(D): the default for the wide ones is another.</returns>
    /// <exception cref="ArgumentException">The two factors differ in rank, or the rank is zero.</exception>
    public static (Tensor Query, Tensor Key) Expand(Tensor query, Tensor key, LowRankBias bias)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(bias);
        var rank = bias.QueryFactors.shape[^1];
        if (rank < 1 || bias.KeyFactors.shape[^1] != rank)
        {
            throw new ArgumentException(
                $"The factors of a bias have one rank of at least 1; {AttentionShape.Text(bias.QueryFactors)} and {AttentionShape.Text(bias.KeyFactors)} were given.", nameof(bias));
        }

        using var scope = NewDisposeScope();
        static Tensor Repeat(Tensor rows, Tensor factors) => (factors.unsqueeze(-1) * rows.unsqueeze(-2)).flatten(-2);
        return (Repeat(query, bias.QueryFactors).MoveToOuterDisposeScope(), Repeat(key, bias.KeyFactors).MoveToOuterDisposeScope());
    }

    /// <summary>The largest rank that reads less main memory than a dense factor matrix, sqrt(S / C^2 + 1) (arXiv 2505.12044, appendix J).</summary>
    /// <param name="width">Width C of a head.</param>
    /// <param name="fastMemory">Numbers that the fast memory of a core holds.</param>
    /// <exception cref="ArgumentException">A number is less than 1.</exception>
    public static int LargestWorthwhileRank(int width, long fastMemory)
    {
        if (width < 1 || fastMemory < 1)
        {
            throw new ArgumentException($"A head's width and the fast memory are at least 1, not {width} and {fastMemory}.", width < 1 ? nameof(width) : nameof(fastMemory));
        }

        return (int)Math.Sqrt((fastMemory / ((double)width * width)) + 1);
    }
}
