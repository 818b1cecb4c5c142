using Heed.Explanations;
using Heed.Models.Speech;

namespace Heed.Lab.Inspection;

/// <summary>How much work an explanation may take.</summary>
public sealed record SpeechInspectionOptions
{
    /// <summary>Masks of the spectrogram; the model is run once for each. 0: there is no saliency.</summary>
    public int Masks { get; init; } = 600;

    /// <summary>Masks of the encoder's output; the decoder is run once for each. 0: there is no saliency of it.</summary>
    public int EncoderMasks { get; init; } = 1000;

    /// <summary>Seed of the masks.</summary>
    public int Seed { get; init; } = 1;
}

/// <summary>One head of cross-attention.</summary>
/// <param name="Layer">Its layer.</param>
/// <param name="Head">Its number.</param>
/// <param name="Weights"><c>[I, T']</c>, row by row.</param>
/// <param name="WithInput">Correlation with the saliency of the input, pooled; null where there is none.</param>
/// <param name="WithEncoder">Correlation with the saliency of the encoder's output; null where there is none.</param>
public sealed record InspectedCrossHead(int Layer, int Head, float[] Weights, double? WithInput, double? WithEncoder);

/// <summary>One head of cross-attention with an edit.</summary>
/// <param name="Layer">Its layer.</param>
/// <param name="Head">Its number.</param>
/// <param name="Weights"><c>[I, T']</c>, row by row, of the edited model on its own text; null where the maps would not fit a page.</param>
/// <param name="Moved">Share of its attention that lies elsewhere than without the edit, 0 to 1: half the sum of absolute differences of a row, token 0 with token 0 and so on, mean over the tokens that both texts have.</param>
public sealed record EditedCrossHead(int Layer, int Head, float[]? Weights, double Moved);

/// <summary>What a speech model wrote with an edit.</summary>
/// <param name="Edits">The edits as they were written.</param>
/// <param name="Text">What the model wrote.</param>
/// <param name="IsComplete">Whether it ended the text.</param>
/// <param name="Tokens">Its tokens as text, the end token last.</param>
/// <param name="Probabilities">How sure the edited model was of each.</param>
/// <param name="Words">Its words with their times.</param>
/// <param name="Heads">The heads of cross-attention, in the order of those without the edit.</param>
/// <param name="Mean">The mean of all heads, <c>[I, T']</c>.</param>
/// <param name="Moved">Share of it that lies elsewhere than without the edit: see <see cref="EditedCrossHead"/>.</param>
public sealed record EditedSpeech(
    IReadOnlyList<string> Edits, string Text, bool IsComplete, IReadOnlyList<string> Tokens, IReadOnlyList<double> Probabilities, IReadOnlyList<TimedWord> Words, IReadOnlyList<EditedCrossHead> Heads, float[] Mean,
    double Moved);

/// <summary>What a speech model heard, wrote and looked at.</summary>
/// <param name="Model">The model.</param>
/// <param name="Parameters">Number of its parameters.</param>
/// <param name="Source">The sound.</param>
/// <param name="Duration">Its length in seconds.</param>
/// <param name="Frames">Frames T of the features.</param>
/// <param name="Bins">Mel bins F.</param>
/// <param name="SecondsPerFrame">Seconds between two frames.</param>
/// <param name="States">Frames T' of the encoder.</param>
/// <param name="SecondsPerState">Seconds between two of them.</param>
/// <param name="Spectrogram">The features, frame by frame.</param>
/// <param name="Text">What the model wrote.</param>
/// <param name="Tokens">Its tokens as text, the end token last.</param>
/// <param name="Probabilities">How sure the model was of each.</param>
/// <param name="Words">Its words with their times.</param>
/// <param name="Heads">The heads of cross-attention.</param>
/// <param name="Mean">The mean of all heads, <c>[I, T']</c>.</param>
/// <param name="MeanWithInput">Its correlation with the saliency of the input.</param>
/// <param name="MeanWithEncoder">Its correlation with that of the encoder's output.</param>
/// <param name="Saliency">Saliency of the cells, token by token <c>[I, T, F]</c>, normalised to 0..1; null where there is none or it would not fit a page.</param>
/// <param name="Sentence">Their mean <c>[T, F]</c>; null where there is none.</param>
/// <param name="Pooled">Saliency of the input pooled to the encoder's frames <c>[I, T']</c>; null where there is none.</param>
/// <param name="EncoderSaliency">Saliency of the encoder's output <c>[I, T']</c>; null where there is none.</param>
/// <param name="Notices">What could not be shown, a sentence each.</param>
/// <param name="Seconds">Time that it took.</param>
public sealed record SpeechInspection(
    string Model, long Parameters, string Source, double Duration, int Frames, int Bins, double SecondsPerFrame, int States, double SecondsPerState, float[] Spectrogram, string Text, IReadOnlyList<string> Tokens,
    IReadOnlyList<double> Probabilities, IReadOnlyList<TimedWord> Words, IReadOnlyList<InspectedCrossHead> Heads, float[] Mean, double? MeanWithInput, double? MeanWithEncoder, float[]? Saliency, float[]? Sentence,
    float[]? Pooled, float[]? EncoderSaliency, IReadOnlyList<string> Notices, double Seconds)
{
    /// <summary>The same sound with an edit; null: there is none. All else, saliency above all, is of the model as it was trained.</summary>
    public EditedSpeech? Edited { get; init; }

    /// <summary>The settings of occlusion that suit a sound of some seconds: three granularities, more segments for longer sounds.</summary>
    internal static SpesOptions Occlusion(int masks, int seed) => new() { Segments = [60, 120, 240], ReferenceFrames = 220, FrameThreshold = 3000, Masks = Math.Max(3, masks), Seed = seed };
}
