using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Speech;

/// <summary>Keys and values <c>[B, H, M, D]</c> of a context that many queries read.</summary>
internal readonly record struct ContextKeys(Tensor Key, Tensor Value);

/// <summary>Attention of encoder-decoder models, with the names of Whisper's checkpoints: <c>q_proj</c>, <c>k_proj</c> (without bias), <c>v_proj</c>, <c>out_proj</c>.</summary>
internal sealed class SpeechAttention : nn.Module
{
    private readonly Projection k_proj;
    private readonly Projection v_proj;
    private readonly Projection q_proj;
    private readonly Projection out_proj;
    private readonly int _heads;
    private readonly AttentionSite _site;
    private readonly AttentionHooks _hooks;

    public SpeechAttention(int width, int heads, AttentionSite site, AttentionHooks hooks)
        : base(nameof(SpeechAttention))
    {
        (_heads, _site, _hooks) = (heads, site, hooks);
        (k_proj, v_proj, q_proj, out_proj) = (new(width, width, false), new(width, width, true), new(width, width, true), new(width, width, true));
        RegisterComponents();
    }

    public ContextKeys Keys(Tensor context) => new(Split(k_proj.forward(context)), Split(v_proj.forward(context)));

    public Tensor forward(Tensor input, ContextKeys context, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        var mixed = Attention.Compute(Split(q_proj.forward(input)), context.Key, context.Value, options, _site, _hooks);
        return out_proj.forward(mixed.transpose(1, 2).reshape(input.shape)).MoveToOuterDisposeScope();
    }

    private Tensor Split(Tensor tokens) => tokens.view(tokens.shape[0], tokens.shape[1], _heads, -1).transpose(1, 2);
}

/// <summary>A layer of the encoder: self-attention and a feed-forward part, each after a norm.</summary>
internal sealed class SpeechEncoderLayer : nn.Module
{
    private readonly SpeechAttention self_attn;
    private readonly LayerNorm self_attn_layer_norm;
    private readonly Projection fc1;
    private readonly Projection fc2;
    private readonly LayerNorm final_layer_norm;
    private readonly StreamPlace _place;

    public SpeechEncoderLayer(SpeechConfiguration configuration, int layer, AttentionHooks hooks)
        : base(nameof(SpeechEncoderLayer))
    {
        var name = $"model.encoder.layers.{layer}";
        _place = new(hooks, layer, name);
        self_attn = new(configuration.Width, configuration.EncoderHeads, new(layer, AttentionKind.Self, $"{name}.self_attn"), hooks);
        self_attn_layer_norm = nn.LayerNorm(configuration.Width);
        (fc1, fc2) = (new(configuration.Width, configuration.ResolvedEncoderInner, true), new(configuration.ResolvedEncoderInner, configuration.Width, true));
        final_layer_norm = nn.LayerNorm(configuration.Width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    public Tensor forward(Tensor states, AttentionOptions options)
    {
        using var scope = NewDisposeScope();
        states = _place.Pass(StreamPoint.BlockInput, states);
        var normal = _place.Pass(StreamPoint.AttentionInput, self_attn_layer_norm.forward(states));
        states = states + _place.Pass(StreamPoint.AttentionOutput, self_attn.forward(normal, self_attn.Keys(normal), options));
        states = states + SpeechFeedForward.Compute(final_layer_norm, fc1, fc2, states, _place);
        return _place.Pass(StreamPoint.BlockOutput, states).MoveToOuterDisposeScope();
    }
}

/// <summary>A layer of the decoder: self-attention, cross-attention over the encoder's output, and a feed-forward part, each after a norm.</summary>
internal sealed class SpeechDecoderLayer : nn.Module
{
    private readonly SpeechAttention self_attn;
    private readonly LayerNorm self_attn_layer_norm;
    private readonly SpeechAttention encoder_attn;
    private readonly LayerNorm encoder_attn_layer_norm;
    private readonly Projection fc1;
    private readonly Projection fc2;
    private readonly LayerNorm final_layer_norm;
    private readonly StreamPlace _place;
    private readonly int _layer;

    public SpeechDecoderLayer(SpeechConfiguration configuration, int layer, AttentionHooks hooks)
        : base(nameof(SpeechDecoderLayer))
    {
        var name = $"model.decoder.layers.{layer}";
        (_place, _layer) = (new(hooks, layer, name), layer);
        self_attn = new(configuration.Width, configuration.DecoderHeads, new(layer, AttentionKind.Self, $"{name}.self_attn"), hooks);
        self_attn_layer_norm = nn.LayerNorm(configuration.Width);
        encoder_attn = new(configuration.Width, configuration.DecoderHeads, new(layer, AttentionKind.Cross, $"{name}.encoder_attn"), hooks);
        encoder_attn_layer_norm = nn.LayerNorm(configuration.Width);
        (fc1, fc2) = (new(configuration.Width, configuration.ResolvedDecoderInner, true), new(configuration.ResolvedDecoderInner, configuration.Width, true));
        final_layer_norm = nn.LayerNorm(configuration.Width);
        RegisterComponents();
        Parameters.Keep(this);
    }

    public ContextKeys CrossKeys(Tensor encoded) => encoder_attn.Keys(encoded);

    public Tensor forward(Tensor states, ContextKeys context, AttentionOptions crossOptions, KeyValueCache? cache)
    {
        using var scope = NewDisposeScope();
        states = _place.Pass(StreamPoint.BlockInput, states);
        var normal = _place.Pass(StreamPoint.AttentionInput, self_attn_layer_norm.forward(states));
        var own = self_attn.Keys(normal);
        if (cache is not null)
        {
            var (key, value) = cache.Append(_layer, own.Key, own.Value);
            own = new(key, value);
        }

        states = states + _place.Pass(StreamPoint.AttentionOutput, self_attn.forward(normal, own, AttentionOptions.CausalSelf));
        states = states + encoder_attn.forward(encoder_attn_layer_norm.forward(states), context, crossOptions);
        states = states + SpeechFeedForward.Compute(final_layer_norm, fc1, fc2, states, _place);
        return _place.Pass(StreamPoint.BlockOutput, states).MoveToOuterDisposeScope();
    }
}

/// <summary>The feed-forward part that both kinds of layers have under the same names.</summary>
internal static class SpeechFeedForward
{
    public static Tensor Compute(LayerNorm norm, Projection fc1, Projection fc2, Tensor states, StreamPlace place)
    {
        var input = place.Pass(StreamPoint.FeedForwardInput, norm.forward(states));
        var hidden = place.Pass(StreamPoint.Gate, fc1.forward(input));
        var active = place.Pass(StreamPoint.Product, place.Pass(StreamPoint.Activation, nn.functional.gelu(hidden)));
        return place.Pass(StreamPoint.FeedForwardOutput, fc2.forward(active));
    }
}
