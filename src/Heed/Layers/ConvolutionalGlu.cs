using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Layers;

/// <summary>The gated perceptron whose gate sees its neighbours (TransNeXt, arXiv 2311.17132, section 3.3): <c>fc2(GELU(dwconv(a)) * v)</c> with <c>[a | v] = fc1(x)</c> and a depth-wise 3 x 3 convolution over the picture that the tokens
/// are. Parameter names: <c>fc1</c>, <c>dwconv.dwconv</c>, <c>fc2</c>.</summary>
public sealed class ConvolutionalGlu : nn.Module<Tensor, Tensor>
{
    private readonly (int Rows, int Columns) _grid;
    private readonly Linear fc1;
    private readonly TokenConvolution dwconv;
    private readonly Linear fc2;

    /// <summary>Makes the module.</summary>
    /// <param name="width">Width C of a token, at least 1.</param>
    /// <param name="hidden">Width of a and of v, at least 1. The authors take two thirds of a perceptron's.</param>
    /// <param name="rows">Rows of the picture.</param>
    /// <param name="columns">Columns of the picture.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is below 1.</exception>
    public ConvolutionalGlu(int width, int hidden, int rows, int columns)
        : base(nameof(ConvolutionalGlu))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(hidden, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(rows, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(columns, 1);
        _grid = (rows, columns);
        fc1 = nn.Linear(width, 2 * hidden);
        dwconv = new(hidden);
        fc2 = nn.Linear(hidden, width);
        RegisterComponents();
        Parameters.Keep(this);
        Parameters.InitializeNormal(this, false);
    }

    /// <summary>The output.</summary>
    /// <param name="input"><c>[B, N, C]</c>, N the positions of the picture, row by row.</param>
    /// <returns><c>[B, N, C]</c>.</returns>
    /// <exception cref="ArgumentException">There are not as many tokens as positions.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 3 || input.shape[1] != (long)_grid.Rows * _grid.Columns)
        {
            throw new ArgumentException($"The input must be [batch, {_grid.Rows} x {_grid.Columns} tokens, width], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        var parts = fc1.forward(input).chunk(2, -1);
        return fc2.forward(nn.functional.gelu(dwconv.forward(parts[0], _grid.Rows, _grid.Columns)) * parts[1]).MoveToOuterDisposeScope();
    }

    /// <summary>A depth-wise 3 x 3 convolution over tokens, with the authors' nesting of names.</summary>
    private sealed class TokenConvolution : nn.Module
    {
        private readonly Conv2d dwconv;

        public TokenConvolution(int width)
            : base(nameof(TokenConvolution))
        {
            dwconv = nn.Conv2d(width, width, 3, padding: 1, groups: width);
            RegisterComponents();
        }

        public Tensor forward(Tensor tokens, int rows, int columns)
        {
            using var scope = NewDisposeScope();
            var map = tokens.view(tokens.shape[0], rows, columns, -1).permute(0, 3, 1, 2);
            return DepthwiseConvolution.Apply(map, dwconv.weight!, dwconv.bias).flatten(2).transpose(1, 2).MoveToOuterDisposeScope();
        }
    }
}
