using TorchSharp;

namespace Heed.Explanations;

/// <summary>How <see cref="SpesExplainer"/> hides parts of the input. The defaults are the published ones.</summary>
public sealed record SpesOptions
{
    /// <summary>Numbers of segments, one for each granularity; of an input of <see cref="ReferenceFrames"/> frames where that is given.</summary>
    public IReadOnlyList<int> Segments { get; init; } = [2000, 2500, 3000];

    /// <summary>The number of frames for which <see cref="Segments"/> are meant: an input of T frames has <c>round(segments min(T, threshold) / reference)</c>. Null: as many as <see cref="Segments"/> say, whatever the length.</summary>
    public int? ReferenceFrames { get; init; } = 500;

    /// <summary>Beyond as many frames the number of segments does not grow.</summary>
    public int FrameThreshold { get; init; } = 750;

    /// <summary>Number of masks in all. Each granularity has its equal part; what does not divide is left out.</summary>
    public int Masks { get; init; } = 20_000;

    /// <summary>Probability that a segment is hidden.</summary>
    public double MaskProbability { get; init; } = 0.5;

    /// <summary>Probability that an input token of the decoder is hidden; 0: none is.</summary>
    public double TokenMaskProbability { get; init; }

    /// <summary>What is measured.</summary>
    public OcclusionScorer Scorer { get; init; }

    /// <summary>How much a difference of values weighs against distance in the segmentation; see <see cref="Slic.Segment"/>.</summary>
    public double Compactness { get; init; } = 0.1;

    /// <summary>Deviation of the Gaussian that smooths the spectrogram before the segmentation.</summary>
    public double Sigma { get; init; } = 1;

    /// <summary>Masks that the model reads at once.</summary>
    public int Batch { get; init; } = 50;

    /// <summary>Seed of the masks.</summary>
    public int Seed { get; init; } = 1;
}

/// <summary>Masks to use in place of drawn ones.</summary>
/// <param name="Audio">Of the spectrogram, <c>[M, T, F]</c>: zero hides.</param>
/// <param name="Tokens">Of the decoder's inputs, <c>[M, I]</c>: zero hides; null: none is hidden.</param>
public sealed record OcclusionMasks(torch.Tensor Audio, torch.Tensor? Tokens = null);

/// <summary>A model that is explained.</summary>
/// <param name="features">Spectrograms <c>[B, T, F]</c>, parts of which are 0.</param>
/// <param name="tokenMasks">Which inputs of the decoder are kept, boolean <c>[B, I]</c>: the embeddings of the others count as 0. Null: all are kept.</param>
/// <returns>The distributions of the tokens of the text that is explained, <c>[B, I, V]</c>: the decoder is fed that text, whatever it would have said.</returns>
public delegate torch.Tensor OccludedModel(torch.Tensor features, torch.Tensor? tokenMasks);

/// <summary>Explains what a speech model wrote by hiding parts of what it heard and of what it had written (SPES, arXiv 2411.01710): superpixels of the spectrogram in several granularities, hidden at random; what a cell
/// matters to a token is how much the token's distribution changed, on average, while the cell was hidden.</summary>
/// <remarks>Hidden cells become 0: features must be normalised so that 0 is the mean; in raw log-mel features 0 is loud. The model is run once per mask and once more.</remarks>
public sealed class SpesExplainer
{
    private readonly SpesOptions _options;

    /// <summary>Initializes an explainer.</summary>
    /// <param name="options">How; null: as published.</param>
    /// <exception cref="ArgumentException">A number is out of range, or there are fewer masks than granularities.</exception>
    public SpesExplainer(SpesOptions? options = null)
    {
        options ??= new();
        if (options.Segments.Count == 0 || options.Segments.Any(count => count < 1) || options.ReferenceFrames < 1 || options.FrameThreshold < 1)
        {
            throw new ArgumentException($"Segments, reference frames and the threshold must be 1 or more, not {string.Join(", ", options.Segments)}, {options.ReferenceFrames} and {options.FrameThreshold}.", nameof(options));
        }

        if (options.Masks < options.Segments.Count || options.Batch < 1)
        {
            throw new ArgumentException($"{options.Masks} masks in batches of {options.Batch} are too few for {options.Segments.Count} granularities: each needs one mask at least.", nameof(options));
        }

        if (options.MaskProbability is not (> 0 and <= 1) || options.TokenMaskProbability is not (>= 0 and <= 1))
        {
            throw new ArgumentException(
                $"A segment is hidden with a probability above 0 and at most 1, a token with one from 0 to 1, not {options.MaskProbability} and {options.TokenMaskProbability}.", nameof(options));
        }

        _options = options;
    }

    /// <summary>Explains a text.</summary>
    /// <param name="model">The model, without gradient.</param>
    /// <param name="features">The spectrogram <c>[T, F]</c>, normalised to a mean of 0.</param>
    /// <param name="tokens">The text, int64 <c>[I]</c>: what the model wrote.</param>
    /// <param name="masks">Masks to use; null: they are drawn.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <exception cref="ArgumentException">Shapes do not fit: the message says which.</exception>
    public SpesExplanation Explain(OccludedModel model, torch.Tensor features, torch.Tensor tokens, OcclusionMasks? masks = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        Check(features, tokens, masks);
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var count = tokens.shape[0];
        var original = Distributions(model, features.unsqueeze(0), null, count)[0];
        using var audio = new OcclusionMap(count, features.shape);
        using var texts = new OcclusionMap(count, count);
        var scores = new List<torch.Tensor>();
        foreach (var (kept, keptTokens) in masks is null ? Draw(features, count) : Batches(masks))
        {
            cancellation.ThrowIfCancellationRequested();
            using var step = torch.NewDisposeScope();
            var perturbed = Distributions(model, features * kept.to(features.dtype), keptTokens, count);
            var changes = _options.Scorer == OcclusionScorer.KullbackLeibler
                ? OcclusionScores.KullbackLeibler(original, perturbed) : OcclusionScores.PredictedDifference(original, perturbed, tokens);
            audio.Add(changes, kept);
            if (keptTokens is not null)
            {
                texts.Add(changes, keptTokens);
            }

            scores.Add(changes.MoveToOuterDisposeScope());
            kept.Dispose();
            keptTokens?.Dispose();
        }

        return new(audio.Values(), (texts.Count == 0 ? torch.zeros([count, count], original.dtype) : texts.Values()).tril(), torch.cat(scores));
    }

    /// <summary>The segments of a spectrogram at every granularity: labels from 1, int64 <c>[T, F]</c>. The spectrogram is scaled to 0..1 first.</summary>
    /// <param name="features"><c>[T, F]</c>.</param>
    public IReadOnlyList<torch.Tensor> Segment(torch.Tensor features)
    {
        ArgumentNullException.ThrowIfNull(features);
        using var scope = torch.NewDisposeScope();
        using Scalar nothing = 0, unity = 1;
        var lowest = features.min();
        var range = features.max() - lowest;
        var scaled = (features - lowest) / range.masked_fill(range.eq(nothing), unity);
        return [.. _options.Segments.Select(count => Slic.Segment(scaled, CountOf(count, features.shape[0]), _options.Compactness, _options.Sigma).MoveToOuterDisposeScope())];
    }

    private static void Check(torch.Tensor features, torch.Tensor tokens, OcclusionMasks? masks)
    {
        ArgumentNullException.ThrowIfNull(features);
        ArgumentNullException.ThrowIfNull(tokens);
        if (features.dim() != 2 || features.numel() == 0 || !torch.is_floating_point(features))
        {
            throw new ArgumentException($"Features must be floating-point [frames, features] and not empty, not {features.dtype} {AttentionShape.Text(features)}.", nameof(features));
        }

        if (tokens.dim() != 1 || tokens.shape[0] < 1 || tokens.dtype != torch.ScalarType.Int64)
        {
            throw new ArgumentException($"The text must be int64 [tokens] with at least one, not {tokens.dtype} {AttentionShape.Text(tokens)}.", nameof(tokens));
        }

        if (masks is null)
        {
            return;
        }

        ArgumentNullException.ThrowIfNull(masks.Audio);
        if (masks.Audio.dim() != 3 || masks.Audio.shape[0] < 1 || masks.Audio.shape[1] != features.shape[0] || masks.Audio.shape[2] != features.shape[1])
        {
            throw new ArgumentException($"Masks of the spectrogram must be [masks, {features.shape[0]}, {features.shape[1]}], not {AttentionShape.Text(masks.Audio)}.", nameof(masks));
        }

        if (masks.Tokens is { } texts && (texts.dim() != 2 || texts.shape[0] != masks.Audio.shape[0] || texts.shape[1] != tokens.shape[0]))
        {
            throw new ArgumentException($"Masks of the tokens must be [{masks.Audio.shape[0]}, {tokens.shape[0]}], not {AttentionShape.Text(texts)}.", nameof(masks));
        }
    }

    private static torch.Tensor Distributions(OccludedModel model, torch.Tensor features, torch.Tensor? tokenMasks, long tokens)
    {
        var distributions = model(features, tokenMasks);
        return distributions.dim() == 3 && distributions.shape[0] == features.shape[0] && distributions.shape[1] == tokens
            ? distributions
            : throw new ArgumentException($"The model must give distributions [{features.shape[0]}, {tokens}, vocabulary] for a text of {tokens} tokens, not {AttentionShape.Text(distributions)}.", nameof(model));
    }

    private int CountOf(int segments, long frames) => _options.ReferenceFrames is { } reference ? Math.Max(1, (int)Math.Round((double)segments * Math.Min(frames, _options.FrameThreshold) / reference)) : segments;

    private IEnumerable<(torch.Tensor Audio, torch.Tensor? Tokens)> Batches(OcclusionMasks masks)
    {
        using Scalar nothing = 0;
        for (long first = 0; first < masks.Audio.shape[0]; first += _options.Batch)
        {
            var taken = Math.Min(_options.Batch, masks.Audio.shape[0] - first);
            yield return (masks.Audio.narrow(0, first, taken).ne(nothing), masks.Tokens?.narrow(0, first, taken).ne(nothing));
        }
    }

    private IEnumerable<(torch.Tensor Audio, torch.Tensor? Tokens)> Draw(torch.Tensor features, long tokens)
    {
        using var generator = new torch.Generator((ulong)_options.Seed);
        using Scalar hidden = _options.MaskProbability, hiddenToken = _options.TokenMaskProbability, unity = 1;
        var each = _options.Masks / _options.Segments.Count;
        foreach (var labels in Segment(features))
        {
            using var flat = labels.reshape(-1) - unity;
            using var highest = labels.max();
            var segments = highest.item<long>();
            for (var first = 0; first < each; first += _options.Batch)
            {
                var taken = Math.Min(_options.Batch, each - first);
                torch.Tensor audio;
                torch.Tensor? texts;
                using (var scope = torch.NewDisposeScope())
                {
                    audio = torch.rand([taken, segments], generator: generator).ge(hidden).index_select(1, flat).reshape(taken, features.shape[0], features.shape[1]).to(features.device).MoveToOuterDisposeScope();
                    texts = _options.TokenMaskProbability > 0 ? torch.rand([taken, tokens], generator: generator).ge(hiddenToken).to(features.device).MoveToOuterDisposeScope() : null;
                }

                yield return (audio, texts);
            }

            labels.Dispose();
        }
    }
}
