using Heed.Heads;
using Heed.Kernels;
using Heed.Lab.Mechanisms;
using Heed.Masks;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Lab.Recall;

/// <summary>A small attention-only model for <see cref="RecallTask"/>: a causal depth-wise convolution of width 3 over token and position embeddings, layers of pre-norm attention without
/// feed-forward parts, and a linear output.</summary>
public sealed class RecallModel : nn.Module<Tensor, Tensor>
{
    private readonly Embedding tokens;
    private readonly Embedding positions;
    private readonly Conv1d mix;
    private readonly ModuleList<Layer> layers;
    private readonly LayerNorm norm;
    private readonly Linear output;

    /// <summary>Makes a model.</summary>
    /// <param name="task">The task.</param>
    /// <param name="attention">What stands in its layers: <c>dense</c>, <c>dma:w=16,form=exp</c> (learned; <c>frozen=1</c> keeps the amplitudes at zero, which leaves a sliding window), or any
    /// mechanism of <see cref="AttentionMechanism.All"/> with its options.</param>
    /// <param name="seed">Seed of libtorch's generator, from which the weights are drawn.</param>
    /// <param name="width">Width.</param>
    /// <param name="heads">Heads of a layer.</param>
    /// <param name="depth">Layers.</param>
    /// <exception cref="ArgumentException">There is no such attention, or a size is out of range.</exception>
    public RecallModel(RecallTask task, string attention, int seed, int width = 32, int heads = 1, int depth = 2)
        : base(nameof(RecallModel))
    {
        ArgumentNullException.ThrowIfNull(task);
        task.Validate();
        var make = Arm(attention);
        using var scope = NewDisposeScope();
        // What the mechanisms draw for themselves must not shift the rest: all begin with the same weights.
        manual_seed(seed + 1_000_003L);
        var attentions = Enumerable.Range(0, depth).Select(layer => make(layer, heads, width / heads)).ToList();
        manual_seed(seed);
        tokens = nn.Embedding(task.Vocabulary, width);
        positions = nn.Embedding(task.Length, width);
        mix = nn.Conv1d(width, width, 3, groups: width);
        layers = new ModuleList<Layer>([.. attentions.Select(attention => new Layer(width, heads, attention))]);
        norm = nn.LayerNorm(width);
        output = nn.Linear(width, task.Vocabulary);
        RegisterComponents();
        foreach (var parameter in parameters())
        {
            parameter.DetachFromDisposeScope();
        }
    }

    /// <summary>Number of trainable numbers.</summary>
    public long ParameterCount => parameters().Sum(parameter => parameter.numel());

    /// <summary>The logits of every token.</summary>
    /// <param name="input">Tokens, int64 <c>[B, N]</c>.</param>
    /// <returns><c>[B, N, V]</c>.</returns>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var hidden = tokens.forward(input) + positions.forward(arange(input.shape[1]));
        hidden = hidden + mix.forward(nn.functional.pad(hidden.transpose(1, 2), [2, 0])).transpose(1, 2);
        foreach (var layer in layers)
        {
            hidden = hidden + layer.forward(hidden);
        }

        return output.forward(norm.forward(hidden)).MoveToOuterDisposeScope();
    }

    /// <summary>Mean cross-entropy where something is asked.</summary>
    public Tensor Loss(Tensor texts, Tensor targets)
    {
        using var scope = NewDisposeScope();
        var logits = forward(texts);
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index: RecallTask.NotAsked).MoveToOuterDisposeScope();
    }

    /// <summary>The share of the questions that are answered rightly.</summary>
    public double Accuracy(Tensor texts, Tensor targets)
    {
        ArgumentNullException.ThrowIfNull(targets);
        using var scope = NewDisposeScope();
        using var still = no_grad();
        var asked = targets.ne(RecallTask.NotAsked);
        var right = forward(texts).argmax(-1).eq(targets).logical_and(asked);
        return right.sum().item<long>() / (double)asked.sum().item<long>();
    }

    private delegate nn.Module? MakeAttention(int layer, int heads, int headWidth);

    private static MakeAttention Arm(string attention)
    {
        var specification = Specification.Parse(attention);
        switch (specification.Name)
        {
            case "dense":
                specification.RefuseUnread();
                return (_, _, _) => null;
            case "dma":
                var (window, form, frozen) = (specification.Integer("w", 16, 1), DynamicMaskMechanism.FormOf(specification), specification.Integer("frozen", 0, 0) > 0);
                specification.RefuseUnread();
                return (_, heads, headWidth) =>
                {
                    var module = new DynamicMaskAttention(heads, heads, headWidth, window, form);
                    using var still = no_grad();
                    if (frozen)
                    {
                        module.Amplitude.zero_();
                        module.Amplitude.requires_grad = false;
                    }
                    else
                    {
                        module.Amplitude.normal_(0, 0.02);
                    }

                    // PyTorch's default of linear layers.
                    var weight = module.get_parameter("dt_proj.weight")!;
                    var bound = 1 / Math.Sqrt(weight.shape[1]);
                    weight.uniform_(-bound, bound);
                    return module;
                };
            default:
                var selectors = AttentionMechanism.Selectors(attention);
                return (layer, _, _) => new Selected(selectors(new(layer, AttentionKind.Self, $"layers.{layer}")));
        }
    }

    private sealed class Layer : nn.Module<Tensor, Tensor>
    {
        private readonly LayerNorm norm;
        private readonly Linear query;
        private readonly Linear key;
        private readonly Linear value;
        private readonly Linear output;
        private readonly nn.Module? attention;
        private readonly int _heads;

        public Layer(int width, int heads, nn.Module? attention)
            : base(nameof(Layer))
        {
            _heads = heads;
            norm = nn.LayerNorm(width);
            (query, key, value, output) = (nn.Linear(width, width, hasBias: false), nn.Linear(width, width, hasBias: false), nn.Linear(width, width, hasBias: false), nn.Linear(width, width, hasBias: false));
            this.attention = attention;
            RegisterComponents();
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            var normal = norm.forward(input);
            Tensor Split(Linear projection) => projection.forward(normal).view(input.shape[0], input.shape[1], _heads, -1).transpose(1, 2);
            var (q, k, v) = (Split(query), Split(key), Split(value));
            var mixed = attention is DynamicMaskAttention dynamic
                ? dynamic.forward(q, k, v)
                : Attention.Compute(q, k, v, new AttentionOptions { Causal = Causality.AlignedToEnd, Selector = (attention as Selected)?.Selector }).transpose(1, 2);
            return output.forward(mixed.reshape(input.shape)).MoveToOuterDisposeScope();
        }
    }

    /// <summary>A selector where a module is expected.</summary>
    private sealed class Selected(AttentionSelector? selector) : nn.Module(nameof(Selected))
    {
        public AttentionSelector? Selector => selector;
    }
}
