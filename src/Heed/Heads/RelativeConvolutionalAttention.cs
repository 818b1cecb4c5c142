using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>The shape of a <see cref="RelativeConvolutionalAttention"/>.</summary>
public sealed record RelativeConvolutionalAttentionOptions
{
    /// <summary>Width C of input and output.</summary>
    public required int Width { get; init; }

    /// <summary>Number of heads, a divisor of the width.</summary>
    public required int Heads { get; init; }

    /// <summary>Whether relative positions enter the scores. Without them the query and key projections have biases, as the baselines have.</summary>
    public bool IsRelative { get; init; } = true;

    /// <summary>Most keys of a call, memory included, where positions are relative: P of the paper's code, whose own default is 4096. The tables have 2 P rows.</summary>
    public int Reach { get; init; } = 4096;

    /// <summary>Whether queries, keys and values are convolved.</summary>
    public bool IsConvolutional { get; init; } = true;

    /// <summary>Taps of the convolutions.</summary>
    public int Kernel { get; init; } = 3;

    /// <summary>Whether a token sees itself and earlier ones only. Convolutions are causal in any case.</summary>
    public bool Causal { get; init; } = true;
}

/// <summary>Relative convolutional multi-head attention (RCMHA, arXiv 2308.03429): attention with learned relative positions (<see cref="RelativeTable"/>) and a memory of earlier segments, whose queries, keys and values each
/// pass a short causal depth-wise convolution over time, one kernel for all heads. Without convolutions it is RMHA, without relative positions MDHA (arXiv 2109.08668), without both MHA. Parameter names are the authors':
/// <c>query.0.linear</c>, <c>query.1.conv</c> (without convolution <c>query.linear</c>), likewise <c>key</c> and <c>value</c>, <c>output</c>.</summary>
/// <remarks>Queries are convolved over the segment alone: the first ones see zeros, not the memory. Keys and values are convolved over memory and segment. The authors' dropout of weights is left out.</remarks>
public sealed class RelativeConvolutionalAttention : MultiHeadAttention
{
    /// <summary>Makes the module.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width, or the kernel or the reach is below 1.</exception>
    public RelativeConvolutionalAttention(RelativeConvolutionalAttentionOptions options, AttentionSite site = default)
        : base(Shape(options), site, options.IsRelative ? new RelativeTable(options.Reach) : null)
    {
    }

    /// <summary>The module's output for a segment.</summary>
    /// <param name="input">The segment, <c>[B, N, C]</c>.</param>
    /// <param name="memory">What came before it, <c>[B, M, C]</c>; null: nothing.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">A shape is another, or memory and segment are longer than the reach.</exception>
    public Tensor ForwardWithMemory(Tensor input, Tensor? memory)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (memory is null)
        {
            return forward(input);
        }

        if (input.dim() != 3 || memory.dim() != 3 || memory.shape[0] != input.shape[0] || memory.shape[2] != input.shape[2])
        {
            throw new ArgumentException(
                $"The memory is [batch, tokens, width] with the batch and width of the input; {AttentionShape.Text(memory)} and {AttentionShape.Text(input)} were given.", nameof(memory));
        }

        using var scope = NewDisposeScope();
        return forward(input, cat([memory, input], 1)).MoveToOuterDisposeScope();
    }

    private static MultiHeadAttentionOptions Shape(RelativeConvolutionalAttentionOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.IsConvolutional && options.Kernel < 1)
        {
            throw new ArgumentException($"The kernel of a convolution has at least 1 tap, not {options.Kernel}: switch IsConvolutional off for none.", nameof(options));
        }

        return new()
        {
            Width = options.Width, Heads = options.Heads, QueryBias = !options.IsRelative, KeyBias = !options.IsRelative,
            Names = new() { Query = "query", Key = "key", Value = "value", Output = "output" },
            Attention = options.Causal ? AttentionOptions.CausalSelf : AttentionOptions.Default,
            MakeProjection = (role, inputs, outputs, bias) => role == ProjectionRole.Output ? nn.Linear(inputs, outputs, bias)
                : options.IsConvolutional ? new ConvolvedProjection(inputs, outputs, options.Heads, options.Kernel, bias) : new PlainProjection(inputs, outputs, bias),
        };
    }

    /// <summary>A linear layer under the name <c>linear</c>.</summary>
    private sealed class PlainProjection : nn.Module<Tensor, Tensor>
    {
        private readonly Linear linear;

        public PlainProjection(int inputs, int outputs, bool bias)
            : base(nameof(PlainProjection))
        {
            linear = nn.Linear(inputs, outputs, bias);
            RegisterComponents();
            Parameters.Keep(this);
        }

        public override Tensor forward(Tensor input) => linear.forward(input);
    }

    /// <summary>A linear layer and the convolution that follows it, under the names <c>0</c> and <c>1</c>.</summary>
    private sealed class ConvolvedProjection : nn.Module<Tensor, Tensor>
    {
        private readonly PlainProjection _projection;
        private readonly CausalHeadConvolution _convolution;

        public ConvolvedProjection(int inputs, int outputs, int heads, int kernel, bool bias)
            : base(nameof(ConvolvedProjection))
        {
            (_projection, _convolution) = (new(inputs, outputs, bias), new(heads, outputs / heads, kernel));
            register_module("0", _projection);
            register_module("1", _convolution);
        }

        public override Tensor forward(Tensor input)
        {
            using var scope = NewDisposeScope();
            return _convolution.forward(_projection.forward(input)).MoveToOuterDisposeScope();
        }
    }
}

/// <summary>A causal depth-wise convolution over time of <c>[B, N, H D]</c>, one kernel per element of a head, shared by all heads (arXiv 2109.08668, section 3): <c>y_t = b + sum_u w_u x_(t - (s - 1) + u)</c>, zeros before
/// the start. Parameters <c>conv.weight</c> <c>[D, 1, s]</c>, whose last tap is the current position, and <c>conv.bias</c> <c>[D]</c>.</summary>
public sealed class CausalHeadConvolution : nn.Module<Tensor, Tensor>
{
    private readonly Conv1d conv;
    private readonly int _heads;

    /// <summary>Makes a convolution, with libtorch's initial weights of convolutions.</summary>
    /// <param name="heads">Number H of heads, at least 1.</param>
    /// <param name="headWidth">Width D of a head, at least 1.</param>
    /// <param name="kernel">Number s of taps, at least 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is below 1.</exception>
    public CausalHeadConvolution(int heads, int headWidth, int kernel)
        : base(nameof(CausalHeadConvolution))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(heads, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(headWidth, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(kernel, 1);
        _heads = heads;
        conv = nn.Conv1d(headWidth, headWidth, kernel, groups: headWidth);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();

        // Kernels of a few numbers are repeated, so that tokens stay where they lie.
        return DepthwiseConvolution.ApplyCausal(input.transpose(1, 2), conv.weight!.repeat(_heads, 1, 1), conv.bias!.repeat(_heads)).transpose(1, 2).MoveToOuterDisposeScope();
    }
}
