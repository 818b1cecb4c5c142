using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>Visual attention redistribution, VAR (arXiv 2503.03321): where a head looks at the picture in a meaningful way, its sink tokens keep a share of their attention and hand the rest to the picture's other tokens.</summary>
/// <remarks>Options follow the released code: rho bounds the share of sinks from above (the paper's rho is 1 minus it), and <c>sinkScale</c> is the share that stays (the paper's p is what goes).</remarks>
public static class VisualAttentionRedistribution
{
    /// <summary>The largest share of the picture's attention that may lie in sinks.</summary>
    public const double DefaultRho = 0.5;

    /// <summary>The least attention to the picture.</summary>
    public const double DefaultImageAttention = 0.2;

    /// <summary>The share that sinks keep.</summary>
    public const double DefaultSinkScale = 0.6;

    private const double Small = 1e-6;

    /// <summary>The pairs of head and query that look at the picture and not at its sinks: sum over visual sinks / sum over image tokens of (a + 1e-6) &lt;= rho, and sum over image tokens &gt;= the least attention.</summary>
    /// <param name="attention">Weights <c>[B, H, Nq, Nk]</c> after the softmax.</param>
    /// <param name="sinks">Sink tokens, boolean <c>[Nk]</c> or <c>[B, Nk]</c>.</param>
    /// <param name="image">Image tokens, boolean <c>[Nk]</c> or <c>[B, Nk]</c>.</param>
    /// <param name="rho">The largest share of sinks.</param>
    /// <param name="minimumImageAttention">The least attention to the picture.</param>
    /// <returns>Boolean <c>[B, H, Nq]</c>. Without a sink among the image tokens there is no such pair.</returns>
    /// <exception cref="ArgumentException">A set does not fit the map.</exception>
    public static Tensor ImageCentric(
        Tensor attention, Tensor sinks, Tensor image, double rho = DefaultRho, double minimumImageAttention = DefaultImageAttention)
    {
        ArgumentNullException.ThrowIfNull(attention);
        using var scope = NewDisposeScope();
        var (visual, all) = (Set(sinks, attention, nameof(sinks)).logical_and(Set(image, attention, nameof(image))), Set(image, attention, nameof(image)));
        using Scalar small = Small, most = rho, least = minimumImageAttention;
        var members = all.to(attention.dtype);
        var portion = (attention * visual.to(attention.dtype)).sum(-1) / (attention.add(small) * members).sum(-1);
        var mass = (attention * members).sum(-1);
        var any = visual.any(-1);
        return portion.le(most).logical_and(mass.ge(least)).logical_and(any).MoveToOuterDisposeScope();
    }

    /// <summary>Redistributes maps.</summary>
    /// <param name="attention">Weights <c>[B, H, Nq, Nk]</c> after the softmax.</param>
    /// <param name="sinkMask">Sink tokens of this layer, text sinks included: boolean <c>[Nk]</c> or <c>[B, Nk]</c>; see <see cref="Probes.SinkMask.FromMassiveDimensions"/>. Generated tokens are never sinks.</param>
    /// <param name="imageStart">The first image token.</param>
    /// <param name="imageLength">How many follow each other.</param>
    /// <param name="rho">The largest share of the picture's attention that may lie in sinks.</param>
    /// <param name="minimumImageAttention">The least attention to the picture.</param>
    /// <param name="sinkScale">The share that sinks keep, 0 to 1.</param>
    /// <param name="firstEditableQuery">The first row that is edited: when a text is read, the first after the picture (the default where the map is square); in generation, 0 (the default elsewhere).</param>
    /// <returns>The edited maps, of the same shape. Rows keep their sum. Differentiable (the choice of pairs is not).</returns>
    /// <exception cref="ArgumentException">The picture lies outside the keys, a set or a number is out of range.</exception>
    public static Tensor Apply(
        Tensor attention, Tensor sinkMask, long imageStart, long imageLength, double rho = DefaultRho, double minimumImageAttention = DefaultImageAttention, double sinkScale = DefaultSinkScale,
        long? firstEditableQuery = null)
    {
        ArgumentNullException.ThrowIfNull(attention);
        ArgumentNullException.ThrowIfNull(sinkMask);
        if (attention.dim() != 4)
        {
            throw new ArgumentException($"Redistribution takes maps [B, H, Nq, Nk]; [{string.Join(", ", attention.shape)}] was given.", nameof(attention));
        }

        var (queries, keys) = (attention.shape[2], attention.shape[3]);
        if (imageStart < 0 || imageLength < 1 || imageStart + imageLength > keys)
        {
            throw new ArgumentException($"Image tokens {imageStart} to {imageStart + imageLength - 1} do not lie among the keys 0 to {keys - 1}.", nameof(imageStart));
        }

        var first = firstEditableQuery ?? (queries == keys ? imageStart + imageLength : 0);
        if (first < 0)
        {
            throw new ArgumentException($"The first row to edit is counted from 0, not {first}.", nameof(firstEditableQuery));
        }

        using var scope = NewDisposeScope();
        using Scalar start = imageStart, end = imageStart + imageLength, firstRow = first, queryCount = queries, keyCount = keys;
        var index = arange(keyCount, dtype: int64, device: attention.device);
        var image = index.ge(start).logical_and(index.lt(end));
        var rows = arange(queryCount, dtype: int64, device: attention.device).ge(firstRow);
        return Apply(attention, sinkMask, image, rows, rho, minimumImageAttention, sinkScale).MoveToOuterDisposeScope();
    }

    /// <summary>Redistributes maps, or chosen columns of maps (every sink and every image token among them).</summary>
    /// <param name="attention">Weights <c>[B, H, Nq, n]</c>.</param>
    /// <param name="sinks">Sink tokens, boolean <c>[n]</c> or <c>[B, n]</c>.</param>
    /// <param name="image">Image tokens, boolean <c>[n]</c> or <c>[B, n]</c>.</param>
    /// <param name="rows">Rows that may be edited, boolean <c>[Nq]</c>; null: all.</param>
    /// <param name="rho">As in the other form.</param>
    /// <param name="minimumImageAttention">As in the other form.</param>
    /// <param name="sinkScale">As in the other form.</param>
    internal static Tensor Apply(Tensor attention, Tensor sinks, Tensor image, Tensor? rows, double rho, double minimumImageAttention, double sinkScale)
    {
        MapEdit.CheckShare(sinkScale, nameof(sinkScale));
        using var scope = NewDisposeScope();
        var chosen = ImageCentric(attention, sinks, image, rho, minimumImageAttention);
        if (rows is not null)
        {
            chosen = chosen.logical_and(rows);
        }

        var (from, all) = (Set(sinks, attention, nameof(sinks)), Set(image, attention, nameof(image)));
        return MapEdit.Redistribute(attention, from, all.logical_and(from.logical_not()), sinkScale, chosen.unsqueeze(-1)).MoveToOuterDisposeScope();
    }

    /// <summary>A set of tokens as it broadcasts to the map: <c>[1 or B, 1, 1, n]</c>.</summary>
    private static Tensor Set(Tensor set, Tensor attention, string name) =>
        set.dtype == ScalarType.Bool && set.dim() is 1 or 2 && set.shape[^1] == attention.shape[^1] && (set.dim() == 1 || set.shape[0] == 1 || set.shape[0] == attention.shape[0])
            ? set.view(-1, 1, 1, set.shape[^1])
            : throw new ArgumentException(
                $"A set of tokens is boolean [{attention.shape[^1]}] or [{attention.shape[0]}, {attention.shape[^1]}]; {set.dtype} [{string.Join(", ", set.shape)}] was given.", name);
}
