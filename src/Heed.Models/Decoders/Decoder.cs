using Heed.Layers;
using Heed.Heads;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Decoders;

/// <summary>
/// A decoder-only transformer of the Llama family: Llama, Mistral, Qwen2, Qwen3, Qwen3 with gated attention, and Doge. Parameters have the names of Hugging Face
/// checkpoints. All attention goes through <see cref="Attention"/>, so every probe and edit works on it.
/// </summary>
public sealed class Decoder : nn.Module<Tensor, Tensor>
{
    private readonly DecoderBody model;
    private readonly Projection? lm_head;

    /// <summary>Makes a decoder with random weights.</summary>
    /// <param name="configuration">Its shape.</param>
    /// <param name="seed">Seed of the weights; the same seed gives the same weights.</param>
    /// <exception cref="ArgumentException">The configuration makes no model.</exception>
    public Decoder(DecoderConfiguration configuration, long seed = 0)
        : this(configuration, seed, initialize: true)
    {
    }

    internal Decoder(DecoderConfiguration configuration, long seed, bool initialize)
        : base(nameof(Decoder))
    {
        ArgumentNullException.ThrowIfNull(configuration);
        configuration.Validate();
        Configuration = configuration;
        using var generator = new Generator((ulong)seed);
        model = new DecoderBody(configuration, Hooks, generator, initialize);
        lm_head = configuration.TieEmbeddings ? null : new Projection(configuration.HiddenSize, configuration.VocabularySize, false, generator, initialize);
        RegisterComponents();
    }

    /// <summary>The decoder's shape.</summary>
    public DecoderConfiguration Configuration { get; }

    /// <summary>The hooks of all its attention calls. Sites are named <c>model.layers.{i}.self_attn</c>.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The layers, first to last.</summary>
    public IReadOnlyList<DecoderLayer> Layers => model.Layers;

    /// <summary>Number of trainable numbers.</summary>
    public long ParameterCount => parameters().Sum(parameter => parameter.numel());

    /// <summary>The logits of every token.</summary>
    /// <param name="input">Token ids, int64 <c>[B, N]</c>.</param>
    /// <returns><c>[B, N, V]</c>.</returns>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The logits, and on request what leads to them.</summary>
    /// <param name="ids">Token ids, int64 <c>[B, N]</c>.</param>
    /// <param name="cache">Earlier tokens of the same texts (see <see cref="CreateCache"/>): positions go on from them, and the new tokens are appended. Null: the texts start here.</param>
    /// <param name="hiddenStates">Receives, each <c>[B, N, C]</c>, the embeddings, the output of every layer but the last, and the last layer's output after the final norm;
    /// they belong to the caller's dispose scope. Null: not wanted.</param>
    /// <param name="lastOnly">Whether the logits of the last token are enough, as in generation.</param>
    /// <returns><c>[B, N, V]</c>, or <c>[B, 1, V]</c> of the last token.</returns>
    /// <exception cref="ArgumentException">The ids are not int64 <c>[B, N]</c> with at least one token, or one is not in the vocabulary, or the cache is of another model.</exception>
    public Tensor forward(Tensor ids, KeyValueCache? cache, ICollection<Tensor>? hiddenStates = null, bool lastOnly = false)
    {
        using var embeddings = Embed(ids);
        return ForwardEmbeddings(embeddings, cache, hiddenStates, lastOnly);
    }

    /// <summary>The embeddings of tokens: what <see cref="ForwardEmbeddings"/> reads.</summary>
    /// <param name="ids">Token ids, int64 <c>[B, N]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The ids are not int64 <c>[B, N]</c> with at least one token, or one is not in the vocabulary.</exception>
    public Tensor Embed(Tensor ids)
    {
        CheckIds(ids);
        using var scope = NewDisposeScope();
        return model.Embed(ids).MoveToOuterDisposeScope();
    }

    /// <summary>The logits of a sequence that is given as embeddings, so that pictures or sound can stand among the tokens. The rest is as for token ids: <c>forward(ids)</c> is this of <see cref="Embed"/>.</summary>
    /// <param name="embeddings"><c>[B, N, C]</c>, of the model's type.</param>
    /// <param name="cache">Earlier tokens of the same sequences: positions go on from them, and the new ones are appended. Null: the sequences start here.</param>
    /// <param name="hiddenStates">Receives what it does for token ids; null: not wanted.</param>
    /// <param name="lastOnly">Whether the logits of the last token are enough, as in generation.</param>
    /// <returns><c>[B, N, V]</c>, or <c>[B, 1, V]</c> of the last token.</returns>
    /// <exception cref="ArgumentException">The embeddings are not <c>[B, N, C]</c> with at least one token, or the cache is of another model.</exception>
    public Tensor ForwardEmbeddings(Tensor embeddings, KeyValueCache? cache = null, ICollection<Tensor>? hiddenStates = null, bool lastOnly = false)
    {
        ArgumentNullException.ThrowIfNull(embeddings);
        if (embeddings.dim() != 3 || embeddings.shape[0] < 1 || embeddings.shape[1] < 1 || embeddings.shape[2] != Configuration.HiddenSize)
        {
            throw new ArgumentException(
                $"Embeddings must be [batch, tokens, {Configuration.HiddenSize}] with at least one token, not [{string.Join(", ", embeddings.shape)}].", nameof(embeddings));
        }

        if (cache is not null && cache.Layers != Configuration.Layers)
        {
            throw new ArgumentException($"The cache has {cache.Layers} layers, the decoder {Configuration.Layers}.", nameof(cache));
        }

        using var scope = NewDisposeScope();
        var tokens = embeddings.shape[1];
        Hooks.FirstPosition = cache?.Length ?? 0L;
        using Scalar earlier = Hooks.FirstPosition;
        var positions = arange(tokens, dtype: int64, device: embeddings.device) + earlier;
        var hidden = model.forward(embeddings, positions, cache, hiddenStates);
        if (lastOnly)
        {
            hidden = hidden.narrow(1, tokens - 1, 1);
        }

        return (lm_head is null ? nn.functional.linear(hidden, model.Embedding) : lm_head.forward(hidden)).MoveToOuterDisposeScope();
    }

    /// <summary>An empty cache for this decoder: layers with a sliding window keep no more than they can reach, those with dynamic masks no more than they can choose.</summary>
    /// <param name="type">Element type of the cached keys and values.</param>
    /// <param name="limit">The most tokens it may hold; null: as many as memory allows.</param>
    public KeyValueCache CreateCache(ScalarType type = ScalarType.Float32, long? limit = null) =>
        new(Configuration.Layers, type, limit, layer => Configuration.WindowOf(layer), _ => Configuration.DynamicMaskWindow);

    private void CheckIds(Tensor ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        if (ids.dim() != 2 || ids.dtype != ScalarType.Int64 || ids.shape[0] < 1 || ids.shape[1] < 1)
        {
            throw new ArgumentException($"Token ids must be int64 [batch, tokens] with at least one token, not {ids.dtype} [{string.Join(", ", ids.shape)}].", nameof(ids));
        }

        using var scope = NewDisposeScope();
        var (lowest, highest) = (ids.min().item<long>(), ids.max().item<long>());
        if (lowest < 0 || highest >= Configuration.VocabularySize)
        {
            throw new ArgumentException($"The token id {(lowest < 0 ? lowest : highest)} is not in the vocabulary of {Configuration.VocabularySize}.", nameof(ids));
        }
    }

    /// <summary>What checkpoints call <c>model</c>: everything but the output layer.</summary>
    private sealed class DecoderBody : nn.Module
    {
        private readonly TokenEmbedding embed_tokens;
        private readonly ModuleList<DecoderLayer> layers;
        private readonly RmsNorm norm;
        private readonly RotaryEmbedding _rotary;

        public DecoderBody(DecoderConfiguration configuration, AttentionHooks hooks, Generator generator, bool initialize)
            : base(nameof(DecoderBody))
        {
            _rotary = new RotaryEmbedding(configuration.ResolvedHeadWidth, configuration.RotaryTheta, configuration.RotaryScaling);
            embed_tokens = new TokenEmbedding(configuration.VocabularySize, configuration.HiddenSize, generator, initialize);
            layers = new ModuleList<DecoderLayer>(
                [.. Enumerable.Range(0, configuration.Layers).Select(layer => new DecoderLayer(configuration, layer, hooks, generator, initialize))]);
            norm = new RmsNorm(configuration.HiddenSize, configuration.NormEpsilon);
            RegisterComponents();
        }

        public IReadOnlyList<DecoderLayer> Layers => [.. layers];

        public Parameter Embedding => embed_tokens.Weight;

        public Tensor Embed(Tensor ids) => embed_tokens.forward(ids);

        public Tensor forward(Tensor embeddings, Tensor positions, KeyValueCache? cache, ICollection<Tensor>? hiddenStates)
        {
            using var scope = NewDisposeScope();
            var rotary = _rotary.Tables(positions, Embedding.dtype);
            // A handle of its own: the caller's tensor must stay in the caller's scope.
            var hidden = hiddenStates is null ? embeddings : embeddings.alias();
            foreach (var layer in layers)
            {
                hiddenStates?.Add(hidden.MoveToOuterDisposeScope().MoveToOuterDisposeScope());
                hidden = layer.forward(hidden, rotary, cache);
            }

            hidden = norm.forward(hidden);
            if (hiddenStates is not null)
            {
                hiddenStates.Add(hidden.alias().MoveToOuterDisposeScope().MoveToOuterDisposeScope());
            }

            return hidden.MoveToOuterDisposeScope();
        }
    }

    /// <summary>Rows of a table by token id, under the name <c>weight</c>.</summary>
    private sealed class TokenEmbedding : nn.Module<Tensor, Tensor>
    {
        private readonly Parameter weight;

        public TokenEmbedding(long vocabularySize, long width, Generator generator, bool initialize)
            : base(nameof(TokenEmbedding))
        {
            using var scope = NewDisposeScope();
            var data = empty(vocabularySize, width, dtype: float32);
            weight = new Parameter(initialize ? data.normal_(0, Projection.InitialDeviation, generator) : data);
            weight.DetachFromDisposeScope();
            RegisterComponents();
        }

        public Parameter Weight => weight;

        public override Tensor forward(Tensor input) => weight.index_select(0, input.reshape(-1)).view([.. input.shape, weight.shape[1]]);
    }
}
