using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.BrainEncoders;

/// <summary>What a brain encoder predicts for a batch of feature maps. The tensors belong to the dispose scope of the call.</summary>
/// <param name="Left">Responses of the left hemisphere: <c>[B, V]</c>, or for <see cref="BrainReadout.Regions"/> what every region predicts, <c>[B, V, R / 2]</c>.</param>
/// <param name="Right">Those of the right hemisphere.</param>
/// <param name="Tokens">The token of every query, <c>[B, R, D]</c>; null: the model has none.</param>
/// <param name="Attention">Where every query looked, <c>[B, R, P]</c> for every layer, averaged over heads, where it was asked for; places row by row.</param>
public sealed record BrainPrediction(Tensor Left, Tensor Right, Tensor? Tokens, IReadOnlyList<Tensor> Attention)
{
    /// <summary>The responses of vertices.</summary>
    /// <param name="leftMask">Regions of the left hemisphere, <c>[R / 2, V]</c>, where regions predict; otherwise null.</param>
    /// <param name="rightMask">Those of the right hemisphere.</param>
    /// <returns><c>[B, V]</c> of each hemisphere.</returns>
    /// <exception cref="ArgumentException">Regions predict and there is no mask, or it does not fit, or there is one and no regions.</exception>
    public (Tensor Left, Tensor Right) Vertices(Tensor? leftMask = null, Tensor? rightMask = null) => Left.dim() == 3
        ? leftMask is not null && rightMask is not null ? (RoiReadout.Combine(Left, leftMask), RoiReadout.Combine(Right, rightMask))
            : throw new ArgumentException("Every region predicts every vertex: give the masks that say which vertices belong to which region.", nameof(leftMask))
        : leftMask is null && rightMask is null ? (Left, Right)
            : throw new ArgumentException("Only a readout by regions takes masks: leave them out.", nameof(leftMask));
}

/// <summary>Predicts responses of the brain (or any vector per picture) from the feature map of a frozen vision model.</summary>
public abstract class BrainModel : nn.Module
{
    private protected BrainModel(string name)
        : base(name)
    {
    }

    /// <summary>The hooks of every attention call in the model.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>Predicts.</summary>
    /// <param name="features">Feature maps, <c>[B, C, h, w]</c>.</param>
    /// <param name="paddingMask">Places that hold no picture, boolean <c>[B, h, w]</c>; null: there are none.</param>
    /// <param name="withAttention">Whether <see cref="BrainPrediction.Attention"/> is wanted.</param>
    /// <exception cref="ArgumentException">A shape does not fit the model.</exception>
    public abstract BrainPrediction Forward(Tensor features, Tensor? paddingMask = null, bool withAttention = false);

    /// <summary>What training adds to the mean squared errors; null: nothing.</summary>
    public virtual Tensor? Penalty() => null;

    /// <summary>The paper's loss: the mean squared error of each hemisphere, added.</summary>
    /// <param name="vertices">Predicted responses, <c>[B, V]</c> of each hemisphere.</param>
    /// <param name="leftTarget">Measured ones of the left hemisphere.</param>
    /// <param name="rightTarget">Those of the right.</param>
    /// <returns>A scalar.</returns>
    /// <exception cref="ArgumentException">Predicted and measured responses have different shapes.</exception>
    public static Tensor Loss((Tensor Left, Tensor Right) vertices, Tensor leftTarget, Tensor rightTarget)
    {
        ArgumentNullException.ThrowIfNull(leftTarget);
        ArgumentNullException.ThrowIfNull(rightTarget);
        if (!vertices.Left.shape.SequenceEqual(leftTarget.shape) || !vertices.Right.shape.SequenceEqual(rightTarget.shape))
        {
            throw new ArgumentException(
                $"Measured responses must have the shapes of the predicted ones, {Shape(vertices.Left)} and {Shape(vertices.Right)}, not {Shape(leftTarget)} and {Shape(rightTarget)}.", nameof(leftTarget));
        }

        using var scope = NewDisposeScope();
        return (nn.functional.mse_loss(vertices.Left, leftTarget) + nn.functional.mse_loss(vertices.Right, rightTarget)).MoveToOuterDisposeScope();
    }

    private protected static string Shape(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";

    private protected static void CheckMap(Tensor features, int channels, Tensor? paddingMask)
    {
        ArgumentNullException.ThrowIfNull(features);
        if (features.dim() != 4 || features.shape[1] != channels)
        {
            throw new ArgumentException($"Feature maps must be [batch, {channels}, height, width], not {Shape(features)}.", nameof(features));
        }

        if (paddingMask is not null && (paddingMask.dtype != ScalarType.Bool || !paddingMask.shape.SequenceEqual([features.shape[0], features.shape[2], features.shape[3]])))
        {
            throw new ArgumentException($"The padding mask must be boolean [{features.shape[0]}, {features.shape[2]}, {features.shape[3]}], not {paddingMask.dtype} {Shape(paddingMask)}.", nameof(paddingMask));
        }
    }
}

/// <summary>A brain model that makes a token per query and reads responses from the tokens: <c>lh_embed.0</c> and <c>rh_embed.0</c>, linear from the token's width to the vertices.</summary>
public abstract class TokenBrainModel : BrainModel
{
    private readonly Sequential lh_embed;
    private readonly Sequential rh_embed;
    private readonly BrainReadoutOptions _options;

    private protected TokenBrainModel(string name, BrainReadoutOptions options, int width)
        : base(name)
    {
        _options = options;
        (lh_embed, rh_embed) = (nn.Sequential(nn.Linear(width, options.LeftVertices)), nn.Sequential(nn.Linear(width, options.RightVertices)));
        // By name: the fields of a base class are not found by themselves.
        register_module("lh_embed", lh_embed);
        register_module("rh_embed", rh_embed);
    }

    private protected (Tensor Left, Tensor Right) Read(Tensor tokens)
    {
        switch (_options.Readout)
        {
            case BrainReadout.Regions:
                var half = _options.Queries / 2;
                return (lh_embed.forward(tokens.narrow(1, 0, half)).transpose(1, 2), rh_embed.forward(tokens.narrow(1, half, half)).transpose(1, 2));
            case BrainReadout.Vertices:
                // Every vertex is read from its own token alone: the rest of the product is never made.
                return (Own(tokens.narrow(1, 0, _options.LeftVertices), lh_embed), Own(tokens.narrow(1, _options.LeftVertices, _options.RightVertices), rh_embed));
            default:
                return (lh_embed.forward(tokens.select(1, 0)), rh_embed.forward(tokens.select(1, 1)));
        }
    }

    private static Tensor Own(Tensor tokens, Sequential readout)
    {
        var linear = (Linear)readout[0];
        return (tokens * linear.weight).sum(-1) + linear.bias!;
    }
}
