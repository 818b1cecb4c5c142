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
    /// <exception cref="InvalidOperationException">There is no tokenizer.</exception>
    /// <exception cref="NotFiniteNumberException">The model's logits are not numbers.</exception>
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
    /// <exception cref="NotFiniteNumberException">The model's logits are not numbers.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public GenerationResult Generate(IReadOnlyList<int> prompt, GenerationOptions? options = null, Action<int>? onToken = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        return Run(prompt.Count, cache => Read(prompt, cache), null, options, onToken, cancellation);
    }

    /// <summary>Continues a sequence that is given as embeddings, for example a text with a picture in it.</summary>
    /// <param name="prompt">The sequence.</param>
    /// <param name="options">How to choose tokens and when to stop; null: the defaults.</param>
    /// <param name="onToken">Receives every new token; null: no one.</param>
    /// <param name="cancellation">Ends the generation between tokens.</param>
    /// <exception cref="ArgumentException">The prompt is of more than one sequence or has more tokens than the context holds, or an option is out of range.</exception>
    /// <exception cref="NotFiniteNumberException">The model's logits are not numbers.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public GenerationResult Generate(EmbeddedPrompt prompt, GenerationOptions? options = null, Action<int>? onToken = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        return Run(prompt.Length, cache => _model.ForwardEmbeddings(prompt.Embeddings, cache, lastOnly: true), prompt.Layout, options, onToken, cancellation);
    }

    /// <summary>Continues a sequence that is given as embeddings, as text.</summary>
    /// <param name="prompt">The sequence.</param>
    /// <param name="options">How to choose tokens and when to stop; null: the defaults.</param>
    /// <param name="onText">Receives the new text piece by piece, whole characters only.</param>
    /// <param name="cancellation">Ends the generation between tokens.</param>
    /// <inheritdoc cref="Generate(EmbeddedPrompt, GenerationOptions, Action{int}, CancellationToken)" path="/exception"/>
    public GenerationResult Generate(EmbeddedPrompt prompt, GenerationOptions? options, Action<string> onText, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(onText);
        var stream = new TextStream(_tokenizer ?? throw new InvalidOperationException("The model has no tokenizer, so it gives token ids and not text."), onText);
        var result = Generate(prompt, options, stream.Add, cancellation);
        stream.Flush();
        return result;
    }

    // The one loop: the first step reads the prompt, whatever it is made of, the others a token each.
    private GenerationResult Run(int promptTokens, Func<KeyValueCache, Tensor> read, TokenLayout? layout, GenerationOptions? options, Action<int>? onToken, CancellationToken cancellation)
    {
        options ??= new GenerationOptions();
        options.Validate();
        var context = _model.Configuration.ContextLength;
        if (promptTokens == 0)
        {
            throw new ArgumentException("The prompt has no token to continue from; give some text.", nameof(promptTokens));
        }

        if (promptTokens > context)
        {
            throw new ArgumentException($"The prompt has {promptTokens} tokens and the model's context only {context}; shorten it.", nameof(promptTokens));
        }

        var stops = options.StopTokenIds ?? [.. _model.Configuration.EndTokenIds, .. _tokenizer?.EndTokenIds ?? []];
        var sampler = new TokenSampler(options);
        var ids = new List<int>();
        var reason = StopReason.MaximumTokens;
        using var quiet = inference_mode();
        using var cache = _model.CreateCache(options.CacheType ?? ModelType());
        var layoutBefore = _model.Hooks.Layout;
        _model.Hooks.Layout = layout;
        try
        {
            var clock = Stopwatch.StartNew();
            var promptTime = TimeSpan.Zero;
            while (ids.Count < options.MaximumTokens)
            {
                cancellation.ThrowIfCancellationRequested();
                if (cache.Length + (ids.Count == 0 ? promptTokens : 1) > context)
                {
                    reason = StopReason.ContextLength;
                    break;
                }

                var id = Step(() => ids.Count == 0 ? read(cache) : Read([ids[^1]], cache), ids, options.Combiner, sampler);
                promptTime = ids.Count == 0 ? clock.Elapsed : promptTime;
                if (stops.Contains(id))
                {
                    reason = StopReason.StopToken;
                    break;
                }

                ids.Add(id);
                onToken?.Invoke(id);
            }

            return new GenerationResult(ids, _tokenizer?.Decode(ids), reason, promptTokens, promptTime, clock.Elapsed - promptTime, cache.Bytes);
        }
        finally
        {
            _model.Hooks.Layout = layoutBefore;
        }
    }

    private Tensor Read(IReadOnlyList<int> tokens, KeyValueCache cache)
    {
        using var ids = tensor(tokens.Select(id => (long)id).ToArray()).unsqueeze(0);
        return _model.forward(ids, cache, lastOnly: true);
    }

    private static int Step(Func<Tensor> read, List<int> generated, ILogitsCombiner? combiner, TokenSampler sampler)
    {
        using var scope = NewDisposeScope();
        var logits = read();
        logits = (combiner?.Combine(logits, generated) ?? logits).flatten().to(float32).contiguous();
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
