using Heed.Heads;
using Heed.Kernels;
using static TorchSharp.torch;

namespace Heed.Models.Decoders;

/// <summary>One layer: norm, attention, residual, norm, feed-forward, residual.</summary>
public sealed class DecoderLayer : nn.Module<Tensor, Tensor>
{
    private readonly GatedAttention self_attn;
    private readonly FeedForward mlp;
    private readonly RmsNorm input_layernorm;
    private readonly RmsNorm post_attention_layernorm;

    internal DecoderLayer(DecoderConfiguration configuration, int layer, AttentionHooks hooks, Generator? generator, bool initialize)
        : base(nameof(DecoderLayer))
    {
        self_attn = new GatedAttention(
            new GatedAttentionOptions
            {
                Width = configuration.HiddenSize,
                Heads = configuration.Heads,
                KeyValueHeads = configuration.ResolvedKeyValueHeads,
                HeadWidth = configuration.ResolvedHeadWidth,
                QueryKeyNorm = configuration.QueryKeyNorm,
                NormEpsilon = configuration.NormEpsilon,
                QueryKeyValueBias = configuration.QueryKeyValueBias,
                OutputBias = configuration.OutputBias,
                Gate = configuration.OutputGate == OutputGate.None ? GateOptions.None : new GateOptions
                {
                    Layout = GateLayout.WithinQueryProjection,
                    Granularity = configuration.OutputGate == OutputGate.Headwise ? GateGranularity.Headwise : GateGranularity.Elementwise,
                },
                Attention = new AttentionOptions { Causal = Causality.AlignedToEnd, WindowBefore = configuration.WindowOf(layer) - 1 },
            },
            new AttentionSite(layer, AttentionKind.Self, $"model.layers.{layer}.self_attn"), generator, initialize)
        {
            Hooks = hooks,
        };
        mlp = new FeedForward(configuration, generator, initialize);
        input_layernorm = new RmsNorm(configuration.HiddenSize, configuration.NormEpsilon);
        post_attention_layernorm = new RmsNorm(configuration.HiddenSize, configuration.NormEpsilon);
        RegisterComponents();
    }

    /// <summary>The layer's attention.</summary>
    public GatedAttention SelfAttention => self_attn;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="rotary">Tables of the tokens' positions; null: no positions.</param>
    /// <param name="cache">Earlier tokens, to which these are appended; null: none.</param>
    public Tensor forward(Tensor input, RotaryTables? rotary, KeyValueCache? cache = null)
    {
        using var scope = NewDisposeScope();
        var attended = input + self_attn.forward(input_layernorm.forward(input), rotary, cache);
        return (attended + mlp.forward(post_attention_layernorm.forward(attended))).MoveToOuterDisposeScope();
    }
}
