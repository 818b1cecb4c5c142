using Heed.Layers;
using Heed.Mixers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Models.Images;

/// <summary>The shape of an <see cref="OverLoCK"/>.</summary>
public sealed record OverLoCKOptions
{
    /// <summary>Channels of a picture.</summary>
    public int Channels { get; init; } = 3;

    /// <summary>Number of classes.</summary>
    public int Classes { get; init; } = 1000;

    /// <summary>Blocks of the four stages of Base-Net (1 to 3) and Overview-Net (4).</summary>
    public required IReadOnlyList<int> Depth { get; init; }

    /// <summary>Blocks of the two stages of Focus-Net.</summary>
    public required IReadOnlyList<int> SubDepth { get; init; }

    /// <summary>Channels of the four stages.</summary>
    public required IReadOnlyList<int> EmbedDim { get; init; }

    /// <summary>Sides of the large kernels of the four stages.</summary>
    public IReadOnlyList<int> KernelSize { get; init; } = [17, 15, 13, 7];

    /// <summary>Side of the small dynamic kernels.</summary>
    public int SmallKernelSize { get; init; } = 5;

    /// <summary>Hidden channels over channels, in the four stages.</summary>
    public IReadOnlyList<double> FeedForwardRatio { get; init; } = [4, 4, 4, 4];

    /// <summary>Heads of the two stages of Focus-Net.</summary>
    public required IReadOnlyList<int> SubHeads { get; init; }

    /// <summary>Hidden channels over channels, in the two stages of Focus-Net.</summary>
    public IReadOnlyList<double> SubFeedForwardRatio { get; init; } = [3, 3];

    /// <summary>First values of the layer scales of the four stages; null: none.</summary>
    public IReadOnlyList<double?> LayerScale { get; init; } = [null, null, 1, 1];

    /// <summary>Whether layer scales stand at the identity path.</summary>
    public bool ScaleIdentity { get; init; } = true;

    /// <summary>Channels before the classifier.</summary>
    public int Projection { get; init; } = 1024;

    /// <summary>Probability of dropping the last block's branches in training; earlier ones in proportion.</summary>
    public double DropPath { get; init; }

    /// <summary>Whether the re-parameterised convolutions are made in their merged form.</summary>
    public bool Deploy { get; init; }

    /// <summary>Strides of the stem (4, 2 or 1) and of the transitions to stages 2, 3 and 4 (2 or 1). The paper's are 4, 2, 2, 2; small pictures need fewer.</summary>
    public IReadOnlyList<int> Strides { get; init; } = [4, 2, 2, 2];

    /// <summary>Whether Focus-Net is given the context; otherwise zeros. A control: the paper's is true.</summary>
    public bool UsesContext { get; init; } = true;

    /// <summary>What Focus-Net's kernels are made from.</summary>
    public FocusKernels Kernels { get; init; }
}

/// <summary>
/// OverLoCK (arXiv 2502.20087): a convolutional network that looks twice. Base-Net makes features at 1/16, Overview-Net runs on to 1/32 and tells what the picture is about, and Focus-Net goes over the features again with that
/// context beside them and in the keys of its dynamic kernels (<see cref="FocusBlock"/>). Parameter names are those of the authors' checkpoints.
/// </summary>
public sealed class OverLoCK : ImageClassifier
{
    private readonly Sequential patch_embed1;
    private readonly Sequential patch_embed2;
    private readonly Sequential patch_embed3;
    private readonly Sequential patch_embed4;
    private readonly ModuleList<RepConvBlock> blocks1;
    private readonly ModuleList<RepConvBlock> blocks2;
    private readonly ModuleList<RepConvBlock> blocks3;
    private readonly ModuleList<RepConvBlock> blocks4;
    private readonly Conv2d high_level_proj;
    private readonly ContextDownsampling patch_embedx;
    private readonly ModuleList<FocusBlock> sub_blocks3;
    private readonly ModuleList<FocusBlock> sub_blocks4;
    private readonly Sequential head;
    private readonly Sequential aux_head;

    /// <summary>Makes a model.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A list has another length than it should, or a block's shape makes no sense.</exception>
    public OverLoCK(OverLoCKOptions options)
        : base(nameof(OverLoCK), (options ?? throw new ArgumentNullException(nameof(options))).Channels, options.Classes)
    {
        Check(options.Depth.Count == 4 && options.EmbedDim.Count == 4 && options.KernelSize.Count == 4 && options.FeedForwardRatio.Count == 4 && options.LayerScale.Count == 4 && options.Strides.Count == 4,
            "Depth, channels, kernel sides, perceptron ratios, layer scales and strides are four each.");
        Check(options.SubDepth.Count == 2 && options.SubHeads.Count == 2 && options.SubFeedForwardRatio.Count == 2, "Depth, heads and perceptron ratios of Focus-Net are two each.");
        Check(options.Depth.Concat(options.SubDepth).All(depth => depth >= 1), "Every stage has at least one block.");
        Check(options.Strides[0] is 1 or 2 or 4 && options.Strides.Skip(1).All(stride => stride is 1 or 2), "The stem's stride is 1, 2 or 4, the others are 1 or 2.");
        Options = options;
        var (dim, last) = (options.EmbedDim, options.EmbedDim[3]);
        var drops = Layers.DropPath.Schedule(options.DropPath, options.Depth.Sum() + options.SubDepth.Sum());
        patch_embed1 = Stem(options.Channels, dim[0], options.Strides[0]);
        patch_embed2 = Transition(dim[0], dim[1], options.Strides[1]);
        patch_embed3 = Transition(dim[1], dim[2], options.Strides[2]);
        patch_embed4 = Transition(dim[2], dim[3], options.Strides[3]);
        ModuleList<RepConvBlock> Stage(int stage) => nn.ModuleList([.. Enumerable.Range(0, options.Depth[stage]).Select(block =>
            new RepConvBlock(BlockOptions(stage, options.FeedForwardRatio[stage], drops[options.Depth.Take(stage).Sum() + block])))]);
        (blocks1, blocks2, blocks3, blocks4) = (Stage(0), Stage(1), Stage(2), Stage(3));
        high_level_proj = nn.Conv2d(last, last / 4, 1);
        patch_embedx = new(dim[2], last, options.Strides[3]);
        ModuleList<FocusBlock> FocusStage(int stage) => nn.ModuleList([.. Enumerable.Range(0, options.SubDepth[stage]).Select(block => new FocusBlock(
            BlockOptions(stage + 2, options.SubFeedForwardRatio[stage], drops[options.Depth.Sum() + (stage == 0 ? 0 : options.SubDepth[0]) + block]) with { Heads = options.SubHeads[stage] },
            last, isFirst: stage == 0 && block == 0, isLast: stage == 1 && block == options.SubDepth[1] - 1, options.Kernels))]);
        (sub_blocks3, sub_blocks4) = (FocusStage(0), FocusStage(1));
        head = nn.Sequential(
            nn.Conv2d(last + (last / 4), options.Projection, 1, bias: false), nn.BatchNorm2d(options.Projection), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(options.Projection, options.Classes, 1));
        aux_head = nn.Sequential(nn.BatchNorm2d(last), nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, options.Classes, 1));
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, convolutions: true);

        ContMixBlockOptions BlockOptions(int stage, double ratio, double drop) => new()
        {
            Dim = dim[stage], KernelSize = options.KernelSize[stage], SmallKernelSize = options.SmallKernelSize, FeedForwardRatio = ratio, ScaleIdentity = options.ScaleIdentity,
            LayerScale = options.LayerScale[stage], DropPath = drop, Deploy = options.Deploy,
        };

        void Check(bool holds, string sentence)
        {
            if (!holds)
            {
                throw new ArgumentException(sentence, nameof(options));
            }
        }
    }

    /// <summary>The shape.</summary>
    public OverLoCKOptions Options { get; }

    /// <summary>The extra-tiny model of the paper, 16.4 M parameters.</summary>
    /// <param name="numClasses">Number of classes.</param>
    /// <param name="deploy">Whether to make the merged form.</param>
    public static OverLoCK XT(int numClasses = 1000, bool deploy = false) => new(XTOptions with { Classes = numClasses, Deploy = deploy });

    /// <summary>The tiny model of the paper, 33 M parameters.</summary>
    /// <inheritdoc cref="XT"/>
    public static OverLoCK T(int numClasses = 1000, bool deploy = false) => new(TOptions with { Classes = numClasses, Deploy = deploy });

    /// <summary>The small model of the paper, 56 M parameters.</summary>
    /// <inheritdoc cref="XT"/>
    public static OverLoCK S(int numClasses = 1000, bool deploy = false) => new(SOptions with { Classes = numClasses, Deploy = deploy });

    /// <summary>The base model of the paper, 95 M parameters.</summary>
    /// <inheritdoc cref="XT"/>
    public static OverLoCK B(int numClasses = 1000, bool deploy = false) => new(BOptions with { Classes = numClasses, Deploy = deploy });

    /// <summary>The shape of <see cref="XT"/>.</summary>
    public static OverLoCKOptions XTOptions { get; } = new() { Depth = [2, 2, 3, 2], SubDepth = [6, 2], EmbedDim = [56, 112, 256, 336], SubHeads = [4, 6] };

    /// <summary>The shape of <see cref="T"/>.</summary>
    public static OverLoCKOptions TOptions { get; } = new() { Depth = [4, 4, 6, 2], SubDepth = [12, 2], EmbedDim = [64, 128, 256, 512], SubHeads = [4, 8], DropPath = 0.15 };

    /// <summary>The shape of <see cref="S"/>.</summary>
    public static OverLoCKOptions SOptions { get; } = new() { Depth = [6, 6, 8, 3], SubDepth = [16, 3], EmbedDim = [64, 128, 320, 512], SubHeads = [8, 16] };

    /// <summary>The shape of <see cref="B"/>.</summary>
    public static OverLoCKOptions BOptions { get; } = new() { Depth = [8, 8, 10, 4], SubDepth = [20, 4], EmbedDim = [80, 160, 384, 576], SubHeads = [6, 9] };

    /// <inheritdoc/>
    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        return head.forward(Features(images)).flatten(1).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    /// <remarks>The overview's own head takes part with a weight of 0.4, as in the paper.</remarks>
    public override Tensor Loss(Tensor images, Tensor labels, double labelSmoothing = 0)
    {
        using var scope = NewDisposeScope();
        using Scalar weight = 0.4;
        var (logits, auxiliary) = ForwardWithAuxiliary(images);
        Tensor Nats(Tensor values) => nn.functional.cross_entropy(values, labels, label_smoothing: labelSmoothing);
        return (Nats(logits) + (Nats(auxiliary) * weight)).MoveToOuterDisposeScope();
    }

    /// <summary>The logits of both heads: training minimises the cross-entropy of the first plus 0.4 times that of the second.</summary>
    /// <param name="images"><c>[B, channels, H, W]</c>.</param>
    /// <returns><c>[B, classes]</c> from Focus-Net, and <c>[B, classes]</c> from the overview alone.</returns>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public (Tensor Logits, Tensor AuxiliaryLogits) ForwardWithAuxiliary(Tensor images)
    {
        using var scope = NewDisposeScope();
        var (logits, auxiliary, _, _) = ForwardWithEverything(images);
        return (logits.MoveToOuterDisposeScope(), auxiliary.MoveToOuterDisposeScope());
    }

    /// <summary>Everything in one pass: the logits of both heads, the features that the first reads and the context that the second reads.</summary>
    /// <param name="images"><c>[B, channels, H, W]</c>.</param>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public (Tensor Logits, Tensor AuxiliaryLogits, Tensor Features, Tensor Context) ForwardWithEverything(Tensor images)
    {
        using var scope = NewDisposeScope();
        var (features, context) = FeaturesWithContext(images);
        return (head.forward(features).flatten(1).MoveToOuterDisposeScope(), aux_head.forward(context).flatten(1).MoveToOuterDisposeScope(), features.MoveToOuterDisposeScope(), context.MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public override Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        return FeaturesWithContext(images).Features.MoveToOuterDisposeScope();
    }

    /// <summary>What Focus-Net sees at the end, and what the overview told it.</summary>
    /// <param name="images"><c>[B, channels, H, W]</c>.</param>
    /// <returns>Features <c>[B, C4 + C4 / 4, H / 32, W / 32]</c> and context <c>[B, C4, H / 32, W / 32]</c> (at the paper's strides).</returns>
    /// <exception cref="ArgumentException">The pictures have another shape.</exception>
    public (Tensor Features, Tensor Context) FeaturesWithContext(Tensor images)
    {
        CheckImages(images);
        using var scope = NewDisposeScope();
        var x = Through(blocks1, patch_embed1.forward(images));
        x = Through(blocks2, patch_embed2.forward(x));
        x = Through(blocks3, patch_embed3.forward(x));
        var context = Through(blocks4, patch_embed4.forward(x));
        var prior = high_level_proj.forward(context);
        if (!Options.UsesContext)
        {
            prior = zeros_like(prior);
        }

        var wide = nn.functional.interpolate(prior, size: [x.shape[2], x.shape[3]], mode: InterpolationMode.Bilinear, align_corners: false);
        var state = wide;
        foreach (var block in sub_blocks3)
        {
            (x, state) = Next(block.Forward(x, state, wide));
        }

        (x, state) = patch_embedx.Forward(x, state);
        foreach (var block in sub_blocks4)
        {
            (x, state) = Next(block.Forward(x, state, prior));
        }

        return (x.MoveToOuterDisposeScope(), context.MoveToOuterDisposeScope());

        static (Tensor X, Tensor State) Next((Tensor X, Tensor? Context) result) => (result.X, result.Context ?? result.X);
    }

    /// <summary>The same model in evaluation with every re-parameterised convolution merged into one: faster, and with fewer parameters.</summary>
    public OverLoCK Merged()
    {
        var merged = new OverLoCK(Options with { Deploy = true });
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var tensors = TensorsOf(this);
        merged.to(tensors["head.0.weight"].dtype);
        foreach (var (name, target) in TensorsOf(merged).Where(entry => tensors.ContainsKey(entry.Key) && !entry.Key.Contains("lk_origin", StringComparison.Ordinal)))
        {
            target.copy_(tensors[name]);
        }

        foreach (var (trained, fused) in Convolutions(this).Zip(Convolutions(merged)))
        {
            fused.TakeMerged(trained);
        }

        merged.eval();
        return merged;

        static Dictionary<string, Tensor> TensorsOf(nn.Module module) => module.state_dict();
        static IEnumerable<DilatedReparamConv> Convolutions(nn.Module module) => module.named_modules().Select(entry => entry.module).OfType<DilatedReparamConv>();
    }

    private static Tensor Through(ModuleList<RepConvBlock> blocks, Tensor x)
    {
        foreach (var block in blocks)
        {
            x = block.forward(x);
        }

        return x;
    }

    private static Sequential Stem(int channels, int dim, int stride)
    {
        var half = dim / 2;
        return nn.Sequential(
            Convolution(channels, half, stride > 1 ? 2 : 1), nn.BatchNorm2d(half), nn.GELU(), Convolution(half, half, 1), nn.BatchNorm2d(half), nn.GELU(),
            Convolution(half, dim, stride > 2 ? 2 : 1), nn.BatchNorm2d(dim), nn.GELU(), Convolution(dim, dim, 1), nn.BatchNorm2d(dim));
    }

    private static Sequential Transition(int from, int to, int stride) => nn.Sequential(Convolution(from, to, stride), nn.BatchNorm2d(to));

    private static Conv2d Convolution(int from, int to, int stride) => nn.Conv2d(from, to, 3, stride: stride, padding: 1, bias: false);

    /// <summary>Features and context on their way to 1/32.</summary>
    private sealed class ContextDownsampling : nn.Module
    {
        private readonly Sequential x_proj;
        private readonly Sequential h_proj;

        public ContextDownsampling(int from, int to, int stride)
            : base(nameof(ContextDownsampling))
        {
            (x_proj, h_proj) = (Transition(from, to, stride), Transition(to / 4, to / 4, stride));
            RegisterComponents();
        }

        public (Tensor X, Tensor Context) Forward(Tensor x, Tensor context) => (x_proj.forward(x), h_proj.forward(context));
    }
}

/// <summary>A block of OverLoCK's Base-Net and Overview-Net: a residual 3 x 3 convolution, then norm, re-parameterised large convolution, channel gate and convolutional perceptron in one branch.</summary>
internal sealed class RepConvBlock : nn.Module<Tensor, Tensor>
{
    private readonly DepthwiseConvolution2d dwconv;
    private readonly Sequential proj;
    private readonly LayerScale? ls;
    private readonly DropPath _drop;
    private readonly bool _scalesIdentity;

    /// <summary>Makes a block.</summary>
    /// <param name="options">Its shape; heads and the small side are not read.</param>
    /// <exception cref="ArgumentException">The kernel's side is even or out of range.</exception>
    public RepConvBlock(ContMixBlockOptions options)
        : base(nameof(RepConvBlock))
    {
        ArgumentNullException.ThrowIfNull(options);
        var dim = options.Dim;
        var hidden = (long)(dim * options.FeedForwardRatio);
        (_scalesIdentity, _drop) = (options.ScaleIdentity, new(options.DropPath));
        dwconv = new(dim, 3, residual: true);
        proj = nn.Sequential(
            new LayerNorm2d(dim), new DilatedReparamConv(dim, options.KernelSize, options.Deploy), nn.BatchNorm2d(dim), new SqueezeExcitation(dim), nn.Conv2d(dim, hidden, 1), nn.GELU(),
            new DepthwiseConvolution2d(hidden, 3, residual: true), new GlobalResponseNorm(hidden), nn.Conv2d(hidden, dim, 1));
        ls = options.LayerScale is { } initial ? new(dim, initial) : null;
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var identity = dwconv.forward(input);
        var branch = _drop.forward(proj.forward(identity));
        var output = ls is null ? identity + branch : _scalesIdentity ? ls.forward(identity) + branch : identity + ls.forward(branch);
        return output.MoveToOuterDisposeScope();
    }
}
