using Heed.Kernels;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Biases;

/// <summary>The sign of ALiBi's slope.</summary>
public enum AlibiSign
{
    /// <summary>Minus slope times (i - j): far keys lose, as in every published ALiBi checkpoint.</summary>
    Penalise,

    /// <summary>Plus slope times (i - j), as FlashBias prints and codes it (arXiv 2505.12044, example 3.4): under a causal mask far keys gain.</summary>
    Reward,
}

/// <summary>How a squared distance is factored.</summary>
public enum DistanceFactors
{
    /// <summary>Three columns for every axis, as in arXiv 2505.12044, equation 4: rank 3 d.</summary>
    PerAxis,

    /// <summary>All axes share the two columns of the squares: rank d + 2. The same bias; what the authors' code uses.</summary>
    Compact,
}

/// <summary>Biases that are exactly of low rank (arXiv 2505.12044, section 3.2), as the factors of a <see cref="LowRankBias"/>. All are differentiable in their tensors.</summary>
/// <remarks>A row constant changes no softmax, so positions may be counted from anywhere: they are counted from the middle, which keeps the numbers, and with them float32's rounding,
/// as small as a common origin can. The rounding still grows with the length: the score of a pair at distance zero is the difference of two numbers of the size slope * N / 2. Where
/// that matters, <see cref="AlibiBias"/> forms the distance itself first and has no such loss.</remarks>
public static class LowRankBiases
{
    /// <summary>ALiBi's slopes 2^(-8 h / H), h = 1 to H, whatever H (arXiv 2108.12409 interpolates where H is not a power of two; see <paramref name="interpolate"/>).</summary>
    /// <param name="heads">Number of heads H, from 1.</param>
    /// <param name="interpolate">Whether numbers of heads that are no power of two take the slopes of the next smaller power and every other one of the next larger, as
    /// published ALiBi models do.</param>
    /// <param name="type">Element type.</param>
    /// <returns><c>[H]</c>.</returns>
    /// <exception cref="ArgumentException">There is no head.</exception>
    public static Tensor AlibiSlopes(int heads, bool interpolate = false, ScalarType type = ScalarType.Float32)
    {
        if (heads < 1)
        {
            throw new ArgumentException($"ALiBi needs at least one head, not {heads}.", nameof(heads));
        }

        static IEnumerable<double> Row(int count) => Enumerable.Range(1, count).Select(head => Math.Pow(2, -8.0 * head / count));
        var power = 1 << (31 - int.LeadingZeroCount(heads));
        var slopes = interpolate && power != heads ? Row(power).Concat(Row(2 * power).Where((_, index) => index % 2 == 0)).Take(heads) : Row(heads);
        return tensor(slopes.ToArray(), dtype: type);
    }

    /// <summary>ALiBi with its sign, as factors of rank 2. Unlike <see cref="AlibiBias"/> the distance i - j keeps its sign, so without a causal mask keys after the query are
    /// treated the other way round.</summary>
    /// <param name="slopes">One slope per head, <c>[H]</c>.</param>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="sign">Whether distance is penalised or, as in the paper's text, rewarded.</param>
    /// <param name="alignment">Where the first query stands among the keys: at the first key, or (<see cref="Causality.AlignedToEnd"/>) so that the last query is at the last key.</param>
    /// <exception cref="ArgumentException">The slopes are no vector, or a length is less than 1.</exception>
    public static LowRankBias Alibi(Tensor slopes, long queries, long keys, AlibiSign sign = AlibiSign.Penalise, Causality alignment = Causality.AlignedToEnd)
    {
        ArgumentNullException.ThrowIfNull(slopes);
        if (slopes.dim() != 1 || slopes.shape[0] < 1)
        {
            throw new ArgumentException($"ALiBi's slopes are one per head, [H]; {AttentionShape.Text(slopes)} was given.", nameof(slopes));
        }

        using var scope = NewDisposeScope();
        var (rows, columns) = Positions(queries, keys, alignment, slopes);
        var slope = slopes.view(1, -1, 1);
        var signed = sign == AlibiSign.Penalise ? slope.neg() : slope;
        var query = stack([signed.expand(1, slopes.shape[0], queries), signed * rows], -1);
        var key = stack([columns.neg(), ones_like(columns)], -1).view(1, 1, keys, 2);
        return new(query.MoveToOuterDisposeScope(), key.MoveToOuterDisposeScope());
    }

    /// <summary>A multiple of the squared distance between two sets of points, exactly (arXiv 2505.12044, equation 4).</summary>
    /// <param name="queryPoints">Points of the queries, <c>[Nq, d]</c> or <c>[B, Nq, d]</c>.</param>
    /// <param name="keyPoints">Points of the keys, <c>[Nk, d]</c> or <c>[B, Nk, d]</c>; the query's where both are the same points.</param>
    /// <param name="factor">What the squared distance is multiplied by: -1 favours near points, 1 is the paper's form.</param>
    /// <param name="form">How it is factored.</param>
    /// <param name="weight">A factor of every query and head, broadcastable to <c>[B, H, Nq]</c> (learned in the paper's PDE solver); null: none.</param>
    /// <returns>Factors <c>[B or 1, 1 or H, N, R]</c> with R = d + 2, or 3 d per axis.</returns>
    /// <exception cref="ArgumentException">The points have other shapes, or unequal numbers of axes.</exception>
    public static LowRankBias SquaredDistance(
        Tensor queryPoints, Tensor keyPoints, double factor = -1, DistanceFactors form = DistanceFactors.Compact, Tensor? weight = null)
    {
        ArgumentNullException.ThrowIfNull(queryPoints);
        ArgumentNullException.ThrowIfNull(keyPoints);
        if (queryPoints.dim() is < 2 or > 3 || keyPoints.dim() is < 2 or > 3 || queryPoints.shape[^1] != keyPoints.shape[^1] || queryPoints.shape[^1] < 1)
        {
            throw new ArgumentException(
                $"Points are [N, d] or [B, N, d] with one number of axes; {AttentionShape.Text(queryPoints)} and {AttentionShape.Text(keyPoints)} were given.", nameof(keyPoints));
        }

        using var scope = NewDisposeScope();
        using Scalar minus = -factor, two = 2, minusTwo = -2, plus = factor;
        var (x, y) = (queryPoints, keyPoints);
        Tensor query, key;
        if (form == DistanceFactors.Compact)
        {
            var (x2, y2) = (x.square().sum(-1, keepdim: true), y.square().sum(-1, keepdim: true));
            query = cat([x.mul(two), x2.neg(), ones_like(x2)], -1).mul(minus);
            key = cat([y, ones_like(y2), y2.neg()], -1);
        }
        else
        {
            query = stack([x.square(), ones_like(x), x.mul(minusTwo)], -1).flatten(-2).mul(plus);
            key = stack([ones_like(y), y.square(), y], -1).flatten(-2);
        }

        var bias = new LowRankBias(query.unsqueeze(-3), key.unsqueeze(-3));
        bias = weight is null ? bias : Weighted(bias, weight);
        return new(bias.QueryFactors.MoveToOuterDisposeScope(), bias.KeyFactors.MoveToOuterDisposeScope());
    }

    /// <summary>A bias every row of which is multiplied by a weight of its own (a learned one per query and head in arXiv 2505.12044, section 4.3).</summary>
    /// <param name="bias">The bias.</param>
    /// <param name="weight">Broadcastable to <c>[B, H, Nq]</c>.</param>
    public static LowRankBias Weighted(LowRankBias bias, Tensor weight)
    {
        ArgumentNullException.ThrowIfNull(bias);
        ArgumentNullException.ThrowIfNull(weight);
        using var scope = NewDisposeScope();
        return new((bias.QueryFactors * weight.unsqueeze(-1)).MoveToOuterDisposeScope(), bias.KeyFactors);
    }

    /// <summary>The bias cos(frequency * (i - j)), of rank 2 (arXiv 2505.12044, appendix J).</summary>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys.</param>
    /// <param name="frequency">Radians per token.</param>
    /// <param name="alignment">As for <see cref="Alibi"/>.</param>
    /// <exception cref="ArgumentException">A length is less than 1.</exception>
    public static LowRankBias Cosine(long queries, long keys, double frequency = 1, Causality alignment = Causality.AlignedToEnd)
    {
        using var scope = NewDisposeScope();
        using Scalar turn = frequency;
        using var like = zeros(1, ScalarType.Float64);
        var (rows, columns) = Positions(queries, keys, alignment, like);
        // Angles in float64: at position 100,000 a float32 angle is off by several thousandths.
        Tensor Factors(Tensor positions) => stack([positions.mul(turn).cos(), positions.mul(turn).sin()], -1).to(ScalarType.Float32).view(1, 1, -1, 2);
        return new(Factors(rows).MoveToOuterDisposeScope(), Factors(columns).MoveToOuterDisposeScope());
    }

    /// <summary>The bias multiplied out, <c>[B or 1, H or 1, Nq, Nk]</c>: for comparisons and pictures.</summary>
    public static Tensor Dense(LowRankBias bias)
    {
        ArgumentNullException.ThrowIfNull(bias);
        using var scope = NewDisposeScope();
        return matmul(bias.QueryFactors, bias.KeyFactors.transpose(-1, -2)).MoveToOuterDisposeScope();
    }

    private static (Tensor Rows, Tensor Columns) Positions(long queries, long keys, Causality alignment, Tensor like)
    {
        if (queries < 1 || keys < 1)
        {
            throw new ArgumentException($"A bias is between at least one query and one key, not {queries} and {keys}.", queries < 1 ? nameof(queries) : nameof(keys));
        }

        var middle = keys / 2;
        using Scalar first = (alignment == Causality.AlignedToEnd ? keys - queries : 0) - middle, end = (alignment == Causality.AlignedToEnd ? keys - queries : 0) - middle + queries;
        using Scalar firstKey = -middle, endKey = keys - middle;
        return (arange(first, end, dtype: like.dtype, device: like.device), arange(firstKey, endKey, dtype: like.dtype, device: like.device));
    }
}
