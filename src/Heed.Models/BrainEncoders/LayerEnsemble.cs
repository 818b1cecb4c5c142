using TorchSharp;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>Puts models together that read different layers of a backbone (arXiv 2505.17329): every vertex weighs the layers by the softmax of how well they predicted it on validation pictures.</summary>
/// <param name="Temperature">Factor of the correlations within the softmax: the larger, the more the best layer counts.</param>
/// <param name="NormalizeRuns">Whether several runs of a layer share its weight. The reference gives each run the whole weight, so that weights sum to the number of runs: harmless for a correlation, wrong for a squared error.</param>
public sealed record LayerEnsemble(double Temperature = 40, bool NormalizeRuns = true)
{
    /// <summary>The weight of every model for every vertex.</summary>
    /// <param name="layers">The layer that each model reads, any numbers; models of the same number are runs of one layer.</param>
    /// <param name="validationCorrelation">Correlation of each model with the measured responses of validation pictures, <c>[models, V]</c>.</param>
    /// <returns><c>[models, V]</c>.</returns>
    /// <exception cref="ArgumentException">There is not a layer for each row, or no row.</exception>
    public Tensor Weights(IReadOnlyList<long> layers, Tensor validationCorrelation)
    {
        ArgumentNullException.ThrowIfNull(layers);
        ArgumentNullException.ThrowIfNull(validationCorrelation);
        if (layers.Count == 0 || validationCorrelation.dim() != 2 || validationCorrelation.shape[0] != layers.Count)
        {
            throw new ArgumentException($"Every model has a layer and a row of correlations, [{layers.Count}, vertices], not [{string.Join(", ", validationCorrelation.shape)}].", nameof(validationCorrelation));
        }

        using var scope = NewDisposeScope();
        using Scalar temperature = Temperature;
        var known = layers.Distinct().ToList();
        var means = known.Select(layer => validationCorrelation.index_select(0, Rows(layer)).mean([0L]));
        var weights = stack(means).mul(temperature).softmax(0);
        var perModel = stack(layers.Select(layer =>
        {
            using Scalar runs = NormalizeRuns ? layers.Count(other => other == layer) : 1;
            return weights[known.IndexOf(layer)].div(runs);
        }));
        return perModel.MoveToOuterDisposeScope();

        Tensor Rows(long layer) => tensor(Enumerable.Range(0, layers.Count).Where(row => layers[row] == layer).Select(row => (long)row).ToArray(), device: validationCorrelation.device);
    }

    /// <summary>The models' predictions, weighed.</summary>
    /// <param name="predictions"><c>[models, B, V]</c>.</param>
    /// <param name="weights">Of <see cref="Weights"/>, <c>[models, V]</c>.</param>
    /// <returns><c>[B, V]</c>.</returns>
    /// <exception cref="ArgumentException">The shapes do not fit together.</exception>
    public static Tensor Combine(Tensor predictions, Tensor weights)
    {
        ArgumentNullException.ThrowIfNull(predictions);
        ArgumentNullException.ThrowIfNull(weights);
        if (predictions.dim() != 3 || weights.dim() != 2 || predictions.shape[0] != weights.shape[0] || predictions.shape[2] != weights.shape[1])
        {
            throw new ArgumentException($"Predictions [models, batch, vertices] need weights [models, vertices], not [{string.Join(", ", predictions.shape)}] and [{string.Join(", ", weights.shape)}].", nameof(weights));
        }

        using var scope = NewDisposeScope();
        return (predictions * weights.unsqueeze(1)).sum([0L]).MoveToOuterDisposeScope();
    }
}
