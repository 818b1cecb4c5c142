using Heed.Biases;
using Heed.Layers;
using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Learned relative positions (arXiv 1901.02860 with tables in place of sinusoids, as arXiv 2308.03429 has them): with the distance <c>delta</c> from key to query, the score is
/// <c>((q + u) k + q R[P - delta] + c[P - delta]) * scale</c>. Parameters, all zero at first: <c>key_pos_embeddings</c> <c>[2 P, H, D]</c> (R), <c>key_pos_bias</c> <c>[2 P, H]</c> (c), <c>query_pos_bias</c> <c>[H, D]</c> (u).</summary>
/// <remarks>Entries fall with the distance; those above P serve keys in the future. The products with R are computed once per query and distance and then shifted into place, so that nothing of size
/// queries x keys x D is ever made.</remarks>
/// <param name="reach">P: most keys (and queries) of a call, at least 1. Tables are as long as twice that: give what is needed.</param>
public sealed class RelativeTable(int reach) : PositionCode
{
    /// <inheritdoc/>
    public override PositionedHeads Apply(Tensor query, Tensor key, double scale)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        var (queries, keys) = (query.shape[2], key.shape[2]);
        if (keys > reach || queries > reach)
        {
            throw new ArgumentException($"The relative positions reach {reach} tokens, memory included; {queries} queries over {keys} keys were given: make the module with a longer reach.", nameof(key));
        }

        // Row i of the products starts at the distance i + keys - queries; the first is that of the oldest key to the last query. A causal call needs one future distance, to make rows one longer than keys.
        var distances = Owner.Options.Attention.Causal == Kernels.Causality.None ? keys + queries - 1 : Math.Min(keys + 1, keys + queries - 1);
        var first = reach - keys + 1;
        using Scalar factor = scale;
        var table = Owner.get_parameter("key_pos_embeddings")!.narrow(0, first, distances).permute(1, 2, 0);
        var offsets = Owner.get_parameter("key_pos_bias")!.narrow(0, first, distances).t().unsqueeze(1);
        var products = (query.matmul(table) + offsets) * factor;

        // Element (i, j) lies at row i, column queries - 1 - i + j: one step to the left in every row, which is what rows shorter by one give.
        if (queries > 1)
        {
            var rows = products.flatten(2).narrow(2, queries - 1, queries * (distances - 1)).view(products.shape[0], products.shape[1], queries, distances - 1);
            products = rows.narrow(3, 0, keys);
        }

        return new(query + Owner.get_parameter("query_pos_bias")!.unsqueeze(1), key, new DenseBias(products));
    }

    /// <inheritdoc/>
    protected override void Register()
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(reach, 1);
        var (heads, width) = (Owner.Options.Heads, Owner.HeadWidth);
        Owner.register_parameter("key_pos_embeddings", Parameters.Make([2L * reach, heads, width], tensor => tensor.zero_()));
        Owner.register_parameter("key_pos_bias", Parameters.Make([2L * reach, heads], tensor => tensor.zero_()));
        Owner.register_parameter("query_pos_bias", Parameters.Make([heads, width], tensor => tensor.zero_()));
    }
}
