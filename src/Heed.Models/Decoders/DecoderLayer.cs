using Heed.Layers;
using Heed.Heads;
using Heed.Kernels;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Decoders;

/// <summary>One layer: norm, attention, residual, norm, feed-forward, residual. In the family Doge the residuals have learned weights, one per feature.</summary>
public sealed class DecoderLayer : nn.Module<Tensor, Tensor>
{
    private readonly nn.Module self_attn;
    private readonly FeedForward mlp;
    private readonly RmsNorm input_layernorm;
    private readonly RmsNorm post_attention_layernorm;
    private readonly StreamPlace _place;
    private readonly Parameter? input_residual;
    private readonly Parameter? post_attention_residual;

    internal DecoderLayer(DecoderConfiguration configuration, int layer, AttentionHooks hooks, Generator? generator, bool initialize)
        : base(nameof(DecoderLayer))
    {
        var site = new AttentionSite(layer, AttentionKind.Self, $"model.layers.{layer}.self_attn");
        _place = new(hooks, layer, $"model.layers.{layer}");
        self_attn = configuration.DynamicMaskWindow is { } window
            ? DynamicMask(configuration, window, site, hooks, generator, initialize) : Dense(configuration, layer, site, hooks, generator, initialize);
        mlp = new FeedForward(configuration, generator, initialize);
        input_layernorm = new RmsNorm(configuration.HiddenSize, configuration.NormEpsilon);
        post_attention_layernorm = new RmsNorm(configuration.HiddenSize, configuration.NormEpsilon);
        if (configuration.DynamicMaskWindow is not null)
        {
            input_residual = Ones(configuration.HiddenSize);
            post_attention_residual = Ones(configuration.HiddenSize);
        }

        RegisterComponents();
    }

    /// <summary>The layer's attention; null in the family Doge.</summary>
    public GatedAttention? SelfAttention => self_attn as GatedAttention;

    /// <summary>The layer's attention in the family Doge; null in others.</summary>
    public DogeAttention? DynamicMaskAttention => self_attn as DogeAttention;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <param name="rotary">Tables of the tokens' positions; null: no positions.</param>
    /// <param name="cache">Earlier tokens, to which these are appended; null: none.</param>
    public Tensor forward(Tensor input, RotaryTables? rotary, KeyValueCache? cache = null)
    {
        using var scope = NewDisposeScope();
        input = _place.Pass(StreamPoint.BlockInput, input);
        var normal = _place.Pass(StreamPoint.AttentionInput, input_layernorm.forward(input));
        var mixed = _place.Pass(
            StreamPoint.AttentionOutput, self_attn is DogeAttention doge ? doge.forward(normal, rotary, cache) : ((GatedAttention)self_attn).forward(normal, rotary, cache));
        var attended = Weighted(input, input_residual) + mixed;
        var fed = _place.Pass(StreamPoint.FeedForwardOutput, mlp.forward(_place.Pass(StreamPoint.FeedForwardInput, post_attention_layernorm.forward(attended)), _place));
        return _place.Pass(StreamPoint.BlockOutput, Weighted(attended, post_attention_residual) + fed).MoveToOuterDisposeScope();
    }

    private static Tensor Weighted(Tensor residual, Parameter? weight) => weight is null ? residual : residual * weight;

    private static Parameter Ones(int width)
    {
        var parameter = new Parameter(ones(width, dtype: float32));
        parameter.DetachFromDisposeScope();
        return parameter;
    }

    private static GatedAttention Dense(DecoderConfiguration configuration, int layer, AttentionSite site, AttentionHooks hooks, Generator? generator, bool initialize) => new(
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
        site, generator, initialize)
    {
        Hooks = hooks,
    };

    private static DogeAttention DynamicMask(DecoderConfiguration configuration, int window, AttentionSite site, AttentionHooks hooks, Generator? generator, bool initialize) => new(
        new DogeAttentionOptions
        {
            Width = configuration.HiddenSize,
            Heads = configuration.Heads,
            KeyValueHeads = configuration.ResolvedKeyValueHeads,
            HeadWidth = configuration.ResolvedHeadWidth,
            WindowSize = window,
            Form = configuration.DynamicMaskForm,
            NormEpsilon = configuration.NormEpsilon,
            QueryKeyValueBias = configuration.QueryKeyValueBias,
            OutputBias = configuration.OutputBias,
        },
        site, generator, initialize)
    {
        Hooks = hooks,
    };
}
