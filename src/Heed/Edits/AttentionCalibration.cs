using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Edits;

/// <summary>Attention calibration, ACT (arXiv 2406.15765): columns that soak up attention beyond the first such column keep a share beta of it, in chosen heads, and hand the rest to the other columns in proportion to what
/// those have.</summary>
/// <remarks>A sink is a column whose mean weight over the rows that see it exceeds the threshold. Late columns are seen by few rows, so the end of a text is flagged often: that is the method. Which heads profit is found
/// by trying them one by one on examples; in a small model most do not.</remarks>
public static class AttentionCalibration
{
    /// <summary>The share that calibrated columns keep.</summary>
    public const double DefaultBeta = 0.4;

    private static readonly TorchSharp.Scalar s_zero = 0;

    // A row of weights in bfloat16 is off by as much.
    private const double RowTolerance = 2e-2;

    /// <summary>The columns that are calibrated: those that receive more than the threshold, without the first of each head.</summary>
    /// <param name="score">Attention received, <c>[B, H, N]</c> or <c>[H, N]</c>: see <see cref="SinkScore"/>.</param>
    /// <param name="heads">The heads that are calibrated; null: all. Others have no such columns.</param>
    /// <param name="sinkThreshold">The threshold, exclusive.</param>
    /// <param name="keepFirst">Whether the first flagged column of a head (normally the begin token) is left alone.</param>
    /// <returns>Boolean, of the shape of the score.</returns>
    /// <exception cref="ArgumentException">There is no such head.</exception>
    public static Tensor Columns(Tensor score, IReadOnlyList<int>? heads = null, double sinkThreshold = SinkMask.AttentionThreshold, bool keepFirst = true)
    {
        ArgumentNullException.ThrowIfNull(score);
        using var scope = NewDisposeScope();
        var flagged = SinkMask.Above(score, sinkThreshold);
        var columns = (keepFirst ? flagged.WithoutFirst() : flagged).IsSink;
        if (heads is not null)
        {
            columns = columns.logical_and(Chosen(heads, score.shape[^2]).to(score.device).unsqueeze(-1));
        }

        return columns.MoveToOuterDisposeScope();
    }

    /// <summary>Calibrates maps of whole texts.</summary>
    /// <param name="attention">Weights <c>[B, H, N, N]</c> after the softmax; row i is query i.</param>
    /// <param name="heads">The heads to calibrate; null: all.</param>
    /// <param name="sinkThreshold">A column whose mean weight exceeds it is a sink.</param>
    /// <param name="beta">The share that a sink keeps, 0 to 1.</param>
    /// <param name="keepFirst">Whether the first sink of a head is left alone.</param>
    /// <param name="causal">Whether a query sees no later key.</param>
    /// <returns>The calibrated maps, of the same shape. Rows keep their sum; a row whose mass lies in calibrated columns alone stays as it was. Differentiable.</returns>
    /// <exception cref="ArgumentException">The maps are not square, their rows do not sum to one (or zero), beta lies outside 0 to 1, or there is no such head.</exception>
    public static Tensor Apply(
        Tensor attention, IReadOnlyList<int>? heads = null, double sinkThreshold = SinkMask.AttentionThreshold, double beta = DefaultBeta, bool keepFirst = true, bool causal = true)
    {
        ArgumentNullException.ThrowIfNull(attention);
        if (attention.dim() != 4 || attention.shape[2] != attention.shape[3])
        {
            throw new ArgumentException(
                $"Calibration takes square maps [B, H, N, N]; [{string.Join(", ", attention.shape)}] was given. For generation with a cache install {nameof(CalibrationEdit)} on the model.", nameof(attention));
        }

        using var scope = NewDisposeScope();
        var sums = attention.detach().to(float64).sum(-1);
        if (sums.numel() > 0 && minimum((sums - 1).abs(), sums.abs()).max().item<double>() is var worst && !(worst <= RowTolerance))
        {
            throw new ArgumentException("The rows of the maps do not sum to one: give the weights after the softmax, not the scores.", nameof(attention));
        }

        var columns = Columns(SinkScore.Compute(attention, causal), heads, sinkThreshold, keepFirst);
        return Apply(attention, columns, beta, causal ? heads ?? [.. Enumerable.Range(0, (int)attention.shape[1])] : []).MoveToOuterDisposeScope();
    }

    /// <summary>Steps 5 to 7 of the method. A row that sees no key stays without weights. The first row of <paramref name="headsWithFirstRow"/> has nothing to look at but itself: its reference keeps the sinks, and its first weight is one.</summary>
    internal static Tensor Apply(Tensor attention, Tensor columns, double beta, IReadOnlyList<int> headsWithFirstRow)
    {
        using var scope = NewDisposeScope();
        var sinks = columns.unsqueeze(-2);
        var edited = MapEdit.Redistribute(attention, sinks, sinks.logical_not(), beta);
        if (headsWithFirstRow.Count > 0 && attention.shape[^1] > 0)
        {
            // With every column as reference, the freed mass returns to where it came from.
            var first = MapEdit.Redistribute(attention.narrow(-2, 0, 1), sinks, ones_like(sinks), beta);
            var sees = first.sum(-1, keepdim: true).gt(s_zero);
            var corner = cat([where(sees, ones_like(sees, first.dtype), first.narrow(-1, 0, 1)), first.narrow(-1, 1, first.shape[^1] - 1)], -1);
            var withFirst = cat([corner, edited.narrow(-2, 1, edited.shape[^2] - 1)], -2);
            edited = where(Chosen(headsWithFirstRow, attention.shape[1]).to(attention.device).view(-1, 1, 1), withFirst, edited);
        }

        return edited.MoveToOuterDisposeScope();
    }

    internal static Tensor Chosen(IReadOnlyList<int> heads, long count)
    {
        var chosen = new bool[count];
        foreach (var head in heads)
        {
            if (head < 0 || head >= count)
            {
                throw new ArgumentException($"There are heads 0 to {count - 1}; head {head} is to be calibrated.", nameof(heads));
            }

            chosen[head] = true;
        }

        return tensor(chosen);
    }
}
