using Heed.Layers;
using Heed.Biases;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Heads;

/// <summary>Self-attention of points with a learned bias of their distances: minus a_i |x_i - x_j|^2, where a_i is a linear function of the token in each head and may have any sign (arXiv
/// 2505.12044, section 4.3). The bias is never written out: rank d + 2, O(N) memory. Parameter names are the authors'.</summary>
/// <remarks>Initial weights of the authors' model: a truncated normal of deviation 0.02, biases zero. The block around it is pre-norm attention and a pre-norm feed-forward layer.</remarks>
public sealed class SpatialBiasAttention : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly Linear to_q;
    private readonly Linear to_k;
    private readonly Linear to_v;
    private readonly Sequential to_out;
    private readonly Linear pos_weight;
    private readonly int _width;
    private readonly int _heads;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Width of input and output, a multiple of the heads: the weight of the distance reads the token in the heads' slices.</param>
    /// <param name="heads">Number of heads.</param>
    /// <param name="dropout">Dropout of the output while training.</param>
    /// <exception cref="ArgumentException">A size is less than 1, or the heads do not divide the width.</exception>
    public SpatialBiasAttention(int width, int heads, double dropout = 0)
        : base(nameof(SpatialBiasAttention))
    {
        var headWidth = BiasedProjections.HeadWidth(width, heads, 0);
        (_width, _heads) = (width, heads);
        using var scope = NewDisposeScope();
        (to_q, to_k, to_v, to_out) = BiasedProjections.Make(width, width, dropout);
        pos_weight = nn.Linear(headWidth, 1, hasBias: false);
        RegisterComponents();
        foreach (var (name, parameter) in named_parameters())
        {
            if (name.EndsWith("weight", StringComparison.Ordinal))
            {
                Parameters.DrawNormal(parameter);
            }
            else
            {
                nn.init.zeros_(parameter);
            }
        }

        Parameters.Keep(this);
    }

    /// <summary>The hooks of the module's attention calls; null: none.</summary>
    public AttentionHooks? Hooks { get; set; }

    /// <summary>Where the module's attention calls stand in a model.</summary>
    public AttentionSite Site { get; init; }

    /// <summary>The output.</summary>
    /// <param name="input">Tokens <c>[B, N, C]</c>.</param>
    /// <param name="positions">Their points <c>[B, N, d]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The inputs have other shapes.</exception>
    public override Tensor forward(Tensor input, Tensor positions)
    {
        using var scope = NewDisposeScope();
        var options = new AttentionOptions { Biases = [Bias(input, positions)] };
        return BiasedProjections.Run(input, to_q, to_k, to_v, to_out, _heads, options, Site, Hooks).MoveToOuterDisposeScope();
    }

    /// <summary>The bias of the attention scores.</summary>
    /// <param name="input">Tokens <c>[B, N, C]</c>.</param>
    /// <param name="positions">Their points <c>[B, N, d]</c>.</param>
    /// <exception cref="ArgumentException">The inputs have other shapes.</exception>
    public LowRankBias Bias(Tensor input, Tensor positions)
    {
        BiasedProjections.Check(input, _width);
        ArgumentNullException.ThrowIfNull(positions);
        if (positions.dim() != 3 || positions.shape[0] != input.shape[0] || positions.shape[1] != input.shape[1])
        {
            throw new ArgumentException(
                $"Positions are [{input.shape[0]}, {input.shape[1]}, d], one point per token; {AttentionShape.Text(positions)} was given.", nameof(positions));
        }

        using var scope = NewDisposeScope();
        var weight = pos_weight.forward(BiasedProjections.Split(input, _heads)).squeeze(-1);
        // Distances do not care where the origin is, and float32 rounds least around the middle of the points.
        var points = positions - positions.mean([1L], keepdim: true);
        var bias = LowRankBiases.SquaredDistance(points, points, weight: weight);
        return new(bias.QueryFactors.MoveToOuterDisposeScope(), bias.KeyFactors.MoveToOuterDisposeScope());
    }
}
