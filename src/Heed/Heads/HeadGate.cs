using Heed.Layers;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>A gate on the outputs of the heads (arXiv 2505.06708, position G1), as a part of a <see cref="MultiHeadAttention"/>. Its parameters are <c>gate.weight</c> (and <c>gate.bias</c>), rows head by head, or
/// <c>gate.logits</c> of a constant gate.</summary>
public sealed class HeadGate : HeadOutputTransform
{
    private readonly GateOptions _options;
    private readonly bool _bias;
    private nn.Module? _gate;

    /// <summary>Makes a gate.</summary>
    /// <param name="options">The gate; its position must be <see cref="GatePosition.SdpaOutput"/> and its layout <see cref="GateLayout.Separate"/>.</param>
    /// <param name="bias">Whether the gate's linear map has a bias.</param>
    /// <exception cref="ArgumentException">The gate acts elsewhere or lives elsewhere, or its options exclude each other.</exception>
    public HeadGate(GateOptions options, bool bias = false)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        if (options.Position != GatePosition.SdpaOutput || options.Layout != GateLayout.Separate)
        {
            throw new ArgumentException(
                $"A HeadGate acts at SdpaOutput with weights of its own, not at {options.Position} with Layout {options.Layout}: use GatedAttention for the other places.", nameof(options));
        }

        (_options, _bias) = (options, bias);
    }

    private long PerHead => _options.Granularity == GateGranularity.Headwise ? 1 : Owner.ValueWidth;

    /// <inheritdoc/>
    public override Tensor? Gates(Tensor input) => _options.Combine == GateCombination.Multiply ? Scores(input) : null;

    /// <inheritdoc/>
    public override Tensor Apply(Tensor input, Tensor heads) => _options.Combine == GateCombination.Multiply ? heads : GateScores.Combine(_options, heads, Scores(input));

    /// <inheritdoc/>
    protected override void Register()
    {
        _gate = _options.Source == GateSource.Constant
            ? new ConstantGate([Owner.Options.Heads, PerHead]) : new Projection(Owner.Options.Width, Owner.Options.Heads * PerHead, _bias);
        Owner.register_module("gate", _gate);
    }

    private Tensor Scores(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        var logits = _gate is ConstantGate constant ? constant.forward() : ((Projection)_gate!).forward(input);
        return GateScores.Of(_options, logits, input.shape[0], input.shape[1], Owner.Options.Heads, PerHead);
    }
}
