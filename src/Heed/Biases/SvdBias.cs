using static TorchSharp.torch;

namespace Heed.Biases;

/// <summary>On which side the singular values go.</summary>
public enum FactorSplit
{
    /// <summary>Their roots on both sides: factors of one size, which half precision suits best.</summary>
    SquareRoot,

    /// <summary>All on the query factors.</summary>
    Query,

    /// <summary>All on the key factors.</summary>
    Key,
}

/// <summary>The singular value decomposition of a stored bias, head by head, to be cut to a rank once and used ever after (arXiv 2505.12044, section 3.3).</summary>
/// <remarks>A softmax does not see a constant that is added to a whole row, but the singular values do: a table of values near 8 has nearly all its energy in one useless rank. Removing
/// the row means first makes the energy say something about the attention. Energy bounds the error of the bias, never that of the output: measure that too.</remarks>
public sealed class SvdBias : IDisposable
{
    private readonly Tensor _left;
    private readonly Tensor _values;
    private readonly Tensor _right;
    private readonly double[][] _spectra;

    private SvdBias(Tensor left, Tensor values, Tensor right, bool removedRowMeans)
    {
        (_left, _values, _right, RemovedRowMeans) = (left, values, right, removedRowMeans);
        var (heads, count) = ((int)values.shape[0], (int)values.shape[1]);
        var flat = values.data<double>().ToArray();
        _spectra = [.. Enumerable.Range(0, heads).Select(head => flat.AsSpan(head * count, count).ToArray())];
    }

    /// <summary>Number of heads.</summary>
    public int Heads => _spectra.Length;

    /// <summary>The largest rank there is: the smaller of the numbers of queries and keys.</summary>
    public int FullRank => (int)_values.shape[1];

    /// <summary>Whether the mean of every row was taken away before.</summary>
    public bool RemovedRowMeans { get; }

    /// <summary>Singular values of every head in descending order, float64 <c>[H, full rank]</c>.</summary>
    public Tensor SingularValues => _values.alias();

    /// <summary>Decomposes a bias, in float64.</summary>
    /// <param name="bias"><c>[H, Nq, Nk]</c> or <c>[Nq, Nk]</c>.</param>
    /// <param name="removeRowMeans">Whether to take the mean of every row away first. Softmax weights stay the same; with sinks, a softcap or where log-sum-exps are read, they do
    /// not.</param>
    /// <exception cref="ArgumentException">The bias has another shape, or holds something that is not a finite number.</exception>
    public static SvdBias Decompose(Tensor bias, bool removeRowMeans = false)
    {
        ArgumentNullException.ThrowIfNull(bias);
        if (bias.dim() is < 2 or > 3 || bias.numel() == 0)
        {
            throw new ArgumentException($"A bias to be decomposed is [H, Nq, Nk] or [Nq, Nk]; {AttentionShape.Text(bias)} was given.", nameof(bias));
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var wide = bias.detach().cpu().to(ScalarType.Float64);
        wide = wide.dim() == 2 ? wide.unsqueeze(0) : wide;
        if (!wide.isfinite().all().item<bool>())
        {
            throw new ArgumentException("A bias to be decomposed holds finite numbers only; give minus infinities as a mask beside it.", nameof(bias));
        }

        wide = removeRowMeans ? wide - wide.mean([-1L], keepdim: true) : wide;
        var (left, values, right) = linalg.svd(wide, fullMatrices: false);
        return new(left.DetachFromDisposeScope(), values.DetachFromDisposeScope(), right.DetachFromDisposeScope(), removeRowMeans);
    }

    /// <summary>The share of a head's energy, sum of squared singular values, that a rank keeps; 1 for a bias of zeros.</summary>
    /// <exception cref="ArgumentException">There is no such head or rank.</exception>
    public double Energy(int head, int rank)
    {
        CheckRank(rank);
        var spectrum = SpectrumOf(head);
        var total = spectrum.Sum(value => value * value);
        return total == 0 ? 1 : spectrum.Take(rank).Sum(value => value * value) / total;
    }

    /// <summary>The smallest rank of a head that keeps a share of its energy.</summary>
    /// <param name="head">The head.</param>
    /// <param name="share">Above 0, at most 1; the paper takes 0.95, 0.99 or 0.995.</param>
    /// <exception cref="ArgumentException">There is no such head, or the share is out of range.</exception>
    public int RankFor(int head, double share)
    {
        if (!(share > 0 && share <= 1))
        {
            throw new ArgumentException($"A share of energy is above 0 and at most 1, not {share}.", nameof(share));
        }

        var spectrum = SpectrumOf(head);
        var (total, kept) = (spectrum.Sum(value => value * value), 0.0);
        for (var rank = 1; rank < spectrum.Length; rank++)
        {
            kept += spectrum[rank - 1] * spectrum[rank - 1];
            if (kept >= share * total)
            {
                return rank;
            }
        }

        return spectrum.Length;
    }

    /// <summary>The smallest rank with which every head keeps a share of its energy.</summary>
    /// <exception cref="ArgumentException">The share is out of range.</exception>
    public int RankFor(double share) => Enumerable.Range(0, Heads).Max(head => RankFor(head, share));

    /// <summary>The best bias of a rank, as factors <c>[1, H, Nq, R]</c> and <c>[1, H, Nk, R]</c> (without the row means, where these were removed).</summary>
    /// <param name="rank">Rank R, from 1 to <see cref="FullRank"/>.</param>
    /// <param name="split">On which side the singular values go; the product is the same.</param>
    /// <param name="type">Type of the factors; the kernels read float32 beside keys of any type.</param>
    /// <exception cref="ArgumentException">The rank is out of range.</exception>
    public LowRankBias Truncate(int rank, FactorSplit split = FactorSplit.SquareRoot, ScalarType type = ScalarType.Float32)
    {
        CheckRank(rank);
        using var scope = NewDisposeScope();
        var values = _values.narrow(1, 0, rank).unsqueeze(-2);
        var (left, right) = (_left.narrow(-1, 0, rank), _right.narrow(-2, 0, rank).transpose(-1, -2));
        var (query, key) = split switch
        {
            FactorSplit.Query => (left * values, right),
            FactorSplit.Key => (left, right * values),
            _ => (left * values.sqrt(), right * values.sqrt()),
        };
        return new(query.to(type).contiguous().unsqueeze(0).MoveToOuterDisposeScope(), key.to(type).contiguous().unsqueeze(0).MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _left.Dispose();
        _values.Dispose();
        _right.Dispose();
    }

    private double[] SpectrumOf(int head) => (uint)head < (uint)Heads ? _spectra[head]
        : throw new ArgumentException($"The bias has heads 0 to {Heads - 1}, not {head}.", nameof(head));

    private void CheckRank(int rank)
    {
        if (rank < 1 || rank > FullRank)
        {
            throw new ArgumentException($"The rank of this bias is from 1 to {FullRank}, not {rank}.", nameof(rank));
        }
    }
}
