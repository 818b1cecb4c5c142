using Heed.Layers;
using Heed.Biases;
using Heed.Kernels;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Self-attention with ALiBi as a bias of rank 2, the module of the authors' language model (arXiv 2505.12044, example 3.4), with their parameter names.</summary>
/// <remarks>Their text and code reward distance (+m (i - j)); the default here is the sign of ALiBi itself, which penalises it. Slopes are 2^(-8 h / H) for every H.</remarks>
public sealed class AlibiAttention : nn.Module<Tensor, Tensor>
{
    private readonly Linear to_q;
    private readonly Linear to_k;
    private readonly Linear to_v;
    private readonly Sequential to_out;
    private readonly int _width;
    private readonly int _heads;
    private readonly int _headWidth;
    private readonly AlibiSign _sign;
    private readonly bool _causal;
    private readonly Tensor _slopes;

    /// <summary>Makes the module, with PyTorch's initial weights of linear layers.</summary>
    /// <param name="width">Width of input and output.</param>
    /// <param name="heads">Number of heads H.</param>
    /// <param name="headWidth">Width of a head; 0: <paramref name="width"/> / <paramref name="heads"/>.</param>
    /// <param name="sign">Whether distance is penalised or rewarded.</param>
    /// <param name="causal">Whether a token sees itself and earlier ones only.</param>
    /// <param name="dropout">Dropout of the output while training.</param>
    /// <exception cref="ArgumentException">A size is less than 1, or the heads do not divide the width.</exception>
    public AlibiAttention(int width, int heads, int headWidth = 0, AlibiSign sign = AlibiSign.Penalise, bool causal = true, double dropout = 0)
        : base(nameof(AlibiAttention))
    {
        _headWidth = BiasedProjections.HeadWidth(width, heads, headWidth);
        (_width, _heads, _sign, _causal) = (width, heads, sign, causal);
        using var scope = NewDisposeScope();
        (to_q, to_k, to_v, to_out) = BiasedProjections.Make(width, heads * _headWidth, dropout);
        _slopes = LowRankBiases.AlibiSlopes(heads, type: ScalarType.Float64).DetachFromDisposeScope();
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The slope of every head, float64 <c>[H]</c>. Not a parameter.</summary>
    public Tensor Slopes => _slopes.alias();

    /// <summary>The hooks of the module's attention calls; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        BiasedProjections.Check(input, _width);
        using var scope = NewDisposeScope();
        var tokens = input.shape[1];
        var options = new AttentionOptions
        {
            Causal = _causal ? Causality.AlignedToStart : Causality.None,
            Biases = [LowRankBiases.Alibi(_slopes.to(input.dtype).to(input.device), tokens, tokens, _sign)],
        };
        return BiasedProjections.Run(input, to_q, to_k, to_v, to_out, _heads, options, Site, Hooks).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _slopes.Dispose();
        }

        base.Dispose(disposing);
    }
}
