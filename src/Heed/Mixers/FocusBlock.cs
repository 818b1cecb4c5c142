using Heed.Layers;
using Heed.Probes;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>What a <see cref="FocusBlock"/> makes its kernels from: for controls of the paper's two ideas.</summary>
public enum FocusKernels
{
    /// <summary>From the affinities of every position to the context, as in the paper.</summary>
    Dynamic,

    /// <summary>From learned constants: every position of every picture has the same kernels. A control.</summary>
    Static,
}

/// <summary>
/// A block of OverLoCK's Focus-Net (the authors' <c>DynamicConvBlock</c>, arXiv 2502.20087, section 3.2): features x and a context prior h run through together, and the context is what the kernels'
/// keys are made from. The context that a block passes on is mixed with the one at the start: <c>h = a h + b h_0</c>. Parameter names as in the authors' <c>overlock.py</c>.
/// </summary>
public sealed class FocusBlock : nn.Module, IMapSource
{
    private readonly ContMixOperator _operator;
    private readonly ContMixFrame _frame;
    private readonly DropPath _drop;
    private readonly long _dim, _context;
    private readonly bool _isLast;
    private readonly FocusKernels _kernels;
    private readonly LayerScale? x_scale;
    private readonly LayerScale? h_scale;
    private readonly DepthwiseConvolution2d dwconv1;
    private readonly LayerNorm2d norm1;
    private readonly Sequential fusion;
    private readonly Sequential weight_query;
    private readonly Sequential weight_key;
    private readonly Conv2d weight_proj;
    private readonly Parameter rpb1;
    private readonly Parameter rpb2;
    private readonly Sequential dyconv_proj;
    private readonly Sequential gate;
    private readonly Sequential lepe;
    private readonly SqueezeExcitation se_layer;
    private readonly Sequential proj;
    private readonly DepthwiseConvolution2d dwconv2;
    private readonly LayerNorm2d norm2;
    private readonly Sequential mlp;
    private readonly LayerScale? ls1;
    private readonly LayerScale? ls2;

    /// <summary>Makes a block.</summary>
    /// <param name="options">Its shape; the channels are those of x.</param>
    /// <param name="contextDim">Channels of the overview; the context h has a quarter of them.</param>
    /// <param name="isFirst">Whether the block takes the context as it comes.</param>
    /// <param name="isLast">Whether the block gives x and h as one map.</param>
    /// <param name="kernels">What the kernels are made from.</param>
    /// <exception cref="ArgumentException">A kernel side is even or out of range, or the channels are no multiple of 4 heads.</exception>
    /// <exception cref="ArgumentOutOfRangeException">There are fewer than 4 context channels.</exception>
    public FocusBlock(ContMixBlockOptions options, int contextDim, bool isFirst, bool isLast, FocusKernels kernels = FocusKernels.Dynamic)
        : base(nameof(FocusBlock))
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfLessThan(contextDim, 4);
        (_dim, _context, _isLast, _kernels) = (options.Dim, contextDim / 4, isLast, kernels);
        _operator = new(options.Dim, options.KernelSize, options.SmallKernelSize, options.Heads);
        _drop = new(options.DropPath);
        var whole = _dim + _context;
        if (!isFirst)
        {
            (x_scale, h_scale) = (new(_context, 1), new(_context, 1));
        }

        dwconv1 = new(whole, 3, residual: true);
        norm1 = new(whole);
        fusion = nn.Sequential(new DepthwiseConvolution2d(whole, 3), nn.BatchNorm2d(whole), nn.GELU(), nn.Conv2d(whole, _dim, 1), new GlobalResponseNorm(_dim));
        (weight_query, weight_key, weight_proj) = (_operator.QueryMap(), _operator.KeyMap((int)_context), _operator.KernelMap());
        (rpb1, rpb2) = (_operator.Bias(options.SmallKernelSize, 0), _operator.Bias(options.KernelSize, 0));
        dyconv_proj = ContMixFrame.NormedMap(_dim);
        gate = ContMixFrame.NewGate(_dim);
        lepe = ContMixFrame.NewLocalPositions(_dim, options);
        se_layer = new(_dim);
        proj = ContMixFrame.OutputMap(_dim, whole);
        dwconv2 = new(whole, 3, residual: true);
        norm2 = new(whole);
        mlp = ContMixFrame.FeedForward(whole, (long)(_dim * options.FeedForwardRatio));
        (ls1, ls2) = (ContMixFrame.Scale(whole, options), ContMixFrame.Scale(whole, options));
        _frame = new(dyconv_proj, lepe, se_layer, gate, proj, dwconv2, norm2, mlp, ls1, ls2, _drop, options.ScaleIdentity);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public MapRecorder? Recorder { get; set; }

    /// <summary>Runs the block.</summary>
    /// <param name="x">Features <c>[B, C, H, W]</c>.</param>
    /// <param name="context">The context of the block before, <c>[B, contextDim / 4, H, W]</c>.</param>
    /// <param name="prior">The context at the start of the stage, of the same shape; not read by the first block.</param>
    /// <returns>Features and context for the next block; of the last block, both as one map <c>[B, C + contextDim / 4, H, W]</c>, and null.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public (Tensor X, Tensor? Context) Forward(Tensor x, Tensor context, Tensor prior)
    {
        ArgumentNullException.ThrowIfNull(x);
        ArgumentNullException.ThrowIfNull(context);
        ArgumentNullException.ThrowIfNull(prior);
        if (context.dim() != 4 || context.shape[1] != _context || !context.shape.SequenceEqual(prior.shape))
        {
            throw new ArgumentException(
                $"The contexts must both be [batch, {_context}, height, width], not [{string.Join(", ", context.shape)}] and [{string.Join(", ", prior.shape)}].", nameof(context));
        }

        _operator.Check(x, context, x);
        using var scope = NewDisposeScope();
        context = x_scale is null ? context : x_scale.forward(context) + h_scale!.forward(prior);
        var identity = dwconv1.forward(cat([x, context], 1));
        var normed = norm1.forward(identity);
        var fused = fusion.forward(normed);
        var wide = _operator.Enlarged(normed);
        var logits = Logits(wide);
        var mixed = ContMixOperator.Reduced(DynamicConvolution.Apply(logits, rpb1, rpb2, _operator.Enlarged(fused)), fused);
        ContMixOperator.Record(this, logits, rpb1, rpb2);
        var output = _frame.Finish(identity, fused, mixed);
        if (_isLast)
        {
            return (output.MoveToOuterDisposeScope(), null);
        }

        return (output.narrow(1, 0, _dim).MoveToOuterDisposeScope(), output.narrow(1, _dim, _context).MoveToOuterDisposeScope());
    }

    private Tensor Logits(Tensor normed) => _kernels == FocusKernels.Dynamic
        ? _operator.Logits(weight_query.forward(normed.narrow(1, 0, _dim)), weight_key.forward(normed.narrow(1, _dim, _context)), weight_proj)
        : weight_proj.bias!.expand(normed.shape[0], _operator.Groups, normed.shape[2], normed.shape[3], -1);
}
