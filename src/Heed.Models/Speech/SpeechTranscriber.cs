using Heed.Probes;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>How speech is written down.</summary>
public sealed record TranscriptionOptions
{
    /// <summary>The most tokens of a text, the prompt not counted.</summary>
    public int MaximumTokens { get; init; } = 200;

    /// <summary>Texts that are followed at once; 1: always the likeliest token. More only for one utterance at a time.</summary>
    public int Beams { get; init; } = 1;

    /// <summary>Tokens that every text begins with, the start token first (Whisper: start, language, task, no timestamps); null: the start token.</summary>
    public IReadOnlyList<long>? Prompt { get; init; }

    /// <summary>Tokens that are never written.</summary>
    public IReadOnlyList<long> Suppressed { get; init; } = [];
}

/// <summary>A text that a model wrote.</summary>
/// <param name="Tokens">Its tokens, without prompt and end token.</param>
/// <param name="LogProbability">The logarithm of its probability, the end token's included where it was reached.</param>
/// <param name="IsComplete">Whether the model ended it.</param>
public sealed record SpeechTranscript(IReadOnlyList<long> Tokens, double LogProbability, bool IsComplete);

/// <summary>Writes down speech with a <see cref="SpeechTransformer"/>: token by token, with cached keys and values.</summary>
public static class SpeechTranscriber
{
    /// <summary>Writes down a batch of utterances.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="encoded">What its encoder made of them.</param>
    /// <param name="options">How; null: the defaults.</param>
    /// <param name="cancellation">Stops between tokens.</param>
    /// <returns>A text for each utterance.</returns>
    /// <exception cref="ArgumentException">An option is out of range, or does not suit the model.</exception>
    public static IReadOnlyList<SpeechTranscript> Transcribe(this SpeechTransformer model, EncodedSpeech encoded, TranscriptionOptions? options = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(encoded);
        options ??= new();
        var prompt = options.Prompt ?? [model.Configuration.StartToken];
        if (options.MaximumTokens < 1 || options.Beams < 1 || prompt.Count == 0 || prompt.Count >= model.Configuration.TargetLength)
        {
            throw new ArgumentException(
                $"A text has 1 token or more, 1 beam or more and a prompt of 1 to {model.Configuration.TargetLength - 1} tokens, not {options.MaximumTokens}, {options.Beams} and {prompt.Count}.", nameof(options));
        }

        using var scope = NewDisposeScope();
        using var still = no_grad();
        var most = Math.Min(options.MaximumTokens, model.Configuration.TargetLength - prompt.Count);
        return options.Beams == 1 ? Greedy(model, encoded, options, [.. prompt], most, cancellation)
            : encoded.States.shape[0] == 1 ? [Beam(model, encoded, options, [.. prompt], most, cancellation)]
            : throw new ArgumentException($"Several beams are followed for one utterance at a time, not for {encoded.States.shape[0]}: write them down one by one.", nameof(options));
    }

    /// <summary>The distributions of a text's tokens, the text given: what explanations are made of.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="encoded">What its encoder made.</param>
    /// <param name="text">The tokens, int64 <c>[I]</c>, without start token; usually with the end token last.</param>
    /// <param name="occlusion">Inputs of the decoder that do not count; null: all do.</param>
    /// <returns><c>[B, I, V]</c>.</returns>
    public static Tensor Distributions(this SpeechTransformer model, EncodedSpeech encoded, Tensor text, TokenOcclusion? occlusion = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(encoded);
        ArgumentNullException.ThrowIfNull(text);
        using var scope = NewDisposeScope();
        return model.Decode(encoded, Inputs(model, text).expand(encoded.States.shape[0], -1), null, occlusion).softmax(-1).MoveToOuterDisposeScope();
    }

    /// <summary>The cross-attention of all layers and heads while the decoder is fed a text.</summary>
    /// <param name="model">The model, in evaluation mode.</param>
    /// <param name="encoded">What its encoder made of one utterance.</param>
    /// <param name="text">The tokens, int64 <c>[I]</c>, without start token.</param>
    /// <returns>Weights <c>[layers, heads, I, T']</c>: row i is of the call that gives token i.</returns>
    public static CrossAttentionMaps CrossAttention(this SpeechTransformer model, EncodedSpeech encoded, Tensor text)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(text);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        return CrossAttentionProbe.Collect(model.Hooks, () => model.Decode(encoded, Inputs(model, text)).Dispose());
    }

    /// <summary>The decoder's inputs for a text: the start token and all but the text's last.</summary>
    private static Tensor Inputs(SpeechTransformer model, Tensor text) => cat([tensor(new long[] { model.Configuration.StartToken }, device: text.device), text.narrow(0, 0, text.shape[0] - 1)]).unsqueeze(0);

    private static List<SpeechTranscript> Greedy(SpeechTransformer model, EncodedSpeech encoded, TranscriptionOptions options, long[] prompt, int most, CancellationToken cancellation)
    {
        var batch = (int)encoded.States.shape[0];
        var texts = Enumerable.Range(0, batch).Select(_ => new List<long>()).ToArray();
        var (chances, done) = (new double[batch], new bool[batch]);
        using var state = model.Start(encoded);
        long[] next = [.. Enumerable.Repeat(prompt, batch).SelectMany(tokens => tokens)];
        for (var step = 0; step < most && !done.All(finished => finished); step++)
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var logarithms = Next(model, encoded, next, batch, state, options);
            var (values, indices) = logarithms.max(-1);
            next = indices.data<long>().ToArray();
            var likely = values.to(float64).data<double>().ToArray();
            for (var item = 0; item < batch; item++)
            {
                if (done[item])
                {
                    next[item] = model.Configuration.PadToken;
                    continue;
                }

                chances[item] += likely[item];
                done[item] = next[item] == model.Configuration.EndToken;
                if (!done[item])
                {
                    texts[item].Add(next[item]);
                }
            }
        }

        return [.. texts.Select((text, item) => new SpeechTranscript(text, chances[item], done[item]))];
    }

    // Every step reads all beams afresh from the start: texts are short, and a cache whose rows change places would have to be copied as often.
    private static SpeechTranscript Beam(SpeechTransformer model, EncodedSpeech encoded, TranscriptionOptions options, long[] prompt, int most, CancellationToken cancellation)
    {
        var open = new List<SpeechTranscript> { new([], 0, false) };
        var closed = new List<SpeechTranscript>();
        for (var step = 0; step < most && open.Count > 0 && closed.Count < options.Beams; step++)
        {
            cancellation.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var many = new EncodedSpeech(encoded.States.expand(open.Count, -1, -1), encoded.Lengths?.expand(open.Count));
            long[] tokens = [.. open.SelectMany(text => prompt.Concat(text.Tokens))];
            var logarithms = Next(model, many, tokens, open.Count, null, options);
            var (values, indices) = logarithms.topk((int)Math.Min(options.Beams + 1, logarithms.shape[1]), -1);
            var width = (int)values.shape[1];
            var (likely, chosen) = (values.to(float64).contiguous().data<double>().ToArray(), indices.contiguous().data<long>().ToArray());
            var candidates = Enumerable.Range(0, chosen.Length).Select(at => (Text: open[at / width], Token: chosen[at], Chance: open[at / width].LogProbability + likely[at])).OrderByDescending(candidate => candidate.Chance);
            var kept = new List<SpeechTranscript>();
            foreach (var (text, token, chance) in candidates.Take(2 * options.Beams))
            {
                if (token == model.Configuration.EndToken)
                {
                    closed.Add(text with { LogProbability = chance, IsComplete = true });
                }
                else if (kept.Count < options.Beams)
                {
                    kept.Add(new([.. text.Tokens, token], chance, false));
                }
            }

            open = kept;
        }

        // By the mean over tokens, the end token included: short texts would win by their sum.
        return closed.Concat(closed.Count == 0 ? open : []).MaxBy(text => text.LogProbability / (text.Tokens.Count + 1))!;
    }

    private static Tensor Next(SpeechTransformer model, EncodedSpeech encoded, long[] tokens, int batch, SpeechDecodingState? state, TranscriptionOptions options)
    {
        var logits = model.Decode(encoded, tensor(tokens, device: encoded.States.device).view(batch, -1), state).select(1, -1);
        if (options.Suppressed.Count > 0)
        {
            using TorchSharp.Scalar never = double.NegativeInfinity;
            logits = logits.index_fill(1, tensor(options.Suppressed.ToArray(), device: logits.device), never);
        }

        return logits.log_softmax(-1).cpu();
    }
}
