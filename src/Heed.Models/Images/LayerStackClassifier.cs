using Heed.Heads;
using Heed.Layers;
using Heed.Mixers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>What weighs the stacked layers of an encoder before the convolutional head of <see cref="LayerStackHead"/>.</summary>
public enum LayerWeighting
{
    /// <summary>Nothing: the control that the paper lacks.</summary>
    Identity,

    /// <summary>Form B of Gaussian attention (<see cref="LayerwiseGaussianAttention"/>).</summary>
    Gaussian,

    /// <summary>Form B before attention among the layers (<see cref="GroupedQueryGaussianAttention"/>).</summary>
    GroupedQueryGaussian,

    /// <summary>Multi-head self-attention among the layers, the paper's baseline.</summary>
    MultiHead,
}

/// <summary>The shape of a <see cref="LayerStackHead"/>.</summary>
public sealed record LayerStackHeadOptions
{
    /// <summary>Layers L of the stack.</summary>
    public required int Layers { get; init; }

    /// <summary>Features F of a layer, a square number (1024 is a picture of 32 x 32).</summary>
    public required int Features { get; init; }

    /// <summary>Number of classes.</summary>
    public required int Classes { get; init; }

    /// <summary>What weighs the layers.</summary>
    public LayerWeighting Weighting { get; init; } = LayerWeighting.Gaussian;

    /// <summary>Heads of the weighting. For Gaussian attention a divisor of the layers, otherwise of the features.</summary>
    public int Heads { get; init; } = 1;

    /// <summary>Channels between the convolutions.</summary>
    public int Channels { get; init; } = 512;

    /// <summary>Width of the attention of <see cref="LayerWeighting.GroupedQueryGaussian"/>, a square number; 0: the features.</summary>
    public int AttentionWidth { get; init; }

    /// <summary>Query heads of that attention.</summary>
    public int QueryHeads { get; init; } = 8;

    /// <summary>Key heads of that attention.</summary>
    public int KeyHeads { get; init; } = 2;
}

/// <summary>The head of the experiments of arXiv 2401.11143: the outputs of all layers of a (frozen) encoder, perhaps weighted, each laid out as a square picture; two 3 x 3 convolutions across the layers, a linear map to classes.
/// Parameters <c>weighting</c>, <c>conv1</c>, <c>conv2</c>, <c>fc</c>.</summary>
public sealed class LayerStackHead : nn.Module<Tensor, Tensor>
{
    private readonly nn.Module? weighting;
    private readonly Conv2d conv1;
    private readonly Conv2d conv2;
    private readonly Linear fc;
    private readonly LayerStackHeadOptions _options;
    private readonly int _side;

    /// <summary>Makes a head; weights by Glorot's uniform distribution.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">Features are no square number, or heads do not divide what they must.</exception>
    public LayerStackHead(LayerStackHeadOptions options)
        : base(nameof(LayerStackHead))
    {
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        var width = options.Weighting == LayerWeighting.GroupedQueryGaussian && options.AttentionWidth > 0 ? options.AttentionWidth : options.Features;
        _side = (int)Math.Sqrt(width);
        if (options.Layers < 1 || options.Classes < 1 || options.Channels < 1 || width < 1 || _side * _side != width)
        {
            throw new ArgumentException($"The features of a layer are laid out as a square picture: {width} is no square number, or layers, classes or channels are below 1.", nameof(options));
        }

        weighting = options.Weighting switch
        {
            LayerWeighting.Gaussian => new LayerwiseGaussianAttention(options.Layers, options.Features, options.Heads),
            LayerWeighting.GroupedQueryGaussian => new GroupedQueryGaussianAttention(options.Layers, options.Features, options.Heads, width, options.QueryHeads, options.KeyHeads),
            LayerWeighting.MultiHead => new MultiHeadAttention(new() { Width = options.Features, Heads = options.Heads }),
            _ => null,
        };
        (conv1, conv2) = (nn.Conv2d(options.Layers, options.Channels, 3, padding: 1), nn.Conv2d(options.Channels, options.Layers, 3, padding: 1));
        fc = nn.Linear(options.Layers * width, options.Classes);
        foreach (var (weight, bias) in new[] { (conv1.weight, conv1.bias), (conv2.weight, conv2.bias), (fc.weight, fc.bias) })
        {
            nn.init.xavier_uniform_(weight!);
            nn.init.zeros_(bias!);
        }

        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The shape.</summary>
    public LayerStackHeadOptions Options => _options;

    /// <summary>Called with the weights <c>[B, L, F]</c> of Gaussian attention at each call, without gradient, valid until it returns; null: nobody is told.</summary>
    public Action<Tensor>? OnWeights { get; set; }

    /// <summary>The scores of the classes.</summary>
    /// <param name="stack"><c>[B, L, F]</c>.</param>
    /// <returns><c>[B, classes]</c>.</returns>
    /// <exception cref="ArgumentException">The stack has another shape.</exception>
    public override Tensor forward(Tensor stack)
    {
        using var scope = NewDisposeScope();
        return fc.forward(Picture(stack).flatten(1)).MoveToOuterDisposeScope();
    }

    /// <summary>The maps before the classes: <c>[B, L, side, side]</c>.</summary>
    /// <param name="stack"><c>[B, L, F]</c>.</param>
    /// <exception cref="ArgumentException">The stack has another shape.</exception>
    public Tensor Picture(Tensor stack)
    {
        ArgumentNullException.ThrowIfNull(stack);
        if (stack.dim() != 3 || stack.shape[1] != _options.Layers || stack.shape[2] != _options.Features)
        {
            throw new ArgumentException($"The stack is [batch, {_options.Layers} layers, {_options.Features}]; [{string.Join(", ", stack.shape)}] was given.", nameof(stack));
        }

        using var scope = NewDisposeScope();
        var weighted = weighting switch
        {
            LayerwiseGaussianAttention gaussian => Told(gaussian.forward(stack)),
            nn.Module<Tensor, Tensor> attention => attention.forward(stack),
            _ => stack,
        };
        var picture = weighted.reshape(stack.shape[0], _options.Layers, _side, _side);
        return conv2.forward(conv1.forward(picture).relu()).relu().MoveToOuterDisposeScope();

        Tensor Told((Tensor Output, Tensor Weights) result)
        {
            OnWeights?.Invoke(result.Weights);
            return result.Output;
        }
    }
}

/// <summary>A vision transformer whose head reads the mean tokens of all its layers, weighted (arXiv 2401.11143 on a picture model). Its maps show, for every layer, how strong the tokens are over the picture, and what the
/// weighting keeps of the layer.</summary>
public sealed class LayerStackClassifier : ImageClassifier, IMapSource
{
    private readonly VisionTransformer encoder;
    private readonly LayerStackHead stack;

    /// <summary>Makes a model.</summary>
    /// <param name="encoder">The encoder, whose own head is not used. It belongs to this model from now on.</param>
    /// <param name="head">The shape of the head: layers, features and classes are the encoder's.</param>
    /// <exception cref="ArgumentException">Head and encoder do not fit.</exception>
    public LayerStackClassifier(VisionTransformer encoder, LayerStackHeadOptions head)
        : base(nameof(LayerStackClassifier), (encoder ?? throw new ArgumentNullException(nameof(encoder))).Channels, encoder.Classes)
    {
        ArgumentNullException.ThrowIfNull(head);
        if (head.Layers != encoder.Options.Depth || head.Features != encoder.Options.Width || head.Classes != encoder.Classes)
        {
            throw new ArgumentException(
                $"The head reads {head.Layers} layers of {head.Features} for {head.Classes} classes, the encoder has {encoder.Options.Depth} of {encoder.Options.Width} for {encoder.Classes}.", nameof(head));
        }

        this.encoder = encoder;
        stack = new(head);
        RegisterComponents();

        // The encoder's own head stays where its checkpoints have it, and learns nothing here.
        foreach (var (_, parameter) in encoder.named_parameters().Where(entry => entry.name.StartsWith("head.", StringComparison.Ordinal) || entry.name.StartsWith("norm.", StringComparison.Ordinal)))
        {
            parameter.requires_grad_(false);
        }
    }

    /// <summary>The encoder.</summary>
    public VisionTransformer Encoder => encoder;

    /// <summary>The head.</summary>
    public LayerStackHead Head => stack;

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        CheckImages(images);
        using var scope = NewDisposeScope();
        return stack.forward(Levels(images)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        CheckImages(images);
        using var scope = NewDisposeScope();
        return stack.Picture(Levels(images)).MoveToOuterDisposeScope();
    }

    /// <summary>The mean token of every layer, <c>[B, L, F]</c>.</summary>
    private Tensor Levels(Tensor images)
    {
        var tokens = encoder.LayerTokens(images);
        tokens = encoder.Options.ClassToken ? tokens.narrow(2, 1, tokens.shape[2] - 1) : tokens;
        if (Recorder is { } recorder)
        {
            var (batch, layers, grid) = (tokens.shape[0], tokens.shape[1], encoder.Options.Grid);
            using var quiet = no_grad();
            using var strength = linalg.norm(tokens, dims: [-1]);
            using var maps = strength.reshape(batch, layers, grid, grid);
            recorder.Record(this, "layer strength", maps, [.. Enumerable.Range(0, (int)layers).Select(layer => $"layer {layer}")]);
            stack.OnWeights = weights =>
            {
                using var picture = weights.unsqueeze(1);
                recorder.Record(this, "importance", picture, ["weight of layer (row) and feature (column)"]);
            };
        }
        else
        {
            stack.OnWeights = null;
        }

        return tokens.mean([2L]);
    }
}
