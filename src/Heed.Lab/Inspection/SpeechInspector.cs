using System.Diagnostics;
using Heed.Explanations;
using Heed.Models.Speech;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>Looks into a speech model while it writes down a sound.</summary>
public static class SpeechInspector
{
    // A byte each: as large as a page may be.
    private const long MostCells = 8L << 20;

    private const string NoEnd = "The model did not end the text by itself: what it heard may be nothing that it knows.";

    /// <summary>Writes a sound down and explains it: cross-attention of every head, saliency of the spectrogram and of the encoder's output, their correlation, and times of words. With an edit it is written down once more;
    /// saliency stays that of the unedited model.</summary>
    /// <param name="pretrained">The model.</param>
    /// <param name="name">What to call it.</param>
    /// <param name="sound">The sound.</param>
    /// <param name="source">Where it comes from, for the heading.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="edit">Edits by name, and what puts them in; null: none. Maps are seen as an edit leaves them where it changes the map itself.</param>
    /// <param name="cancellation">Stops between batches of masks.</param>
    /// <exception cref="ArgumentException">The sound is too short or too long for the model, or the edit does not suit it.</exception>
    public static SpeechInspection Run(
        PretrainedSpeech pretrained, string name, Waveform sound, string source, SpeechInspectionOptions? options = null, (IReadOnlyList<string> Names, Func<IDisposable> Apply)? edit = null,
        CancellationToken cancellation = default)
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
        using var reading = SpeechReading.Run(pretrained, encoded, cancellation: cancellation);
        var (written, maps) = (reading.Transcript, reading.Maps);
        if (!written.IsComplete)
        {
            notices.Add(NoEnd);
        }

        // Before the masks: what the edit cannot do is told at once.
        var edited = edit is { } change ? Edited(pretrained, features, maps, change, notices, cancellation) : null;
        var text = tensor((long[])[.. written.Tokens, model.Configuration.EndToken]);
        var mean = maps.Mean();
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
            (int)encoded.States.shape[1], pretrained.SecondsPerState, Values(features), TextOf(pretrained, written), TokensOf(pretrained, written), reading.Probabilities, reading.Words,
            [.. Enumerable.Range(0, layers * heads).Select(at => (Layer: at / heads, Head: at % heads)).Select(at => new InspectedCrossHead(
                at.Layer, at.Head, Values(maps.Weights[at.Layer, at.Head]), Known(agreement?.Input?.ByHead[at.Layer][at.Head]), Known(agreement?.EncoderOutput?.ByHead[at.Layer][at.Head])))],
            Values(mean), Known(agreement?.Input?.Overall), Known(agreement?.EncoderOutput?.Overall), normal is null || cells > MostCells ? null : Values(normal.Audio),
            normal is null ? null : Values(normal.Sentence().Audio), audio is null ? null : Values(AttentionSaliency.Pool(audio, encoded.States.shape[1])), encoder is null ? null : Values(encoder), notices, clock.Elapsed.TotalSeconds) { Edited = edited };
    }

    private static EditedSpeech Edited(
        PretrainedSpeech pretrained, Tensor features, CrossAttentionMaps before, (IReadOnlyList<string> Names, Func<IDisposable> Apply) edit, List<string> notices, CancellationToken cancellation)
    {
        using var scope = NewDisposeScope();
        using var applied = edit.Apply();

        // Once more from the sound: most edits act in the encoder, too.
        var encoded = pretrained.Model.Encode(features.unsqueeze(0));
        using var reading = SpeechReading.Run(pretrained, encoded, edited: true, cancellation: cancellation);
        var (written, weights) = (reading.Transcript, reading.Maps.Weights);
        if (!written.IsComplete)
        {
            notices.Add($"With the edit: {NoEnd}");
        }

        var fits = weights.numel() <= MostCells;
        if (!fits)
        {
            notices.Add($"The maps of single heads with the edit have {weights.numel():N0} cells, too many for a page: their mean is shown.");
        }

        var (heads, mean) = ((int)weights.shape[1], reading.Maps.Mean());
        return new(
            edit.Names, TextOf(pretrained, written), written.IsComplete, TokensOf(pretrained, written), reading.Probabilities, reading.Words,
            [.. Enumerable.Range(0, (int)weights.shape[0] * heads).Select(at => (Layer: at / heads, Head: at % heads)).Select(at => new EditedCrossHead(
                at.Layer, at.Head, fits ? Values(weights[at.Layer, at.Head]) : null, Moved(before.Weights[at.Layer, at.Head], weights[at.Layer, at.Head])))],
            Values(mean), Moved(before.Mean(), mean));
    }

    private static double Moved(Tensor before, Tensor after)
    {
        using var scope = NewDisposeScope();
        var rows = Math.Min(before.shape[0], after.shape[0]);
        return (after.narrow(0, 0, rows).to(float64) - before.narrow(0, 0, rows).to(float64)).abs().sum(-1).mean().item<double>() / 2;
    }

    private static string TextOf(PretrainedSpeech pretrained, SpeechTranscript written) => string.Concat(written.Tokens.Select(pretrained.TextOf)).Trim();

    private static string[] TokensOf(PretrainedSpeech pretrained, SpeechTranscript written) => [.. written.Tokens.Select(pretrained.TextOf), "(end)"];

    private static double? Known(double? correlation) => correlation is { } value && double.IsFinite(value) ? value : null;

    private static float[] Values(Tensor map) => map.to(float32).cpu().contiguous().data<float>().ToArray();
}
