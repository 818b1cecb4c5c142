using Heed.Heads;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Texts;

/// <summary>The shape of a <see cref="TransformerXL"/>.</summary>
public sealed record TransformerXLOptions
{
    /// <summary>Number of different tokens.</summary>
    public required int Vocabulary { get; init; }

    /// <summary>Number of layers.</summary>
    public required int Layers { get; init; }

    /// <summary>Hidden width of the perceptrons.</summary>
    public required int FeedForwardWidth { get; init; }

    /// <summary>The attention of every layer. Its reach holds memory and segment.</summary>
    public required RelativeConvolutionalAttentionOptions Attention { get; init; }

    /// <summary>Learned absolute positions within a segment, for attention without relative ones: the longest segment; 0: none (the authors' model).</summary>
    public int Positions { get; init; }

    /// <summary>Whether the perceptron's ReLU is squared, as Primer has it (arXiv 2109.08668).</summary>
    public bool HasSquaredRelu { get; init; }

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;
}

/// <summary>What the layers of a <see cref="TransformerXL"/> remember of earlier segments: their inputs, before the norm, without gradient (arXiv 1901.02860, section 3.2).</summary>
/// <param name="length">Most tokens kept, at least 1.</param>
public sealed class SegmentMemory(int length) : IDisposable
{
    private Tensor[] _layers = [];

    /// <summary>Most tokens kept.</summary>
    public int Length { get; } = length >= 1 ? length : throw new ArgumentOutOfRangeException(nameof(length), length, "A memory keeps at least 1 token.");

    /// <summary>Tokens that are remembered now.</summary>
    public long Count => _layers.Length == 0 ? 0 : _layers[0].shape[1];

    /// <summary>What each layer remembers, <c>[B, M, C]</c>; empty before the first segment. The memory's own: valid until the next segment.</summary>
    public IReadOnlyList<Tensor> Layers => _layers;

    /// <summary>Forgets everything: for texts that begin anew.</summary>
    public void Clear()
    {
        foreach (var layer in _layers)
        {
            layer.Dispose();
        }

        _layers = [];
    }

    /// <inheritdoc/>
    public void Dispose() => Clear();

    internal void Append(IReadOnlyList<Tensor> inputs)
    {
        using var quiet = no_grad();
        var merged = inputs.Select((input, layer) =>
        {
            using var scope = NewDisposeScope();
            var whole = _layers.Length == 0 ? input.detach() : cat([_layers[layer], input.detach()], 1);
            var kept = Math.Min(Length, whole.shape[1]);

            // A copy: a view would keep the whole alive.
            return whole.narrow(1, whole.shape[1] - kept, kept).clone().DetachFromDisposeScope();
        }).ToArray();
        Clear();
        _layers = merged;
    }
}

/// <summary>A layer of the authors' Transformer-XL (arXiv 2308.03429): <c>a = LN1(x)</c>, <c>x += attention(a, memory [LN1(mem); a])</c>, <c>x += W2 relu(W1 LN2(x))</c>. Parameter names: <c>self_attn</c>, <c>feed_forward.layer1</c>,
/// <c>feed_forward.layer2</c>, <c>norm_self_attn</c>, <c>norm_ff</c>.</summary>
public sealed class TransformerXLLayer : nn.Module<Tensor, Tensor>
{
    private readonly RelativeConvolutionalAttention self_attn;
    private readonly ReluFeedForward feed_forward;
    private readonly LayerNorm norm_self_attn;
    private readonly LayerNorm norm_ff;

    /// <summary>Makes a layer.</summary>
    /// <param name="attention">The shape of its attention.</param>
    /// <param name="feedForwardWidth">Hidden width of its perceptron.</param>
    /// <param name="normEpsilon">Epsilon of the norms.</param>
    /// <param name="hasSquaredRelu">Whether the perceptron's ReLU is squared.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">The shape makes no attention.</exception>
    public TransformerXLLayer(RelativeConvolutionalAttentionOptions attention, int feedForwardWidth, double normEpsilon = 1e-5, bool hasSquaredRelu = false, AttentionSite site = default)
        : base(nameof(TransformerXLLayer))
    {
        ArgumentNullException.ThrowIfNull(attention);
        self_attn = new(attention, site);
        feed_forward = new(attention.Width, feedForwardWidth, hasSquaredRelu);
        norm_self_attn = nn.LayerNorm(attention.Width, normEpsilon);
        norm_ff = nn.LayerNorm(attention.Width, normEpsilon);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The attention.</summary>
    public RelativeConvolutionalAttention Attention => self_attn;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The layer's output for a segment.</summary>
    /// <param name="input">The segment, <c>[B, N, C]</c>.</param>
    /// <param name="memory">Inputs of this layer in earlier segments, <c>[B, M, C]</c>, before the norm; null: none.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    public Tensor forward(Tensor input, Tensor? memory)
    {
        using var scope = NewDisposeScope();
        var attended = input + self_attn.ForwardWithMemory(norm_self_attn.forward(input), memory is null ? null : norm_self_attn.forward(memory));
        return (attended + feed_forward.forward(norm_ff.forward(attended))).MoveToOuterDisposeScope();
    }

    private sealed class ReluFeedForward : nn.Module<Tensor, Tensor>
    {
        private readonly Linear layer1;
        private readonly Linear layer2;
        private readonly bool _squared;

        public ReluFeedForward(int width, int hidden, bool squared)
            : base(nameof(ReluFeedForward))
        {
            (layer1, layer2, _squared) = (nn.Linear(width, hidden), nn.Linear(hidden, width), squared);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var hidden = nn.functional.relu(layer1.forward(input));
            return layer2.forward(_squared ? hidden.square() : hidden).MoveToOuterDisposeScope();
        }
    }
}

/// <summary>A causal language model that reads a text in segments and remembers earlier ones (arXiv 1901.02860), with the attention of arXiv 2308.03429. Parameter names are the authors': <c>src_embed</c>,
/// <c>transformer.layers.{i}</c>, <c>transformer.norm</c>, <c>generator</c>.</summary>
public sealed class TransformerXL : LanguageModel
{
    private readonly Embedding src_embed;
    private readonly Parameter? positions;
    private readonly Layers transformer;
    private readonly Linear generator;

    /// <summary>Makes a model, with libtorch's initial weights.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The shape makes no model.</exception>
    public TransformerXL(TransformerXLOptions options)
        : base(nameof(TransformerXL), (options ?? throw new ArgumentNullException(nameof(options))).Vocabulary, LengthOf(options))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Layers, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.FeedForwardWidth, 1);
        Options = options;
        src_embed = nn.Embedding(options.Vocabulary, options.Attention.Width);
        positions = options.Positions > 0 ? Parameters.Make([options.Positions, options.Attention.Width], tensor => tensor.normal_(0, Projection.InitialDeviation)) : null;
        transformer = new(options, Hooks);
        generator = nn.Linear(options.Attention.Width, options.Vocabulary);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public TransformerXLOptions Options { get; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor tokens) => forward(tokens, null);

    /// <summary>The logits of a segment.</summary>
    /// <param name="tokens">int64 <c>[B, N]</c>.</param>
    /// <param name="memory">What earlier segments of the same texts left, which this one is added to; null: the texts begin here and nothing is kept.</param>
    /// <returns><c>[B, N, V]</c>.</returns>
    /// <exception cref="ArgumentException">The tokens have another shape, or memory and segment are longer than the attention reaches.</exception>
    public Tensor forward(Tensor tokens, SegmentMemory? memory)
    {
        CheckTokens(tokens);
        using var scope = NewDisposeScope();
        var states = src_embed.forward(tokens);
        states = positions is null ? states : states + positions.narrow(0, 0, tokens.shape[1]);
        return generator.forward(transformer.forward(states, memory)).MoveToOuterDisposeScope();
    }

    private static int LengthOf(TransformerXLOptions options)
    {
        ArgumentNullException.ThrowIfNull(options.Attention, nameof(options));
        return options.Positions > 0 ? options.Positions : options.Attention.IsRelative ? options.Attention.Reach : int.MaxValue;
    }

    private sealed class Layers : nn.Module
    {
        private readonly ModuleList<TransformerXLLayer> layers;
        private readonly LayerNorm norm;

        public Layers(TransformerXLOptions options, AttentionHooks hooks)
            : base(nameof(Layers))
        {
            layers = nn.ModuleList([.. Enumerable.Range(0, options.Layers).Select(layer => new TransformerXLLayer(
                options.Attention, options.FeedForwardWidth, options.NormEpsilon, options.HasSquaredRelu, new(layer, AttentionKind.Self, $"transformer.layers.{layer}.self_attn")))]);
            foreach (var layer in layers)
            {
                layer.Attention.Hooks = hooks;
            }

            norm = nn.LayerNorm(options.Attention.Width, options.NormEpsilon);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public Tensor forward(Tensor states, SegmentMemory? memory)
        {
            var inputs = new List<Tensor>();
            for (var i = 0; i < layers.Count; i++)
            {
                inputs.Add(states);
                states = layers[i].forward(states, memory is { Count: > 0 } ? memory.Layers[i] : null);
            }

            memory?.Append(inputs);
            return norm.forward(states);
        }
    }
}
