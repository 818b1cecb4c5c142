using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>What <see cref="VMamba"/> and <see cref="EfficientVMamba"/> have in common: pictures embedded as maps with the channels last, stages over them, a norm and a head.</summary>
public abstract class ScanningClassifier : ImageClassifier
{
    private protected ScanningClassifier(string name, int channels, int classes)
        : base(name, channels, classes)
    {
    }

    private protected abstract ClassifierHead Head { get; }

    private protected abstract IEnumerable<nn.Module<Tensor, Tensor>> Stages { get; }

    /// <inheritdoc/>
    public sealed override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Head.forward(Maps(images)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public sealed override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Head.Normalize(Maps(images)).permute(0, 3, 1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>Also knows the names of checkpoints from before the authors renamed parts.</summary>
    /// <inheritdoc/>
    public sealed override string? NameOf(string stored)
    {
        ArgumentNullException.ThrowIfNull(stored);
        return VMambaNames.Current(stored);
    }

    /// <summary>Pictures <c>[B, H, W, channels]</c> to the map that the first stage reads, <c>[B, H', W', C]</c>.</summary>
    private protected abstract Tensor Embed(Tensor images);

    // [B, H, W, C]
    private Tensor Maps(Tensor images)
    {
        CheckImages(images);
        return Stages.Aggregate(Embed(images.permute(0, 2, 3, 1)), (map, stage) => stage.forward(map));
    }
}
