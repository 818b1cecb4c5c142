using Heed.Biases;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention with a bias of low rank in the layout of the authors' functions, tokens before heads (arXiv 2505.12044, equation 3): softmax(scale q k^T + b + mask) v. In other
/// layouts give <see cref="Attention"/> a <see cref="LowRankBias"/>.</summary>
public static class FactoredBiasAttention
{
    /// <summary>The output.</summary>
    /// <param name="query"><c>[B, N, H, C]</c>.</param>
    /// <param name="key"><c>[B, M, Hkv, C]</c>.</param>
    /// <param name="value"><c>[B, M, Hkv, Cv]</c>.</param>
    /// <param name="queryFactors"><c>[B or 1, N, H or 1, R]</c>; never scaled.</param>
    /// <param name="keyFactors"><c>[B or 1, M, H or 1, R]</c>.</param>
    /// <param name="mask">Added after the bias, <c>[B or 1, H or 1, N or 1, M]</c>, minus infinity where a pair does not exist; no gradient. Null: none.</param>
    /// <param name="causal">Whether key j is seen by query i only where j &lt;= i, both counted from the start of their sequence, also where N and M differ.</param>
    /// <param name="scale">Factor of the query-key product; null: 1 / sqrt(C).</param>
    /// <returns><c>[B, N, H, Cv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit each other; the message says which.</exception>
    public static Tensor Compute(
        Tensor query, Tensor key, Tensor value, Tensor queryFactors, Tensor keyFactors, Tensor? mask = null, bool causal = false, double? scale = null)
    {
        CheckLayout(query, nameof(query));
        CheckLayout(key, nameof(key));
        CheckLayout(value, nameof(value));
        CheckLayout(queryFactors, nameof(queryFactors));
        CheckLayout(keyFactors, nameof(keyFactors));
        if (queryFactors.shape[^1] < 1 || queryFactors.shape[^1] != keyFactors.shape[^1])
        {
            throw new ArgumentException(
                $"The factors of a bias have one rank of at least 1; {AttentionShape.Text(queryFactors)} and {AttentionShape.Text(keyFactors)} were given.", nameof(keyFactors));
        }

        using var scope = NewDisposeScope();
        List<AttentionBias> biases = [new LowRankBias(queryFactors.transpose(1, 2), keyFactors.transpose(1, 2))];
        if (mask is not null)
        {
            // One row for all queries is a bias per key, which the kernels read faster.
            biases.Add(mask.dim() == 4 && mask.shape[2] == 1 ? new KeyBias(mask.detach().squeeze(2)) : new DenseBias(mask.detach()));
        }

        var options = new AttentionOptions { Scale = scale, Causal = causal ? Causality.AlignedToStart : Causality.None, Biases = biases };
        return Attention.Compute(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), options).transpose(1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>Attention with a bias of low rank that multiplies the query-key product (arXiv 2505.12044, appendix J): softmax(scale (q k^T * b)) v.</summary>
    /// <param name="query"><c>[B, N, H, C]</c>.</param>
    /// <param name="key"><c>[B, M, Hkv, C]</c>.</param>
    /// <param name="value"><c>[B, M, Hkv, Cv]</c>.</param>
    /// <param name="queryFactors"><c>[B or 1, N, H or 1, R]</c>.</param>
    /// <param name="keyFactors"><c>[B or 1, M, Hkv or 1, R]</c>.</param>
    /// <param name="causal">As for <see cref="Compute"/>.</param>
    /// <param name="scale">Factor of the product; null: 1 / sqrt(C).</param>
    /// <returns><c>[B, N, H, Cv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit each other; the message says which.</exception>
    public static Tensor Multiply(
        Tensor query, Tensor key, Tensor value, Tensor queryFactors, Tensor keyFactors, bool causal = false, double? scale = null)
    {
        CheckLayout(query, nameof(query));
        CheckLayout(key, nameof(key));
        CheckLayout(value, nameof(value));
        CheckLayout(queryFactors, nameof(queryFactors));
        CheckLayout(keyFactors, nameof(keyFactors));
        using var scope = NewDisposeScope();
        var bias = new LowRankBias(queryFactors.transpose(1, 2), keyFactors.transpose(1, 2));
        var (wideQuery, wideKey) = MultiplicativeBias.Expand(query.transpose(1, 2), key.transpose(1, 2), bias);
        var options = new AttentionOptions { Scale = scale ?? (1 / Math.Sqrt(query.shape[^1])), Causal = causal ? Causality.AlignedToStart : Causality.None };
        return Attention.Compute(wideQuery, wideKey, value.transpose(1, 2), options).transpose(1, 2).MoveToOuterDisposeScope();
    }

    private static void CheckLayout(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dim() != 4)
        {
            throw new ArgumentException($"Queries, keys, values and factors are [batch, tokens, heads, width]; {AttentionShape.Text(tensor)} was given.", name);
        }
    }
}
