using Heed.Explanations;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>Explains what a <see cref="SpeechTransformer"/> wrote.</summary>
public static class SpeechExplanations
{
    /// <summary>What the tokens of a text owe to the cells of the spectrogram, and to the tokens before them. Hidden cells become the mean of their bin over the utterance.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="features">The features <c>[T, F]</c>.</param>
    /// <param name="text">The text, int64 <c>[I]</c>, without start token; usually what the model wrote, with its end token.</param>
    /// <param name="options">How; null: as published, 20,000 masks.</param>
    /// <param name="afterPositions">Whether hidden tokens are hidden after their positions were added, or before.</param>
    /// <param name="cancellation">Stops between batches.</param>
    public static SpesExplanation ExplainInput(
        this SpeechTransformer model, Tensor features, Tensor text, SpesOptions? options = null, bool afterPositions = false, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(features);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var mean = features.mean([0L], keepdim: true);
        return new SpesExplainer(options).Explain(
            (cells, kept) => model.Distributions(model.Encode(cells + mean), text, kept is null ? null : new TokenOcclusion(kept, afterPositions)), features - mean, text, cancellation: cancellation);
    }

    /// <summary>What the tokens of a text owe to the frames of the encoder's output.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="encoded">What its encoder made of one utterance.</param>
    /// <param name="text">The text, int64 <c>[I]</c>, without start token.</param>
    /// <param name="options">How; null: 2,000 masks.</param>
    /// <param name="cancellation">Stops between batches.</param>
    /// <returns><c>[I, T']</c>.</returns>
    /// <exception cref="ArgumentException">There is more than one utterance.</exception>
    public static Tensor ExplainEncoderOutput(this SpeechTransformer model, EncodedSpeech encoded, Tensor text, EncoderOutputOptions? options = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(encoded);
        if (encoded.States.shape[0] != 1)
        {
            throw new ArgumentException($"One utterance is explained at a time, not {encoded.States.shape[0]}.", nameof(encoded));
        }

        return new EncoderOutputExplainer(options).Explain(states => model.Distributions(new(states), text), encoded.States[0], text, cancellation);
    }
}
