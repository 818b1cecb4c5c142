using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>Linear attention (arXiv 2006.16236, equation 5 with <c>phi(x) = elu(x) + 1</c>): <c>phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K))</c>. O(N D^2); no softmax, so no map that could be sharp. What mechanisms of linear
/// cost are compared with. Parameters <c>qkv</c> and <c>proj</c>.</summary>
public sealed class LinearAttention : nn.Module<Tensor, Tensor>
{
    private readonly Linear qkv;
    private readonly Linear proj;
    private readonly int _width;
    private readonly int _heads;

    /// <summary>Makes a layer.</summary>
    /// <param name="width">Width C of a token, a multiple of the heads.</param>
    /// <param name="heads">Heads, from 1.</param>
    /// <exception cref="ArgumentException">The heads do not divide the width.</exception>
    public LinearAttention(int width, int heads)
        : base(nameof(LinearAttention))
    {
        if (width < 1 || heads < 1 || width % heads != 0)
        {
            throw new ArgumentException($"The number of heads divides the width; {heads} heads and width {width} were given.", nameof(heads));
        }

        (_width, _heads) = (width, heads);
        (qkv, proj) = (nn.Linear(width, 3 * width), nn.Linear(width, width));
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The operator.</summary>
    /// <param name="query"><c>[B, H, N, D]</c>.</param>
    /// <param name="key"><c>[B, H, M, D]</c>.</param>
    /// <param name="value"><c>[B, H, M, Dv]</c>.</param>
    /// <returns><c>[B, H, N, Dv]</c>.</returns>
    public static Tensor Compute(Tensor query, Tensor key, Tensor value)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
        using var scope = NewDisposeScope();
        using Scalar one = 1;
        var (q, k) = (nn.functional.elu(query, 1.0).add(one), nn.functional.elu(key, 1.0).add(one));
        var mixed = matmul(q, matmul(k.transpose(-1, -2), value));
        return (mixed / matmul(q, k.sum(-2).unsqueeze(-1))).MoveToOuterDisposeScope();
    }

    /// <summary>The layer's output.</summary>
    /// <param name="input"><c>[B, N, C]</c>.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[2] != _width)
        {
            throw new ArgumentException($"The input must be [batch, tokens, {_width}], not {AttentionShape.Text(input)}.", nameof(input));
        }

        using var scope = NewDisposeScope();
        var parts = qkv.forward(input).chunk(3, -1);
        Tensor Split(Tensor tokens) => tokens.view(tokens.shape[0], tokens.shape[1], _heads, -1).transpose(1, 2);
        return proj.forward(Compute(Split(parts[0]), Split(parts[1]), Split(parts[2])).transpose(1, 2).reshape(input.shape)).MoveToOuterDisposeScope();
    }
}
