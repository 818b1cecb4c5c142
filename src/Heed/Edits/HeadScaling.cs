using TorchSharp;

namespace Heed.Edits;

/// <summary>The factor of one head.</summary>
/// <param name="Layer">The layer, <see cref="AttentionSite.Layer"/>.</param>
/// <param name="Head">The query head, from 0.</param>
/// <param name="Factor">What the head's output is multiplied by; zero ablates the head.</param>
/// <param name="Kind">The kind of attention in that layer; null: every kind.</param>
public readonly record struct HeadFactor(int Layer, int Head, double Factor, AttentionKind? Kind = null);

/// <summary>Scales (or, with zero, ablates) the outputs of chosen heads, before the output projection. Calls stay fused;
/// differentiable.</summary>
public sealed class HeadScaling : AttentionHook
{
    private readonly HeadFactor[] _factors;

    /// <summary>Initializes the edit.</summary>
    /// <param name="factors">The factors; heads that are not named keep their output. Factors of the same head multiply.</param>
    /// <exception cref="ArgumentException">A factor is not finite, or a layer or head is negative.</exception>
    public HeadScaling(IEnumerable<HeadFactor> factors)
    {
        ArgumentNullException.ThrowIfNull(factors);
        _factors = [.. factors];
        foreach (var factor in _factors)
        {
            if (!double.IsFinite(factor.Factor) || factor.Layer < 0 || factor.Head < 0)
            {
                throw new ArgumentException(
                    $"A head factor names a layer and a head from 0 on and a finite factor, not layer {factor.Layer}, head {factor.Head}, factor {factor.Factor}.", nameof(factors));
            }
        }
    }

    /// <summary>An edit that zeroes heads.</summary>
    /// <param name="heads">Layer and head of each.</param>
    public static HeadScaling Zero(params IEnumerable<(int Layer, int Head)> heads)
    {
        ArgumentNullException.ThrowIfNull(heads);
        return new(heads.Select(head => new HeadFactor(head.Layer, head.Head, 0)));
    }

    /// <summary>Zeroes heads of a tensor.</summary>
    /// <param name="weights"><c>[B, H, ...]</c>: maps or outputs.</param>
    /// <param name="heads">The heads, boolean <c>[H]</c> or <c>[B, H]</c>.</param>
    /// <exception cref="ArgumentException">The heads do not fit.</exception>
    public static torch.Tensor Zero(torch.Tensor weights, torch.Tensor heads)
    {
        ArgumentNullException.ThrowIfNull(weights);
        ArgumentNullException.ThrowIfNull(heads);
        using var scope = torch.NewDisposeScope();
        using Scalar zero = 0;
        return weights.masked_fill(Chosen(weights, heads), zero).MoveToOuterDisposeScope();
    }

    /// <summary>Chosen heads, boolean <c>[H]</c> or <c>[B, H]</c>, as a mask of four dimensions.</summary>
    internal static torch.Tensor Chosen(torch.Tensor weights, torch.Tensor heads) =>
        weights.dim() == 4 && heads.dtype == torch.ScalarType.Bool && heads.dim() is 1 or 2 && heads.shape[^1] == weights.shape[1] && (heads.dim() == 1 || heads.shape[0] == weights.shape[0])
            ? heads.view(-1, weights.shape[1], 1, 1)
            : throw new ArgumentException(
                $"Heads are boolean [H] or [B, H] of tensors [B, H, N, M], not {heads.dtype} [{string.Join(", ", heads.shape)}] of [{string.Join(", ", weights.shape)}].", nameof(heads));

    /// <inheritdoc/>
    public override AttentionStages StagesAt(AttentionSite site)
    {
        foreach (var factor in _factors)
        {
            if (ActsAt(factor, site))
            {
                return AttentionStages.Output;
            }
        }

        return AttentionStages.None;
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">The layer has no such head.</exception>
    public override torch.Tensor OnOutput(AttentionCall call, torch.Tensor output)
    {
        ArgumentNullException.ThrowIfNull(call);
        ArgumentNullException.ThrowIfNull(output);
        var perHead = new double[output.size(1)];
        Array.Fill(perHead, 1);
        foreach (var factor in _factors)
        {
            if (ActsAt(factor, call.Site))
            {
                if (factor.Head >= perHead.Length)
                {
                    throw new ArgumentException(
                        $"The site '{call.Site}' has heads 0 to {perHead.Length - 1}; the edit scales head {factor.Head}.");
                }

                perHead[factor.Head] *= factor.Factor;
            }
        }

        using var factors = torch.tensor(perHead, output.dtype, output.device).view(1, -1, 1, 1);
        return output * factors;
    }

    private static bool ActsAt(HeadFactor factor, AttentionSite site) => factor.Layer == site.Layer && (factor.Kind is null || factor.Kind == site.Kind);
}
