using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Where an encoder layer normalises.</summary>
public enum NormPlacement
{
    /// <summary>Before each branch.</summary>
    Pre,

    /// <summary>After each branch and its residual.</summary>
    Post,

    /// <summary>Nowhere.</summary>
    None,
}

/// <summary>The shape of a <see cref="ReducedEncoder"/>.</summary>
public sealed record ReducedEncoderOptions
{
    /// <summary>Width C of a token.</summary>
    public required int Width { get; init; }

    /// <summary>Number of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>How queries and keys come from tokens.</summary>
    public QueryKeyMode QueryKey { get; init; }

    /// <summary>How outputs come from tokens.</summary>
    public ValueOutputMode ValueOutput { get; init; }

    /// <summary>Whether a token sees itself and earlier ones only.</summary>
    public bool Causal { get; init; }

    /// <summary>Whether there is a perceptron. Without it its norm disappears, too.</summary>
    public bool FeedForward { get; init; } = true;

    /// <summary>Hidden width of the perceptron over C.</summary>
    public int FeedForwardRatio { get; init; } = 4;

    /// <summary>Where the layer normalises.</summary>
    public NormPlacement Norm { get; init; }

    /// <summary>Whether branches are added to what they read.</summary>
    public bool Residual { get; init; } = true;

    /// <summary>Epsilon of the norms.</summary>
    public double NormEpsilon { get; init; } = 1e-6;
}

/// <summary>An encoder layer of the reduced transformers (arXiv 2410.13732, section 3): <c>x += attention(LN1(x))</c> and, where it is kept, <c>x += W2 GELU(W1 LN2(x) + b1) + b2</c>. Parameters beside those of
/// <c>attention</c>: <c>norm1_gamma</c>, <c>norm1_beta</c>, <c>norm2_gamma</c>, <c>norm2_beta</c> <c>[C]</c>, <c>w_1</c> <c>[C, h C]</c>, <c>b_1</c>, <c>w_2</c> <c>[h C, C]</c>, <c>b_2</c>; rows are multiplied from the left.</summary>
/// <remarks>The paper's text leaves residual connections, the order of the norms and their epsilon open; the defaults are those of the usual vision transformer.</remarks>
public sealed class ReducedEncoder : nn.Module<Tensor, Tensor>
{
    private readonly ReducedAttention attention;
    private readonly Parameter? norm1_gamma;
    private readonly Parameter? norm1_beta;
    private readonly Parameter? norm2_gamma;
    private readonly Parameter? norm2_beta;
    private readonly Parameter? w_1;
    private readonly Parameter? b_1;
    private readonly Parameter? w_2;
    private readonly Parameter? b_2;

    /// <summary>Makes the layer.</summary>
    /// <param name="options">Its shape.</param>
    /// <param name="site">Where its attention calls stand in a model.</param>
    /// <exception cref="ArgumentException">Sizes or modes do not fit together, or the ratio is below 1.</exception>
    public ReducedEncoder(ReducedEncoderOptions options, AttentionSite site = default)
        : base(nameof(ReducedEncoder))
    {
        ArgumentNullException.ThrowIfNull(options);
        if (options.FeedForward && options.FeedForwardRatio < 1)
        {
            throw new ArgumentException($"The hidden width of the perceptron is a multiple of the width, at least 1 time it, not {options.FeedForwardRatio}.", nameof(options));
        }

        Options = options;
        attention = new(options.Width, options.Heads, options.QueryKey, options.ValueOutput, options.Causal, site);
        var (width, hidden) = (options.Width, options.Width * options.FeedForwardRatio);
        if (options.Norm != NormPlacement.None)
        {
            (norm1_gamma, norm1_beta) = (Filled(width, 1), Filled(width, 0));
            (norm2_gamma, norm2_beta) = options.FeedForward ? (Filled(width, 1), Filled(width, 0)) : (null, null);
        }

        if (options.FeedForward)
        {
            var limit = Math.Sqrt(6.0 / (width + hidden));
            (w_1, b_1) = (Parameters.Make([width, hidden], tensor => tensor.uniform_(-limit, limit)), Filled(hidden, 0));
            (w_2, b_2) = (Parameters.Make([hidden, width], tensor => tensor.uniform_(-limit, limit)), Filled(width, 0));
        }

        RegisterComponents();
    }

    /// <summary>The shape.</summary>
    public ReducedEncoderOptions Options { get; }

    /// <summary>The attention.</summary>
    public ReducedAttention Attention => attention;

    /// <summary>Parameters of such a layer's matrices, without its norms.</summary>
    public static long MatrixParameterCount(ReducedEncoderOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        long width = options.Width;
        var hidden = width * options.FeedForwardRatio;
        return ReducedAttention.ParameterCount(width, options.QueryKey, options.ValueOutput) + (options.FeedForward ? (2 * width * hidden) + hidden + width : 0);
    }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var tokens = Branch(input, norm1_gamma, norm1_beta, attention.forward);
        return (Options.FeedForward ? Branch(tokens, norm2_gamma, norm2_beta, Perceptron) : tokens).MoveToOuterDisposeScope();
    }

    private Tensor Perceptron(Tensor tokens) => nn.functional.gelu(tokens.matmul(w_1!).add_(b_1!)).matmul(w_2!).add_(b_2!);

    private Tensor Branch(Tensor tokens, Parameter? gamma, Parameter? beta, Func<Tensor, Tensor> map)
    {
        var mixed = map(Options.Norm == NormPlacement.Pre ? Normalized(tokens) : tokens);
        mixed = Options.Residual ? tokens + mixed : mixed;
        return Options.Norm == NormPlacement.Post ? Normalized(mixed) : mixed;

        Tensor Normalized(Tensor input) => nn.functional.layer_norm(input, [Options.Width], gamma, beta, Options.NormEpsilon);
    }

    private static Parameter Filled(int width, double value) => Parameters.Make([width], tensor => tensor.fill_(value));
}
