using Heed.Layers;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>The gated convolution block (arXiv 2405.07992, section 3.3; 1612.08083): Mamba's block without its state-space model. <c>x + fc2(GELU(g) * [i, conv(c)])</c> with <c>g, i, c</c> split, in this order,
/// out of <c>fc1(norm(x))</c>: the activation gates the other branch, and only the last channels are convolved. Parameter names are the authors': <c>norm</c>, <c>fc1</c>, <c>conv</c>, <c>fc2</c>.</summary>
public sealed class GatedCnnBlock : GatedMixer
{
    private readonly LayerNorm norm;
    private readonly Linear fc1;
    private readonly Conv2d conv;
    private readonly nn.Module<Tensor, Tensor>? ssm;
    private readonly Linear fc2;
    private readonly DropPath _drop;
    private readonly int _width;
    private readonly int _hidden;
    private readonly int _convolved;

    /// <summary>Makes a block.</summary>
    /// <param name="width">Channels C, at least 1.</param>
    /// <param name="expansionRatio">Hidden channels over C; the product is truncated.</param>
    /// <param name="kernelSize">Side of the filters, odd.</param>
    /// <param name="convRatio">Convolved channels over C (not over the hidden ones); the product is truncated.</param>
    /// <param name="dropPath">Probability of leaving a sample's branch out in training.</param>
    /// <param name="scan">Makes what reads the convolved channels <c>[B, H, W, c]</c> after a SiLU, given c: a state-space model here makes the block Mamba's again. Null: nothing, the paper's block.</param>
    /// <exception cref="ArgumentException">The side is even, no channel would be convolved, or more than the hidden ones.</exception>
    public GatedCnnBlock(
        int width, double expansionRatio = 8 / 3.0, int kernelSize = 7, double convRatio = 1.0, double dropPath = 0, Func<int, nn.Module<Tensor, Tensor>>? scan = null)
        : base(nameof(GatedCnnBlock))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(width, 1);
        RequireOdd(kernelSize, $"A kernel size of {kernelSize}");
        (_width, _hidden, _convolved) = (width, (int)(expansionRatio * width), (int)(convRatio * width));
        if (_convolved < 1 || _convolved > _hidden)
        {
            throw new ArgumentException(
                $"{convRatio} x {width} = {_convolved} convolved channels must be at least 1 and at most the {expansionRatio:0.###} x {width} = {_hidden} hidden ones: change the ratios.", nameof(convRatio));
        }

        norm = nn.LayerNorm(width, 1e-6);
        fc1 = nn.Linear(width, 2 * _hidden);
        conv = nn.Conv2d(_convolved, _convolved, kernelSize, padding: kernelSize / 2, groups: _convolved);
        ssm = scan?.Invoke(_convolved);
        fc2 = nn.Linear(_hidden, width);
        _drop = new(dropPath);
        RegisterComponents();
        Parameters.Keep(this);
    }

    /// <summary>The block's output.</summary>
    /// <param name="input"><c>[B, H, W, C]</c>, channels last.</param>
    /// <returns><c>[B, H, W, C]</c>.</returns>
    /// <exception cref="ArgumentException">The input has another shape.</exception>
    public override Tensor forward(Tensor input)
    {
        ArgumentNullException.ThrowIfNull(input);
        if (input.dim() != 4 || input.shape[3] != _width)
        {
            throw new ArgumentException($"A gated convolution block takes maps [batch, height, width, {_width}], not [{string.Join(", ", input.shape)}].", nameof(input));
        }

        using var scope = NewDisposeScope();
        return (input + _drop.forward(Mix(input))).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override (Tensor Gate, Tensor Context) Branches(Tensor input)
    {
        var all = fc1.forward(norm.forward(input));
        var gate = nn.functional.gelu(all.narrow(3, 0, _hidden));
        var convolved = DepthwiseConvolution.Apply(all.narrow(3, (2 * _hidden) - _convolved, _convolved).permute(0, 3, 1, 2), conv.weight, conv.bias).permute(0, 2, 3, 1);
        if (ssm is not null)
        {
            convolved = ssm.forward(nn.functional.silu(convolved));
        }

        RecordLength("gate", gate);
        return (gate, _convolved == _hidden ? convolved : cat([all.narrow(3, _hidden, _hidden - _convolved), convolved], 3));
    }

    /// <inheritdoc/>
    protected override Tensor Output(Tensor gated) => fc2.forward(gated);
}
