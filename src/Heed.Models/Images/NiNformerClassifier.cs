using Heed.Heads;
using Heed.Layers;
using Heed.Mixers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of a <see cref="NiNformerClassifier"/>; the defaults are the authors' for CIFAR-10.</summary>
public sealed record NiNformerOptions
{
    /// <summary>Side of the (square) pictures, a multiple of the patch.</summary>
    public int ImageSize { get; init; } = 32;

    /// <summary>Side of a patch.</summary>
    public int PatchSize { get; init; } = 4;

    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 10;

    /// <summary>Width d of a token.</summary>
    public int Width { get; init; } = 256;

    /// <summary>Hidden width of all perceptrons.</summary>
    public int Hidden { get; init; } = 512;

    /// <summary>Number of blocks.</summary>
    public int Depth { get; init; } = 4;

    /// <summary>Share of activations dropped in training.</summary>
    public double Dropout { get; init; } = 0.5;

    /// <summary>What combines tokens and gate: the paper's product, or a sum in its place.</summary>
    public GateCombination Combination { get; init; } = GateCombination.Multiply;

    /// <summary>Positions along a side.</summary>
    public int Grid => ImageSize / PatchSize;
}

/// <summary>NiNformer as a classifier (arXiv 2403.02411, the authors' training script): patches, <see cref="NiNBlock"/>s, the mean of the tokens, a linear head. There are no positions: the perceptrons along
/// the tokens know their places. Parameter names: <c>patcher</c>, <c>model.{i}</c>, <c>classifier</c>.</summary>
public sealed class NiNformerClassifier : ImageClassifier
{
    private readonly Conv2d patcher;
    private readonly Sequential model;
    private readonly Linear classifier;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">The picture does not divide into patches, or a size is not positive.</exception>
    public NiNformerClassifier(NiNformerOptions options)
        : base(nameof(NiNformerClassifier), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        if (options.ImageSize < 1 || options.PatchSize < 1 || options.ImageSize % options.PatchSize != 0 || options.Depth < 1)
        {
            throw new ArgumentException($"Pictures of side {options.ImageSize} must divide into patches of side {options.PatchSize}, and the depth ({options.Depth}) must be positive.", nameof(options));
        }

        Options = options;
        patcher = nn.Conv2d(options.Channels, options.Width, options.PatchSize, stride: options.PatchSize);
        model = nn.Sequential(Enumerable.Range(0, options.Depth).Select(_ =>
            (nn.Module<Tensor, Tensor>)new NiNBlock(options.Width, options.Hidden, options.Grid * options.Grid, options.Dropout, options.Combination)).ToArray());
        classifier = nn.Linear(options.Width, options.Classes);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public NiNformerOptions Options { get; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return classifier.forward(Tokens(images).mean([1L])).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return Tokens(images).transpose(1, 2).reshape(images.shape[0], Options.Width, Options.Grid, Options.Grid).MoveToOuterDisposeScope();
    }

    private Tensor Tokens(Tensor images)
    {
        CheckImages(images);
        if (images.shape[2] != Options.ImageSize || images.shape[3] != Options.ImageSize)
        {
            throw new ArgumentException($"The model reads pictures of {Options.ImageSize} x {Options.ImageSize} pixels, not {images.shape[2]} x {images.shape[3]}: resize them.", nameof(images));
        }

        return model.forward(patcher.forward(images).flatten(2).transpose(1, 2));
    }
}
