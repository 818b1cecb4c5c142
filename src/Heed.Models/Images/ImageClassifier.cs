using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>A model that says which class a picture belongs to. Attention in it goes through the door and so takes probes and edits (<see cref="Hooks"/>); mixers that can show maps over the picture are
/// <see cref="Heed.Probes.IMapSource"/>.</summary>
public abstract class ImageClassifier : nn.Module<Tensor, Tensor>
{
    /// <summary>Makes the base of a model.</summary>
    /// <param name="name">The model's name.</param>
    /// <param name="channels">Channels of a picture, at least 1.</param>
    /// <param name="classes">Number of classes, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    protected ImageClassifier(string name, int channels, int classes)
        : base(name)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(channels, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(classes, 1);
        (Channels, Classes) = (channels, classes);
    }

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; }

    /// <summary>Number of classes.</summary>
    public int Classes { get; }

    /// <summary>The hooks of every attention call in the model.</summary>
    public AttentionHooks Hooks { get; } = new();

    /// <summary>The last map before the head pools it.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <returns><c>[B, C', H', W']</c>: channels of the last stage over the grid of its positions (without class tokens).</returns>
    public abstract Tensor Features(Tensor images);

    /// <summary>What training on a batch minimises, before <see cref="ExtraLoss"/>: the mean cross-entropy, nats.</summary>
    /// <param name="images"><c>[B, C, H, W]</c>.</param>
    /// <param name="labels"><c>[B]</c> int64.</param>
    /// <param name="labelSmoothing">Share of the probability that is spread over all classes.</param>
    public virtual Tensor Loss(Tensor images, Tensor labels, double labelSmoothing = 0)
    {
        using var scope = NewDisposeScope();
        return nn.functional.cross_entropy(forward(images), labels, label_smoothing: labelSmoothing).MoveToOuterDisposeScope();
    }

    /// <summary>What the model adds to the loss of its last forward pass in training, for example its routers' balance; null: nothing.</summary>
    public virtual Tensor? ExtraLoss() => null;

    /// <summary>The name under which the model holds a tensor of the authors' checkpoints.</summary>
    /// <param name="stored">The tensor's name in the checkpoint.</param>
    /// <returns>The name of a parameter or buffer of this model; null: the tensor is not needed (a table that the model computes, for example).</returns>
    public virtual string? NameOf(string stored) => stored;

    /// <summary>Throws where pictures are not what the model reads.</summary>
    /// <exception cref="ArgumentException">They are not <c>[B, channels, H, W]</c>.</exception>
    protected void CheckImages(Tensor images)
    {
        ArgumentNullException.ThrowIfNull(images);
        if (images.dim() != 4 || images.shape[1] != Channels)
        {
            throw new ArgumentException($"Pictures must be [batch, {Channels}, height, width], not [{string.Join(", ", images.shape)}].", nameof(images));
        }
    }
}
