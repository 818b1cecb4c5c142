using System.Diagnostics;
using Heed.Explanations;
using Heed.Models.Speech;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Looks into a speech model while it writes down a sound.</summary>
public static class SpeechInspector
{
    // A byte each: as large as a page may be.
    private const long MostCells = 8L << 20;

    /// <summary>Writes a sound down and explains it: cross-attention of every head, saliency of the spectrogram and of the encoder's output, their correlation, and times of words.</summary>
    /// <param name="pretrained">The model.</param>
    /// <param name="name">What to call it.</param>
    /// <param name="sound">The sound.</param>
    /// <param name="source">Where it comes from, for the heading.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="cancellation">Stops between batches of masks.</param>
    /// <exception cref="ArgumentException">The sound is too short or too long for the model.</exception>
    public static SpeechInspection Run(PretrainedSpeech pretrained, string name, Waveform sound, string source, SpeechInspectionOptions? options = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentNullException.ThrowIfNull(sound);
        options ??= new();
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var clock = Stopwatch.StartNew();
        var notices = new List<string>();
        var model = pretrained.Model;
        var features = pretrained.Features.Compute(sound);
        var encoded = model.Encode(features.unsqueeze(0));
        var written = model.Transcribe(encoded, cancellation: cancellation)[0];
        if (!written.IsComplete)
        {
            notices.Add("The model did not end the text by itself: what it heard may be nothing that it knows.");
        }

        var text = tensor((long[])[.. written.Tokens, model.Configuration.EndToken]);
        var probabilities = model.Distributions(encoded, text)[0].gather(1, text.unsqueeze(1)).to(float64).data<double>().ToArray();
        using var maps = model.CrossAttention(encoded, text);
        var mean = maps.Mean();
        var words = WordTimes.Of(pretrained, mean, written.Tokens);
        using var explanation = options.Masks > 0 ? model.ExplainInput(features, text, SpeechInspection.Occlusion(options.Masks, options.Seed), cancellation: cancellation) : null;
        using var normal = explanation?.Normalize();
        var encoder = options.EncoderMasks > 0
            ? AttentionSaliency.StandardizeEachToken(model.ExplainEncoderOutput(encoded, text, new() { Masks = options.EncoderMasks, Seed = options.Seed }, cancellation)) : null;
        var audio = explanation is null ? null : AttentionSaliency.StandardizeEachToken(explanation.Audio);
        var agreement = audio is null && encoder is null ? null : AttentionSaliency.Correlate(maps.Weights, audio, encoder);
        var cells = explanation?.Audio.numel() ?? 0;
        if (cells > MostCells)
        {
            notices.Add($"The saliency of single tokens has {cells:N0} cells, too many for a page: that of the whole sentence is shown.");
        }

        var (layers, heads) = ((int)maps.Weights.shape[0], (int)maps.Weights.shape[1]);
        return new(
            name, model.parameters().Sum(parameter => parameter.numel()), source, sound.Seconds, (int)features.shape[0], (int)features.shape[1], (double)pretrained.Features.Options.Hop / pretrained.Features.Options.Rate,
            (int)encoded.States.shape[1], pretrained.SecondsPerState, Values(features), string.Concat(written.Tokens.Select(pretrained.TextOf)).Trim(), [.. written.Tokens.Select(pretrained.TextOf), "(end)"], probabilities, words,
            [.. Enumerable.Range(0, layers * heads).Select(at => (Layer: at / heads, Head: at % heads)).Select(at => new InspectedCrossHead(
                at.Layer, at.Head, Values(maps.Weights[at.Layer, at.Head]), Known(agreement?.Input?.ByHead[at.Layer][at.Head]), Known(agreement?.EncoderOutput?.ByHead[at.Layer][at.Head])))],
            Values(mean), Known(agreement?.Input?.Overall), Known(agreement?.EncoderOutput?.Overall), normal is null || cells > MostCells ? null : Values(normal.Audio),
            normal is null ? null : Values(normal.Sentence().Audio), audio is null ? null : Values(AttentionSaliency.Pool(audio, encoded.States.shape[1])), encoder is null ? null : Values(encoder), notices, clock.Elapsed.TotalSeconds);
    }

    private static double? Known(double? correlation) => correlation is { } value && double.IsFinite(value) ? value : null;

    private static float[] Values(Tensor map) => map.to(float32).cpu().contiguous().data<float>().ToArray();
}
