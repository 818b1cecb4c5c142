using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>From the logits of a gate to its scores: what every gated module shares.</summary>
internal static class GateScores
{
    /// <summary>Scores <c>[B, N, heads, perHead]</c> (one head where they are shared) of logits <c>[B, N, heads * perHead]</c>, or <c>[heads, perHead]</c> of a constant gate.</summary>
    public static Tensor Of(GateOptions options, Tensor logits, long batch, long tokens, long heads, long perHead)
    {
        var scores = Activate(options.Activation, logits);
        scores = options.Source == GateSource.Constant ? scores.expand(batch, tokens, heads, perHead) : scores.view(batch, tokens, heads, perHead);
        return options.HeadShared ? scores.mean([2L], keepdim: true) : scores;
    }

    public static Tensor Activate(GateActivation activation, Tensor logits)
    {
        using Scalar half = 0.5;
        return activation switch
        {
            GateActivation.Sigmoid => sigmoid(logits),
            GateActivation.SiLU => nn.functional.silu(logits),
            GateActivation.NonSparseSigmoid => (sigmoid(logits) * half) + half,
            _ => logits,
        };
    }

    public static Tensor Combine(GateOptions options, Tensor gated, Tensor scores) => options.Combine == GateCombination.Multiply ? gated * scores : gated + scores;
}

/// <summary>Logits of a gate that depends on nothing: learned, zero at first, under the name <c>logits</c>.</summary>
internal sealed class ConstantGate : nn.Module
{
    private readonly Parameter logits;

    public ConstantGate(long[] shape)
        : base(nameof(ConstantGate))
    {
        logits = Parameters.Make(shape, tensor => tensor.zero_());
        RegisterComponents();
    }

    public Parameter forward() => logits;
}
