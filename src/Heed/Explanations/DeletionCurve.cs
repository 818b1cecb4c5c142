using TorchSharp;

namespace Heed.Explanations;

/// <summary>What is done to the cells that a map calls the most important.</summary>
public enum DeletionMode
{
    /// <summary>They are hidden, the rest stays.</summary>
    Deletion,

    /// <summary>They stay, the rest is hidden.</summary>
    Insertion,
}

/// <summary>Tests a map of importance: hides more and more of what it calls important (or shows it), and watches the model's score. Where the map is right, the score collapses early (or rises early).</summary>
/// <remarks>The deletion and insertion metrics of arXiv 1806.07421, on any input; for speech as in arXiv 2411.01710.</remarks>
public static class DeletionCurve
{
    private const int Whole = 100;

    /// <summary>The inputs of the curve: at 0, s, 2s ... 100 percent.</summary>
    /// <param name="features">The input, of any shape.</param>
    /// <param name="saliency">The importance of its cells, of the same shape.</param>
    /// <param name="step">Percent between two inputs, a divisor of 100.</param>
    /// <param name="mode">What is done to the most important cells.</param>
    /// <param name="baseline">What hidden cells become, of a shape that broadcasts to the input's; null: 0, which for normalised features is the mean.</param>
    /// <returns><c>[100 / step + 1, shape...]</c>. Of n cells, <c>n * percent div 100</c> are hidden (or shown); equally important ones from the last on.</returns>
    /// <exception cref="ArgumentException">The shapes differ, there is no cell, or the step does not divide 100.</exception>
    public static torch.Tensor Create(torch.Tensor features, torch.Tensor saliency, int step, DeletionMode mode = DeletionMode.Deletion, torch.Tensor? baseline = null)
    {
        ArgumentNullException.ThrowIfNull(features);
        ArgumentNullException.ThrowIfNull(saliency);
        if (!features.shape.AsSpan().SequenceEqual(saliency.shape) || features.numel() == 0)
        {
            throw new ArgumentException($"The importance must be of the features' shape and not empty: {AttentionShape.Text(features)} and {AttentionShape.Text(saliency)} were given.", nameof(saliency));
        }

        if (step < 1 || Whole % step != 0)
        {
            throw new ArgumentException($"The step must divide 100 percent, and {step} does not: give for example 5, 10 or 20.", nameof(step));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var ranks = torch.tensor(Ranks(saliency)).reshape(features.shape);
        var count = features.numel();
        long[] firstTop = [.. Enumerable.Range(0, (Whole / step) + 1).Select(index => count - (count * index * step / Whole))];
        var isTop = ranks.unsqueeze(0).ge(torch.tensor(firstTop).reshape([firstTop.Length, .. Enumerable.Repeat(1L, (int)features.dim())])).to(features.device);
        var isHidden = mode == DeletionMode.Deletion ? isTop : isTop.logical_not();
        return torch.where(isHidden, baseline ?? torch.zeros_like(features), features.unsqueeze(0)).MoveToOuterDisposeScope();
    }

    /// <summary>The area under the scores by the trapezoid rule, over percent values from 0 to 100: of scores from 0 to 1 it is 0 to 100.</summary>
    /// <param name="scores">The model's scores of the inputs of <see cref="Create"/>, at least two.</param>
    /// <exception cref="ArgumentException">There are fewer than two.</exception>
    public static double Auc(IReadOnlyList<double> scores)
    {
        ArgumentNullException.ThrowIfNull(scores);
        if (scores.Count < 2)
        {
            throw new ArgumentException($"An area needs the scores of at least two inputs, not of {scores.Count}.", nameof(scores));
        }

        var step = (double)Whole / (scores.Count - 1);
        return Enumerable.Range(1, scores.Count - 1).Sum(index => (scores[index] + scores[index - 1]) / 2 * step);
    }

    // The place of every cell in ascending order; libtorch's argsort would leave the order of equals open.
    private static long[] Ranks(torch.Tensor saliency)
    {
        using var scope = torch.NewDisposeScope();
        var values = saliency.detach().to(torch.ScalarType.Float64).cpu().contiguous().data<double>().ToArray();
        var ranks = new long[values.Length];
        long place = 0;
        foreach (var cell in Enumerable.Range(0, values.Length).OrderBy(cell => values[cell]))
        {
            ranks[cell] = place++;
        }

        return ranks;
    }
}
