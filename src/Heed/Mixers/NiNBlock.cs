using Heed.Heads;
using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>A block of NiNformer (arXiv 2403.02411): <c>x += MGU(LN(x))</c>, <c>x += FF(LN(x))</c>, where both norms are one module, as in the authors' code. Parameter names: <c>norm</c>, <c>mgu</c>,
/// <c>ffn.net.{0,3}</c>.</summary>
public sealed class NiNBlock : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm;
    private readonly MixerGatingUnit mgu;
    private readonly NumberedPerceptron ffn;

    /// <summary>Makes a block.</summary>
    /// <param name="dim">Width d of a token, at least 1.</param>
    /// <param name="hidden">Hidden width of all three perceptrons, at least 1.</param>
    /// <param name="tokens">Number n of tokens, at least 1.</param>
    /// <param name="dropout">Share of activations dropped in training, from 0 to below 1.</param>
    /// <param name="combination">The paper's product, or a sum in its place.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1, or the dropout out of range.</exception>
    public NiNBlock(int dim, int hidden, int tokens, double dropout = 0, GateCombination combination = GateCombination.Multiply)
        : base(nameof(NiNBlock))
    {
        mgu = new(dim, tokens, hidden, hidden, dropout, combination);
        norm = nn.LayerNorm(dim);
        ffn = new(dim, hidden, dropout);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The token mixer.</summary>
    public MixerGatingUnit Mixer => mgu;

    /// <summary>The tokens after the block.</summary>
    /// <param name="input"><c>[B, n, d]</c>.</param>
    /// <returns><c>[B, n, d]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        using var scope = NewDisposeScope();
        var mixed = input + mgu.forward(norm.forward(input));
        return (mixed + ffn.forward(norm.forward(mixed))).MoveToOuterDisposeScope();
    }

    /// <summary>The gate of the block's mixer (see <see cref="MixerGatingUnit.Gate"/>) for the block's input.</summary>
    /// <param name="input"><c>[B, n, d]</c>.</param>
    /// <returns><c>[B, n, d]</c>.</returns>
    public Tensor Gate(Tensor input)
    {
        using var scope = NewDisposeScope();
        return mgu.Gate(norm.forward(input)).MoveToOuterDisposeScope();
    }
}

/// <summary>Linear, exact GELU, dropout, linear, dropout, numbered as a sequence numbers them: <c>net.0</c> and <c>net.3</c> have the parameters.</summary>
internal sealed class NumberedPerceptron : nn.Module<Tensor, Tensor>
{
    private readonly Sequential net;

    public NumberedPerceptron(int width, int hidden, double dropout)
        : base(nameof(NumberedPerceptron))
    {
        if (!(dropout is >= 0 and < 1))
        {
            throw new ArgumentOutOfRangeException(nameof(dropout), dropout, "The share of dropped activations must be from 0 to below 1.");
        }

        net = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout));
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => net.forward(input);
}
