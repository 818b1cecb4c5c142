using TorchSharp;

namespace Heed.Explanations;

/// <summary>A map of importance from random occlusions: how large the score was, on average, while a cell was hidden. Of any model and any input that has cells (spectrograms, pictures, tokens); masks
/// arrive in batches and are not kept.</summary>
/// <remarks>The map of an output i is <c>sum_m score[m, i] (1 - mask[m, cell]) / sum_m (1 - mask[m, cell])</c>: divided by how often the cell was hidden, not by the number of masks (arXiv 2411.01710).
/// Sums are kept in float64.</remarks>
public sealed class OcclusionMap : IDisposable
{
    private readonly torch.Tensor _sum;
    private readonly torch.Tensor _hidden;
    private readonly long[] _shape;
    private torch.ScalarType _type = torch.ScalarType.Float64;

    /// <summary>Initializes an empty map.</summary>
    /// <param name="outputs">Number I of outputs that have a score, from 1.</param>
    /// <param name="shape">Shape of the input's cells.</param>
    /// <exception cref="ArgumentException">There is no output or no cell.</exception>
    public OcclusionMap(long outputs, params long[] shape)
    {
        ArgumentNullException.ThrowIfNull(shape);
        if (outputs < 1 || shape.Length == 0 || shape.Any(side => side < 1))
        {
            throw new ArgumentException($"A map needs at least one output and one cell, not {outputs} outputs and cells of [{string.Join(", ", shape)}].", nameof(shape));
        }

        _shape = [.. shape];
        var cells = _shape.Aggregate(1L, (product, side) => checked(product * side));
        _sum = torch.zeros([outputs, cells], torch.ScalarType.Float64).DetachFromDisposeScope();
        _hidden = torch.zeros([cells], torch.ScalarType.Float64).DetachFromDisposeScope();
    }

    /// <summary>Masks taken so far.</summary>
    public long Count { get; private set; }

    /// <summary>Takes a batch of occlusions.</summary>
    /// <param name="scores">How much every output changed, <c>[M, I]</c>.</param>
    /// <param name="masks">The masks, <c>[M, shape...]</c> of any type: zero where a cell was hidden.</param>
    /// <exception cref="ArgumentException">The shapes do not fit.</exception>
    public void Add(torch.Tensor scores, torch.Tensor masks)
    {
        ArgumentNullException.ThrowIfNull(scores);
        ArgumentNullException.ThrowIfNull(masks);
        if (scores.dim() != 2 || scores.shape[1] != _sum.shape[0] || masks.dim() != _shape.Length + 1 || masks.shape[0] != scores.shape[0] || !masks.shape.AsSpan(1).SequenceEqual(_shape))
        {
            throw new ArgumentException(
                $"Scores must be [masks, {_sum.shape[0]}] and masks [masks, {string.Join(", ", _shape)}], not {AttentionShape.Text(scores)} and {AttentionShape.Text(masks)}.", nameof(masks));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        using Scalar kept = 0;
        var hidden = masks.eq(kept).to(torch.CPU).reshape(masks.shape[0], -1).to(torch.ScalarType.Float64);
        _sum.add_(scores.to(torch.CPU).to(torch.ScalarType.Float64).transpose(0, 1).matmul(hidden));
        _hidden.add_(hidden.sum([0L]));
        _type = scores.dtype;
        Count += masks.shape[0];
    }

    /// <summary>The map, in the type of the scores.</summary>
    /// <returns><c>[I, shape...]</c>, 0 where a cell was never hidden.</returns>
    public torch.Tensor Values()
    {
        using var scope = torch.NewDisposeScope();
        using Scalar once = 1;
        // A cell that was never hidden has a sum of 0.
        return (_sum / _hidden.clamp_min(once)).reshape([_sum.shape[0], .. _shape]).to(_type, copy: true).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _sum.Dispose();
        _hidden.Dispose();
    }
}
