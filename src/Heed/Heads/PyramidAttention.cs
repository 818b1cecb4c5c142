using Heed.Kernels;
using Heed.Masks;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Attention with a level map (PSA, arXiv 2512.04025): every query block reads every key block in full (level 1), pooled by 2, 4 or 8, or not at all (0).</summary>
/// <remarks>
/// <para>A pooled key and value are means of r consecutive ones, the last block filled up by the last token; a pooled key's score is raised by ln r, so that it counts as many times as the tokens it stands for. One softmax
/// over everything. Copies that fill up the last block count where it is pooled, not where it is read in full.</para>
/// <para>Causal: a pooled key is seen once the last of its tokens is. A row that sees nothing gives zeros. Gradients are those of this formula; the map has none.</para>
/// </remarks>
public static class PyramidAttention
{
    /// <summary>Attends.</summary>
    /// <param name="query"><c>[B, H, Nq, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, Nk, D]</c>, Hkv a divisor of H.</param>
    /// <param name="value"><c>[B, Hkv, Nk, Dv]</c>.</param>
    /// <param name="level">int32 <c>[B, H, ceil(Nq / queryBlock), ceil(Nk / keyBlock)]</c> of 0, 1, 2, 4 and 8.</param>
    /// <param name="queryBlock">Queries of a block.</param>
    /// <param name="keyBlock">Keys of a block; a multiple of 8 where levels above 1 are used.</param>
    /// <param name="isCausal">Whether keys after a query are out of reach; the last query is aligned with the last key.</param>
    /// <param name="scale">Factor of the products; null: 1 / sqrt(D).</param>
    /// <returns><c>[B, H, Nq, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">Shapes or levels do not fit together.</exception>
    public static Tensor Forward(
        Tensor query, Tensor key, Tensor value, Tensor level, int queryBlock = 128, int keyBlock = 128, bool isCausal = false, double? scale = null)
    {
        var options = new AttentionOptions { Scale = scale, Causal = isCausal ? Causality.AlignedToEnd : Causality.None };
        AttentionShape.Read(query, key, value).Check(options, query);
        using var scope = NewDisposeScope();
        var call = new AttentionCall(default, query, key, value, options);
        new PyramidKeys(call, level, queryBlock, keyBlock, isCausal).Apply(call);
        return Attention.Compute(call.Query, call.Key, call.Value, call.Options).MoveToOuterDisposeScope();
    }
}

/// <summary>Pyramid sparse attention as a plug-in (PSA, arXiv 2512.04025): importance, level map, similarity cap and attention, along a space-filling curve if wanted. Has no parameters.</summary>
public sealed class PyramidSparseAttention : nn.Module<Tensor, Tensor, Tensor, Tensor>
{
    private readonly PyramidSelector _selector;
    private readonly TokenOrder? _order;
    private readonly bool _isCausal;
    private readonly double? _scale;

    /// <summary>Initializes the plug-in.</summary>
    /// <param name="options">Settings; null: the defaults.</param>
    /// <param name="order">The order in which tokens are cut into blocks, for example <see cref="GilbertCurve.Order"/>; the output is put back. Null: as they come.</param>
    /// <param name="isCausal">Whether keys after a query are out of reach. Needs antidiagonal importance, and tokens as they come.</param>
    /// <param name="scale">Factor of the products; null: 1 / sqrt(D).</param>
    /// <exception cref="ArgumentException">Settings do not fit together.</exception>
    public PyramidSparseAttention(PyramidOptions? options = null, TokenOrder? order = null, bool isCausal = false, double? scale = null)
        : base(nameof(PyramidSparseAttention))
    {
        if (isCausal && order is not null)
        {
            throw new ArgumentException("Causal attention cannot be combined with a token order: what comes before a token would change.", nameof(order));
        }

        Options = options ?? new();
        if (isCausal && Options.Importance != PyramidImportance.Antidiagonal)
        {
            throw new ArgumentException("Causal attention needs PyramidImportance.Antidiagonal: sampled importance looks at the future.", nameof(options));
        }

        if (order is not null && !(order.IsComplete && order.IsDistinct && !order.HasPadding))
        {
            throw new ArgumentException("The token order gives every token exactly one place, without padding.", nameof(order));
        }

        _selector = new(Options);
        (_order, _isCausal, _scale) = (order, isCausal, scale);
        RegisterComponents();
    }

    /// <summary>The settings.</summary>
    public PyramidOptions Options { get; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor query, Tensor key, Tensor value) => forward(query, key, value, null, null).Output;

    /// <summary>Attends, with a sample of one's own if wanted, and tells the level map.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, Hkv, N, D]</c>.</param>
    /// <param name="value"><c>[B, Hkv, N, Dv]</c>.</param>
    /// <param name="querySample">Offsets of the sampled queries, int64 <c>[B, H, n]</c>; null: drawn by the seed.</param>
    /// <param name="keySample">Offsets of the sampled keys; null: drawn by the seed.</param>
    /// <returns>The output <c>[B, H, N, Dv]</c> and the level map over the re-ordered tokens.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit together.</exception>
    public (Tensor Output, Tensor Level) forward(Tensor query, Tensor key, Tensor value, Tensor? querySample, Tensor? keySample)
    {
        AttentionShape.Read(query, key, value);
        using var scope = NewDisposeScope();
        var (q, k, v) = _order is null ? (query, key, value) : (_order.Apply(query, 2), _order.Apply(key, 2), _order.Apply(value, 2));
        var level = _selector.LevelsOf(q, k, _isCausal, _scale, querySample, keySample);
        var output = PyramidAttention.Forward(q, k, v, level, Options.QueryBlock, Options.KeyBlock, _isCausal, _scale);
        return ((_order is null ? output : _order.Restore(output, 2)).MoveToOuterDisposeScope(), level.MoveToOuterDisposeScope());
    }
}
