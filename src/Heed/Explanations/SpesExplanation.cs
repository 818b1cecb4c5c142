using TorchSharp;

namespace Heed.Explanations;

/// <summary>What a recogniser's tokens owe to the cells of the spectrogram and to the tokens before them.</summary>
public sealed class SpesExplanation : IDisposable
{
    internal SpesExplanation(torch.Tensor audio, torch.Tensor tokens, torch.Tensor? scores)
    {
        (Audio, Tokens, Scores) = (audio.DetachFromDisposeScope(), tokens.DetachFromDisposeScope(), scores?.DetachFromDisposeScope());
    }

    /// <summary>How much each token changed, on average, while a cell was hidden: <c>[I, T, F]</c>; 0 where a cell never was. The explanation's own.</summary>
    public torch.Tensor Audio { get; }

    /// <summary>The same for the decoder's inputs, <c>[I, I]</c>: entry (i, j) for j up to i; column j is the input at position j, so column 0 is the token that begins the text. Zeros where tokens were not hidden. The explanation's own.</summary>
    public torch.Tensor Tokens { get; }

    /// <summary>The score of every mask and token, <c>[M, I]</c>; null in a normalised explanation. The explanation's own.</summary>
    public torch.Tensor? Scores { get; }

    /// <summary>For each token the map minus its mean, over its standard deviation (of a sample); the map over tokens likewise, over the entries that exist. What is not finite becomes 0.</summary>
    public SpesExplanation Standardize()
    {
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        var cells = Audio.reshape(Audio.shape[0], -1);
        var audio = Standard(cells, torch.full([Audio.shape[0], 1], cells.shape[1], Audio.dtype)).reshape(Audio.shape);
        using Scalar nothing = 0;
        var forbidden = Forbidden();
        var counts = forbidden.logical_not().sum(1, keepdim: true).to(Tokens.dtype);
        return new(audio, Standard(Tokens.masked_fill(forbidden, nothing), counts).masked_fill(forbidden, nothing), null);
    }

    /// <summary>The standardised maps scaled so that of each token the smallest entry of both maps together is 0 and the largest 1: for display and for deletion. Entries that do not exist are 0, and so are all where all are equal.</summary>
    public SpesExplanation Normalize()
    {
        using var scope = torch.NewDisposeScope();
        using var still = torch.no_grad();
        using var standard = Standardize();
        using Scalar nothing = 0, unity = 1, below = double.NegativeInfinity, above = double.PositiveInfinity;
        var forbidden = Forbidden();
        var (cells, tokens) = (standard.Audio.reshape(Audio.shape[0], -1), standard.Tokens);
        var lowest = torch.minimum(cells.amin([1L]), tokens.masked_fill(forbidden, above).amin([1L])).unsqueeze(-1);
        var highest = torch.maximum(cells.amax([1L]), tokens.masked_fill(forbidden, below).amax([1L])).unsqueeze(-1);
        var range = highest - lowest;
        range = range.masked_fill(range.eq(nothing), unity);
        return new(((cells - lowest) / range).reshape(Audio.shape), ((tokens - lowest) / range).masked_fill(forbidden, nothing), null);
    }

    /// <summary>The maps of the whole sentence: their means over its tokens. Usually of the normalised explanation.</summary>
    /// <returns>Of the spectrogram <c>[T, F]</c>, of the decoder's inputs <c>[I]</c>.</returns>
    public (torch.Tensor Audio, torch.Tensor Tokens) Sentence() => (Audio.mean([0L]), Tokens.mean([0L]));

    /// <summary>The map of the spectrogram reduced to an encoder's frames; see <see cref="AttentionSaliency.Pool"/>.</summary>
    /// <param name="frames">Number T' of encoder frames.</param>
    /// <param name="pooling">What is taken of the cells.</param>
    /// <returns><c>[I, T']</c>.</returns>
    public torch.Tensor PoolTo(long frames, SaliencyPooling pooling = SaliencyPooling.Maximum) => AttentionSaliency.Pool(Audio, frames, pooling);

    /// <inheritdoc/>
    public void Dispose()
    {
        Audio.Dispose();
        Tokens.Dispose();
        Scores?.Dispose();
    }

    // As the published code computes it: E[x^2] - E[x]^2, which may come out below 0 for a constant row.
    private static torch.Tensor Standard(torch.Tensor rows, torch.Tensor counts)
    {
        using Scalar unity = 1;
        var mean = rows.sum(1, keepdim: true) / counts;
        var deviation = (((rows.square().sum(1, keepdim: true) / counts) - mean.square()) * counts / (counts - unity)).sqrt();
        return ((rows - mean) / deviation).nan_to_num(0, 0, 0);
    }

    private torch.Tensor Forbidden() => torch.ones([Tokens.shape[0], Tokens.shape[1]], torch.ScalarType.Bool, Tokens.device).triu(1);
}
