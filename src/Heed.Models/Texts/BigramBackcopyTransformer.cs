using Heed.Heads;
using Heed.Kernels;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Texts;

/// <summary>The shape of a <see cref="BigramBackcopyTransformer"/>.</summary>
public sealed record BigramBackcopyOptions
{
    /// <summary>Number V of different tokens.</summary>
    public required int Vocabulary { get; init; }

    /// <summary>Most tokens read at once.</summary>
    public required int Length { get; init; }

    /// <summary>Width D of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number of layers.</summary>
    public int Layers { get; init; } = 1;

    /// <summary>Heads of a layer, a divisor of <see cref="Width"/>.</summary>
    public int Heads { get; init; } = 1;

    /// <summary>What turns scores into weights: softmax, or <see cref="Normalizer.ReluOverPosition"/>, whose rows need not sum to 1 and so have nothing to park.</summary>
    public Normalizer Normalizer { get; init; }

    /// <summary>Whether norms stand before the parts of a layer (with one more before the readout) or behind their sums.</summary>
    public bool PreNorm { get; init; } = true;

    /// <summary>Layers without attention. Their parameters exist and are not used.</summary>
    public IReadOnlyCollection<int> WithoutAttention { get; init; } = [];

    /// <summary>Layers without a feed-forward part. Their second norm exists and is not used.</summary>
    public IReadOnlyCollection<int> WithoutFeedForward { get; init; } = [];

    /// <summary>Layers whose feed-forward part is one D x D matrix.</summary>
    public IReadOnlyCollection<int> LinearFeedForward { get; init; } = [];

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-5;
}

/// <summary>The transformer in which arXiv 2410.13835 grows attention sinks: token and learned position embeddings, causal attention without biases, ReLU perceptrons of four times the width without biases, layer norms, an untied
/// readout. Any layer may lack a part. Parameter names are the authors': <c>tok_embeddings</c>, <c>pos_embeddings</c>, <c>layers.{i}.attention.wq|wk|wv|wo</c>, <c>layers.{i}.attention_norm|ff_norm</c>,
/// <c>layers.{i}.ff.w1|w2</c> (<c>layers.{i}.ff</c> where it is one matrix), <c>norm</c> (before the readout of a pre-norm model), <c>output</c>.</summary>
/// <remarks>Starts as libtorch's layers do: embeddings from a standard normal distribution, matrices uniform within one over the root of their inputs. Left out: the authors' switches that freeze, tie or remove single matrices and norms.</remarks>
public sealed class BigramBackcopyTransformer : LanguageModel
{
    private readonly Embedding tok_embeddings;
    private readonly Embedding pos_embeddings;
    private readonly ModuleList<BigramBackcopyLayer> layers;
    private readonly LayerNorm? norm;
    private readonly Projection output;

    /// <summary>Makes a model from libtorch's own generator.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A size is not positive, the heads do not divide the width, or a layer is named that the model does not have.</exception>
    public BigramBackcopyTransformer(BigramBackcopyOptions options)
        : base(nameof(BigramBackcopyTransformer), (options ?? throw new ArgumentNullException(nameof(options))).Vocabulary, options.Length)
    {
        if (options.Width < 1 || options.Layers < 1)
        {
            throw new ArgumentException($"Width and number of layers must be positive, not {options.Width} and {options.Layers}.", nameof(options));
        }

        foreach (var (name, named) in new[]
        {
            (nameof(options.WithoutAttention), options.WithoutAttention), (nameof(options.WithoutFeedForward), options.WithoutFeedForward), (nameof(options.LinearFeedForward), options.LinearFeedForward),
        })
        {
            foreach (var layer in named)
            {
                if (layer < 0 || layer >= options.Layers)
                {
                    throw new ArgumentException($"{name} names layer {layer}, and the model's layers are 0 to {options.Layers - 1}.", nameof(options));
                }
            }
        }

        Options = options;
        tok_embeddings = nn.Embedding(options.Vocabulary, options.Width);
        pos_embeddings = nn.Embedding(options.Length, options.Width);
        layers = nn.ModuleList([.. Enumerable.Range(0, options.Layers).Select(layer => new BigramBackcopyLayer(options, layer, Hooks))]);
        norm = options.PreNorm ? nn.LayerNorm(options.Width, options.NormEpsilon) : null;
        output = new(options.Width, options.Vocabulary, hasBias: false, initialize: false);
        RegisterComponents();
        Parameters.InitializeByFan(this);
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public BigramBackcopyOptions Options { get; }

    /// <summary>The layers.</summary>
    public IReadOnlyList<BigramBackcopyLayer> Layers => [.. layers];

    /// <inheritdoc/>
    public override Tensor forward(Tensor tokens)
    {
        CheckTokens(tokens);
        using var scope = NewDisposeScope();
        var states = tok_embeddings.forward(tokens) + pos_embeddings.weight!.narrow(0, 0, tokens.shape[1]);
        foreach (var layer in layers)
        {
            states = layer.forward(states);
        }

        return output.forward(norm?.forward(states) ?? states).MoveToOuterDisposeScope();
    }
}

/// <summary>A layer of a <see cref="BigramBackcopyTransformer"/>. Pre-norm: <c>h = x + attention(LN(x))</c>, <c>h + ff(LN(h))</c>; post-norm: <c>h = LN(x + attention(x))</c>, <c>LN(h + ff(h))</c>.</summary>
public sealed class BigramBackcopyLayer : nn.Module<Tensor, Tensor>
{
    private readonly MultiHeadAttention attention;
    private readonly LayerNorm attention_norm;
    private readonly nn.Module<Tensor, Tensor>? ff;
    private readonly LayerNorm ff_norm;
    private readonly bool _attends;
    private readonly bool _preNorm;
    private readonly StreamPlace _place;

    internal BigramBackcopyLayer(BigramBackcopyOptions options, int layer, AttentionHooks hooks)
        : base(nameof(BigramBackcopyLayer))
    {
        var name = $"layers.{layer}";
        _place = new(hooks, layer, name);
        (_attends, _preNorm) = (!options.WithoutAttention.Contains(layer), options.PreNorm);
        attention = new(
            new()
            {
                Width = options.Width, Heads = options.Heads, QueryBias = false, KeyBias = false, ValueBias = false, OutputBias = false,
                Names = new() { Query = "wq", Key = "wk", Value = "wv", Output = "wo" },
                Attention = AttentionOptions.CausalSelf with { Normalizer = options.Normalizer },
            },
            new(layer, AttentionKind.Self, $"{name}.attention")) { Hooks = hooks };
        attention_norm = nn.LayerNorm(options.Width, options.NormEpsilon);
        ff = options.WithoutFeedForward.Contains(layer) ? null
            : options.LinearFeedForward.Contains(layer) ? new Projection(options.Width, options.Width, hasBias: false, initialize: false)
            : new ReluFeedForward(options.Width, _place);
        ff_norm = nn.LayerNorm(options.Width, options.NormEpsilon);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The attention.</summary>
    public MultiHeadAttention Attention => attention;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var states = _place.Pass(StreamPoint.BlockInput, input);
        if (_attends)
        {
            states = Add(states, attention, attention_norm, StreamPoint.AttentionInput, StreamPoint.AttentionOutput);
        }

        if (ff is not null)
        {
            states = Add(states, ff, ff_norm, StreamPoint.FeedForwardInput, StreamPoint.FeedForwardOutput);
        }

        return _place.Pass(StreamPoint.BlockOutput, states).MoveToOuterDisposeScope();
    }

    private Tensor Add(Tensor states, nn.Module<Tensor, Tensor> part, LayerNorm norm, StreamPoint before, StreamPoint behind)
    {
        var read = _place.Pass(before, _preNorm ? norm.forward(states) : states);
        var sum = states + _place.Pass(behind, part.forward(read));
        return _preNorm ? sum : norm.forward(sum);
    }

    private sealed class ReluFeedForward : nn.Module<Tensor, Tensor>
    {
        private readonly Projection w1;
        private readonly Projection w2;
        private readonly StreamPlace _place;

        public ReluFeedForward(int width, StreamPlace place)
            : base(nameof(ReluFeedForward))
        {
            (w1, w2, _place) = (new(width, 4 * width, hasBias: false, initialize: false), new(4 * width, width, hasBias: false, initialize: false), place);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var hidden = _place.Pass(StreamPoint.Gate, w1.forward(input));
            return w2.forward(_place.Pass(StreamPoint.Activation, nn.functional.relu(hidden))).MoveToOuterDisposeScope();
        }
    }
}
