using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The shape of a block around <see cref="ContMix"/>.</summary>
public sealed record ContMixBlockOptions
{
    /// <summary>Channels C; a multiple of 4 heads.</summary>
    public required int Dim { get; init; }

    /// <summary>Side k of the large kernel and of the re-parameterised convolution: odd, 5 to 19.</summary>
    public int KernelSize { get; init; } = 7;

    /// <summary>Side s of the small kernel: odd, at most k.</summary>
    public int SmallKernelSize { get; init; } = 5;

    /// <summary>The authors' number of heads; there are twice as many groups of kernels.</summary>
    public int Heads { get; init; } = 2;

    /// <summary>Hidden channels of the perceptron over C.</summary>
    public double FeedForwardRatio { get; init; } = 4;

    /// <summary>Whether the layer scales stand at the identity path (true) or at the branch (false).</summary>
    public bool ScaleIdentity { get; init; }

    /// <summary>First value of the layer scales; null: there are none.</summary>
    public double? LayerScale { get; init; }

    /// <summary>Probability of dropping a branch in training.</summary>
    public double DropPath { get; init; }

    /// <summary>Whether the re-parameterised convolution is made in its merged form.</summary>
    public bool Deploy { get; init; }
}

/// <summary>
/// The authors' plug-in block: a residual 3 x 3 convolution, gated <see cref="ContMix"/> beside a large re-parameterised convolution, another residual convolution, and a convolutional perceptron (arXiv 2502.20087).
/// <c>[B, C, H, W]</c> in and out; parameter names as in the authors' <c>contmix.py</c>.
/// </summary>
public sealed class ContMixBlock : nn.Module<Tensor, Tensor>, IMapSource
{
    private readonly ContMixOperator _operator;
    private readonly ContMixFrame _frame;
    private readonly DropPath _drop;
    private readonly DepthwiseConvolution2d dwconv1;
    private readonly LayerNorm2d norm1;
    private readonly Sequential gate;
    private readonly Sequential lepe;
    private readonly Sequential weight_query;
    private readonly Sequential weight_key;
    private readonly Sequential weight_value;
    private readonly Conv2d weight_proj;
    private readonly Parameter rpb1;
    private readonly Parameter rpb2;
    private readonly Sequential fusion_proj;
    private readonly SqueezeExcitation se_layer;
    private readonly Sequential proj;
    private readonly DepthwiseConvolution2d dwconv2;
    private readonly LayerNorm2d norm2;
    private readonly Sequential mlp;
    private readonly LayerScale? ls1;
    private readonly LayerScale? ls2;

    /// <summary>Makes a block.</summary>
    /// <param name="options">Its shape.</param>
    /// <exception cref="ArgumentException">A kernel side is even or out of range, or the channels are no multiple of 4 heads.</exception>
    public ContMixBlock(ContMixBlockOptions options)
        : base(nameof(ContMixBlock))
    {
        ArgumentNullException.ThrowIfNull(options);
        var dim = options.Dim;
        _operator = new(dim, options.KernelSize, options.SmallKernelSize, options.Heads);
        _drop = new(options.DropPath);
        dwconv1 = new(dim, 3, residual: true);
        norm1 = new(dim);
        gate = ContMixFrame.NewGate(dim);
        lepe = ContMixFrame.NewLocalPositions(dim, options);
        (weight_query, weight_key, weight_proj) = (_operator.QueryMap(), _operator.KeyMap(dim), _operator.KernelMap());
        weight_value = ContMixFrame.NormedMap(dim);
        (rpb1, rpb2) = (_operator.Bias(options.SmallKernelSize, 0.02), _operator.Bias(options.KernelSize, 0.02));
        fusion_proj = ContMixFrame.NormedMap(dim);
        se_layer = new(dim);
        proj = ContMixFrame.OutputMap(dim, dim);
        dwconv2 = new(dim, 3, residual: true);
        norm2 = new(dim);
        mlp = ContMixFrame.FeedForward(dim, (long)(dim * options.FeedForwardRatio));
        (ls1, ls2) = (ContMixFrame.Scale(dim, options), ContMixFrame.Scale(dim, options));
        _frame = new(fusion_proj, lepe, se_layer, gate, proj, dwconv2, norm2, mlp, ls1, ls2, _drop, options.ScaleIdentity);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return Compute(input).Output.MoveToOuterDisposeScope();
    }

    /// <summary>The output beside the kernels.</summary>
    /// <param name="input"><c>[B, C, H, W]</c>.</param>
    /// <returns>The output <c>[B, C, H, W]</c> and the softmaxed kernels <c>[B, G, H, W, s s]</c> and <c>[B, G, H, W, k k]</c>, at the size of the map on which they are applied.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public (Tensor Output, Tensor Small, Tensor Large) ForwardWithKernels(Tensor input)
    {
        using var scope = NewDisposeScope();
        var (output, logits) = Compute(input);
        var (small, large) = DynamicConvolution.Kernels(logits, rpb1, rpb2);
        return (output.MoveToOuterDisposeScope(), small.MoveToOuterDisposeScope(), large.MoveToOuterDisposeScope());
    }

    private (Tensor Output, Tensor Logits) Compute(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        var identity = dwconv1.forward(input);
        var normed = norm1.forward(identity);
        _operator.Check(normed, normed, normed);
        var wide = _operator.Enlarged(normed);
        var logits = _operator.Logits(weight_query.forward(wide), weight_key.forward(wide), weight_proj);
        var mixed = ContMixOperator.Reduced(DynamicConvolution.Apply(logits, rpb1, rpb2, weight_value.forward(wide)), normed);
        ContMixOperator.Record(this, logits, rpb1, rpb2);
        return (_frame.Finish(identity, normed, mixed), logits);
    }
}

/// <summary>What follows the operator in the blocks around it: gate, output map, convolution and perceptron. The parts belong to the block, under the names that its checkpoints have.</summary>
/// <param name="Fusion">Over the operator's output.</param>
/// <param name="LocalPositions">The re-parameterised convolution.</param>
/// <param name="Excitation">Over the sum of both.</param>
/// <param name="Gate">What that is multiplied by.</param>
/// <param name="Output">To the width of the block.</param>
/// <param name="Convolution">Between the two branches.</param>
/// <param name="Norm">Before the perceptron.</param>
/// <param name="Perceptron">The second branch.</param>
/// <param name="FirstScale">The layer scale of the first branch, if any.</param>
/// <param name="SecondScale">The layer scale of the second.</param>
/// <param name="Drop">Drops branches in training.</param>
/// <param name="ScalesIdentity">Whether the layer scales stand at the identity path.</param>
internal sealed record ContMixFrame(
    Sequential Fusion, Sequential LocalPositions, SqueezeExcitation Excitation, Sequential Gate, Sequential Output, DepthwiseConvolution2d Convolution, LayerNorm2d Norm, Sequential Perceptron,
    LayerScale? FirstScale, LayerScale? SecondScale, DropPath Drop, bool ScalesIdentity)
{
    public static Sequential NewGate(long dim) => nn.Sequential(nn.Conv2d(dim, dim, 1, bias: false), nn.BatchNorm2d(dim), nn.SiLU());

    public static Sequential NewLocalPositions(long dim, ContMixBlockOptions options) => nn.Sequential(new DilatedReparamConv(dim, options.KernelSize, options.Deploy), nn.BatchNorm2d(dim));

    public static Sequential NormedMap(long dim) => nn.Sequential(nn.Conv2d(dim, dim, 1, bias: false), nn.BatchNorm2d(dim));

    public static Sequential OutputMap(long dim, long outputs) => nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, outputs, 1));

    public static Sequential FeedForward(long dim, long hidden) => nn.Sequential(
        nn.Conv2d(dim, hidden, 1), nn.GELU(), new DepthwiseConvolution2d(hidden, 3, residual: true), new GlobalResponseNorm(hidden), nn.Conv2d(hidden, dim, 1));

    /// <summary>A layer scale, where the options have one.</summary>
    public static LayerScale? Scale(long dim, ContMixBlockOptions options) => options.LayerScale is { } initial ? new(dim, initial) : null;

    /// <summary>The output of a block; in the dispose scope of the caller.</summary>
    /// <param name="identity">What the first branch is added to.</param>
    /// <param name="features">What gate and local positions read.</param>
    /// <param name="mixed">The operator's output.</param>
    public Tensor Finish(Tensor identity, Tensor features, Tensor mixed)
    {
        mixed = Excitation.forward(Fusion.forward(mixed) + LocalPositions.forward(features));
        var branch = Output.forward(Gate.forward(features) * mixed);
        var output = Convolution.forward(Join(identity, Drop.forward(branch), FirstScale));
        return Join(output, Drop.forward(Perceptron.forward(Norm.forward(output))), SecondScale);
    }

    /// <summary>Identity and branch added, one of them scaled.</summary>
    private Tensor Join(Tensor identity, Tensor branch, LayerScale? scale) =>
        scale is null ? identity + branch : ScalesIdentity ? scale.forward(identity) + branch : identity + scale.forward(branch);
}
