using TorchSharp;

namespace Heed.Explanations;

/// <summary>How a map over the cells of a spectrogram becomes a map over the frames of an encoder.</summary>
public enum SaliencyPooling
{
    /// <summary>The largest cell among those that fall to a frame: agrees best (arXiv 2509.18010).</summary>
    Maximum,

    /// <summary>Their mean.</summary>
    Mean,
}

/// <summary>How attention and saliency are compared.</summary>
public sealed record AttentionSaliencyOptions
{
    /// <summary>Tokens at the start that are left out, for example tags of languages.</summary>
    public int SkipTokens { get; init; }

    /// <summary>Whether both maps are standardised over all tokens, frame by frame, before any are skipped and the rest compared. Frames on which every token has nearly the same weight decide the correlation without it.</summary>
    public bool StandardizeOverTokens { get; init; }

    /// <summary>How the saliency of the input becomes one of the encoder's frames.</summary>
    public SaliencyPooling Pooling { get; init; }
}

/// <summary>Pearson correlations of cross-attention with one saliency map; not a number where either map is constant.</summary>
/// <param name="ByHead">Of every head, by layer.</param>
/// <param name="ByLayer">Of the mean of a layer's heads.</param>
/// <param name="Overall">Of the mean of all heads.</param>
public sealed record SaliencyCorrelation(IReadOnlyList<IReadOnlyList<double>> ByHead, IReadOnlyList<double> ByLayer, double Overall);

/// <summary>How far cross-attention tells what saliency tells.</summary>
/// <param name="Input">Against the saliency of the input, pooled; null where it was not given.</param>
/// <param name="EncoderOutput">Against the saliency of the encoder's output; null where it was not given.</param>
/// <param name="Agreement">Correlation of the two saliencies with each other; null where one was not given.</param>
public sealed record AttentionSaliencyResult(SaliencyCorrelation? Input, SaliencyCorrelation? EncoderOutput, double? Agreement);

/// <summary>Compares cross-attention with saliency (arXiv 2509.18010).</summary>
public static class AttentionSaliency
{
    /// <summary>Correlates attention with saliency: of every head, of the mean of every layer, and of the mean of all. Means are taken first, then standardised.</summary>
    /// <param name="attention">Weights <c>[layers, heads, I, T']</c>.</param>
    /// <param name="inputSaliency">Saliency of the input's cells <c>[I, T, F]</c>; null: not compared.</param>
    /// <param name="encoderSaliency">Saliency of the encoder's frames <c>[I, T']</c>; null: not compared.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <exception cref="ArgumentException">Tokens or frames do not match, no token is left, or there is nothing to compare with.</exception>
    public static AttentionSaliencyResult Correlate(torch.Tensor attention, torch.Tensor? inputSaliency, torch.Tensor? encoderSaliency, AttentionSaliencyOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(attention);
        options ??= new();
        if (attention.dim() != 4 || attention.numel() == 0)
        {
            throw new ArgumentException($"Attention must be [layers, heads, tokens, frames] and not empty, not {AttentionShape.Text(attention)}.", nameof(attention));
        }

        var (tokens, frames) = (attention.shape[2], attention.shape[3]);
        if (options.SkipTokens < 0 || options.SkipTokens >= tokens)
        {
            throw new ArgumentException($"Of {tokens} tokens {options.SkipTokens} cannot be skipped.", nameof(options));
        }

        if (inputSaliency is null && encoderSaliency is null)
        {
            throw new ArgumentException("There is nothing to compare attention with: give the saliency of the input, of the encoder's output, or both.", nameof(inputSaliency));
        }

        if (inputSaliency is not null && (inputSaliency.dim() != 3 || inputSaliency.shape[0] != tokens))
        {
            throw new ArgumentException($"The saliency of the input must be [{tokens} tokens, frames, features], not {AttentionShape.Text(inputSaliency)}.", nameof(inputSaliency));
        }

        if (encoderSaliency is not null && (encoderSaliency.dim() != 2 || encoderSaliency.shape[0] != tokens || encoderSaliency.shape[1] != frames))
        {
            throw new ArgumentException($"The saliency of the encoder's output must be [{tokens} tokens, {frames} frames], not {AttentionShape.Text(encoderSaliency)}.", nameof(encoderSaliency));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var weights = attention.to(torch.ScalarType.Float64);
        var input = inputSaliency is null ? null : Prepare(Pool(inputSaliency.to(torch.ScalarType.Float64), frames, options.Pooling), options);
        var encoder = encoderSaliency is null ? null : Prepare(encoderSaliency.to(torch.ScalarType.Float64), options);
        return new(Against(weights, input, options), Against(weights, encoder, options), input is null || encoder is null ? null : Pearson(input, encoder));
    }

    /// <summary>Reduces a saliency map over cells to the frames of an encoder: frame t' of T' takes the frames <c>floor(t' T / T')</c> to <c>ceil((t' + 1) T / T') - 1</c>, with all their features.</summary>
    /// <param name="saliency"><c>[..., T, F]</c>.</param>
    /// <param name="frames">Number T' of encoder frames, from 1.</param>
    /// <param name="pooling">What is taken of the cells.</param>
    /// <returns><c>[..., T']</c>.</returns>
    /// <exception cref="ArgumentException">The map has fewer than two dimensions or no cell, or there is no frame.</exception>
    public static torch.Tensor Pool(torch.Tensor saliency, long frames, SaliencyPooling pooling = SaliencyPooling.Maximum)
    {
        ArgumentNullException.ThrowIfNull(saliency);
        if (saliency.dim() < 2 || saliency.numel() == 0 || frames < 1)
        {
            throw new ArgumentException($"A map [..., frames, features] that is not empty is pooled to one frame or more, not {AttentionShape.Text(saliency)} to {frames}.", nameof(saliency));
        }

        using var scope = torch.NewDisposeScope();
        var length = saliency.shape[^2];
        var pooled = new List<torch.Tensor>();
        for (long frame = 0; frame < frames; frame++)
        {
            var start = frame * length / frames;
            var end = (((frame + 1) * length) + frames - 1) / frames;
            var cells = saliency.narrow(-2, start, end - start);
            pooled.Add(pooling == SaliencyPooling.Maximum ? cells.amax([-2L, -1L]) : cells.mean([-2L, -1L]));
        }

        return torch.stack(pooled, -1).MoveToOuterDisposeScope();
    }

    /// <summary>Takes off every frame's mean over the tokens and divides by its standard deviation over them (of the population; 0 counts as 1).</summary>
    /// <param name="map"><c>[I, T']</c>, floating-point.</param>
    /// <returns><c>[I, T']</c>.</returns>
    /// <exception cref="ArgumentException">The map has another shape.</exception>
    public static torch.Tensor StandardizeOverTokens(torch.Tensor map)
    {
        ArgumentNullException.ThrowIfNull(map);
        if (map.dim() != 2 || map.numel() == 0)
        {
            throw new ArgumentException($"A map must be [tokens, frames] and not empty, not {AttentionShape.Text(map)}.", nameof(map));
        }

        using var scope = torch.NewDisposeScope();
        using Scalar none = 0, unity = 1;
        var centred = map - map.mean([0L], keepdim: true);
        var deviation = centred.square().mean([0L], keepdim: true).sqrt();
        return (centred / deviation.masked_fill(deviation.eq(none), unity)).MoveToOuterDisposeScope();
    }

    /// <summary>Takes off every token's mean over its cells and divides by its standard deviation over them (of a sample): SPES' own normalisation, for a map over cells or over frames. How much a token's distribution can move at all
    /// differs from token to token; without this, a correlation over tokens measures that and not where the model looked.</summary>
    /// <param name="map"><c>[I, ...]</c>, floating-point.</param>
    /// <returns>Of the same shape; 0 for a token whose cells are all equal.</returns>
    /// <exception cref="ArgumentException">The map has fewer than two dimensions or no cell.</exception>
    public static torch.Tensor StandardizeEachToken(torch.Tensor map)
    {
        ArgumentNullException.ThrowIfNull(map);
        if (map.dim() < 2 || map.numel() == 0)
        {
            throw new ArgumentException($"A map must be [tokens, cells ...] and not empty, not {AttentionShape.Text(map)}.", nameof(map));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var rows = map.flatten(1);
        var centred = rows - rows.mean([1L], keepdim: true);
        return (centred / centred.std([1L], keepdim: true)).nan_to_num(0, 0, 0).view(map.shape).MoveToOuterDisposeScope();
    }

    /// <summary>Pearson's correlation of two maps, all elements side by side; not a number where either is constant.</summary>
    /// <param name="first">Of any shape.</param>
    /// <param name="second">Of the same shape.</param>
    /// <exception cref="ArgumentException">The shapes differ.</exception>
    public static double Pearson(torch.Tensor first, torch.Tensor second)
    {
        ArgumentNullException.ThrowIfNull(first);
        ArgumentNullException.ThrowIfNull(second);
        if (!first.shape.AsSpan().SequenceEqual(second.shape))
        {
            throw new ArgumentException($"Maps to correlate must be of one shape, not {AttentionShape.Text(first)} and {AttentionShape.Text(second)}.", nameof(second));
        }

        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var (a, b) = (Centred(first), Centred(second));
        return (a.dot(b) / (a.dot(a) * b.dot(b)).sqrt()).item<double>();
    }

    private static torch.Tensor Centred(torch.Tensor map)
    {
        var values = map.detach().to(torch.ScalarType.Float64).cpu().reshape(-1);
        return values - values.mean();
    }

    private static torch.Tensor Prepare(torch.Tensor map, AttentionSaliencyOptions options)
    {
        var standard = options.StandardizeOverTokens ? StandardizeOverTokens(map) : map;
        return standard.narrow(0, options.SkipTokens, map.shape[0] - options.SkipTokens);
    }

    private static SaliencyCorrelation? Against(torch.Tensor weights, torch.Tensor? saliency, AttentionSaliencyOptions options)
    {
        if (saliency is null)
        {
            return null;
        }

        double Of(torch.Tensor map) => Pearson(Prepare(map, options), saliency);
        var (layers, heads) = ((int)weights.shape[0], (int)weights.shape[1]);
        return new(
            [.. Enumerable.Range(0, layers).Select(layer => (IReadOnlyList<double>)[.. Enumerable.Range(0, heads).Select(head => Of(weights[layer, head]))])],
            [.. Enumerable.Range(0, layers).Select(layer => Of(weights[layer].mean([0L])))],
            Of(weights.mean([0L, 1L])));
    }
}
