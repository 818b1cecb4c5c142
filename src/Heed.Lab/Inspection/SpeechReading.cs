using Heed.Lab.Mechanisms;
using Heed.Models.Speech;
using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Lab.Inspection;

/// <summary>What a speech model wrote down of a sound, and how it came to it.</summary>
public sealed class SpeechReading : IDisposable
{
    private SpeechReading(SpeechTranscript transcript, double[] probabilities, CrossAttentionMaps maps, IReadOnlyList<TimedWord> words) =>
        (Transcript, Probabilities, Maps, Words) = (transcript, probabilities, maps, words);

    /// <summary>The text.</summary>
    public SpeechTranscript Transcript { get; }

    /// <summary>The probability of each token, the end token last.</summary>
    public IReadOnlyList<double> Probabilities { get; }

    /// <summary>Cross-attention of the calls that gave these tokens.</summary>
    public CrossAttentionMaps Maps { get; }

    /// <summary>The words with their times.</summary>
    public IReadOnlyList<TimedWord> Words { get; }

    /// <summary>Lets a model write a sound down.</summary>
    /// <param name="pretrained">The model, with the edits that are installed in it.</param>
    /// <param name="encoded">What its encoder made of the sound, with the same edits.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="edited">Whether the model is edited: then probabilities and maps are those of the calls that write, one token at a time where a single text is followed, because an edit may tell a text that
    /// is read at once from one that is written. Unedited, both are the same and the text is read at once.</param>
    /// <param name="cancellation">Stops between tokens.</param>
    /// <exception cref="ArgumentException">With the edits the model does not compute finite numbers any more, or an edit names a key that there is not.</exception>
    public static SpeechReading Run(PretrainedSpeech pretrained, EncodedSpeech encoded, TranscriptionOptions? options = null, bool edited = false, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(pretrained);
        ArgumentNullException.ThrowIfNull(encoded);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var model = pretrained.Model;
        var written = model.Transcribe(encoded, options, cancellation)[0];
        long[] tokens = [.. written.Tokens, model.Configuration.EndToken];
        var isSingle = (options?.Beams ?? 1) == 1;
        var (probabilities, maps) = edited && isSingle ? TokenByToken(model, encoded, tokens) : AtOnce(model, encoded, tokens);
        if (edited)
        {
            try
            {
                ModelEdit.RequireFinite(probabilities);
            }
            catch
            {
                maps.Dispose();
                throw;
            }
        }

        return new(written, probabilities, maps, WordTimes.Of(pretrained, maps.Mean(), written.Tokens));
    }

    /// <inheritdoc/>
    public void Dispose() => Maps.Dispose();

    private static (double[] Probabilities, CrossAttentionMaps Maps) AtOnce(SpeechTransformer model, EncodedSpeech encoded, long[] tokens)
    {
        var text = tensor(tokens);
        return (model.Distributions(encoded, text)[0].gather(1, text.unsqueeze(1)).to(float64).data<double>().ToArray(), model.CrossAttention(encoded, text));
    }

    private static (double[] Probabilities, CrossAttentionMaps Maps) TokenByToken(SpeechTransformer model, EncodedSpeech encoded, long[] tokens)
    {
        var (probabilities, rows) = (new double[tokens.Length], new List<Tensor>());
        using var state = model.Start(encoded);
        for (var i = 0; i < tokens.Length; i++)
        {
            using var scope = NewDisposeScope();
            var input = tensor((long[])[i == 0 ? model.Configuration.StartToken : tokens[i - 1]]).unsqueeze(0);
            using var row = CrossAttentionProbe.Collect(model.Hooks, () => probabilities[i] = model.Decode(encoded, input, state)[0, 0].to(float64).softmax(-1)[tokens[i]].item<double>());
            rows.Add(row.Weights.alias().MoveToOuterDisposeScope());
        }

        return (probabilities, CrossAttentionMaps.Of(cat(rows, 2)));
    }
}
