using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>The one edit of attention maps: scale a set of columns, and hand what is freed to another set in proportion to what it has. Attention calibration (arXiv 2406.15765) and visual attention
/// redistribution (arXiv 2503.03321) are this with their own sets.</summary>
public static class MapEdit
{
    private static readonly Scalar s_zero = 0, s_one = 1;

    /// <summary>a'_j = (kept if j in from else 1) a_j + (1 - kept) (sum of a over from) a_j / (sum of a over to) for j in to. The sum of a row stays what it was.</summary>
    /// <param name="map">Weights <c>[B, H, Nq, Nk]</c>, or any shape that the sets broadcast to; rows need not sum to one, and columns that are in neither set may be missing.</param>
    /// <param name="from">The columns that give, boolean, broadcastable to the map (<c>[Nk]</c>, <c>[B, 1, 1, Nk]</c>, ...).</param>
    /// <param name="to">The columns that receive, boolean, broadcastable to the map. A column may be in both sets.</param>
    /// <param name="kept">The share that the giving columns keep, 0 to 1.</param>
    /// <param name="rows">The rows to edit, boolean, broadcastable to <c>[B, H, Nq, 1]</c>; null: all.</param>
    /// <returns>The edited map, of the map's shape and dtype. A row whose receiving columns have no weight stays as it was (it would be 0 / 0). Differentiable.</returns>
    /// <exception cref="ArgumentException">The share lies outside 0 to 1, or a set is not boolean or does not broadcast to the map.</exception>
    public static Tensor Redistribute(Tensor map, Tensor from, Tensor to, double kept, Tensor? rows = null)
    {
        ArgumentNullException.ThrowIfNull(map);
        CheckSet(from, map, nameof(from));
        CheckSet(to, map, nameof(to));
        if (rows is not null)
        {
            CheckSet(rows, map, nameof(rows));
        }

        CheckShare(kept, nameof(kept));
        using var scope = NewDisposeScope();
        using Scalar moved = 1 - kept;
        var given = map * from.to(map.dtype);
        var received = map * to.to(map.dtype);
        var sum = received.sum(-1, keepdim: true);
        var edited = sum.gt(s_zero);
        if (rows is not null)
        {
            edited = edited.logical_and(rows);
        }

        var freed = given.sum(-1, keepdim: true) * moved;
        var share = freed / sum.masked_fill(edited.logical_not(), s_one);
        return where(edited, map - (given * moved) + (received * share), map).MoveToOuterDisposeScope();
    }

    internal static void CheckShare(double share, string name)
    {
        if (!(share >= 0 && share <= 1))
        {
            throw new ArgumentException($"The share that columns keep is a number from 0 to 1; {share} was given.", name);
        }
    }

    private static void CheckSet(Tensor set, Tensor map, string name)
    {
        ArgumentNullException.ThrowIfNull(set, name);
        var fits = set.dtype == ScalarType.Bool && set.dim() <= map.dim();
        for (var i = 1; fits && i <= set.dim(); i++)
        {
            fits = set.shape[^i] == 1 || set.shape[^i] == map.shape[^i];
        }

        if (!fits)
        {
            throw new ArgumentException(
                $"A set of columns or rows is boolean and broadcasts to the map [{string.Join(", ", map.shape)}]; {set.dtype} [{string.Join(", ", set.shape)}] was given.", name);
        }
    }
}
