using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>Which embeddings of the decoder's inputs count, for explanations.</summary>
/// <param name="Kept">Boolean <c>[B, I]</c>: the embeddings of the others become 0.</param>
/// <param name="AfterPositions">Whether they become 0 after their positions were added, or before, so that the position stays.</param>
public readonly record struct TokenOcclusion(Tensor Kept, bool AfterPositions = false);

/// <summary>What the encoder made of sound.</summary>
/// <param name="States"><c>[B, T', D]</c>.</param>
/// <param name="Lengths">Frames of each utterance, int64 <c>[B]</c>; null: all are whole.</param>
public sealed record EncodedSpeech(Tensor States, Tensor? Lengths = null);

/// <summary>An encoder-decoder transformer from log-mel features to tokens, in the shape and with the parameter names of Whisper (arXiv 2212.04356) as Hugging Face checkpoints have them:
/// two convolutions, sines as positions and self-attention in the encoder; learned positions, causal self-attention and cross-attention in the decoder, whose embedding is also its output layer.</summary>
/// <remarks>All attention goes through <see cref="Attention"/>. Sites: <c>model.encoder.layers.{i}.self_attn</c>, <c>model.decoder.layers.{i}.self_attn</c> and <c>model.decoder.layers.{i}.encoder_attn</c>, the last of the kind
/// <see cref="AttentionKind.Cross"/>. Utterances of a batch may differ in length: what pads them is seen by nobody, so that each comes out as it would alone.
/// Left out: dropout, and features as <c>[B, F, T]</c> (here they are <c>[B, T, F]</c>).</remarks>
public sealed class SpeechTransformer : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly Body model;

    /// <summary>Makes a model with fresh weights, drawn from libtorch's own generator by fan-in.</summary>
    /// <param name="configuration">Its shape.</param>
    /// <exception cref="ArgumentException">The configuration makes no model.</exception>
    public SpeechTransformer(SpeechConfiguration configuration)
        : base(nameof(SpeechTransformer))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        configuration.Validate();
        Configuration = configuration;
        model = new(configuration, Hooks);
        RegisterComponents();
        Parameters.InitializeByFan(this);
    }

    /// <summary>Its shape.</summary>
    public SpeechConfiguration Configuration { get; }

    /// <summary>The hooks of all its attention calls and blocks.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The logits of a text that is given, token by token.</summary>
    /// <param name="features">Log-mel features <c>[B, T, F]</c>.</param>
    /// <param name="tokens">The decoder's inputs, int64 <c>[B, I]</c>, the start token first.</param>
    /// <returns><c>[B, I, V]</c>: at each place, of what follows it.</returns>
    /// <exception cref="ArgumentException">Features or tokens are not what the model reads.</exception>
    public override Tensor forward(Tensor features, Tensor tokens)
    {
        using var scope = NewDisposeScope();
        return Decode(Encode(features), tokens).MoveToOuterDisposeScope();
    }

    /// <summary>Runs the encoder.</summary>
    /// <param name="features">Log-mel features <c>[B, T, F]</c>.</param>
    /// <param name="lengths">Frames of each utterance, int64 <c>[B]</c>; null: all have T.</param>
    /// <exception cref="ArgumentException">Features are not what the model reads, or a length does not fit.</exception>
    public EncodedSpeech Encode(Tensor features, Tensor? lengths = null)
    {
        CheckFeatures(features, lengths);
        using var scope = NewDisposeScope();
        var frames = (features.shape[1] + Configuration.FramesPerState - 1) / Configuration.FramesPerState;
        var earlier = Hooks.Layout;
        (Hooks.Layout, Hooks.FirstPosition) = (new(new TokenSpan(TokenKind.Audio, 0, frames)), 0);
        try
        {
            var states = model.Encode(features, lengths);
            return new(states.MoveToOuterDisposeScope(), lengths is null ? null : Shortened(lengths, Configuration.FramesPerState).MoveToOuterDisposeScope());
        }
        finally
        {
            Hooks.Layout = earlier;
        }
    }

    /// <summary>Runs the decoder over a text, or over its next tokens.</summary>
    /// <param name="encoded">What the encoder made.</param>
    /// <param name="tokens">The decoder's inputs, int64 <c>[B, I]</c>; with a state, those that follow the ones before.</param>
    /// <param name="state">Where a text stands that is decoded bit by bit (see <see cref="Start"/>); null: the text begins here.</param>
    /// <param name="occlusion">Inputs that do not count; null: all do.</param>
    /// <returns>Logits <c>[B, I, V]</c>.</returns>
    /// <exception cref="ArgumentException">Tokens are not what the model reads, or the text becomes too long.</exception>
    public Tensor Decode(EncodedSpeech encoded, Tensor tokens, SpeechDecodingState? state = null, TokenOcclusion? occlusion = null)
    {
        ArgumentNullException.ThrowIfNull(encoded);
        var earlier = state?.Cache.Length ?? 0;
        CheckTokens(encoded, tokens, earlier, occlusion);
        using var scope = NewDisposeScope();
        Hooks.FirstPosition = earlier;
        return model.Decode(encoded, tokens, earlier, state, occlusion).MoveToOuterDisposeScope();
    }

    /// <summary>Prepares to decode texts bit by bit: keys and values of the encoder's output are computed once, those of earlier tokens are kept.</summary>
    /// <param name="encoded">What the encoder made; it must live as long as the state.</param>
    public SpeechDecodingState Start(EncodedSpeech encoded)
    {
        ArgumentNullException.ThrowIfNull(encoded);
        using var scope = NewDisposeScope();
        return new(new(Configuration.DecoderLayers, encoded.States.dtype, Configuration.TargetLength), [.. model.CrossKeys(encoded.States).Select(keys => new ContextKeys(keys.Key.DetachFromDisposeScope(), keys.Value.DetachFromDisposeScope()))]);
    }

    /// <summary>Frames after a convolution of kernel 3, padding 1 and a stride.</summary>
    private static Tensor Shortened(Tensor lengths, int stride)
    {
        using Scalar step = stride, rest = stride - 1;
        return (lengths + rest).div(step, RoundingMode.floor).to(int64);
    }

    private void CheckFeatures(Tensor features, Tensor? lengths)
    {
        ArgumentNullException.ThrowIfNull(features);
        var most = (long)Configuration.SourceLength * Configuration.FramesPerState;
        if (features.dim() != 3 || features.shape[2] != Configuration.Bins || features.shape[1] < 1 || features.shape[1] > most)
        {
            throw new ArgumentException($"Features must be [batch, 1 to {most} frames, {Configuration.Bins} bins], not [{string.Join(", ", features.shape)}].", nameof(features));
        }

        if (lengths is null)
        {
            return;
        }

        using var scope = NewDisposeScope();
        if (lengths.dim() != 1 || lengths.dtype != ScalarType.Int64 || lengths.shape[0] != features.shape[0] || lengths.min().item<long>() < 1 || lengths.max().item<long>() > features.shape[1])
        {
            throw new ArgumentException($"Lengths must be int64 [{features.shape[0]}] from 1 to {features.shape[1]} frames, not {lengths.dtype} [{string.Join(", ", lengths.shape)}] or numbers beyond.", nameof(lengths));
        }
    }

    private void CheckTokens(EncodedSpeech encoded, Tensor tokens, long earlier, TokenOcclusion? occlusion)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        if (tokens.dim() != 2 || tokens.dtype != ScalarType.Int64 || tokens.shape[0] != encoded.States.shape[0] || tokens.shape[1] < 1)
        {
            throw new ArgumentException($"Tokens must be int64 [{encoded.States.shape[0]}, at least 1], not {tokens.dtype} [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }

        if (earlier + tokens.shape[1] > Configuration.TargetLength)
        {
            throw new ArgumentException($"The decoder reads at most {Configuration.TargetLength} tokens, not {earlier + tokens.shape[1]}.", nameof(tokens));
        }

        using var scope = NewDisposeScope();
        var (lowest, highest) = (tokens.min().item<long>(), tokens.max().item<long>());
        if (lowest < 0 || highest >= Configuration.Vocabulary)
        {
            throw new ArgumentException($"The token {(lowest < 0 ? lowest : highest)} is not in the vocabulary of {Configuration.Vocabulary}.", nameof(tokens));
        }

        if (occlusion is { } hidden && !hidden.Kept.shape.AsSpan().SequenceEqual(tokens.shape))
        {
            throw new ArgumentException($"A mask of tokens must be [{string.Join(", ", tokens.shape)}] as they are, not [{string.Join(", ", hidden.Kept.shape)}].", nameof(occlusion));
        }
    }

    /// <summary>What checkpoints call <c>model</c>.</summary>
    private sealed class Body : nn.Module
    {
        private readonly Encoder encoder;
        private readonly Decoder decoder;

        public Body(SpeechConfiguration configuration, AttentionHooks hooks)
            : base(nameof(Body))
        {
            (encoder, decoder) = (new(configuration, hooks), new(configuration, hooks));
            RegisterComponents();
        }

        public Tensor Encode(Tensor features, Tensor? lengths) => encoder.forward(features, lengths);

        public IEnumerable<ContextKeys> CrossKeys(Tensor encoded) => decoder.CrossKeys(encoded);

        public Tensor Decode(EncodedSpeech encoded, Tensor tokens, long earlier, SpeechDecodingState? state, TokenOcclusion? occlusion) => decoder.forward(encoded, tokens, earlier, state, occlusion);
    }

    private sealed class Encoder : nn.Module
    {
        private readonly Conv1d conv1;
        private readonly Conv1d conv2;
        private readonly PositionTable embed_positions;
        private readonly ModuleList<SpeechEncoderLayer> layers;
        private readonly LayerNorm layer_norm;
        private readonly int _firstStride;

        public Encoder(SpeechConfiguration configuration, AttentionHooks hooks)
            : base(nameof(Encoder))
        {
            _firstStride = configuration.FirstStride;
            conv1 = nn.Conv1d(configuration.Bins, configuration.Width, 3, stride: configuration.FirstStride, padding: 1);
            conv2 = nn.Conv1d(configuration.Width, configuration.Width, 3, stride: 2, padding: 1);
            embed_positions = PositionTable.Sines(configuration.SourceLength, configuration.Width);
            layers = new([.. Enumerable.Range(0, configuration.EncoderLayers).Select(layer => new SpeechEncoderLayer(configuration, layer, hooks))]);
            layer_norm = nn.LayerNorm(configuration.Width);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public Tensor forward(Tensor features, Tensor? lengths)
        {
            using var scope = NewDisposeScope();
            if (lengths is not null)
            {
                features = features * Exists(lengths, features.shape[1], features.dtype);
            }

            var states = nn.functional.gelu(conv1.forward(features.transpose(1, 2)));
            if (lengths is not null)
            {
                // The second convolution must meet the zeros that it would meet at the end of the utterance alone.
                lengths = Shortened(lengths, _firstStride);
                states = states * Exists(lengths, states.shape[2], states.dtype).transpose(1, 2);
                lengths = Shortened(lengths, 2);
            }

            states = nn.functional.gelu(conv2.forward(states)).transpose(1, 2);
            states = states + embed_positions.Rows(0, states.shape[1]);
            var options = AttentionOptions.Default with { KeyLengths = lengths };
            foreach (var layer in layers)
            {
                states = layer.forward(states, options);
            }

            return layer_norm.forward(states).MoveToOuterDisposeScope();
        }

        private static Tensor Exists(Tensor lengths, long frames, ScalarType type) => arange(frames, dtype: int64, device: lengths.device).unsqueeze(0).lt(lengths.unsqueeze(1)).unsqueeze(-1).to(type);
    }

    private sealed class Decoder : nn.Module
    {
        private readonly PositionTable embed_tokens;
        private readonly PositionTable embed_positions;
        private readonly ModuleList<SpeechDecoderLayer> layers;
        private readonly LayerNorm layer_norm;

        public Decoder(SpeechConfiguration configuration, AttentionHooks hooks)
            : base(nameof(Decoder))
        {
            // The embedding is the output layer, too: its rows start as those of a linear layer do.
            embed_tokens = PositionTable.Drawn(configuration.Vocabulary, configuration.Width, 1 / Math.Sqrt(configuration.Width));
            embed_positions = PositionTable.Drawn(configuration.TargetLength, configuration.Width, 1 / Math.Sqrt(configuration.Width));
            layers = new([.. Enumerable.Range(0, configuration.DecoderLayers).Select(layer => new SpeechDecoderLayer(configuration, layer, hooks))]);
            layer_norm = nn.LayerNorm(configuration.Width);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public IEnumerable<ContextKeys> CrossKeys(Tensor encoded) => layers.Select(layer => layer.CrossKeys(encoded));

        public Tensor forward(EncodedSpeech encoded, Tensor tokens, long earlier, SpeechDecodingState? state, TokenOcclusion? occlusion)
        {
            using var scope = NewDisposeScope();
            var states = embed_tokens.Weight.index_select(0, tokens.reshape(-1)).view(tokens.shape[0], tokens.shape[1], -1);
            var kept = occlusion?.Kept.unsqueeze(-1).to(states.dtype);
            var after = occlusion?.AfterPositions == true;
            states = kept is null || after ? states : states * kept;
            states = states + embed_positions.Rows(earlier, tokens.shape[1]);
            states = kept is null || !after ? states : states * kept;
            var options = AttentionOptions.Default with { KeyLengths = encoded.Lengths };
            for (var layer = 0; layer < layers.Count; layer++)
            {
                states = layers[layer].forward(states, state?.Cross[layer] ?? layers[layer].CrossKeys(encoded.States), options, state?.Cache);
            }

            return nn.functional.linear(layer_norm.forward(states), embed_tokens.Weight).MoveToOuterDisposeScope();
        }
    }

    /// <summary>A table of vectors under the name <c>weight</c>.</summary>
    private sealed class PositionTable : nn.Module
    {
        private readonly Parameter weight;

        private PositionTable(Parameter weight)
            : base(nameof(PositionTable))
        {
            this.weight = weight;
            RegisterComponents();
        }

        public Parameter Weight => weight;

        public static PositionTable Drawn(long rows, long width, double deviation) => new(Parameters.Make([rows, width], tensor => Parameters.DrawNormal(tensor, deviation)));

        /// <summary>Sines in the first half, cosines in the second, wavelengths from 2 pi to 10,000 times that; not trained.</summary>
        public static PositionTable Sines(long rows, int width)
        {
            var half = width / 2;
            var values = new float[rows * width];
            for (long row = 0; row < rows; row++)
            {
                for (var i = 0; i < half; i++)
                {
                    var angle = row * Math.Exp(-Math.Log(10_000) * i / Math.Max(1, half - 1));
                    (values[(row * width) + i], values[(row * width) + half + i]) = ((float)Math.Sin(angle), (float)Math.Cos(angle));
                }
            }

            using var scope = NewDisposeScope();
            var data = tensor(values).reshape(rows, width);
            var weight = Parameters.Make([rows, width], table => table.copy_(data));
            weight.requires_grad_(false);
            return new(weight);
        }

        public Tensor Rows(long first, long count) => weight.narrow(0, first, count);
    }
}

/// <summary>Where the decoding of texts stands.</summary>
public sealed class SpeechDecodingState : IDisposable
{
    internal SpeechDecodingState(KeyValueCache cache, IReadOnlyList<ContextKeys> cross) => (Cache, Cross) = (cache, cross);

    /// <summary>Keys and values of the tokens read so far.</summary>
    public KeyValueCache Cache { get; }

    internal IReadOnlyList<ContextKeys> Cross { get; }

    /// <inheritdoc/>
    public void Dispose()
    {
        Cache.Dispose();
        foreach (var (key, value) in Cross)
        {
            key.Dispose();
            value.Dispose();
        }
    }
}
