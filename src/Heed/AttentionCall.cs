using TorchSharp;

namespace Heed;

/// <summary>One attention call as hooks see it.</summary>
public sealed class AttentionCall
{
    internal AttentionCall(AttentionSite site, torch.Tensor query, torch.Tensor key, torch.Tensor value, AttentionOptions options)
    {
        Site = site;
        Query = query;
        Key = key;
        Value = value;
        Options = options;
    }

    /// <summary>Where the call stands in the model.</summary>
    public AttentionSite Site { get; }

    /// <summary>Queries <c>[B, H, Nq, D]</c>.</summary>
    public torch.Tensor Query { get; set; }

    /// <summary>Keys <c>[B, Hkv, Nk, D]</c>.</summary>
    public torch.Tensor Key { get; set; }

    /// <summary>Values <c>[B, Hkv, Nk, Dv]</c>.</summary>
    public torch.Tensor Value { get; set; }

    /// <summary>The options of the call.</summary>
    public AttentionOptions Options { get; set; }

    /// <summary>The weights of chosen heads and query rows, computed on demand in O(rows * Nk) without materialising the rest.</summary>
    /// <param name="heads">Query heads.</param>
    /// <param name="rows">Query rows; null: all.</param>
    /// <returns><c>[B, heads, rows, Nk]</c>.</returns>
    public torch.Tensor Weights(IReadOnlyList<int> heads, IReadOnlyList<long>? rows = null) => PlainAttention.Weights(Query, Key, Options, heads, rows);
}
