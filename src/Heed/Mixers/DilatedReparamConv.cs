using Heed.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Heed.Mixers;

/// <summary>
/// A large depth-wise convolution that trains with parallel dilated small ones (UniRepLKNet's block, as OverLoCK uses it, arXiv 2502.20087): the sum of <c>BN(DWConv k x k)</c> and of <c>BN(DWConv)</c> for every branch of
/// <see cref="Branches"/>. In evaluation the sum is one k x k convolution with bias (<see cref="Merge"/>). Parameter names: <c>lk_origin</c>, <c>origin_bn</c>, <c>dil_conv_k{size}_{dilation}</c>,
/// <c>dil_bn_k{size}_{dilation}</c>; merged: <c>lk_origin</c> alone.
/// </summary>
public sealed class DilatedReparamConv : nn.Module<Tensor, Tensor>
{
    private const double NormEpsilon = 1e-5;

    private readonly DepthwiseConvolution2d lk_origin;
    private readonly List<(DepthwiseConvolution2d Convolution, BatchNorm2d Norm)> _branches = [];
    private readonly BatchNorm2d? _norm;

    /// <summary>Makes the module.</summary>
    /// <param name="channels">Number C of channels, at least 1.</param>
    /// <param name="kernelSize">Side k of the large filters: odd, 5 to 19.</param>
    /// <param name="deploy">Whether to make the merged form.</param>
    /// <exception cref="ArgumentException">There are no branches for the side.</exception>
    public DilatedReparamConv(long channels, int kernelSize, bool deploy = false)
        : base(nameof(DilatedReparamConv))
    {
        var branches = Branches(kernelSize);
        (Channels, KernelSize) = (channels, kernelSize);
        lk_origin = new(channels, kernelSize, hasBias: deploy);
        RegisterComponents();
        if (deploy)
        {
            return;
        }

        _norm = nn.BatchNorm2d(channels, NormEpsilon);
        register_module("origin_bn", _norm);
        foreach (var (size, dilation) in branches)
        {
            var (convolution, norm) = (new DepthwiseConvolution2d(channels, size, dilation, hasBias: false), nn.BatchNorm2d(channels, NormEpsilon));
            register_module($"dil_conv_k{size}_{dilation}", convolution);
            register_module($"dil_bn_k{size}_{dilation}", norm);
            _branches.Add((convolution, norm));
        }

        Parameters.Keep(this);
    }

    /// <summary>Number C of channels.</summary>
    public long Channels { get; }

    /// <summary>Side k of the large filters.</summary>
    public int KernelSize { get; }

    /// <summary>Whether this is the merged form.</summary>
    public bool IsMerged => _norm is null;

    /// <summary>Sides and dilations of the small filters that stand beside a large one.</summary>
    /// <param name="kernelSize">Side of the large filters.</param>
    /// <exception cref="ArgumentException">There are none for such a side.</exception>
    public static IReadOnlyList<(int Size, int Dilation)> Branches(int kernelSize) => kernelSize switch
    {
        5 => [(3, 1), (3, 2)],
        7 => [(5, 1), (3, 1), (3, 2), (3, 3)],
        9 => [(5, 1), (7, 1), (5, 2), (3, 3), (3, 4)],
        11 => [(5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)],
        13 => [(5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
        15 => [(5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)],
        17 => [(5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
        19 => [(5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
        _ => throw new ArgumentException($"A re-parameterised convolution has an odd side from 5 to 19, not {kernelSize}.", nameof(kernelSize)),
    };

    /// <inheritdoc/>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var sum = lk_origin.forward(input);
        if (_norm is not null)
        {
            sum = _norm.forward(sum);
            foreach (var (convolution, norm) in _branches)
            {
                sum = sum + norm.forward(convolution.forward(input));
            }
        }

        return sum.MoveToOuterDisposeScope();
    }

    /// <summary>The one convolution that the module is in evaluation: norms folded into filters, taps of dilated filters set apart by zeros, all added in the middle of the large filter.</summary>
    /// <returns>Filters <c>[C, 1, k, k]</c> and biases <c>[C]</c>, without gradient.</returns>
    public (Tensor Weight, Tensor Bias) Merge()
    {
        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        if (_norm is null)
        {
            return (lk_origin.Weight.detach().clone().MoveToOuterDisposeScope(), lk_origin.Bias!.detach().clone().MoveToOuterDisposeScope());
        }

        var (weight, bias) = Folded(lk_origin.Weight, _norm);
        foreach (var ((size, dilation), (convolution, norm)) in Branches(KernelSize).Zip(_branches))
        {
            var (small, offset) = Folded(convolution.Weight, norm);
            var spread = ((size - 1) * dilation) + 1;
            var first = (KernelSize - spread) / 2;
            var taps = TensorIndex.Slice(first, first + spread, dilation);
            weight[TensorIndex.Ellipsis, taps, taps] += small;
            bias += offset;
        }

        return (weight.MoveToOuterDisposeScope(), bias.MoveToOuterDisposeScope());
    }

    /// <summary>Takes over what another module computes in evaluation. Only for the merged form.</summary>
    /// <param name="trained">A module of the same channels and side, merged or not.</param>
    /// <exception cref="InvalidOperationException">This is not the merged form.</exception>
    /// <exception cref="ArgumentException">The other module has another shape.</exception>
    public void TakeMerged(DilatedReparamConv trained)
    {
        ArgumentNullException.ThrowIfNull(trained);
        if (!IsMerged)
        {
            throw new InvalidOperationException("Only the merged form takes merged filters: make the module with deploy = true.");
        }

        if (trained.Channels != Channels || trained.KernelSize != KernelSize)
        {
            throw new ArgumentException(
                $"The trained convolution has {trained.Channels} channels and side {trained.KernelSize}, this one {Channels} and {KernelSize}.", nameof(trained));
        }

        using var scope = NewDisposeScope();
        using var quiet = no_grad();
        var (weight, bias) = trained.Merge();
        lk_origin.Weight.copy_(weight);
        lk_origin.Bias!.copy_(bias);
    }

    private static (Tensor Weight, Tensor Bias) Folded(Tensor weight, BatchNorm2d norm)
    {
        using Scalar epsilon = NormEpsilon;
        var factor = norm.weight! / (norm.running_var! + epsilon).sqrt();
        return (weight * factor.view(-1, 1, 1, 1), norm.bias! - (norm.running_mean! * factor));
    }
}
