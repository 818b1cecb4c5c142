using System.Diagnostics;
using Heed.Models.Decoders;
using Heed.Models.Tokenizers;
using static TorchSharp.torch;

namespace Heed.Models.Generation;

/// <summary>Continues texts with a decoder, token by token, with a key-value cache.</summary>
public sealed class TextGenerator
{
    private readonly Decoder _model;
    private readonly TextTokenizer? _tokenizer;

    /// <summary>Makes a generator.</summary>
    /// <param name="model">The decoder; not disposed with the generator.</param>
    /// <param name="tokenizer">Its tokenizer; null: token ids only.</param>
    public TextGenerator(Decoder model, TextTokenizer? tokenizer = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        _model = model;
        _tokenizer = tokenizer;
    }

    /// <summary>Continues a text.</summary>
    /// <param name="prompt">The text; with a begin token it may be empty.</param>
    /// <param name="options">How to choose tokens and when to stop; null: the defaults.</param>
    /// <param name="onText">Receives the new text piece by piece, whole characters only; null: no one.</param>
    /// <param name="cancellation">Ends the generation between tokens.</param>
    /// <exception cref="ArgumentException">The prompt has no token or more than the context holds, or an option is out of range.</exception>
    /// <exception cref="InvalidOperationException">There is no tokenizer, or the model's logits are not numbers.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public GenerationResult Generate(string prompt, GenerationOptions? options = null, Action<string>? onText = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        var tokenizer = _tokenizer ?? throw new InvalidOperationException("The model has no tokenizer, so it takes token ids and not text.");
        var stream = new TextStream(tokenizer, onText);
        var result = Generate([.. tokenizer.Encode(prompt).Select(token => token.Id)], options, stream.Add, cancellation);
        stream.Flush();
        return result;
    }

    /// <summary>Continues token ids.</summary>
    /// <param name="prompt">The ids, at least one.</param>
    /// <param name="options">How to choose tokens and when to stop; null: the defaults.</param>
    /// <param name="onToken">Receives every new token; null: no one.</param>
    /// <param name="cancellation">Ends the generation between tokens.</param>
    /// <exception cref="ArgumentException">The prompt has no token or more than the context holds, or an option is out of range.</exception>
    /// <exception cref="InvalidOperationException">The model's logits are not numbers.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public GenerationResult Generate(IReadOnlyList<int> prompt, GenerationOptions? options = null, Action<int>? onToken = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        options ??= new GenerationOptions();
        options.Validate();
        var context = _model.Configuration.ContextLength;
        if (prompt.Count == 0)
        {
            throw new ArgumentException("The prompt has no token to continue from; give some text.", nameof(prompt));
        }

        if (prompt.Count > context)
        {
            throw new ArgumentException($"The prompt has {prompt.Count} tokens and the model's context only {context}; shorten it.", nameof(prompt));
        }

        var stops = options.StopTokenIds ?? [.. _model.Configuration.EndTokenIds, .. _tokenizer?.EndTokenIds ?? []];
        var sampler = new TokenSampler(options);
        var ids = new List<int>();
        var reason = StopReason.MaximumTokens;
        using var quiet = inference_mode();
        using var cache = _model.CreateCache(options.CacheType ?? ModelType());
        var clock = Stopwatch.StartNew();
        var promptTime = TimeSpan.Zero;
        var next = prompt;
        while (ids.Count < options.MaximumTokens)
        {
            cancellation.ThrowIfCancellationRequested();
            if (cache.Length + next.Count > context)
            {
                reason = StopReason.ContextLength;
                break;
            }

            var id = Step(next, cache, sampler);
            promptTime = ids.Count == 0 ? clock.Elapsed : promptTime;
            if (stops.Contains(id))
            {
                reason = StopReason.StopToken;
                break;
            }

            ids.Add(id);
            onToken?.Invoke(id);
            next = [id];
        }

        return new GenerationResult(ids, _tokenizer?.Decode(ids), reason, prompt.Count, promptTime, clock.Elapsed - promptTime, cache.Bytes);
    }

    private int Step(IReadOnlyList<int> tokens, KeyValueCache cache, TokenSampler sampler)
    {
        using var scope = NewDisposeScope();
        var ids = tensor(tokens.Select(id => (long)id).ToArray()).unsqueeze(0);
        var logits = _model.forward(ids, cache, lastOnly: true).flatten().to(float32).contiguous();
        return sampler.Choose(System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(logits.bytes));
    }

    private ScalarType ModelType() => _model.parameters().First().dtype;

    /// <summary>Turns tokens into pieces of text, holding back the bytes of a character until it is whole.</summary>
    private sealed class TextStream(TextTokenizer tokenizer, Action<string>? receiver)
    {
        private const int Memory = 8;
        private readonly List<int> _recent = [];
        private int _told;

        public void Add(int id)
        {
            _recent.Add(id);
            Tell(whole: true);
        }

        public void Flush() => Tell(whole: false);

        private void Tell(bool whole)
        {
            if (receiver is null)
            {
                return;
            }

            // A token's text may depend on those before it (a first space is dropped), so some that were told are decoded again with it.
            var before = tokenizer.Decode(_recent.Take(_told));
            var now = tokenizer.Decode(_recent);
            if (now.Length <= before.Length || (whole && now.EndsWith('\uFFFD')))
            {
                return;
            }

            receiver(now[before.Length..]);
            _told = _recent.Count;
            if (_told > Memory)
            {
                _recent.RemoveRange(0, _told - Memory);
                _told = _recent.Count;
            }
        }
    }
}
