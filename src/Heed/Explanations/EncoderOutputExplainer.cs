using TorchSharp;

namespace Heed.Explanations;

/// <summary>How <see cref="EncoderOutputExplainer"/> hides frames.</summary>
public sealed record EncoderOutputOptions
{
    /// <summary>Number of masks.</summary>
    public int Masks { get; init; } = 2000;

    /// <summary>Probability that a frame is hidden.</summary>
    public double MaskProbability { get; init; } = 0.5;

    /// <summary>What is measured.</summary>
    public OcclusionScorer Scorer { get; init; }

    /// <summary>Masks that the decoder reads at once.</summary>
    public int Batch { get; init; } = 100;

    /// <summary>Seed of the masks.</summary>
    public int Seed { get; init; } = 1;
}

/// <summary>Explains what a decoder wrote by hiding whole frames of the encoder's output: the vectors become 0 and only the decoder is run again (arXiv 2509.18010). What is left between this and the saliency of
/// the input is the encoder's own mixing.</summary>
/// <remarks>The paper's number of masks and probability could not be sourced: both are options.</remarks>
public sealed class EncoderOutputExplainer
{
    private readonly EncoderOutputOptions _options;

    /// <summary>Initializes an explainer.</summary>
    /// <param name="options">How; null: the defaults.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public EncoderOutputExplainer(EncoderOutputOptions? options = null)
    {
        options ??= new();
        if (options.Masks < 1 || options.Batch < 1 || options.MaskProbability is not (> 0 and <= 1))
        {
            throw new ArgumentException(
                $"There must be a mask and a batch of one at least, and a probability above 0 and at most 1, not {options.Masks}, {options.Batch} and {options.MaskProbability}.", nameof(options));
        }

        _options = options;
    }

    /// <summary>Explains a text.</summary>
    /// <param name="decoder">From encoder outputs <c>[B, T', D]</c> to the distributions of the text's tokens <c>[B, I, V]</c>, fed that text, without gradient.</param>
    /// <param name="encoded">The encoder's output <c>[T', D]</c>.</param>
    /// <param name="tokens">The text, int64 <c>[I]</c>.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <returns>How much each token changed, on average, while a frame was hidden: <c>[I, T']</c>.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public torch.Tensor Explain(Func<torch.Tensor, torch.Tensor> decoder, torch.Tensor encoded, torch.Tensor tokens, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(decoder);
        ArgumentNullException.ThrowIfNull(encoded);
        ArgumentNullException.ThrowIfNull(tokens);
        if (encoded.dim() != 2 || encoded.numel() == 0 || tokens.dim() != 1 || tokens.shape[0] < 1 || tokens.dtype != torch.ScalarType.Int64)
        {
            throw new ArgumentException(
                $"The encoder's output must be [frames, width] and the text int64 [tokens], neither empty, not {AttentionShape.Text(encoded)} and {tokens.dtype} {AttentionShape.Text(tokens)}.", nameof(encoded));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        using Scalar hidden = _options.MaskProbability;
        var (frames, count) = (encoded.shape[0], tokens.shape[0]);
        var original = Distributions(decoder, encoded.unsqueeze(0), count)[0];
        using var generator = new torch.Generator((ulong)_options.Seed);
        using var map = new OcclusionMap(count, frames);
        for (var first = 0; first < _options.Masks; first += _options.Batch)
        {
            cancellation.ThrowIfCancellationRequested();
            using var step = torch.NewDisposeScope();
            var kept = torch.rand([Math.Min(_options.Batch, _options.Masks - first), frames], generator: generator).ge(hidden).to(encoded.device);
            var perturbed = Distributions(decoder, encoded * kept.unsqueeze(-1).to(encoded.dtype), count);
            map.Add(_options.Scorer == OcclusionScorer.KullbackLeibler ? OcclusionScores.KullbackLeibler(original, perturbed) : OcclusionScores.PredictedDifference(original, perturbed, tokens), kept);
        }

        return map.Values().MoveToOuterDisposeScope();
    }

    private static torch.Tensor Distributions(Func<torch.Tensor, torch.Tensor> decoder, torch.Tensor encoded, long tokens)
    {
        var distributions = decoder(encoded);
        return distributions.dim() == 3 && distributions.shape[0] == encoded.shape[0] && distributions.shape[1] == tokens
            ? distributions
            : throw new ArgumentException($"The decoder must give distributions [{encoded.shape[0]}, {tokens}, vocabulary] for a text of {tokens} tokens, not {AttentionShape.Text(distributions)}.", nameof(decoder));
    }
}
